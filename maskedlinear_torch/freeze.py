"""Frozen for good: what an optimizer may not move (SPEC S8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskedlinear_core import frozen
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_torch.module import MaskedLinear
from maskedlinear_torch.packed_module import PackedLinear


class Hold:
    """What `hold_frozen` returns: `remove()` lets go."""

    def __init__(self, optimizer: torch.optim.Optimizer, layers: list[MaskedLinear]) -> None:
        self._layers = layers
        self._before: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._restore),
        ]

    def remove(self) -> None:
        """Let the optimizer move everything again."""
        for handle in self._handles:
            handle.remove()

    def _remember(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Where the masks are now: another one may have been set since the last step.
        # A layer may have come to the optimizer since then, too.
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        held = [pair for layer in self._layers for pair in _held(layer) if id(pair[0]) in known]
        self._before = [(parameter, trains, _like(optimizer, parameter, copy=True)) for parameter, trains in held]

    @torch.no_grad()
    def _restore(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, trains, before in self._before:
            for name, now in _like(optimizer, parameter, copy=False).items():
                # A moment made in this step starts from zero where nothing trains.
                now.copy_(torch.where(trains, now, before[name] if name in before else torch.zeros_like(now)))
        self._before = []


def hold_frozen(optimizer: torch.optim.Optimizer, *models: nn.Module) -> Hold:
    """Keep the frozen entries of masked layers, and their moments, bit for bit as they are in every step.

    A masked gradient is not a frozen weight: weight decay, momentum from before, and optimizers that mix
    entries (Muon) still move it. This puts back what a step moved. It works with any `torch.optim.Optimizer`,
    with GradScaler and with FSDP2, and follows masks that are set and parameter groups that are added during training.

    While a step runs it holds a copy of each masked weight and its moments; `PackedLinear` needs neither.

    Args:
        optimizer: Its `step` is hooked.
        models: Modules that are or contain `MaskedLinear` layers.

    Returns:
        A handle; `remove()` lets go.

    Raises:
        TypeError: `optimizer` is no torch optimizer, or a model is no module.
        ValueError: No masked layer has a parameter in the optimizer.

    Example:
        >>> from maskedlinear_torch import columns
        >>> layer = MaskedLinear(3, 2, grad_mask=columns([0]), seed=0)
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
        >>> hold = hold_frozen(optimizer, layer)
        >>> before = layer.weight.detach().clone()
        >>> layer(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> assert_frozen({"weight": before}, {"weight": layer.weight}, {"weight": columns([0])})
        4
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        frozen_checks.refuse_optimizer("a torch.optim.Optimizer", optimizer)
    for model in models:
        if not isinstance(model, nn.Module):
            frozen_checks.refuse_optimizer("modules after the optimizer", model)
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    layers = {id(layer): layer for model in models for layer in model.modules() if isinstance(layer, MaskedLinear)}
    if not any(id(layer.weight) in known or id(layer.bias) in known for layer in layers.values()):
        frozen_checks.refuse_nothing_held()
    return Hold(optimizer, list(layers.values()))


def grad_masks(model: nn.Module) -> dict[str, Any]:
    """Return what trains in a model, by the names of its state_dict.

    Args:
        model: Any module.

    Returns:
        The mask of each weight and the bool vector of each bias of the masked and packed layers; None for every
        other parameter that requires a gradient, which trains as a whole; False for one that does not.

    Example:
        >>> from maskedlinear_torch import columns
        >>> grad_masks(nn.Sequential(MaskedLinear(3, 2, grad_mask=columns([0])), nn.Linear(2, 1, bias=False)))
        {'0.weight': columns([0]), '0.bias': None, '1.weight': None}
    """
    masks: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, MaskedLinear | PackedLinear):
            learns = module.weight.requires_grad
            masks[f"{dot}weight"] = module.grad_mask if learns else False
            if module.bias is not None:
                masks[f"{dot}bias"] = module.bias_mask if module.bias.requires_grad else False
        else:
            for name, parameter in module.named_parameters(recurse=False):
                masks[f"{dot}{name}"] = None if parameter.requires_grad else False
    return masks


def assert_frozen(
    before: Mapping[str, Any] | nn.Module, after: Mapping[str, Any] | nn.Module, masks: Mapping[str, Any] | None = None
) -> int:
    """Prove that every frozen entry has the bits it had.

    Args:
        before: A state_dict from before (a copy: a module's own tensors move along), or a module.
        after: A state_dict from now, or a module.
        masks: What trains, by name: a mask for a weight, a bool vector for a bias, None for all of it. Names that
            are not there are wholly frozen. Left out, they are asked of the module (see `grad_masks`).

    Returns:
        How many frozen entries were compared.

    Raises:
        FrozenMoved: Some entry changed; the text names it. It is an AssertionError.
        ValueError: The names or shapes differ, or nothing is frozen.
        TypeError: No masks, and no module to ask.

    Example:
        >>> from maskedlinear_torch import columns
        >>> assert_frozen({"w": torch.ones(1, 2)}, {"w": torch.tensor([[1.0, 2.0]])}, {"w": columns([1])})
        1
    """
    sides = {}
    for name, side in (("before", before), ("after", after)):
        if isinstance(side, nn.Module):
            masks = grad_masks(side) if masks is None else masks
            sides[name] = {key: value for key, value in side.state_dict().items() if isinstance(value, Tensor)}
        else:
            sides[name] = dict(side)
    if masks is None:
        frozen_checks.refuse_masks(after)
    return frozen.assert_same_bits(sides["before"], sides["after"], masks)


def _held(layer: MaskedLinear) -> list[tuple[Tensor, Tensor]]:
    weight = layer.weight
    trains = layer._positions().mask(weight).expand(weight.shape)
    pairs = [(weight, _placed_like(trains, weight))]
    if layer.bias is not None and layer._bias_positions is not None:
        pairs.append((layer.bias, _placed_like(layer._bias_positions, layer.bias)))
    return pairs


def _placed_like(trains: Tensor, parameter: Any) -> Tensor:
    if not hasattr(parameter, "device_mesh"):
        return trains
    from torch.distributed.tensor import distribute_tensor  # not on import: it takes a second

    return distribute_tensor(trains.contiguous(), parameter.device_mesh, parameter.placements)


def _like(optimizer: torch.optim.Optimizer, parameter: Tensor, *, copy: bool) -> dict[str, Tensor]:
    # The parameter and what the optimizer keeps entry by entry of it.
    state = optimizer.state.get(parameter, {})
    found = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim()
    }
    found["parameter"] = parameter
    return {name: value.detach().clone() if copy else value for name, value in found.items()}
