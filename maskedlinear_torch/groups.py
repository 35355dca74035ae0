"""Parameter groups for `torch.optim`: what learns, with decay for weights and none for biases and scales."""

from __future__ import annotations

from typing import Any

from torch import nn

from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_torch.packed_module import PackedLinear


def parameter_groups(model: nn.Module, *, weight_decay: float = 0.01, **options: Any) -> list[dict[str, Any]]:
    """Return what learns in a model as parameter groups: weights with decay, everything else without.

    The usual rule, to decay parameters of two axes or more, is wrong for packed layers: the packed values of `elements`
    have one axis. Here the values of a packed layer count as weights.

    Args:
        model: Any module, with or without masked layers.
        weight_decay: Weight decay of the weights: values of packed layers, and parameters of two axes or more.
        options: For both groups, e.g. `lr`.

    Returns:
        At most two groups, each with its `params` in the order of the model and its `weight_decay`. Parameters that
        take no gradient are in neither, and a parameter that stands in several places is there once.

    Raises:
        TypeError: `model` is no module, `weight_decay` no number, or `params` is among the options.
        ValueError: `weight_decay` is negative or not finite.

    Example:
        >>> import torch
        >>> from maskedlinear_torch import elements
        >>> layer = PackedLinear(2, 2, grad_mask=elements([[True, False], [True, True]]))
        >>> groups = parameter_groups(layer)
        >>> [([tuple(one.shape) for one in group["params"]], group["weight_decay"]) for group in groups]
        [([(3,)], 0.01), ([(2,)], 0.0)]
        >>> optimizer = torch.optim.AdamW(parameter_groups(layer, lr=1e-3))
    """
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model, function="parameter_groups")
    module_checks.weight_decay(weight_decay)
    if "params" in options:
        module_checks.refuse_params()
    values = {id(one.values) for one in model.modules() if isinstance(one, PackedLinear)}
    weights: list[Any] = []
    others: list[Any] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (weights if id(parameter) in values or parameter.dim() > 1 else others).append(parameter)
    found = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group | options for group in found if group["params"]]
