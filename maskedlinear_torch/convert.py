"""Whole models: their linear layers become masked ones, and plain ones again (SPEC S8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from maskedlinear_core import patterns
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.precision import as_precision
from maskedlinear_torch import _compat
from maskedlinear_torch.module import Layer, MaskedLinear
from maskedlinear_torch.packed_module import PackedLinear


def mask_linears(
    model: nn.Module,
    masks: Mapping[str, Any],
    *,
    packed: bool = False,
    values_dtype: torch.dtype | None = None,
    precision: Any = "native",
    freeze_others: bool = False,
) -> nn.Module:
    """Replace the linear layers of a model by masked ones, in place. The outputs stay the same, bit for bit.

    All or nothing: on an error the model is as it was. A weight that two linear layers share stays shared if
    both get one mask and `packed` is False; any other tied weight is refused.

    Args:
        model: Any module; if it is itself a linear layer, the layer that replaces it is returned.
        masks: By pattern of the layer's dotted name (`fnmatch`): a mask, a bool array, or a callable(name, linear)
            that returns one, or None to leave the layer as it is. The first pattern that matches counts.
        packed: Make `PackedLinear` layers instead of `MaskedLinear`.
        values_dtype: Of packed values; None = the weight's.
        precision: Of the masked layers, as for `masked_linear`.
        freeze_others: Let every parameter outside of the converted layers' weights be constant, biases too.

    Returns:
        The model.

    Raises:
        TypeError: No model, no mask, a layer of a subclass of `torch.nn.Linear`, or one whose weight is computed
            from other parameters (spectral norm, pruning).
        ValueError: A pattern that matches nothing, a mask that does not fit, or a tied weight.
        IndexError: A position outside of a weight.

    Example:
        >>> from maskedlinear_torch import columns
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> mask_linears(model, {"0": columns([1])}, packed=True)
        Sequential(
          (0): PackedLinear(in_features=4, out_features=3, bias=True, grad_mask=columns([1]))
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model)
    precision = as_precision(precision)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, Layer)
    }
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in linears.items()}
    chosen = patterns.choose(linears, masks, shapes)
    for name in chosen:
        linear = linears[name]
        # What attention reads the weight of instead of calling it: only a packed layer's weight guards itself.
        plain = type(linear) is nn.Linear or (packed and type(linear) is NonDynamicallyQuantizableLinear)
        if not plain:
            convert_checks.refuse_subclass(name, linear)
        if not isinstance(linear.weight, nn.Parameter) or not isinstance(linear.bias, nn.Parameter | None):
            convert_checks.refuse_computed(name)
    _check_tied(model, linears, chosen, packed)
    made: dict[int, nn.Module] = {}
    for name, mask in chosen.items():
        linear = linears[name]
        made[id(linear)] = (
            PackedLinear.from_linear(linear, grad_mask=mask, values_dtype=values_dtype, precision=precision)
            if packed
            else MaskedLinear.from_linear(linear, grad_mask=mask, precision=precision)
        )
        _compat.take_hooks(made[id(linear)], linear)
    model = _replace(model, made)
    if freeze_others:
        learns = {id(layer.values if packed else layer.weight) for layer in made.values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in learns)
    return model


def unmask_linears(model: nn.Module) -> nn.Module:
    """Replace the masked layers of a model by plain ones with the trained weights, in place.

    Args:
        model: Any module; if it is itself a masked layer, the plain layer is returned.

    Returns:
        The model, all of whose converted layers require gradients.

    Raises:
        TypeError: No model.

    Example:
        >>> from maskedlinear_torch import columns
        >>> model = mask_linears(nn.Sequential(nn.Linear(4, 3)), {"0": columns([1])}, packed=True)
        >>> unmask_linears(model)
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
        )
    """
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model)
    made: dict[int, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, MaskedLinear | PackedLinear):
            made[id(layer)] = layer.to_linear().requires_grad_()
            _compat.take_hooks(made[id(layer)], layer)
    return _replace(model, made)


def _replace(model: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    # A module may be registered in several places: all of them get the one that replaces it.
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in made:
                parent._modules[name] = made[id(child)]
    return made.get(id(model), model)


def _check_tied(model: nn.Module, linears: dict[str, Any], chosen: dict[str, Any], packed: bool) -> None:
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((name, own))
    for name, mask in chosen.items():
        others = [owner for owner in owners[id(linears[name].weight)] if owner != (name, "weight")]
        alike = all(other in chosen and own == "weight" and chosen[other] == mask for other, own in others)
        if others and (packed or not alike):
            convert_checks.refuse_tied(name, [".".join(filter(None, owner)) for owner in others])
