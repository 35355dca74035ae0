"""Steps that reach only what trains: for those optimizers of torch that step each entry by itself (contract S8).

For such an optimizer f(W, g, s) of all entries, taken where M is True, is f of the entries taken there. So another
optimizer of the same class, with the same settings, steps a copy of the entries that train, and these are written
back: to the parameter, to the matrix that the layer reads, and to the state. Frozen entries are not touched, and the
step costs the trainable share. All other optimizers step as ever, and the layer is put back afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskedlinear_torch import _compat
from maskedlinear_torch.frozen_entries import LINE, FrozenEntries

_ELEMENTWISE = tuple(
    getattr(torch.optim, name)
    for name in (
        "SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD",
    )
)  # fmt: skip

IS_SMALL = "_maskedlinear_is_small"
"""An attribute of what steps the entries that train: hooks around steps have seen the true optimizer's."""


class SmallStep:
    """One step of the entries that train, by an optimizer of their own; then the rest is the true optimizer's.

    The gradients of what was stepped are kept back from the true optimizer until `end`. Whatever else has a gradient
    is stepped first: if that raises, all gradients are there, and nothing that is held has moved.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, entries: list[FrozenEntries]) -> None:
        self.stepped: dict[int, FrozenEntries] = {}
        self._kept_back: list[tuple[Tensor, Tensor]] = []
        if type(optimizer) not in _ELEMENTWISE or _is_looked_at(optimizer):
            return
        by_id = {id(one.parameter): one for one in entries}
        if len(by_id) < len(entries):
            return  # two layers that share a parameter
        if not all(_can_be_stepped(optimizer, p) for group in optimizer.param_groups for p in group["params"]):
            return  # the step of the rest raises, and no hook could give the gradients back
        small: dict[Tensor, FrozenEntries] = {}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            mine = [by_id[id(p)] for p in group["params"] if id(p) in by_id and _is_whole(optimizer, group, p)]
            if group.get("fused"):  # which reads and writes each number but once
                mine = [one for one in mine if one.places.lies_together]
            mine = [one for one in mine if one.is_as_held()]
            if mine:
                tensors = {_taken(one, one.parameter, group): one for one in mine}
                small |= tensors
                groups.append({**group, "params": list(tensors)})
        if small:
            self._step(optimizer, small, groups)

    def _step(
        self, optimizer: torch.optim.Optimizer, small: dict[Tensor, FrozenEntries], groups: list[dict[str, Any]]
    ) -> None:
        stepper = object.__new__(type(optimizer))
        stepper.__dict__.update(optimizer.__dict__ | {IS_SMALL: True})
        stepper.param_groups = groups
        stepper.state = type(optimizer.state)(dict)
        group_of = {tensor: group for group in groups for tensor in group["params"]}
        for tensor, one in small.items():
            grad, group = one.parameter.grad, group_of[tensor]
            assert grad is not None
            tensor.grad = _taken(one, grad, group)
            state = optimizer.state.get(one.parameter, {})
            if state:
                stepper.state[tensor] = {
                    name: _taken(one, value, group) if value.dim() else value for name, value in state.items()
                }
        self._step_others(optimizer, small)
        type(optimizer).step(stepper)  # not its own `step`, which a scheduler may have wrapped
        for tensor, one in small.items():
            group, new = group_of[tensor], stepper.state.get(tensor, {})
            state = optimizer.state[one.parameter] if new else {}
            for name, value in new.items():
                if state[name].dim():
                    one.places.put(_entries(one, value, group), state[name])
                else:
                    state[name] = value
            one.write(_entries(one, tensor, group))
            self.stepped[id(one.parameter)] = one
        self._keep_back([p for group in optimizer.param_groups for p in group["params"]])

    def _step_others(self, optimizer: torch.optim.Optimizer, small: dict[Tensor, FrozenEntries]) -> None:
        # The true optimizer's own step may raise, after which no hook is called.
        self._keep_back([one.parameter for one in small.values()])
        if any([p.grad is not None for group in optimizer.param_groups for p in group["params"]]):
            optimizer.__dict__[IS_SMALL] = True
            try:
                type(optimizer).step(optimizer)
            finally:
                del optimizer.__dict__[IS_SMALL]
                self.end()
        else:
            self.end()

    def _keep_back(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                self._kept_back.append((parameter, parameter.grad))
                parameter.grad = None

    def end(self) -> None:
        """Give the gradients back."""
        for parameter, grad in self._kept_back:
            parameter.grad = grad
        self._kept_back = []


def _taken(one: FrozenEntries, tensor: Tensor, group: dict[str, Any]) -> Tensor:
    # The entries that train. Fused steps round the last entries of a tensor otherwise than those in whole cache lines.
    taken = one.places.take(tensor)
    if not group.get("fused"):
        return taken
    beside = -taken.numel() % (LINE // taken.itemsize)
    return torch.nn.functional.pad(taken.reshape(-1), (0, beside)) if beside else taken


def _entries(one: FrozenEntries, stepped: Tensor, group: dict[str, Any]) -> Tensor:
    # What `_taken` gave, in the shape that `take` gives.
    if not group.get("fused"):
        return stepped
    shape = one.places.shape_of(one.matrix)
    return stepped.reshape(-1)[: shape.numel()].view(shape)


def _is_looked_at(optimizer: torch.optim.Optimizer) -> bool:
    # Whether somebody else sees what is stepped, or scales it in the step.
    return (
        _compat.has_step_hooks(optimizer)
        or getattr(optimizer, "grad_scale", None) is not None
        or getattr(optimizer, "found_inf", None) is not None
    )


def _can_be_stepped(optimizer: torch.optim.Optimizer, parameter: Tensor) -> bool:
    # Whether torch steps a parameter: gradients of other layouts, and state of other shapes, raise in the step.
    grad = parameter.grad
    if grad is None:
        return True
    return grad.layout == torch.strided and all(
        one.shape == parameter.shape
        for one in optimizer.state.get(parameter, {}).values()
        if isinstance(one, Tensor) and one.dim()
    )


def _is_whole(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor) -> bool:
    # Whether the step of a parameter makes no state anew, and all of it is as the parameter is.
    grad, state = parameter.grad, optimizer.state.get(parameter, {})
    # Steps in 16 bits round the last entries of a tensor otherwise than those before.
    if group.get("differentiable") or parameter.dtype not in (torch.float32, torch.float64):
        return False
    if group.get("fused") and parameter.numel() * parameter.itemsize % LINE:
        return False
    if grad is None or grad.layout != torch.strided or type(grad) is not Tensor:
        return False
    if not state and not (type(optimizer) is torch.optim.SGD and not group["momentum"]):
        return False
    tensors = list(state.values())
    return all(
        isinstance(one, Tensor) and (not one.dim() or (one.shape == parameter.shape and one.is_contiguous()))
        for one in tensors
    )
