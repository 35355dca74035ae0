"""Saving what was trained, and loading it over the same matrix, in either framework (SPEC S7)."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core import storage
from maskedlinear_core.arrays import to_numpy
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.storage import Numbers, Stored
from maskedlinear_jax import packing
from maskedlinear_jax.convert import _is_layer
from maskedlinear_jax.module import MaskedLinear
from maskedlinear_jax.packed_module import PackedLinear


def save_packed(path: str | os.PathLike[str], model: Any) -> int:
    """Store masks, packed values and biases of the masked layers of a model in one file.

    The file costs the trainable share of a checkpoint: the values, and about a byte per value for elements at
    one in a hundred, next to nothing for the other kinds. `load_packed` of either framework reads it.

    Args:
        path: Of a safetensors file, written wholly or not at all.
        model: A pytree that contains `MaskedLinear` or `PackedLinear` layers, or is one.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: The model has no such layer.
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
    layers = {name: node for name, node in _nodes(model)[0].items() if _is_layer(node)}
    if not layers:
        storage_checks.refuse_empty()
    return storage.write(path, {name: _stored(layer) for name, layer in layers.items()})


def load_packed(path: str | os.PathLike[str], model: Any) -> Any:
    """Return a model with stored masks, values and biases, over the matrix they were trained on.

    Every layer is checked first. A `MaskedLinear` of the stored name becomes a `PackedLinear` if that was stored,
    and the other way round.

    Args:
        path: Of a file that `save_packed` of either framework wrote.
        model: A pytree that contains layers of the stored names, or is the layer.

    Returns:
        The new model; the old one is untouched.

    Raises:
        StorageError: A damaged, truncated or foreign file; a layer that is missing, of another shape or dtype, or
            whose frozen entries are not those the values were trained over. It is a ValueError.
        OSError: The file cannot be read.
    """
    stored = storage.read(path)
    nodes, structure = _nodes(model)
    for name, layer in stored.items():
        _check(name, layer, nodes.get(name))
    filled = {name: _filled(nodes[name], layer) for name, layer in stored.items()}
    return jax.tree.unflatten(structure, [filled.get(name, node) for name, node in nodes.items()])


def _nodes(model: Any) -> tuple[dict[str, Any], Any]:
    found, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_layer)
    named = ((jax.tree_util.keystr(path, simple=True, separator="."), node) for path, node in found)
    return convert_checks.by_name(named), structure


def _stored(layer: Any) -> Stored:
    packed = isinstance(layer, PackedLinear)
    shape = (layer.out_features, layer.in_features)
    mask = layer.grad_mask.packed(shape)
    matrix = _bits(layer.base if packed else layer.weight)
    values = layer.values if packed else packing.pack(layer.weight, grad_mask=mask)
    return Stored(
        "packed" if packed else "masked", mask, shape, matrix.dtype, storage.fingerprint(matrix, mask), _bits(values),
        None if layer.bias is None else _bits(layer.bias),
        None if layer.bias_mask is None else to_numpy(layer.bias_mask),
    )  # fmt: skip


def _check(name: str, stored: Stored, module: Any) -> None:
    if not _is_layer(module):
        got = "no such layer" if module is None else type(module).__name__
        storage_checks.refuse_layer(name, "a linear layer of that name", got)
    matrix = _bits(module.base if isinstance(module, PackedLinear) else module.weight)
    storage.check_fits(name, stored, matrix, has_bias=module.bias is not None)


def _filled(module: Any, stored: Stored) -> Any:
    values = _array(stored.values)
    bias = None if stored.bias is None else _array(stored.bias)
    # A layer of an adapter stays one.
    kind: Any = PackedLinear if stored.form == "packed" else MaskedLinear
    kind = type(module) if isinstance(module, kind) else kind
    matrix = module.base if isinstance(module, PackedLinear) else module.weight
    if stored.form == "masked":
        matrix = packing.unpack(matrix, values, grad_mask=stored.mask)
    plain = MaskedLinear.tree_unflatten(module.precision, (matrix, bias, stored.mask, None))
    filled = kind.from_linear(
        plain, grad_mask=stored.mask, bias_mask=stored.bias_mask, precision=module.precision
    )  # fmt: skip
    return filled.replace(values=values) if stored.form == "packed" else filled


def _bits(array: Array) -> Numbers:
    values = np.asarray(array)
    return Numbers(values.view(f"u{values.itemsize}"), values.dtype.name)


def _array(numbers: Numbers) -> Array:
    return jnp.asarray(numbers.bits.view(jnp.dtype(numbers.dtype)))
