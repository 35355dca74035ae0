"""What optimizers keep of frozen entries: left to them, but for copies of the weight, which stay the weight.

A state is what its optimizer makes of it: its values and types are the optimizer's own (8-bit codes, step sizes,
sums over rows). Two things are kept. A tensor that equals the weight where that is frozen is a copy of it (an
average, the iterate of a schedule-free method) and stays equal. And the moments of torch's own optimizers, which
decay alone would build up, stay at frozen entries what they were, or what they are made as.
"""

from __future__ import annotations

import weakref
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_torch.frozen_entries import FrozenEntries, local, same_bits


class FrozenState:
    """The state of one optimizer, looked at before and after its steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.is_torchs_own = type(optimizer).__module__.startswith("torch.optim.")
        self.kept: dict[FrozenEntries, dict[str, _Kept]] = {}
        self.now: list[FrozenEntries] = []

    @torch.no_grad()
    def before(self, entries: list[FrozenEntries]) -> None:
        """See what is new in the state: loaded, or another mask's."""
        self.now = entries
        self.kept = {one: self.kept.get(one, {}) for one in entries}
        for one in entries:
            kept = self.kept[one]
            for name, tensor in self._elementwise(one):
                if name not in kept or kept[name].tensor is not tensor:
                    self._refuse_in_a_graph(tensor)
                    kept[name] = _Kept(tensor, one, self._value(tensor, one))

    @torch.no_grad()
    def after(self, but: Container[int]) -> None:
        """Put back what drifted, before the weights themselves are, but for parameters that were not touched."""
        for one in self.now:
            if id(one.parameter) in but:
                continue
            kept = self.kept[one]
            for name, tensor in self._elementwise(one):
                if name not in kept or kept[name].tensor is not tensor:
                    self._refuse_in_a_graph(tensor)
                    kept[name] = _Kept(tensor, one, self._made(tensor, one))
                kept[name].keep(one)
        self.now = []

    def _refuse_in_a_graph(self, tensor: Tensor) -> None:
        if _is_captured(tensor):
            frozen_checks.refuse_first_step_in_a_graph(type(self.optimizer()).__name__)

    def _value(self, tensor: Tensor, one: FrozenEntries) -> Any:
        # What the frozen entries are to stay: a number, the weight (True), a copy of the tensor, or anything (None).
        found = local(tensor)[one.frozen()]
        if same_bits(found, one.matrix[one.frozen()]):
            return True
        if found.dtype != one.matrix.dtype and same_bits(found.to(one.matrix.dtype), one.matrix[one.frozen()]):
            return local(tensor).clone()
        if not self.is_torchs_own:
            return None
        return _constant(found, local(tensor).clone())

    def _made(self, tensor: Tensor, one: FrozenEntries) -> Any:
        # Made in this step: a copy of the weight as it was or as this step moved it, or a moment.
        found = local(tensor)[one.frozen()]
        for weight in (one.matrix, local(one.parameter)):
            if same_bits(found, weight[one.frozen()]):
                return True
            if found.dtype != weight.dtype and same_bits(found.to(weight.dtype), weight[one.frozen()]):
                return one.matrix.to(found.dtype)
        return _constant(found, 0.0) if self.is_torchs_own else None

    def _elementwise(self, one: FrozenEntries) -> list[tuple[str, Tensor]]:
        optimizer = self.optimizer()
        state = {} if optimizer is None else optimizer.state.get(one.parameter, {})
        return [
            (name, tensor)
            for name, tensor in state.items()
            if isinstance(tensor, Tensor)
            and type(tensor) in (Tensor, type(one.parameter), type(one.parameter.data))
            and tensor.shape == one.parameter.shape
            and tensor.is_floating_point()
            and tensor.dim()
        ]


class _Kept:
    """What a tensor of the state is to stay where its parameter is frozen."""

    def __init__(self, tensor: Tensor, one: FrozenEntries, value: Any) -> None:
        self.tensor, self.value, self.steps = tensor, value, 0
        self.drifts = False
        if value is not None:
            self.sample = one.some()

    def keep(self, one: FrozenEntries) -> None:
        """Put back what drifted. Whether anything does is asked ever more rarely: on a GPU it has to be waited for.

        In a CUDA graph nothing can be asked, and its replays run no Python: all is put back there.
        """
        if self.value is None:
            return
        self.steps += 1
        here = local(self.tensor)
        is_captured = _is_captured(here)
        if not (self.drifts or is_captured or self.steps & (self.steps - 1)):
            kept = self._whole(one, here)
            kept = kept.reshape(-1)[self.sample] if kept.dim() else kept.expand(self.sample.shape)
            self.drifts = not same_bits(here.reshape(-1)[self.sample], kept)
        if self.drifts or is_captured:
            torch.where(one.places.trains, here, self._whole(one, here), out=here)

    def _whole(self, one: FrozenEntries, here: Tensor) -> Tensor:
        if isinstance(self.value, Tensor):
            return self.value
        return one.matrix if self.value is True else here.new_full((), self.value)


def _is_captured(tensor: Tensor) -> bool:
    # Whether what is called now becomes part of a CUDA graph.
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _constant(found: Tensor, otherwise: Any) -> Any:
    if not found.numel():
        return None
    first = found.reshape(-1)[0]
    return first.item() if bool((found == first).all()) else otherwise
