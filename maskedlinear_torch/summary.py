"""What learns in a model and what is frozen, counted (SPEC S8)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.summary import Part, Summary
from maskedlinear_torch.module import Layer
from maskedlinear_torch.packed_module import PackedLinear


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
        convert_checks.refuse_model("a torch.nn.Module", model)
    parts: list[Part] = []
    counted: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in counted:
                continue
            counted.add(id(parameter))
            if not isinstance(module, Layer):
                whole = ".".join(filter(None, (prefix, name)))
                learns = parameter.numel() if parameter.requires_grad else 0
                parts.append(Part(whole, "parameter", learns, parameter.numel()))
        if isinstance(module, Layer):
            parts.append(_layer(prefix, module))
    return Summary(tuple(parts))


def _layer(name: str, layer: Any) -> Part:
    packed = isinstance(layer, PackedLinear)
    size = layer.out_features, layer.in_features
    weight, bias = (layer.values, layer.bias_values) if packed else (layer.weight, layer.bias)
    learns = 0
    if weight.requires_grad:
        learns += weight.numel() if packed else int(np.count_nonzero(layer.grad_mask.to_array(size)))
    if bias is not None and bias.requires_grad:
        learns += bias.numel() if packed or layer.bias_mask is None else int(layer.bias_mask.sum())
    total = size[0] * size[1] + (0 if bias is None else size[0])
    return Part(name, type(layer).__name__, learns, total, repr(layer.grad_mask))
