"""What happens around every optimizer step in a process: held layers are put back, lost parameters are noticed.

One pair of hooks that all torch optimizers share (`register_optimizer_step_pre_hook`), from the first held layer or
replaced parameter on: whoever steps, and however the optimizer came to be, its step is seen.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_torch import _compat
from maskedlinear_torch.frozen_entries import FrozenEntries, Held, local, same_bits
from maskedlinear_torch.frozen_state import FrozenState
from maskedlinear_torch.small_steps import IS_SMALL, SmallStep
from maskedlinear_torch.tensors import Constant

_layers: weakref.WeakSet[Any] = weakref.WeakSet()
_masked: weakref.WeakSet[Any] = weakref.WeakSet()
"""All modules that can be held."""
_models: weakref.WeakKeyDictionary[nn.Module, list[Callable[[nn.Module], None]]] = weakref.WeakKeyDictionary()
_states: weakref.WeakKeyDictionary[Any, FrozenState] = weakref.WeakKeyDictionary()
_small: weakref.WeakKeyDictionary[Any, SmallStep] = weakref.WeakKeyDictionary()
_constants: weakref.WeakKeyDictionary[Any, list[tuple[Tensor, Tensor]]] = weakref.WeakKeyDictionary()
_stayed: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()
_looked_at: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""By optimizer, whether its state was seen to have the shapes of its parameters since it was loaded last."""
_hooks: list[Any] = []
hold_also: Callable[[Any, str, int], None] | None = None
"""Holds a layer for a holder: of `freeze`, which imports this file."""
unmasked: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Plain layers that were made of masked ones, by `unmask_linears` or `to_linear`: all of them shall learn."""
ADAPTED = "base_layer"
"""The name by which an adapter (PEFT's) has the layer that it lies over."""


def see() -> None:
    """Look at every step from now on, for there are constants that no step may move."""
    _install()


def made(layer: Any) -> None:
    """Note a module that can be held: it is, once an optimizer steps its parameters beside those of a held one."""
    _masked.add(layer)


def join(layer: Any) -> None:
    """Put a held layer back after every step that has its parameters."""
    _install()
    _layers.add(layer)


def held_for(holder: int) -> list[Any]:
    """Return the layers that are held for a holder, of whatever model."""
    return [layer for layer in _layers if layer._held is not None and holder in layer._held.holders]


def watch(model: nn.Module, look: Callable[[nn.Module], None]) -> None:
    """Look at a model before every step."""
    _install()
    _models.setdefault(model, []).append(look)


def unwatch(model: nn.Module, look: Callable[[nn.Module], None]) -> None:
    """Do not look at a model any more."""
    _models[model].remove(look)


def replaced(old: Tensor, layer: nn.Module, now: str, how: str) -> None:
    """Say that a parameter does nothing any more: an optimizer that steps with it must have the new one, too.

    Args:
        old: The parameter that was.
        layer: Where the new one is.
        now: Its name there.
        how: What replaced it, in words that name the layer.
    """
    _install()
    old._maskedlinear_replaced = (weakref.ref(layer), now, how)  # type: ignore[attr-defined]


def check_ddp(layer: nn.Module) -> None:
    """Refuse a layer within a `DistributedDataParallel` that has a parameter from before another one replaced it.

    It would average the gradients of all but the new one, and the workers would train models of their own.
    """
    wrapper = None if torch.compiler.is_dynamo_compiling() else _compat.active_ddp()
    if wrapper is None:
        return
    seen = id(wrapper), *map(id, layer._parameters.values())
    if layer.__dict__.get("_known_to_ddp") == seen:
        return
    parameters = _compat.parameters_of_ddp(wrapper)
    marks: list[Any] = [one.__dict__.get("_maskedlinear_replaced") for one in parameters]
    for mark in marks:
        new = getattr(layer, mark[1], None) if mark is not None and mark[0]() is layer else None
        if new is not None and new.requires_grad and not any(new is one for one in parameters):
            frozen_checks.refuse_unaveraged(mark[2], mark[1])
    layer.__dict__["_known_to_ddp"] = seen


def moved(parameter: Tensor, how: str) -> None:
    """Say that a parameter has the numbers of other positions: an optimizer's moments are of those from before.

    Args:
        parameter: The parameter.
        how: What changed them, in words that name the layer.
    """
    _install()
    parameter._maskedlinear_moved = how  # type: ignore[attr-defined]


def optimizers_of(optimizer: Any, depth: int = 4) -> Iterator[Any]:
    """Yield those that an optimizer wraps, each once, the innermost first, and then itself."""
    seen: set[int] = set()
    for one in _optimizers_in(optimizer, depth):
        if id(one) not in seen:
            seen.add(id(one))
            yield one


def _optimizers_in(optimizer: Any, depth: int) -> Iterator[Any]:
    inside = getattr(optimizer, "__dict__", {}).values() if depth else ()
    for one in inside:
        if hasattr(one, "step") and (isinstance(one, torch.optim.Optimizer) or hasattr(one, "optimizer")):
            yield from _optimizers_in(one, depth - 1)
    yield optimizer


def groups_of(optimizer: Any) -> Iterator[Any]:
    """Yield the parameter groups of an optimizer, and of those that it wraps."""
    for one in optimizers_of(optimizer):
        groups = getattr(one, "param_groups", None)
        if isinstance(groups, list):
            yield from groups


def parameters_of(optimizer: Any) -> dict[int, Tensor]:
    """Return the parameters of an optimizer, and of those that it wraps, by identity."""
    return {id(one): one for group in groups_of(optimizer) for one in group["params"]}


def _install() -> None:
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_before))
        _hooks.append(register_optimizer_step_post_hook(_after))
        _hooks.append(register_module_module_registration_hook(_registered))


def _registered(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    held = getattr(child, "_held", None) if name == ADAPTED else None
    if isinstance(held, Held):
        held.lie_under_an_adapter()


def _before(optimizer: torch.optim.Optimizer, args: Any, keywords: Any) -> Any:
    if torch.compiler.is_compiling() or IS_SMALL in optimizer.__dict__:
        return None  # the forward and `state_dict` put back what a compiled step moved
    known = {id(one): one for group in optimizer.param_groups for one in group["params"]}
    _refuse_replaced(optimizer, known)
    _refuse_other_shapes(optimizer)
    for model, looks in list(_models.items()):
        for look in looks:
            look(model)
    held = _with_the_rest(known, _held_by(known))
    closure = any(one is not None for one in [*args[1:], *keywords.values()])
    _see_constants(optimizer, known, held, closure=closure)
    if held:
        state = _states.get(optimizer)
        if state is None:
            state = _states[optimizer] = FrozenState(optimizer)
        for layer in held:
            layer._held.follow(layer)
        _refuse_other_masks(held)
        entries = [one for layer in held for one in layer._held.entries.values()]
        # A parameter of the meta device has no values to hold.
        entries = [one for one in entries if id(one.parameter) in known and not one.parameter.is_meta]
        state.before(entries)
        if not closure:
            _small[optimizer] = SmallStep(optimizer, entries)
        elif isinstance(optimizer, torch.optim.LBFGS):
            # Its steps are of all entries together: a penalty's gradient at frozen ones would turn those of the others.
            if len(args) > 1:
                return (args[0], _without_frozen(args[1], entries), *args[2:]), keywords
            return args, keywords | {"closure": _without_frozen(keywords["closure"], entries)}
    return None


def _without_frozen(closure: Any, entries: list[FrozenEntries]) -> Callable[[], Any]:
    # A closure that leaves no gradient at frozen entries.
    def call() -> Any:
        loss = closure()
        with torch.no_grad():
            for one in entries:
                grad = one.parameter.grad
                if grad is not None and grad.layout is torch.strided:
                    local(grad).masked_fill_(one.frozen(), 0)
        return loss

    return call


def _after(optimizer: torch.optim.Optimizer, args: Any, keywords: Any) -> None:
    if torch.compiler.is_compiling() or IS_SMALL in optimizer.__dict__:
        return
    known = {id(one): one for group in optimizer.param_groups for one in group["params"]}
    held = _held_by(known)
    small = _small.pop(optimizer, None)
    stepped = () if small is None else small.stepped
    if small is not None:
        small.end()
    if held and optimizer in _states:
        _states[optimizer].after(stepped)
    for layer in held:
        layer._held.restore(layer, stepped)
    _refuse_moved_constants(optimizer)


def _see_constants(
    optimizer: torch.optim.Optimizer, known: dict[int, Tensor], held: list[Any], *, closure: bool
) -> None:
    # Steps of an optimizer of others tell whether it moves what has no gradient, as decay could: each parameter is
    # looked at until it stayed in one of a learning rate that is not zero.
    _constants.pop(optimizer, None)  # of a step that raised
    if type(optimizer).__module__.startswith("torch.optim."):
        return
    looked_at: list[Tensor] = [one for one in known.values() if isinstance(one, Constant)]
    if (held or looked_at) and not closure and any(one.grad is not None for one in known.values()):
        # A closure may move a teacher, and a search without gradients moves all: neither is the optimizer's decay.
        kept = {id(one.parameter) for layer in held for one in layer._held.entries.values()}
        looked_at += [
            one for one in known.values()
            if not (one.requires_grad or _is_pushed(one) or id(one) in kept or isinstance(one, Constant))
        ]  # fmt: skip
    stayed = _stayed.setdefault(optimizer, set())
    new = [one for one in looked_at if not (one.is_meta or id(one) in stayed)]
    if new:
        _constants[optimizer] = [(one, local(one).detach().clone()) for one in new]


def _is_pushed(parameter: Tensor) -> bool:
    # Whether someone put a gradient there by hand: an optimizer that puts one everywhere puts zeros.
    return parameter.grad is not None and bool(local(parameter.grad).any())


def _refuse_moved_constants(optimizer: torch.optim.Optimizer) -> None:
    seen = _constants.pop(optimizer, [])
    moved = [(one, before) for one, before in seen if not same_bits(local(one).detach(), before)]
    if not moved:
        if seen and all(group.get("lr", 1) != 0 for group in optimizer.param_groups):
            _stayed[optimizer].update(id(one) for one, _ in seen)
        return
    with torch.no_grad():
        for one, before in moved:
            local(one).copy_(before)
    frozen_checks.refuse_moved_constants(type(optimizer).__name__, len(moved), tuple(moved[0][0].shape))


def _held_by(known: dict[int, Tensor]) -> list[Any]:
    # A layer's parameter may be another one than it was.
    return [
        layer
        for layer in list(_layers)
        if layer._held is not None and any(id(one) in known for one in layer._parameters.values())
    ]


def _with_the_rest(known: dict[int, Tensor], held: list[Any]) -> list[Any]:
    # Beside held layers an optimizer may have those of a model that its hold was not told of (`add_param_group`).
    if held and hold_also is not None:
        free = [one for one in list(_masked) if one._held is None and not getattr(one, "_is_packed", False)]
        rest = [one for one in free if any(id(parameter) in known for parameter in one._parameters.values())]
        for layer in rest:
            for holder in set().union(*[one._held.holders for one in held]):
                hold_also(layer, type(layer).__name__, holder)
        held = [*held, *rest]
    return held


def _refuse_other_masks(held: list[Any]) -> None:
    # Each of two layers that share a parameter puts it back where its own mask says so.
    seen: dict[int, tuple[Any, FrozenEntries]] = {}
    for layer in held:
        for one in layer._held.entries.values():
            other, entries = seen.setdefault(id(one.parameter), (layer, one))
            if entries is not one and not torch.equal(entries.frozen(), one.frozen()):
                frozen_checks.refuse_other_masks(str(other), str(layer))


def _refuse_replaced(optimizer: torch.optim.Optimizer, known: dict[int, Tensor]) -> None:
    cached = _compat.stepped_with(optimizer)
    for one in [*known.values(), *(cached or ())]:
        if "_maskedlinear_moved" in one.__dict__:
            _warn_of_moments(optimizer, one)
        mark = getattr(one, "_maskedlinear_replaced", None)
        if mark is None:
            continue
        layer, now, how = mark[0](), mark[1], mark[2]
        new = None if layer is None else getattr(layer, now, None)
        if new is None or not new.requires_grad:
            continue
        steps_with_new = id(new) in known if cached is None else any(new is p for p in cached)
        if not steps_with_new:
            frozen_checks.refuse_replaced(type(optimizer).__name__, how, now)


ELEMENTWISE = {
    "acc_delta", "exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq", "momentum_buffer", "prev",
    "square_avg", "sum",
}  # fmt: skip
"""Names by which torch's optimizers keep what has a number for each of the parameter's."""


def _refuse_other_shapes(optimizer: torch.optim.Optimizer) -> None:
    # torch loads a state of any shape, and its step then raises with some of the numbers stepped. One look at each
    # state that came from somewhere; an optimizer of others may keep another shape by the same name.
    if _looked_at.get(optimizer) or not type(optimizer).__module__.startswith("torch.optim."):
        return
    for group in optimizer.param_groups:
        for number, parameter in enumerate(group["params"]):
            for key, value in optimizer.state.get(parameter, {}).items():
                if key in ELEMENTWISE and isinstance(value, Tensor) and value.shape != parameter.shape:
                    name = (
                        repr(group["param_names"][number])
                        if "param_names" in group
                        else f"number {number} of its group"
                    )
                    shapes = tuple(value.shape), tuple(parameter.shape)
                    frozen_checks.refuse_other_shapes(type(optimizer).__name__, name, key, *shapes)
    if optimizer not in _looked_at:
        optimizer.register_load_state_dict_post_hook(_forget_shapes)
    _looked_at[optimizer] = True


def _forget_shapes(optimizer: torch.optim.Optimizer) -> None:
    _looked_at[optimizer] = False


def _warn_of_moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    state = optimizer.state.get(parameter, {}).values()
    if not state and len(list(optimizers_of(optimizer))) > 1:
        return  # the one that it wraps has the moments
    how = parameter.__dict__.pop("_maskedlinear_moved")
    if any(isinstance(one, Tensor) and one.shape == parameter.shape and one.dim() for one in state):
        warnings.warn(frozen_checks.other_moments(type(optimizer).__name__, how), stacklevel=5)
