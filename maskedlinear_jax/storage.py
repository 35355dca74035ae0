"""Saving what was trained, and loading it over the same matrix, in either framework (contract S7, S8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core import files, storage
from maskedlinear_core.annotations import Rename, Source, Target
from maskedlinear_core.arrays import dtype_name, to_numpy
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.precision import Native
from maskedlinear_core.stored import (
    Contents,
    Numbers,
    Stored,
    check_fits,
    check_positions,
    fingerprint,
    free_name,
    positions_mark,
    renamed,
    renaming,
    sent,
)
from maskedlinear_jax import marks, packing
from maskedlinear_jax.bits import as_bits
from maskedlinear_jax.convert import OWN, Form, has_weight, not_of_flax
from maskedlinear_jax.module import MaskedLinear, _is_float, beside
from maskedlinear_jax.packed_module import PackedLinear
from maskedlinear_jax.stacked import depth


def save_packed(path: Target, model: Any, *, with_base: bool = False) -> int:
    """Store everything that learns in a model in one file: nothing that training moved is left out.

    The file holds the masks, packed values and biases of the masked layers, and every other array of floats in the
    model. Its size is the trainable share of a checkpoint, and the positions: about a byte per value for elements at
    one in a hundred, next to nothing for the other kinds. `load_packed` of either framework reads it. With
    `mask_linears(..., freeze_others=True)` the other arrays are constants, and are not stored.

    A file is loaded over the matrices that the layers were made with. If `repack` froze entries that a packed layer had
    learned, its matrix is stored as well, and the file is larger. Use `with_base=True` in three cases that a layer
    cannot notice: the mask of a `MaskedLinear` was changed in training, an optimizer without `hold_frozen` moved its
    frozen entries, or nothing of a repacked layer learns any more.

    Args:
        path: Path of a safetensors file, written wholly or not at all; or a file that is open for writing bytes.
        model: A pytree that contains `MaskedLinear` or `PackedLinear` layers, or is one.
        with_base: Store the matrices as well, so that the layers can be made from the file alone.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: The model has no such layer, or something in it learns whose dtype cannot be stored.
        OSError: The file cannot be written; what was there is as it was.
        ImportError: safetensors is missing (the extra `storage`).

    Example:
        >>> import tempfile
        >>> from maskedlinear_jax import columns
        >>> trained = PackedLinear(4, 2, grad_mask=columns([1]), seed=0)
        >>> trained = trained.replace(values=trained.values + 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_packed(f"{folder}/layer.safetensors", trained)
        ...     again = load_packed(f"{folder}/layer.safetensors", PackedLinear(4, 2, grad_mask=columns([0]), seed=0))
        >>> bool((again.weight == trained.weight).all()), again.grad_mask
        (True, columns([1]))
    """
    files.check_target(path)
    data = packed_bytes(model, with_base=with_base)
    files.write(path, data)
    return len(data)


def packed_bytes(model: Any, *, with_base: bool = False) -> bytes:
    """Return what `save_packed` writes.

    Args:
        model: As for `save_packed`.
        with_base: As for `save_packed`.

    Raises:
        ValueError, ImportError: As `save_packed`.

    Example:
        >>> from maskedlinear_jax import columns
        >>> layer = PackedLinear(4, 2, grad_mask=columns([1]), seed=0)
        >>> load_packed(packed_bytes(layer), PackedLinear(4, 2, grad_mask=columns([0]), seed=0)).grad_mask
        columns([1])
    """
    layers = _layers(model)
    stored = {name: _stored(layer, with_base or _is_another(layer)) for name, layer in layers.items()}
    return storage.to_bytes(Contents(stored, {name: _bits(leaf) for name, leaf in _others(model).items()}))


def packed_arrays(model: Any) -> dict[str, np.ndarray]:
    """Return everything that learns in a model as NumPy arrays by name, and no matrix: what a client sends.

    `load_packed` takes them back, from a model of the same masks in either framework, and refuses those of other masks.
    What learned before its mask changed, and is frozen now, lies in the matrix and is not sent: `packed_bytes` has it.

    Args:
        model: As for `save_packed`.

    Returns:
        "<layer>.values", packed, and "<layer>.bias", its trainable entries, of each masked layer; other arrays of
        floats by their own names. bfloat16 comes as float32, which holds it exactly. "<layer>.positions" are eight
        numbers from 0 to 1 that tell the masks apart; averages of equal ones are equal.

    Raises:
        ValueError: The model has no masked layer.

    Example:
        >>> from maskedlinear_jax import columns
        >>> model = {"in": PackedLinear(4, 2, grad_mask=columns([1]), seed=0), "scale": jnp.ones(2)}
        >>> {name: array.shape for name, array in packed_arrays(model).items()}
        {'in.values': (2, 1), 'in.bias': (2,), 'scale': (2,), 'in.positions': (8,)}
    """
    learned = _learned(model)
    return {name: to_numpy(array).copy() for name, array in learned.items()} | _positions(model, learned)


def load_packed(
    path: Source,
    model: Any = None,
    *,
    rename: Rename = None,
) -> Any:
    """Return a model with everything that was stored, over the matrices it was trained on.

    Everything is checked first. A `MaskedLinear` of the stored name becomes a `PackedLinear` if that was stored,
    and the other way round.

    Args:
        path: Path of a file that `save_packed` of either framework wrote; or that file, open for reading bytes; or its
            bytes; or the arrays of `packed_arrays`, for a model that has their masks.
        model: A pytree that contains layers and arrays of the stored names, or is the layer. None: make the layers of
            the file alone, which must hold their matrices (`with_base=True`).
        rename: Stored name: name in the model, or a function of a stored name. A name stands for all that is in it:
            {"encoder": "model.encoder"}.

    Returns:
        The new model; the old one is untouched. Without a model a dict of the layers, and of the other arrays, by name.

    Raises:
        StorageError: A damaged, truncated or foreign file; a part that is missing, of another shape or dtype, or
            a layer whose frozen entries are not those the values were trained over. It is a ValueError.
        OSError: The file cannot be read.
    """
    return load(path, model, rename, OWN.forms)


def load(path: Any, model: Any, rename: Any, forms: tuple[Form, ...]) -> Any:
    """Load as `load_packed` does, into a model of the layers of one library."""
    if isinstance(path, Mapping):
        return _load_arrays(path, model, rename)
    contents = renamed(storage.from_bytes(files.read(path)), rename)
    if model is None:
        others = {name: _array(numbers) for name, numbers in contents.others.items()}
        return {name: _alone(name, stored) for name, stored in contents.layers.items()} | others
    not_of_flax(model, "load_packed")
    nodes, structure = _nodes(model)
    for name, layer in contents.layers.items():
        _check(name, layer, nodes.get(name))
    for name, numbers in contents.others.items():
        _check_other(name, numbers, nodes.get(name))
    filled = {name: _filled(nodes[name], layer, forms) for name, layer in contents.layers.items()}
    filled |= {name: _array(numbers) for name, numbers in contents.others.items()}
    return jax.tree.unflatten(structure, [filled.get(name, node) for name, node in nodes.items()])


def _nodes(model: Any) -> tuple[dict[str, Any], Any]:
    found, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=has_weight)
    named = ((jax.tree_util.keystr(path, simple=True, separator="."), node) for path, node in found)
    return convert_checks.by_name(named), structure


def _layers(model: Any, function: str = "save_packed") -> dict[str, Any]:
    not_of_flax(model, function)
    layers = {name: node for name, node in _nodes(model)[0].items() if has_weight(node)}
    if not layers:
        storage_checks.refuse_empty(function)
    for name, layer in layers.items():
        if depth(layer):
            storage_checks.refuse_stacked(name)
        if names := list(beside(layer)):
            storage_checks.refuse_beside(name, type(layer).__name__, names)
    return layers


def _others(model: Any) -> dict[str, Any]:
    # What else training may have moved: leaves of floats that are no constants.
    return {name: node for name, node in _nodes(model)[0].items() if _is_float(node)}


def _stored(layer: Any, with_base: bool) -> Stored:
    packed = isinstance(layer, PackedLinear)
    shape = (layer.out_features, layer.in_features)
    mask = layer.grad_mask.packed(shape)
    matrix = _bits(layer.base if packed else layer.weight)
    values = layer.values if packed else packing.pack(layer.weight, grad_mask=mask)
    return Stored(
        "packed" if packed else "masked", mask, shape, matrix.dtype, fingerprint(matrix, mask), _bits(values),
        None if layer.bias is None else _bits(layer.bias),
        None if layer.bias_mask is None else to_numpy(layer.bias_mask),
        matrix if with_base else None,
    )  # fmt: skip


def _check(name: str, stored: Stored, module: Any) -> None:
    if not has_weight(module):
        got = storage_checks.NO_LAYER if module is None else type(module).__name__
        storage_checks.refuse_layer(name, "a linear layer of that name", got)
    matrix = _bits(module.base if isinstance(module, PackedLinear) else module.weight)
    check_fits(name, stored, matrix, has_bias=module.bias is not None)


def _check_other(name: str, numbers: Numbers, target: Any) -> None:
    expected = f"an array of {numbers.dtype} and shape {tuple(numbers.bits.shape)}"
    if not hasattr(target, "shape"):
        storage_checks.refuse_other(name, expected, "none of that name")
    if tuple(target.shape) != numbers.bits.shape or dtype_name(target) != numbers.dtype:
        storage_checks.refuse_other(name, expected, f"one of {dtype_name(target)} and shape {tuple(target.shape)}")


def _alone(name: str, stored: Stored) -> Any:
    if stored.base is None:
        storage_checks.refuse_layer_alone(name)
    plain = MaskedLinear.tree_unflatten(Native(), (_array(stored.base), None, stored.mask, None))
    return _filled(plain, stored, OWN.forms, is_alone=True)


def _filled(module: Any, stored: Stored, forms: tuple[Form, ...], *, is_alone: bool = False) -> Any:
    values = _array(stored.values)
    bias = None if stored.bias is None else _array(stored.bias)
    kind = _kind(module, stored.form == "packed", forms)
    matrix = module.base if isinstance(module, PackedLinear) else module.weight
    matrix = matrix if stored.base is None else _array(stored.base)
    if stored.form == "masked":
        matrix = packing.unpack(matrix, values, grad_mask=stored.mask)
    plain = MaskedLinear.tree_unflatten(module.precision, (matrix, bias, stored.mask, None))
    filled = kind.from_linear(
        plain, grad_mask=stored.mask, bias_mask=stored.bias_mask, precision=module.precision
    )  # fmt: skip
    if stored.form != "packed":
        return filled
    if stored.base is not None and (is_alone or not _has_bits(module, stored.base)):
        # The next file must hold it too: the model that this one goes over has another.
        filled = filled.replace(base_bits=as_bits(marks.marked(filled.base, stored.mask)))
    return filled.replace(values=values)


def _is_another(layer: Any) -> bool:
    return isinstance(layer, PackedLinear) and bool(marks.is_marked(layer.base, layer.grad_mask))


def _has_bits(module: Any, base: Numbers) -> bool:
    matrix = module.base if isinstance(module, PackedLinear) else module.weight
    return np.array_equal(_bits(matrix).bits, base.bits)


def _kind(module: Any, packed: bool, forms: tuple[Form, ...]) -> Any:
    # A layer of a library stays one, and an embedding an embedding.
    for form in forms:
        if type(module) in (form.masked, form.packed):
            return form.packed if packed else form.masked
    own = PackedLinear if packed else MaskedLinear
    return type(module) if isinstance(module, own) else own


def _learned(model: Any, function: str = "save_packed") -> dict[str, Any]:
    # By name, what learns and nothing else.
    found: dict[str, Any] = {}
    for name, layer in _layers(model, function).items():
        dot = f"{name}." if name else ""
        packed = isinstance(layer, PackedLinear)
        found[f"{dot}values"] = layer.values if packed else packing.pack(layer.weight, grad_mask=layer.grad_mask)
        bias = layer.bias_values if packed else layer.bias
        if bias is not None:
            whole = packed or layer.bias_mask is None
            found[f"{dot}bias"] = bias if whole else bias[np.flatnonzero(to_numpy(layer.bias_mask))]
    others = _others(model)
    storage_checks.names_apart(found, others)
    return {name: array for name, array in (found | others).items() if array.size}


def _positions(model: Any, learned: Mapping[str, Any]) -> dict[str, np.ndarray]:
    # By name, what tells the masks apart of the layers of which something learns.
    found: dict[str, np.ndarray] = {}
    for name, layer in _layers(model).items():
        dot, shape = f"{name}." if name else "", (layer.out_features, layer.in_features)
        if any(one in learned and learned[one].size for one in (f"{dot}values", f"{dot}bias")):
            bias_mask = None if layer.bias_mask is None else to_numpy(layer.bias_mask)
            mark = free_name(f"{dot}positions", learned)
            found[mark] = positions_mark(layer.grad_mask.packed(shape), shape, bias_mask)
    return found


def _load_arrays(arrays: Mapping[str, Any], model: Any, rename: Any) -> Any:
    if rename is not None:
        to = renaming(list(arrays), rename)
        storage_checks.one_name_each(to)
        arrays = {to[name]: array for name, array in arrays.items()}
    arrays = sent(arrays)
    learned = _learned(model, "load_packed")
    positions = _positions(model, learned)
    storage_checks.names("load_packed", [*learned, *positions], list(arrays))
    for name, own in positions.items():
        check_positions(name, arrays[name], own)
    new: dict[str, Array] = {}
    for name, now in learned.items():
        array = arrays[name]
        storage_checks.array(name, array.shape, array.dtype.name, tuple(now.shape))
        new[name] = jnp.asarray(array).astype(now.dtype)
    nodes, structure = _nodes(model)
    for name, node in nodes.items():
        dot = f"{name}." if name else ""
        if isinstance(node, PackedLinear):
            values, bias = new.get(f"{dot}values", node.values), new.get(f"{dot}bias", node.bias_values)
            nodes[name] = node.replace(values=values, bias_values=bias)
        elif isinstance(node, MaskedLinear):
            weight, bias = node.weight, new.get(f"{dot}bias", node.bias)
            if f"{dot}values" in new:
                weight = packing.unpack(weight, new[f"{dot}values"], grad_mask=node.grad_mask)
            if f"{dot}bias" in new and node.bias is not None and node.bias_mask is not None:
                bias = node.bias.at[np.flatnonzero(to_numpy(node.bias_mask))].set(bias)
            nodes[name] = node.replace(weight=weight, bias=bias)
    return jax.tree.unflatten(
        structure, [new.get(name, node) if _is_float(node) else node for name, node in nodes.items()]
    )


def _bits(array: Array) -> Numbers:
    values = np.asarray(array)
    storage_checks.dtype("an array", values.dtype.name, storage.DTYPES)
    return Numbers(values.view(f"u{values.itemsize}"), values.dtype.name)


def _array(numbers: Numbers) -> Array:
    return jnp.asarray(numbers.bits.view(jnp.dtype(numbers.dtype)))
