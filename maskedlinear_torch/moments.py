"""An optimizer's moments, taken along where the masks of packed layers change."""

from __future__ import annotations

import copy
import inspect
import types
from typing import Any

import torch
from torch import Tensor, nn

from maskedlinear_core import masks
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_torch import _compat, packing, steps
from maskedlinear_torch.tensors import is_quantized


def check(function: str, optimizer: Any) -> None:
    """Refuse what is no optimizer, before anything changes; None is right."""
    if optimizer is not None and not steps.parameters_of(optimizer):
        frozen_checks.refuse_optimizer("a torch.optim.Optimizer", optimizer, function)


@torch.no_grad()
def move(optimizer: Any, old: Tensor, new: nn.Parameter, came_from: Tensor) -> None:
    """Let an optimizer step with a parameter instead of another, with what it has learned of what stays.

    What learns anew gets what the optimizer makes for the parameter as it is now: zeros, a copy of the weight
    (schedule-free methods, averages), a first step size (Rprop). State that is not kept value by value (Adafactor's
    sums of rows and columns), and one that cannot be made apart from the optimizer's own step, starts anew as a whole.

    Args:
        optimizer: What steps: a torch optimizer, or what wraps one.
        old: The parameter that it has; it may be `new` itself.
        new: The parameter that it shall have.
        came_from: An array of the shape of `new`: 1 + the number of a value in `old`, or 0 for one that learns anew.
    """
    for group in steps.groups_of(optimizer):
        group["params"] = [new if one is old else one for one in group["params"]]
    for one in list(steps.optimizers_of(optimizer)):
        own = vars(one).get("state")  # a wrapper may show the state of what it wraps
        if isinstance(own, dict):
            _compat.restart_lbfgs(one)
            state = own.pop(old, None)
            moved = _moved(one, state, old.shape, new, came_from) if state else None
            if moved is not None:
                own[new] = moved


def begin(optimizer: Any, old: Tensor, new: nn.Parameter) -> None:
    """Let an optimizer step with a parameter instead of another, with no history: of a layer that is packed now."""
    for group in steps.groups_of(optimizer):
        group["params"] = [new if one is old else one for one in group["params"]]
    for one in steps.optimizers_of(optimizer):
        _compat.restart_lbfgs(one)
        own = vars(one).get("state")  # a wrapper may show the state of what it wraps
        if isinstance(own, dict):
            own.pop(old, None)


def numbers(old: masks.Mask, new: masks.Mask, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return where packed values for a mask came from, as `move` takes it.

    Args:
        old: The mask before.
        new: The mask now.
        values: Packed for the mask before.
        shape: Shape of the weight (out_features, in_features).

    Example:
        >>> from maskedlinear_torch import columns
        >>> numbers(columns([0, 1]), columns([1, 2]), torch.zeros(2, 2), (2, 3))
        tensor([[2, 0],
                [4, 0]])
    """
    # On the CPU, for not every device has float64, which counts exactly.
    counted = torch.arange(1, values.numel() + 1, dtype=torch.float64)
    return packing.repack(counted.view(values.shape), old, new, shape=shape).long().to(values.device)


def _moved(
    optimizer: Any, state: dict[str, Any], shape: torch.Size, new: nn.Parameter, came_from: Tensor
) -> dict[str, Any] | None:
    arrays = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.dim()}
    if any(value.shape != shape for value in arrays.values()):
        return None
    # (What is rounded to few values is rounded anew, in what the optimizer makes for that.)
    is_coarse = any(map(is_quantized, arrays.values()))
    fresh = _fresh(optimizer, new) if is_coarse or bool((came_from == 0).any()) else dict.fromkeys(arrays, new)
    if any(not isinstance(fresh.get(name), Tensor) or fresh[name].shape != new.shape for name in arrays):
        return None
    found = {}
    for name, coarse in arrays.items():
        value = _read(coarse)
        flat, where = torch.cat([value.new_zeros(1), value.reshape(-1)]), came_from.to(value.device)  # or offloaded
        found[name] = torch.where(where > 0, flat[where], _read(fresh[name]).to(value)).contiguous()
        if is_quantized(fresh[name]) or is_quantized(coarse):
            found[name] = fresh[name].copy_(found[name])
    return state | found


def _read(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if is_quantized(tensor) else tensor


def _fresh(optimizer: Any, parameter: nn.Parameter) -> dict[str, Any]:
    # The state that an optimizer makes for a parameter, by a step of another one of its class whose gradient is zero.
    twin = nn.Parameter(parameter.detach().clone())
    twin.grad = torch.zeros_like(twin)
    try:
        group = next(group for group in optimizer.param_groups if any(one is parameter for one in group["params"]))
        group = {**group, "params": [twin]} | ({"weight_decay": 0.0} if "weight_decay" in group else {})
        if type(optimizer).__module__.startswith("torch.optim."):
            known = inspect.signature(type(optimizer)).parameters
            stepper = type(optimizer)([group], **{k: v for k, v in optimizer.defaults.items() if k in known})
        else:
            stepper = object.__new__(type(optimizer))
            torch.optim.Optimizer.__init__(stepper, [group], dict(optimizer.defaults))
            others = {name: value for name, value in vars(optimizer).items() if name not in vars(stepper)}
            methods = [name for name, value in others.items() if isinstance(value, types.MethodType)]
            vars(stepper).update(copy.deepcopy({name: others[name] for name in others if name not in methods}))
        type(optimizer).step(stepper)
    except Exception:  # whatever the step of somebody else's optimizer raises, then its state starts anew
        return {}
    made = dict(stepper.state.get(twin, {}))
    # A copy of the weight is one of the parameter as it is, which other decays (ASGD's) have moved in the twin.
    copies = [name for name, one in made.items() if isinstance(one, Tensor) and one.shape == twin.shape
              and torch.equal(_read(one).to(twin.dtype), twin)]  # fmt: skip
    return made | dict.fromkeys(copies, parameter.detach())
