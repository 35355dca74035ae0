"""Notices a plain layer that shares its weight with a masked one: its part of the gradient has no mask."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_torch import _compat, steps
from maskedlinear_torch.held_module import HeldModule

_masked: weakref.WeakSet[Any] = weakref.WeakSet()
_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_hooks: list[Any] = []
_PLAIN = (nn.Linear, nn.Embedding)


class Tie:
    """A plain layer, held weakly. In a copy of a model it is that model's."""

    def __init__(self, plain: nn.Module | None) -> None:
        self.plain: Any = (lambda: None) if plain is None else weakref.ref(plain)

    def __reduce__(self) -> Any:
        return Tie, (self.plain(),)


def know(layer: Any) -> None:
    """Notice from now on what else gets the weight of a masked layer."""
    if not _hooks:
        _hooks.append(register_module_parameter_registration_hook(_registered))
    _masked.add(layer)
    if layer._plain_ties:
        _watch(layer)


def take(layer: Any, weight: Any) -> None:
    """Notice the plain layers that have the weight which a masked layer is given now."""
    if layer not in _masked or torch.compiler.is_compiling() or _compat.is_distributed(weight):
        return
    for one in gc.get_objects():  # somebody else's layers are known to nobody else; this is seldom asked
        if not issubclass(type(one), _PLAIN) or isinstance(one, HeldModule):
            continue
        if one.__dict__.get("_parameters", {}).get("weight") is weight:
            _tie(layer, one)


def warn(layer: Any) -> None:
    """Warn, once, if a plain layer that has this one's weight would train all of it."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and layer.weight.requires_grad):
        return
    plain = [tie.plain() for tie in layer._plain_ties]
    layer._plain_ties = ()
    for one in plain:
        if one is not None and one.weight is layer.weight and one not in steps.unmasked:
            warnings.warn(frozen_checks.plain_tie(type(one).__name__, str(layer)), stacklevel=4)


def _registered(module: nn.Module, name: str, param: Any) -> None:
    if name != "weight" or param is None or not isinstance(module, _PLAIN) or isinstance(module, HeldModule):
        return
    for layer in list(_masked):
        if layer._parameters.get("weight") is param:
            _tie(layer, module)


def _tie(layer: Any, plain: nn.Module) -> None:
    if not any(tie.plain() is plain for tie in layer._plain_ties):
        layer._plain_ties = (*layer._plain_ties, Tie(plain))
        _watch(layer)


def _watch(layer: Any) -> None:
    # Compiled code cannot warn, but the step after it can.
    if layer not in _watched:
        _watched.add(layer)
        steps.watch(layer, _before_a_step)


def _before_a_step(layer: Any) -> None:
    if layer._plain_ties and layer._held is None and layer.weight.grad is not None:
        with torch.enable_grad():
            warn(layer)
