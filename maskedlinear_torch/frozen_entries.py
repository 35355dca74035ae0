"""What a held layer keeps of its own parameters: the values that may not move (contract S8).

W_read = where(M, W, W_held): the layer multiplies by the matrix of this equation, so nothing that writes to the
parameter, by whatever way, reaches a frozen entry that a forward reads. In eager code the matrix is kept as it is
and only its trainable entries are brought up to date, so it costs the trainable share.
"""

from __future__ import annotations

import functools
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_torch import _compat, indexing

_FEW = 4
"""Entries are moved by number where fewer than one in so many train, else by a mask."""

LINE = 64
"""Bytes of a cache line."""

_SAMPLE = 256
"""So many frozen entries tell whether a tensor drifts."""

INHERITED = 0
"""The holder of a layer that is a copy: whoever holds the copy may let it go."""


class Places:
    """Where a parameter trains: whole rows or columns, runs of entries by number, or a bool mask."""

    def __init__(self, trains: Tensor, *, dim: int | None = None, index: Tensor | None = None) -> None:
        self.trains, self.dim, self.index = trains, dim, index
        self.run = 1
        if dim is None and trains.is_contiguous() and not trains.is_meta:
            flat = trains.reshape(-1).nonzero().reshape(-1)
            if flat.numel() * _FEW <= trains.numel():
                self.run = _run(flat, trains.numel())
                self.dim, self.index = -1, flat[:: self.run] // self.run
        self._axis = max(self.dim or 0, 0)

    def carry(self, source: Tensor, target: Tensor) -> None:
        """Write the trainable entries of one tensor into another, in place."""
        if self.can_be_taken_from(target):
            self.put(self.take(source), target)
        else:
            torch.where(self.trains, source, target, out=target)

    def can_be_taken_from(self, tensor: Tensor) -> bool:
        """Tell whether `take` and `put` have an index for the trainable entries of a tensor."""
        return self.index is not None and (self.dim != -1 or tensor.is_contiguous())

    def take(self, source: Tensor) -> Tensor:
        """Return a copy of the trainable entries alone."""
        assert self.index is not None
        return self._lines(source.detach()).index_select(self._axis, self.index)

    def shape_of(self, source: Tensor) -> torch.Size:
        """Return the shape of what `take` returns."""
        assert self.index is not None
        shape = [*source.shape] if self.dim != -1 else [-1] if self.run == 1 else [-1, self.run]
        shape[self._axis] = self.index.numel()
        return torch.Size(shape)

    def put(self, taken: Tensor, target: Tensor) -> None:
        """Write what `take` returned into a tensor, in place."""
        assert self.index is not None
        indexing.write_into(self._lines(target), taken, self.index, self._axis)

    @functools.cached_property
    def lies_together(self) -> bool:
        """Tell whether to reach the trainable entries is to read few cache lines beside theirs."""
        if self.index is None:
            return False
        size = LINE // 4
        if self.dim == 0 or self.run * _FEW >= size:
            return True
        return self.index.numel() * _FEW >= (self.index // size).unique().numel() * size

    def _lines(self, tensor: Tensor) -> Tensor:
        if self.dim != -1:
            return tensor
        return tensor.reshape(-1, self.run) if self.run > 1 else tensor.reshape(-1)

    def merged(self, source: Tensor, target: Tensor) -> Tensor:
        """Return `target` with the trainable entries of `source`, differentiable in these."""
        if self.index is None or self.dim == -1:
            return torch.where(self.trains, source, target)
        assert self.dim is not None
        return target.index_copy(self.dim, self.index, source.index_select(self.dim, self.index))


def _run(flat: Tensor, size: int) -> int:
    # How many entries lie side by side everywhere, of the powers of two at which such runs begin.
    run = 1
    while flat.numel() and flat.numel() % (2 * run) == 0 and size % (2 * run) == 0:
        starts = flat[:: 2 * run]
        ends = flat[2 * run - 1 :: 2 * run]
        if bool((starts % (2 * run)).any()) or not bool((ends - starts == 2 * run - 1).all()):
            break
        run *= 2
    return run


class FrozenEntries:
    """The frozen entries of one parameter, and the matrix that the forward reads them from.

    Args:
        parameter: What is held; of a DTensor the part that lies here.
        places: Where it trains, in that part.
    """

    def __init__(self, parameter: nn.Parameter, places: Places) -> None:
        self.parameter, self.places = parameter, places
        self.has_adapter = False
        here = local(parameter)
        with torch.inference_mode(False):  # a matrix made there could not be saved for a later backward
            self.matrix = here.detach().clone()
        self._seen = self._state_of(here)
        self._taken: Tensor | None = None  # the trainable entries of the matrix, where they are known
        self._some: Tensor | None = None

    def frozen(self) -> Tensor:
        """Return a bool mask of the frozen entries, in the part that lies here."""
        return ~self.places.trains.expand(self.matrix.shape)

    def fits(self) -> bool:
        """Tell whether the parameter has the size, type and device that it had, and values to hold."""
        here = local(self.parameter)
        same = (here.shape, here.dtype, here.device) == (self.matrix.shape, self.matrix.dtype, self.matrix.device)
        return same and not here.is_meta

    def some(self) -> Tensor:
        """Return the numbers of some frozen entries: decay and averages reach all of them alike."""
        if self._some is None:
            places = self.frozen().reshape(-1).nonzero().reshape(-1)
            self._some = places[:: max(1, -(-places.numel() // _SAMPLE))]
        return self._some

    def is_as_held(self) -> bool:
        """Put the parameter back if it is not as it is held, and tell whether its trainable entries have an index."""
        here = self.parameter
        if _compat.is_distributed(here) or here.device.type != "cpu" or not self.places.can_be_taken_from(here):
            return False  # on a GPU more and smaller kernels would be started
        some = self.some()
        if self._seen != self._state_of(here) or not same_bits(
            here.detach().reshape(-1)[some], self.matrix.reshape(-1)[some]
        ):
            self.restore()
        return True

    @torch.no_grad()
    def write(self, taken: Tensor) -> None:
        """Write trainable entries into the parameter, which is right elsewhere; the next forward writes the matrix.

        There the product that reads the matrix finds it in the cache.
        """
        self.places.put(taken, self.parameter)
        _compat.count_write(self.matrix)  # autograd notices that a graph from before has another
        self._seen = self._state_of(self.parameter)

    def _is_the_adapters(self) -> bool:
        # Nothing trains the parameter, and an adapter lies over its layer: what is written is a merge or its undoing.
        one = self.parameter
        return self.has_adapter and not one.requires_grad and one.grad is None

    def read(self, parameter: Tensor) -> Tensor:
        """Return what a forward reads: the parameter with its frozen entries as they are held."""
        if self._is_the_adapters():
            self.restore()
            return parameter
        if torch.compiler.is_compiling() or _compat.in_transform() or _compat.in_dispatch_mode():
            return self.places.merged(parameter, self.matrix)
        if _compat.is_traced_by_jit():
            call_checks.refuse_jit_trace()
        if self._seen != self._state_of(parameter):
            self.restore()
        else:
            self._refresh(parameter)
        return _Read.apply(parameter, self.matrix) if torch.is_grad_enabled() else self.matrix

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what moved in the parameter itself."""
        here = local(self.parameter)
        if self._is_the_adapters():
            self.matrix.copy_(here)
            self._taken, self._seen = None, self._state_of(here)
            return
        self._refresh(here)
        here.copy_(self.matrix)
        self._seen = self._state_of(here)

    def _refresh(self, here: Tensor) -> None:
        # The version of the matrix counts on only with the parameter's: autograd then notices, as it would of the
        # parameter, that a matrix changed between a forward and its backward. Writes to `.data` count nowhere.
        matrix = self.matrix if self._seen != self._state_of(here) else self.matrix.data
        if not (here.device.type == "cpu" and self.places.can_be_taken_from(matrix)):
            self.places.carry(here.detach(), matrix)
            return
        # To look whether they changed is cheaper than to write them; on a GPU one would have to wait for it.
        taken = self.places.take(here)
        if self._taken is None or not same_bits(taken, self._taken):
            self.places.put(taken, matrix)
            self._taken = taken

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
        self.has_adapter = False
        self.renew(layer)

    def renew(self, layer: Any) -> None:
        """Hold the values that the layer has now."""
        if any(layer._parameters.get(name) is None for name in self.entries):
            return  # computed from others: `read` refuses
        self.waits = False
        self.entries = {
            name: FrozenEntries(layer._parameters[name], places) for name, places in layer._places().items()
        }
        if self.has_adapter:
            self.lie_under_an_adapter()

    def lie_under_an_adapter(self) -> None:
        """Take over what is written to parameters that nothing trains: an adapter over the layer merges into them."""
        self.has_adapter = True
        for one in self.entries.values():
            one.has_adapter = True

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

    def restore(self, layer: Any, but: Container[int] = ()) -> None:
        """Put back what moved in the layer's parameters, unless others are in their places for now.

        Args:
            layer: The layer.
            but: Parameters, by identity, that are right.
        """
        if not self.waits and self._are_in_place(layer):
            for entries in self.entries.values():
                if id(entries.parameter) not in but and entries.fits():
                    entries.restore()

    def apart(self, value: Any) -> Any:
        """Return a copy of a tensor that lies in the memory of a held parameter; any other value as it is."""
        own = {local(one.parameter).data_ptr() for one in self.entries.values()}
        lies_here = isinstance(value, Tensor) and not value.is_meta and local(value).data_ptr() in own
        return value.detach().clone() if lies_here else value

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

    @classmethod
    def apply(cls, parameter: Tensor, matrix: Tensor) -> Any:
        # As `Function.apply` without setup_context and outside of torch.func, in half of its time.
        return super(torch.autograd.Function, cls).apply(_compat.unwrapped(parameter), matrix)  # type: ignore[misc]

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, matrix: Tensor) -> Tensor:
        return matrix.detach()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        return cotangents[0], None


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = _BITS.get(one.element_size()) if one.is_floating_point() else None
    return torch.equal(one, other) if bits is None else torch.equal(one.view(bits), other.view(bits))


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def local(tensor: Any) -> Tensor:
    """Return the part of a DTensor that lies here, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if _compat.is_distributed(tensor) else tensor


def local_places(parameter: Any, trains: Tensor, *, dim: int | None = None, index: Tensor | None = None) -> Places:
    """Return where a parameter trains, in the part of it that lies here."""
    if _compat.is_distributed(parameter):
        return Places(_compat.cut_like(trains.expand(parameter.shape).contiguous(), parameter).to_local())
    return Places(trains, dim=dim, index=index)
