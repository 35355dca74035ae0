"""Notices a plain layer that gets the weight of a masked one: its part of the gradient has no mask."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_torch import steps
from maskedlinear_torch.held_module import HeldModule

_masked: weakref.WeakSet[Any] = weakref.WeakSet()
_hooks: list[Any] = []


def know(layer: Any) -> None:
    """Notice from now on what else gets the weight of a masked layer."""
    if not _hooks:
        _hooks.append(register_module_parameter_registration_hook(_registered))
    _masked.add(layer)


def warn(layer: Any) -> None:
    """Warn, once, if a plain layer that has this one's weight would train all of it."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and layer.weight.requires_grad):
        return
    plain = [one() for one in layer._plain_ties]
    layer._plain_ties = ()
    for one in plain:
        if one is not None and one.weight is layer.weight and one not in steps.unmasked:
            warnings.warn(frozen_checks.plain_tie(type(one).__name__, str(layer)), stacklevel=4)


def _registered(module: nn.Module, name: str, param: Any) -> None:
    if name != "weight" or param is None or not isinstance(module, nn.Linear | nn.Embedding):
        return
    if not isinstance(module, HeldModule):
        for layer in list(_masked):
            if layer._parameters.get("weight") is param and not any(one() is module for one in layer._plain_ties):
                layer._plain_ties = (*layer._plain_ties, weakref.ref(module))
