"""Weights that a torch function brings along: tensors, and those of modules (`parity.operator.brought`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

Swap = Callable[..., Any]


class TorchSide:
    """What torch's objects hold (`brought.Side`)."""

    def holds(self, value: Any) -> bool:
        """Return whether an object is a tensor of floats, or a module."""
        return isinstance(value, nn.Module) or _is_float(value)

    def swapped(self, value: Any, path: str, swap: Swap) -> Any:
        """Return a tensor or a module with other tensors; a module's own is not touched."""
        return _module(value, path, swap, {}) if isinstance(value, nn.Module) else swap(path, value)

    def numpy(self, array: torch.Tensor) -> np.ndarray:
        """Return a tensor as float64."""
        return array.detach().to("cpu", torch.float64).numpy()

    def array(self, values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        """Return numbers as a tensor of the dtype and device of another."""
        return torch.from_numpy(np.array(values)).to(like.device, like.dtype)

    def transposed(self, array: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        """Return a tensor with its axes in another order."""
        return array.permute(*axes) if len(axes) > 1 else array

    def first_float(self, arguments: Any) -> torch.Tensor | None:
        """Return the first tensor of floats among arguments."""
        if isinstance(arguments, torch.Tensor):
            return arguments if arguments.dtype.is_floating_point else None
        parts = arguments.values() if isinstance(arguments, dict) else arguments
        if not isinstance(arguments, dict | list | tuple):
            return None
        return next((found for one in parts if (found := self.first_float(one)) is not None), None)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def _module(module: nn.Module, path: str, swap: Swap, seen: dict[int, nn.Module]) -> nn.Module:
    """Return a copy of a module that shares no tensor that it writes to; parameters that need a gradient learn."""
    if id(module) in seen:
        return seen[id(module)]
    made = copy.copy(module)
    seen[id(module)] = made
    for place in ("_parameters", "_buffers"):
        made.__dict__[place] = {
            name: _tensor(one, f"{path}.{name}".lstrip("."), swap) for name, one in getattr(module, place).items()
        }
    made.__dict__["_modules"] = {
        name: None if part is None else _module(part, f"{path}.{name}".lstrip("."), swap, seen)
        for name, part in module._modules.items()
    }
    return made


def _tensor(one: torch.Tensor | None, path: str, swap: Swap) -> torch.Tensor | None:
    if one is None or not _is_float(one):
        return None if one is None else one.clone()  # a counter, which a module in training adds to
    swapped = swap(path, one, learns=isinstance(one, nn.Parameter) and one.requires_grad)
    assert isinstance(swapped, torch.Tensor)
    return swapped
