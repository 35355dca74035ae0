"""What a held layer keeps of its own parameters: the values that may not move (SPEC S8).

W_read = where(M, W, W_held): the layer multiplies by the matrix of this equation, so nothing that writes to the
parameter, by whatever way, reaches a frozen entry that a forward reads. In eager code the matrix is kept as it is
and only its trainable entries are brought up to date, so it costs the trainable share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_torch import _compat

_FEW = 4
"""Entries are moved by number where fewer than one in so many train, else by a mask."""

INHERITED = 0
"""The holder of a layer that is a copy: whoever holds the copy may let it go."""


class Places:
    """Where a parameter trains: whole rows or columns, single entries by number, or a bool mask."""

    def __init__(self, trains: Tensor, *, dim: int | None = None, index: Tensor | None = None) -> None:
        self.trains, self.dim, self.index = trains, dim, index
        if dim is None and trains.is_contiguous() and not trains.is_meta:
            flat = trains.reshape(-1).nonzero().reshape(-1)
            if flat.numel() * _FEW <= trains.numel():
                self.dim, self.index = -1, flat

    def carry(self, source: Tensor, target: Tensor) -> None:
        """Write the trainable entries of one tensor into another, in place."""
        if self.index is None or (self.dim == -1 and not target.is_contiguous()):
            torch.where(self.trains, source, target, out=target)
        elif self.dim == -1:
            target.view(-1).index_copy_(0, self.index, source.reshape(-1).index_select(0, self.index))
        else:
            assert self.dim is not None
            target.index_copy_(self.dim, self.index, source.index_select(self.dim, self.index))

    def merged(self, source: Tensor, target: Tensor) -> Tensor:
        """Return `target` with the trainable entries of `source`, differentiable in these."""
        if self.index is None or self.dim == -1:
            return torch.where(self.trains, source, target)
        assert self.dim is not None
        return target.index_copy(self.dim, self.index, source.index_select(self.dim, self.index))


class FrozenEntries:
    """The frozen entries of one parameter, and the matrix that the forward reads them from.

    Args:
        parameter: What is held; of a DTensor the part that lies here.
        places: Where it trains, in that part.
    """

    def __init__(self, parameter: nn.Parameter, places: Places) -> None:
        self.parameter, self.places = parameter, places
        here = local(parameter)
        self.matrix = here.detach().clone()
        self._seen = self._state_of(here)

    def frozen(self) -> Tensor:
        """Return a bool mask of the frozen entries, in the part that lies here."""
        return ~self.places.trains.expand(self.matrix.shape)

    def fits(self) -> bool:
        """Tell whether the parameter has the size, type and device that it had, and values to hold."""
        here = local(self.parameter)
        same = (here.shape, here.dtype, here.device) == (self.matrix.shape, self.matrix.dtype, self.matrix.device)
        return same and not here.is_meta

    def read(self, parameter: Tensor) -> Tensor:
        """Return what a forward reads: the parameter with its frozen entries as they are held."""
        if torch.compiler.is_compiling() or _compat.in_transform() or _compat.in_dispatch_mode():
            return self.places.merged(parameter, self.matrix)
        if self._seen != self._state_of(parameter):
            self.restore()
        else:
            with torch.no_grad():
                self._refresh(parameter)
        return _Read.apply(parameter, self.matrix) if torch.is_grad_enabled() else self.matrix

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what moved in the parameter itself."""
        here = local(self.parameter)
        self._refresh(here)
        here.copy_(self.matrix)
        self._seen = self._state_of(here)

    def _refresh(self, here: Tensor) -> None:
        # The version of the matrix counts on only with the parameter's: autograd then notices, as it would of the
        # parameter, that a matrix changed between a forward and its backward. Writes to `.data` count nowhere.
        self.places.carry(here, self.matrix if self._seen != self._state_of(here) else self.matrix.data)

    @staticmethod
    def _state_of(here: Tensor) -> tuple[int, int]:
        return _compat.version(here), 0 if here.is_meta else here.data_ptr()


class Held:
    """The frozen entries of a layer, by the names of its parameters; part of the layer, copied and pickled with it.

    Args:
        layer: A module that says where its parameters train (`_places`).
    """

    def __init__(self, layer: Any) -> None:
        self.entries: dict[str, FrozenEntries] = {}
        self.holders: set[int] = set()
        self.renew(layer)

    def renew(self, layer: Any) -> None:
        """Hold the values that the layer has now."""
        if any(layer._parameters.get(name) is None for name in self.entries):
            return  # computed from others: `read` refuses
        self.waits = False
        self.entries = {
            name: FrozenEntries(layer._parameters[name], places) for name, places in layer._places().items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.holders = {INHERITED}

    def wait(self) -> None:
        """Hold the values that the layer has at its next forward or step: it came from the meta device."""
        self.waits = True

    def read(self, layer: Any, name: str) -> Any:
        """Return what a forward reads as the parameter of that name."""
        if self.waits and not any(layer._parameters[one].is_meta for one in self.entries):
            self.renew(layer)
        parameter, entries = layer._parameters.get(name), self.entries.get(name)
        if parameter is None:
            if name in self.entries:
                frozen_checks.refuse_computed(type(layer).__name__, name)
            return None
        if entries is None or parameter is not entries.parameter:
            return parameter  # all of it trains; or functional_call's, or whole for the time of a forward (FSDP2)
        if _compat.is_distributed(parameter):
            entries.restore()
            return parameter
        if not torch.compiler.is_compiling() and not entries.fits():
            if parameter.is_meta:
                return parameter
            self.renew(layer)  # values that came to be only now
            entries = self.entries[name]
        return entries.read(parameter)

    def restore(self, layer: Any) -> None:
        """Put back what moved in the layer's parameters, unless others are in their places for now."""
        if not self.waits and self._are_in_place(layer):
            for entries in self.entries.values():
                if entries.fits():
                    entries.restore()

    def restore_parts(self, layer: Any) -> None:
        """Put back what moved in parameters that are cut, before they are put together for a forward (FSDP2)."""
        if any(_compat.is_distributed(entries.parameter) for entries in self.entries.values()):
            self.restore(layer)

    def follow(self, layer: Any) -> None:
        """Hold the layer's parameters if they are others than before, to stay (`fully_shard` puts such there)."""
        if self.waits or not self._are_in_place(layer):
            self.renew(layer)

    def _are_in_place(self, layer: Any) -> bool:
        return all(layer._parameters.get(name) is entries.parameter for name, entries in self.entries.items())


class _Read(torch.autograd.Function):
    """The matrix, whose gradient is the parameter's."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, matrix: Tensor) -> Tensor:
        return matrix.detach()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        return cotangents[0], None


def local(tensor: Any) -> Tensor:
    """Return the part of a DTensor that lies here, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if _compat.is_distributed(tensor) else tensor


def local_places(parameter: Any, trains: Tensor, *, dim: int | None = None, index: Tensor | None = None) -> Places:
    """Return where a parameter trains, in the part of it that lies here."""
    if _compat.is_distributed(parameter):
        return Places(_compat.cut_like(trains.expand(parameter.shape).contiguous(), parameter).to_local())
    return Places(trains, dim=dim, index=index)
