"""What learns in a model and what is frozen, counted (contract S8)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.summary import Part, Summary
from maskedlinear_torch import beside
from maskedlinear_torch.attention import MaskedMultiheadAttention
from maskedlinear_torch.module import Layer
from maskedlinear_torch.packed_module import PackedLinear
from maskedlinear_torch.parameter import MaskedParameter


def summary(model: nn.Module) -> Summary:
    """Count what learns in a model and what is frozen.

    Args:
        model: Any module.

    Returns:
        The count of each masked layer and of each other parameter: `.learns`, `.frozen`, `.total`, `.parts`, `.words`
        and `.table`. Printed, it is words and a table.

    Raises:
        TypeError: No model.

    Example:
        >>> from maskedlinear_torch import columns, mask_linears
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
        >>> print(summary(mask_linears(model, {"0": columns([1])}, packed=True)))
        12 of 21 numbers learn (57.1%), 9 are frozen; 2 of 2 parts learn.
        part      kind          learns  of  mask
        0         PackedLinear       6  15  columns([1])
        2.weight  parameter          6   6
    """
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model, function="summary")
    parts: list[Part] = []
    counted: set[int] = set()
    for prefix, module in model.named_modules():
        tied = {name for name, one in module.named_parameters(recurse=False) if id(one) in counted}
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in counted:
                continue
            counted.add(id(parameter))
            if not isinstance(module, Layer) or name in beside.parts(module):
                whole = ".".join(filter(None, (prefix, name)))
                learns = _learning(module, name, parameter) if parameter.requires_grad else 0
                parts.append(Part(whole, "parameter", learns, parameter.numel()))
        if isinstance(module, Layer) and not ("weight" in tied and module.bias is None):
            parts.append(_layer(prefix, module, tied))
    return Summary(tuple(parts))


def _learning(module: nn.Module, name: str, parameter: nn.Parameter) -> int:
    if isinstance(module, MaskedMultiheadAttention | MaskedParameter) and name in module.trained_positions():
        return int(module.trained_positions()[name].sum())
    return parameter.numel()


def _layer(name: str, layer: Any, tied: set[str]) -> Part:
    packed = isinstance(layer, PackedLinear)
    size = layer.out_features, layer.in_features
    weight, bias = (layer.values, layer.bias_values) if packed else (layer.weight, layer.bias)
    learns, total = 0, 0 if "weight" in tied else size[0] * size[1]
    if total and weight.requires_grad:
        learns += weight.numel() if packed else int(np.count_nonzero(layer.grad_mask.to_array(size)))
    total += 0 if bias is None or "bias" in tied else size[0]
    if bias is not None and bias.requires_grad and "bias" not in tied:
        learns += bias.numel() if packed or layer.bias_mask is None else int(layer.bias_mask.sum())
    return Part(name, type(layer).__name__, learns, total, repr(layer.grad_mask))
