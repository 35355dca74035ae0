"""Any other parameter of any shape: the reference program itself, at the price of a copy (contract S13)."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maskedlinear_core import masks, parameters
from maskedlinear_core.annotations import MaskLike
from maskedlinear_core.arrays import dtype_name, is_framework_array
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import parameter as parameter_checks
from maskedlinear_torch import lowering, steps
from maskedlinear_torch.frozen_entries import Places, local_places
from maskedlinear_torch.held_module import HeldModule
from maskedlinear_torch.tensors import check_dense

Module = TypeVar("Module", bound=nn.Module)
"""A module of any class: what comes back is it."""


def masked_parameter(weight: Tensor, grad_mask: MaskLike) -> Tensor:
    """Return where(M, W, W.detach()): the same values, of which only the masked ones learn.

    For parameters that have no layer here: convolutions, scales of norms, recurrent weights. All derivatives, of any
    order and mode, are the framework's own.

    Args:
        weight: W, of any shape and any float or complex dtype.
        grad_mask: M: a bool array of the weight's shape, or a mask over its first two axes (out, in), broadcast over
            the others. For a weight of one axis it must be `rows`. True = the gradient flows.

    Returns:
        A tensor of the weight's shape and dtype.

    Raises:
        TypeError: No tensor, one of integers or quantized, or no mask.
        ValueError: A mask of another shape.
        IndexError: A position outside of the weight.

    Example:
        >>> from maskedlinear_torch import rows
        >>> weight = torch.ones(2, 1, 3, requires_grad=True)
        >>> masked_parameter(weight, rows([1])).sum().backward()
        >>> weight.grad.tolist()
        [[[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]]
    """
    if not isinstance(weight, Tensor):
        call_checks.refuse_array("weight", weight, function="masked_parameter")
    _check("masked_parameter", weight)
    trains = _trains(weight, grad_mask)
    return torch.where(trains, weight, weight.detach())


class GradMask(nn.Module):
    """`masked_parameter` as a parametrization, for `torch.nn.utils.parametrize`: see `mask_parameter`.

    Args:
        grad_mask: As for `masked_parameter`.
        shape: Shape of the parameter.
    """

    def __init__(self, grad_mask: MaskLike, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.grad_mask = grad_mask
        self.trains = parameters.to_array(grad_mask, tuple(shape))

    def forward(self, weight: Tensor) -> Tensor:
        """Return where(M, W, W.detach())."""
        return torch.where(self._on(weight.device), weight, weight.detach())

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is to be stored where the parameter is assigned to: the very values."""
        return weight

    def extra_repr(self) -> str:
        """Describe the mask."""
        return (
            f"grad_mask={self.grad_mask!r}" if isinstance(self.grad_mask, masks.Mask) else f"{self.trains.sum()} train"
        )

    def _on(self, device: torch.device) -> Tensor:
        # No buffer: what averages or casts buffers must not reach it.
        known = self.__dict__.get("_known")
        if known is None or known.device != device:
            self.__dict__["_known"] = known = torch.tensor(self.trains, device=device)
        return known


def mask_parameter(module: Module, name: str, *, grad_mask: MaskLike) -> Module:
    """Let only the masked entries of a module's parameter learn, by a parametrization; in place.

    The parameter itself is `module.parametrizations.<name>.original`, which optimizers hold as before. A masked
    gradient is not a frozen weight: weight decay and momentum still move it, unless `hold_frozen` has the module.
    `torch.nn.utils.parametrize.remove_parametrizations(module, name)` undoes it.

    Args:
        module: Any module, e.g. a convolution.
        name: Name of its parameter, e.g. "weight".
        grad_mask: As for `masked_parameter`.

    Returns:
        The module.

    Raises:
        TypeError, ValueError, IndexError: As `masked_parameter`; or the module has no such parameter.

    Example:
        >>> from maskedlinear_torch import rows
        >>> conv = mask_parameter(nn.Conv1d(1, 2, 3), "weight", grad_mask=rows([1]))
        >>> conv(torch.ones(1, 1, 3)).sum().backward()
        >>> conv.parametrizations.weight.original.grad.tolist()
        [[[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]]
    """
    parameter = getattr(module, "_parameters", {}).get(name)
    if parameter is None:
        parameter_checks.refuse_name(name, sorted(getattr(module, "_parameters", {})))
    _check("mask_parameter", parameter)
    parametrize.register_parametrization(module, name, GradMask(grad_mask, tuple(parameter.shape)), unsafe=True)
    parametrizations: Any = module.parametrizations
    parametrizations[name].__class__ = MaskedParameter
    steps.made(parametrizations[name])
    return module


class MaskedParameter(HeldModule, parametrize.ParametrizationList):
    """The parametrizations of a parameter whose first is a `GradMask`: what `hold_frozen` finds and holds."""

    def trained_positions(self) -> dict[str, np.ndarray]:
        """Return a bool array of the shape of the parameter, by its name here."""
        return {"original": self._mask().trains}

    def forward(self) -> Tensor:
        """Return the parameter as its module sees it."""
        if self._held is None:
            return super().forward()
        weight = self._held.read(self, "original")
        for parametrization in self:
            weight = parametrization(weight)
        return weight

    def _mask(self) -> Any:
        return self[0]

    def _held_names(self) -> tuple[str, ...]:
        return ("original",)

    def _places(self) -> dict[str, Places]:
        """Return where the parameter trains (for `hold_frozen`)."""
        original = self._parameters["original"]
        assert original is not None
        return {"original": local_places(original, self._mask()._on(original.device))}


def _check(function: str, weight: Tensor) -> None:
    check_dense(function, weight=weight)
    can_learn = weight.is_floating_point() or weight.is_complex()
    parameter_checks.can_learn(dtype_name(weight), can_learn, function)


def _trains(weight: Tensor, grad_mask: MaskLike) -> Tensor:
    if isinstance(grad_mask, masks.Mask):  # its positions may be traced, as in compiled code they all are
        two, across = parameters.over_two_axes(grad_mask, tuple(weight.shape))
        found = lowering.resolve(grad_mask, two, weight.device).mask(torch.empty(two, device=weight.device))
        return found.expand(two).reshape(across)
    if isinstance(grad_mask, np.ndarray) and grad_mask.dtype == np.bool_:
        # A copy: torch takes no negative strides, and warns of what is read-only.
        grad_mask = lowering.as_tensor(grad_mask.copy())
    if isinstance(grad_mask, Tensor):  # it may be traced or batched
        parameter_checks.bool_of_shape(dtype_name(grad_mask), tuple(grad_mask.shape), tuple(weight.shape))
        return grad_mask.to(weight.device)
    if not is_framework_array(grad_mask):
        call_checks.refuse_mask(grad_mask)
    return torch.tensor(parameters.to_array(grad_mask, tuple(weight.shape)), device=weight.device)
