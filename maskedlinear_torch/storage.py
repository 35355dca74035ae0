"""Saving what was trained, and loading it over the same matrix, in either framework (contract S7, S8)."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from maskedlinear_core import files, storage
from maskedlinear_core.annotations import Rename, Source, Target
from maskedlinear_core.arrays import dtype_name, to_numpy
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.stored import (
    Contents,
    Numbers,
    Stored,
    check_fits,
    check_positions,
    fingerprint,
    free_name,
    parts_mark,
    positions_mark,
    renamed,
    renaming,
    sent,
)
from maskedlinear_torch import _compat, conv1d, packing, steps
from maskedlinear_torch.attention import MaskedMultiheadAttention
from maskedlinear_torch.convert import Model, _replace, mask_linears
from maskedlinear_torch.held_module import HeldModule
from maskedlinear_torch.module import Layer, MaskedLinear
from maskedlinear_torch.origin import Origin
from maskedlinear_torch.packed_attention import PackedMultiheadAttention, in_projections, projection_masks
from maskedlinear_torch.packed_module import PackedLinear
from maskedlinear_torch.parameter import MaskedParameter
from maskedlinear_torch.tensors import as_bits

_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def save_packed(path: Target, model: nn.Module, *, with_base: bool = False) -> int:
    """Store everything that learns in a model in one file: nothing that training moved is left out.

    The file holds the masks, packed values and biases of the masked layers, every other parameter that requires a
    gradient, and the buffers of the state_dict, such as the running statistics of BatchNorm. Its size is the trainable
    share of a checkpoint, and the positions: about a byte per value for elements at one in a hundred, next to nothing
    for the other kinds. `load_packed` of either framework reads it. A parameter that takes no gradient is not stored
    (`mask_linears(..., freeze_others=True)`).

    A file is loaded over the matrices that the layers were made with. If frozen entries of a layer have changed since
    (moved by an optimizer without `hold_frozen`, rounded by an average or by `.half().float()`, written to, or trained
    before another mask froze them), its matrix is stored as well, and the file is larger.

    Args:
        path: Path of a safetensors file, written wholly or not at all; or a file that is open for writing bytes.
        model: Contains `MaskedLinear` or `PackedLinear` layers, or is one.
        with_base: Store the matrices as well, so that the layers can be made from the file alone.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: The model has no such layer, or something in it learns whose dtype cannot be stored.
        OSError: The file cannot be written; what was there is as it was.
        ImportError: safetensors is missing (the extra `storage`).

    Example:
        >>> import tempfile
        >>> from maskedlinear_torch import columns
        >>> trained = PackedLinear(4, 2, grad_mask=columns([1]), seed=0)
        >>> with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        ...     _ = trained.values.add_(1.0)
        ...     size = save_packed(f"{folder}/layer.safetensors", trained)
        ...     again = load_packed(f"{folder}/layer.safetensors", PackedLinear(4, 2, grad_mask=columns([0]), seed=0))
        >>> torch.equal(again.weight, trained.weight), again.grad_mask
        (True, columns([1]))
    """
    files.check_target(path)
    data = packed_bytes(model, with_base=with_base)
    files.write(path, data)
    return len(data)


def packed_bytes(model: nn.Module, *, with_base: bool = False) -> bytes:
    """Return what `save_packed` writes.

    Args:
        model: As for `save_packed`.
        with_base: As for `save_packed`.

    Raises:
        ValueError, ImportError: As `save_packed`.

    Example:
        >>> from maskedlinear_torch import columns
        >>> layer = PackedLinear(4, 2, grad_mask=columns([1]), seed=0)
        >>> load_packed(packed_bytes(layer), nn.Linear(4, 2).requires_grad_(False).to(torch.float64))
        Traceback (most recent call last):
        ...
        maskedlinear_core.checks.storage.StorageError: stored layers: the layer: expected a weight of float32, got \
float64; load into the model that the values were trained on. Nothing was changed
    """
    layers = _layers(model)
    stored = {name: _stored(layer, with_base or layer._origin.look(layer)) for name, layer in layers.items()}
    others = {name: _bits(tensor) for name, tensor in _others(model, layers).items()}
    return storage.to_bytes(Contents(stored, others))


def packed_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return everything that learns in a model as NumPy arrays by name, and no matrix: what a client sends.

    `load_packed` takes them back, from a model of the same masks in either framework, and refuses those of other masks.
    What learned before its mask changed, and is frozen now, lies in the matrix and is not sent: `packed_bytes` has it.

    Args:
        model: As for `save_packed`.

    Returns:
        "<layer>.values", packed, and "<layer>.bias", its trainable entries, of each masked layer; other parameters
        that require a gradient and buffers by their own names. bfloat16 comes as float32, which holds it exactly.
        "<layer>.positions" are eight numbers from 0 to 1 that tell the masks apart; averages of equal ones are equal.

    Raises:
        ValueError: The model has no masked layer.

    Example:
        >>> from maskedlinear_torch import columns
        >>> model = nn.Sequential(PackedLinear(4, 2, grad_mask=columns([1]), seed=0), nn.Linear(2, 1, bias=False))
        >>> {name: array.shape for name, array in packed_arrays(model).items()}
        {'0.values': (2, 1), '0.bias': (2,), '1.weight': (1, 2), '0.positions': (8,)}
    """
    learned = _learned(model)
    arrays = {name: to_numpy(tensor.detach()).copy() for name, tensor in learned.items()}
    return arrays | _positions(model, learned)


@overload
def load_packed(path: Source, model: None = ..., *, rename: Rename = ...) -> dict[str, Any]: ...
@overload
def load_packed(path: Source, model: nn.Linear | nn.Embedding, *, rename: Rename = ...) -> Any: ...
@overload
def load_packed(path: Source, model: Model, *, rename: Rename = ...) -> Model: ...
def load_packed(
    path: Source,
    model: nn.Module | None = None,
    *,
    rename: Rename = None,
) -> Any:
    """Load everything that was stored into a model, in place, over the matrices it was trained on.

    All or nothing: everything is checked first. A plain `torch.nn.Linear` of the stored name becomes a
    `PackedLinear` (or `MaskedLinear`, if that was stored), with its hooks; what `mask_linears` refuses is refused.
    Which other parameters require a gradient stays as it is: to train on, freeze them again.

    Args:
        path: Path of a file that `save_packed` of either framework wrote; or that file, open for reading bytes; or its
            bytes; or the arrays of `packed_arrays`, for a model that has their masks.
        model: Contains layers and parameters of the stored names, or is the layer. None: make the layers of the file
            alone, which must hold their matrices (`with_base=True`).
        rename: Stored name: name in the model, or a function of a stored name. A name stands for all that is in it:
            {"encoder": "model.encoder"}.

    Returns:
        The model; if it is itself a plain layer, what replaces it. Without a model a dict of the layers, and of the
        other tensors, by name.

    Raises:
        StorageError: A damaged, truncated or foreign file; a part that is missing, of another shape or dtype, or
            a layer whose frozen entries are not those the values were trained over. It is a ValueError.
        TypeError, ValueError: A layer that `mask_linears` refuses.
        OSError: The file cannot be read.
    """
    if model is not None and not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model, function="load_packed")
    if isinstance(path, Mapping):
        return _load_arrays(path, model, rename)
    contents = renamed(storage.from_bytes(files.read(path)), rename)
    if model is None:
        others = {name: _tensor(numbers) for name, numbers in contents.others.items()}
        return {name: _alone(name, stored) for name, stored in contents.layers.items()} | others
    targets = _named_tensors(model)
    for name, numbers in contents.others.items():
        _check_other(name, numbers, targets.get(name))
    before = dict(model.named_modules())
    known = before | in_projections(model)
    for name, layer in contents.layers.items():
        _check_shape(name, layer, known.get(name))
    try:
        model = _converted(model, contents.layers)
        modules = dict(model.named_modules())
        for name, layer in contents.layers.items():
            _check(name, layer, modules[name])
    except BaseException:
        now = dict(model.named_modules())
        _replace(model, {id(now[name]): module for name, module in before.items() if now.get(name) is not module})
        raise
    for name, layer in contents.layers.items():
        _fill(modules[name], layer)
    for name, module in modules.items():
        if (
            isinstance(module, PackedMultiheadAttention)
            and ".".join(filter(None, (name, "in_proj"))) in contents.layers
        ):
            module.read_masks()
    with torch.no_grad():
        for name, numbers in contents.others.items():
            targets[name].copy_(_tensor(numbers))
    return model


def _layers(model: Any, function: str = "save_packed") -> dict[str, Any]:
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model, function=function)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    if not any(isinstance(module, HeldModule) for module in model.modules()):
        storage_checks.refuse_empty(function)
    for name, tensor in _named_tensors(model).items():
        if tensor.is_meta and (tensor.requires_grad or name.rpartition(".")[0] in layers):
            storage_checks.refuse_meta(name)
    return layers


def _others(model: nn.Module, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    # What else training may have moved: parameters that require a gradient, and the state_dict's buffers.
    own = {True: ("base", "values", "bias_values", "bias_base"), False: ("weight", "bias")}
    known = {id(layer._parameters.get(name)) for layer in layers.values() for name in own[layer._is_packed]}
    found = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in known}
    return found | _compat.persistent_buffers(model)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | _compat.persistent_buffers(model)


def _stored(layer: Any, with_base: bool) -> Stored:
    packed = isinstance(layer, PackedLinear)
    shape = (layer.out_features, layer.in_features)
    mask = layer.grad_mask.packed(shape)
    matrix = _bits(_matrix(layer))
    values = layer.values if packed else packing.pack(_matrix(layer), grad_mask=mask)
    return Stored(
        "packed" if packed else "masked", mask, shape, matrix.dtype, fingerprint(matrix, mask), _bits(values),
        None if layer.bias is None else _bits(layer.bias), layer.bias_mask, matrix if with_base else None,
    )  # fmt: skip


def _check_shape(name: str, stored: Stored, module: Any) -> None:
    # Before anything is made for a layer.
    weight = getattr(module, "base" if isinstance(module, PackedLinear) else "weight", None)
    if not isinstance(weight, Tensor) or not (isinstance(module, Layer) or _is_plain(module)):
        got = storage_checks.NO_LAYER if module is None else type(module).__name__
        storage_checks.refuse_layer(name, "a linear layer of that name", got)
    if tuple(_upright(module, weight).shape) != stored.shape:
        got = str(tuple(_upright(module, weight).shape))
        storage_checks.refuse_layer(name, f"a weight of shape {stored.shape}", got)
    if dtype_name(weight) != stored.weight_dtype:
        storage_checks.refuse_layer(name, f"a weight of {stored.weight_dtype}", dtype_name(weight))
    if weight.is_meta:
        storage_checks.refuse_meta(name)


def _check(name: str, stored: Stored, layer: Any) -> None:
    check_fits(name, stored, _bits(_matrix(layer)), has_bias=layer.bias is not None)


def _is_plain(module: Any) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) or conv1d.is_conv1d(module)


def _upright(module: Any, weight: Tensor) -> Tensor:
    # As (out_features, in_features): a Conv1D has its weight the other way.
    kinds = nn.Linear | nn.Embedding | PackedLinear
    return weight if isinstance(module, kinds) else weight.t()


def _matrix(layer: Any) -> Tensor:
    return layer.base if isinstance(layer, PackedLinear) else _upright(layer, layer.weight).detach()


def _converted(model: nn.Module, layers: Mapping[str, Stored]) -> nn.Module:
    # As `mask_linears` does it, which refuses what cannot be and keeps hooks and ties.
    for form in ("packed", "masked"):
        projections = in_projections(model)
        modules = dict(model.named_modules()) | projections
        masks = {
            name: layer.mask
            for name, layer in layers.items()
            if layer.form == form and not isinstance(modules[name], Layer)
        }
        of_weight = {id(modules[name].weight): mask for name, mask in masks.items()}
        # A head that is tied to an embedding has no numbers of its own.
        for name, module in modules.items():
            if name not in layers and _is_plain(module) and id(module._parameters.get("weight")) in of_weight:
                masks[name] = of_weight[id(module.weight)]
        for name in projections.keys() & masks.keys():
            masks |= projection_masks(name, masks.pop(name), layers[name].shape)
        if masks:
            escaped = {glob.escape(name): mask for name, mask in masks.items()}
            model = mask_linears(model, escaped, packed=form == "packed")
    return model


def _check_other(name: str, numbers: Numbers, target: Tensor | None) -> None:
    expected = f"a parameter or buffer of {numbers.dtype} and shape {tuple(numbers.bits.shape)}"
    if target is None:
        storage_checks.refuse_other(name, expected, "none of that name")
    if tuple(target.shape) != numbers.bits.shape or dtype_name(target) != numbers.dtype:
        storage_checks.refuse_other(name, expected, f"one of {dtype_name(target)} and shape {tuple(target.shape)}")
    if target.is_meta:
        storage_checks.refuse_meta(name)


def _alone(name: str, stored: Stored) -> nn.Module:
    if stored.base is None:
        storage_checks.refuse_layer_alone(name)
    height, width = stored.shape
    dtype = getattr(torch, stored.weight_dtype)
    plain = nn.Linear(width, height, stored.bias is not None, device="meta", dtype=dtype)
    plain.weight = nn.Parameter(_tensor(stored.base))
    if stored.bias is not None:
        plain.bias = nn.Parameter(_tensor(stored.bias))
    kind: Any = PackedLinear if stored.form == "packed" else MaskedLinear
    layer = kind.from_linear(plain, grad_mask=stored.mask)
    _fill(layer, stored)
    layer._origin.moved = True  # there is no model that a file without the matrix could go over
    return layer


@torch.no_grad()
def _fill(module: Any, stored: Stored) -> None:
    matrix = _matrix(module)
    values = _tensor(stored.values).to(matrix.device)
    moved = module._origin.look(module)
    if stored.base is not None:
        # The next file must hold it too: the model that this one goes over has another.
        base = _tensor(stored.base).to(matrix.device)
        moved = moved or not torch.equal(as_bits(base), as_bits(matrix.contiguous()))
        matrix.copy_(base)
    if isinstance(module, PackedLinear):
        # Into the parameters where they fit, so that an optimizer that has them goes on with them.
        if module.values.shape == values.shape and module.values.dtype == values.dtype:
            module.values.copy_(values)
            if module.grad_mask != stored.mask:
                steps.moved(module.values, f"load_packed into {module}")
        else:
            before = module.values
            module.values = nn.Parameter(values, requires_grad=before.requires_grad)
            steps.replaced(before, module, "values", f"load_packed into {module}")
        bias_values, bias_mask = module.bias_values, module.bias_mask
        module._set_masks(stored.mask, stored.bias_mask)
        module._origin = Origin(module, moved=moved)
        module._take_bias_over(None if stored.bias is None else _tensor(stored.bias).to(values.device))
        mask = module.bias_mask
        kept = bias_values is not None and bias_values is module.bias_values
        if kept and mask is not None and bias_mask is not None and not np.array_equal(mask, bias_mask):
            steps.moved(module.bias_values, f"load_packed into {module}")  # type: ignore[arg-type] # kept: not None
    else:
        module._set_masks(stored.mask, stored.bias_mask)
        matrix.copy_(packing.unpack(matrix, values, grad_mask=stored.mask))
        module._origin = Origin(module, moved=moved)
        module._origin.learned_elsewhere()
        if stored.bias is not None:
            module.bias.copy_(_tensor(stored.bias))


def _learned(model: nn.Module, function: str = "save_packed") -> dict[str, Tensor]:
    # By name, what learns and nothing else; of a masked layer as packed copies.
    layers = _layers(model, function)
    found: dict[str, Tensor] = {}
    for name, layer in layers.items():
        dot = f"{name}." if name else ""
        packed = isinstance(layer, PackedLinear)
        learns = layer.values if packed else layer.weight
        if learns.requires_grad:
            found[f"{dot}values"] = learns if packed else packing.pack(_matrix(layer), grad_mask=layer.grad_mask)
        bias = layer.bias_values if packed else layer.bias
        if bias is not None and bias.requires_grad:
            whole = packed or layer.bias_mask is None
            found[f"{dot}bias"] = bias if whole else bias.detach()[torch.from_numpy(layer.bias_mask)]
    others = _others(model, layers)
    storage_checks.names_apart(found, others)
    return {name: tensor for name, tensor in (found | others).items() if tensor.numel()}


def _positions(model: nn.Module, learned: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    # By name, what tells the masks apart of the layers of which something learns.
    found: dict[str, np.ndarray] = {}
    for name, layer in _layers(model).items():
        dot, shape = f"{name}." if name else "", (layer.out_features, layer.in_features)
        if any(one in learned and learned[one].numel() for one in (f"{dot}values", f"{dot}bias")):
            mark = free_name(f"{dot}positions", learned)
            bias = layer.bias_values if isinstance(layer, PackedLinear) else layer.bias
            is_frozen = bias is not None and not bias.requires_grad  # which in JAX is a mask
            bias_mask = np.zeros(layer.out_features, np.bool_) if is_frozen else layer.bias_mask
            found[mark] = positions_mark(layer.grad_mask.packed(shape), shape, bias_mask)
    for name, module in model.named_modules():
        if isinstance(module, MaskedMultiheadAttention | MaskedParameter):
            dot = f"{name}." if name else ""
            trains = {own: to_numpy(mask) for own, mask in module.trained_positions().items() if dot + own in learned}
            if trains:
                found[free_name(f"{dot}positions", learned)] = parts_mark(trains)
    return found


def _load_arrays(arrays: Mapping[str, Any], model: Any, rename: Any) -> nn.Module:
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
    new: dict[str, Tensor] = {}
    for name, tensor in learned.items():
        array = arrays[name]
        storage_checks.array(name, array.shape, array.dtype.name, tuple(tensor.shape))
        if not tensor.is_floating_point():
            array = np.rint(array) if array.dtype.kind == "f" else array
        new[name] = torch.from_numpy(np.array(array)).to(tensor)
    with torch.no_grad():
        for name, layer in _layers(model).items():
            if not isinstance(layer, PackedLinear):
                dot = f"{name}." if name else ""
                if f"{dot}values" in new:
                    values = new.pop(f"{dot}values")
                    _matrix(layer).copy_(packing.unpack(_matrix(layer), values, grad_mask=layer.grad_mask))
                if f"{dot}bias" in new and layer.bias_mask is not None:
                    layer.bias[torch.from_numpy(layer.bias_mask)] = new.pop(f"{dot}bias")
        for name, tensor in new.items():
            learned[name].copy_(tensor)
    return model


def _bits(tensor: Tensor) -> Numbers:
    tensor = tensor.detach().cpu().contiguous()
    dtype = dtype_name(tensor)
    storage_checks.dtype("a tensor", dtype, storage.DTYPES)
    return Numbers(tensor.view(_BITS[tensor.element_size()]).numpy(), dtype)


def _tensor(numbers: Numbers) -> Tensor:
    return torch.from_numpy(numbers.bits).view(getattr(torch, numbers.dtype))
