"""Saving what was trained, and loading it over the same matrix, in either framework (SPEC S7)."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from maskedlinear_core import storage
from maskedlinear_core.arrays import dtype_name
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.storage import Numbers, Stored
from maskedlinear_torch import packing
from maskedlinear_torch.convert import _replace
from maskedlinear_torch.module import Layer, MaskedLinear
from maskedlinear_torch.packed_module import PackedLinear

_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def save_packed(path: str | os.PathLike[str], model: nn.Module) -> int:
    """Store masks, packed values and biases of the masked layers of a model in one file.

    The file costs the trainable share of a checkpoint: the values, and about a byte per value for elements at
    one in a hundred, next to nothing for the other kinds. `load_packed` of either framework reads it.

    Args:
        path: Of a safetensors file, written wholly or not at all.
        model: Contains `MaskedLinear` or `PackedLinear` layers, or is one.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: The model has no such layer.
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
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    if not layers:
        storage_checks.refuse_empty()
    return storage.write(path, {name: _stored(layer) for name, layer in layers.items()})


def load_packed(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Load stored masks, values and biases into a model, in place, over the matrix they were trained on.

    All or nothing: every layer is checked first. A plain `torch.nn.Linear` of the stored name becomes a
    `PackedLinear` (or `MaskedLinear`, if that was stored).

    Args:
        path: Of a file that `save_packed` of either framework wrote.
        model: Contains layers of the stored names, or is the layer.

    Returns:
        The model; if it is itself a plain layer, what replaces it.

    Raises:
        StorageError: A damaged, truncated or foreign file; a layer that is missing, of another shape or dtype, or
            whose frozen entries are not those the values were trained over. It is a ValueError.
        OSError: The file cannot be read.
    """
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model)
    stored = storage.read(path)
    modules = dict(model.named_modules())
    for name, layer in stored.items():
        _check(name, layer, modules.get(name))
    made: dict[int, nn.Module] = {}
    for name, layer in stored.items():
        module: Any = modules[name]
        if not isinstance(module, Layer):
            kind = PackedLinear if layer.form == "packed" else MaskedLinear
            made[id(module)] = module = kind.from_linear(module, grad_mask=layer.mask)
        _fill(module, layer)
    return _replace(model, made)


def _stored(layer: Any) -> Stored:
    packed = isinstance(layer, PackedLinear)
    shape = (layer.out_features, layer.in_features)
    mask = layer.grad_mask.packed(shape)
    matrix = _bits(layer.base if packed else layer.weight)
    values = layer.values if packed else packing.pack(layer.weight, grad_mask=mask)
    return Stored(
        "packed" if packed else "masked", mask, shape, matrix.dtype, storage.fingerprint(matrix, mask), _bits(values),
        None if layer.bias is None else _bits(layer.bias), layer.bias_mask,
    )  # fmt: skip


def _check(name: str, stored: Stored, module: Any) -> None:
    if not isinstance(module, nn.Linear | PackedLinear):
        got = "no such layer" if module is None else type(module).__name__
        storage_checks.refuse_layer(name, "a linear layer of that name", got)
    matrix = _bits(module.base if isinstance(module, PackedLinear) else module.weight)
    storage.check_fits(name, stored, matrix, has_bias=module.bias is not None)


@torch.no_grad()
def _fill(module: Any, stored: Stored) -> None:
    values = _tensor(stored.values).to(module.weight.device)
    if isinstance(module, PackedLinear):
        # Into the parameters where they fit, so that an optimizer that has them goes on with them.
        if module.values.shape == values.shape and module.values.dtype == values.dtype:
            module.values.copy_(values)
        else:
            module.values = nn.Parameter(values, requires_grad=module.values.requires_grad)
        module._set_masks(stored.mask, stored.bias_mask)
        module._take_bias_over(None if stored.bias is None else _tensor(stored.bias).to(values.device))
    else:
        module._set_masks(stored.mask, stored.bias_mask)
        module.weight.copy_(packing.unpack(module.weight, values, grad_mask=stored.mask))
        if stored.bias is not None:
            module.bias.copy_(_tensor(stored.bias))


def _bits(tensor: Tensor) -> Numbers:
    tensor = tensor.detach().cpu().contiguous()
    return Numbers(tensor.view(_BITS[tensor.element_size()]).numpy(), dtype_name(tensor))


def _tensor(numbers: Numbers) -> Tensor:
    return torch.from_numpy(numbers.bits).view(getattr(torch, numbers.dtype))
