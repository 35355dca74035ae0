"""Single elements by their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from maskedlinear_core import positions
from maskedlinear_core.positions import Positions
from maskedlinear_torch.indexing import bounds, put, take, within, write, write_into
from maskedlinear_torch.kinds.base import Kind, Shape
from maskedlinear_torch.kinds.sums import can_sum_in_pieces, dot, flat, sum_dtype, widened


@dataclass(frozen=True, eq=False)
class SparseElements(Kind, name="entries"):
    """Single elements that are few, or packed: flat positions (n,), row by row.

    Where one in `positions.SPARSE` or fewer are wanted (in eager code on a CPU one in `SPARSE_IN_PIECES`), each is a
    dot product of its own. Otherwise the dense product is made in halves and the wanted entries are taken: nothing has
    the size of a large weight.
    """

    flat_positions: Tensor
    in_features: int
    is_canonical: bool

    @classmethod
    def from_positions(cls, found: Positions, arrays: Sequence[Any], shape: Shape, *, is_canonical: bool) -> Self:
        (flat_positions,) = arrays
        return cls(flat_positions, shape[1], is_canonical)

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        return (self.flat_positions,)

    def with_arrays(self, arrays: Sequence[Any]) -> Self:
        (flat_positions,) = arrays
        return type(self)(flat_positions, self.in_features, self.is_canonical)

    def weight_grad(self, g: Tensor, kept: Tensor) -> Tensor:
        g, kept = flat(g), flat(kept)
        in_pieces = self.is_canonical and can_sum_in_pieces(g)
        if self._are_few(g.shape[1], positions.SPARSE_IN_PIECES if in_pieces else positions.SPARSE):
            return self._in_pieces(g, kept) if in_pieces else self._sampled(g, kept, *self._places())
        if in_pieces:
            return self._from_dense(g, kept)
        values = g.new_zeros(self.flat_positions.shape, dtype=sum_dtype(g))
        for start, stop in positions.row_chunks(g.shape[1]):
            part = dot(g[:, start:stop].t(), kept)
            inside, local = within(self.flat_positions, start * self.in_features, stop * self.in_features)
            values = torch.where(inside, part.reshape(part.numel()).index_select(0, local), values)
        return values

    def to_dense(self, values: Tensor, shape: Shape) -> Tensor:
        return put(values, self.flat_positions, 0, shape[0] * shape[1], is_canonical=self.is_canonical).reshape(shape)

    def pack(self, weight: Tensor) -> Tensor:
        return take(weight.reshape(weight.numel()), self.flat_positions, 0, is_canonical=self.is_canonical)

    def merge_into(self, weight: Tensor, values: Tensor) -> Tensor:
        line = weight.reshape(weight.numel())
        return write(line, values, self.flat_positions, 0, is_canonical=self.is_canonical).reshape(weight.shape)

    def overwrite(self, weight: Tensor, values: Tensor) -> bool:
        if not (self.is_canonical and weight.is_contiguous()):
            return False
        write_into(weight.view(weight.numel()), values, self.flat_positions, 0)
        return True

    def apply(self, kept: Tensor, values: Tensor, out_features: int) -> Tensor:
        x = flat(kept)
        if self._are_few(out_features):
            rows, columns = self._places()
            terms = widened(x.index_select(1, columns)) * widened(values)
            sums = terms.new_zeros(x.shape[0], out_features + 1).index_add(1, rows, terms)
            return sums[:, :out_features].to(sum_dtype(x)).reshape(*kept.shape[:-1], out_features)
        parts = []
        for start, stop in positions.row_chunks(out_features):
            parts.append(dot(x, self._part(values, start, stop).t()))
        return torch.cat(parts, 1).reshape(*kept.shape[:-1], out_features)

    def input_grad(self, g: Tensor, values: Tensor, in_features: int) -> Tensor:
        line = flat(g)
        if self._are_few(line.shape[1]):
            rows, columns = self._places()
            terms = widened(take(line, rows, 1, is_canonical=self.is_canonical)) * widened(values)
            sums = terms.new_zeros(line.shape[0], in_features).index_add(1, columns, terms)
            return sums.to(sum_dtype(g)).reshape(*g.shape[:-1], in_features)
        total = line.new_zeros(line.shape[0], in_features, dtype=sum_dtype(g))
        for start, stop in positions.row_chunks(line.shape[1]):
            total = total + dot(line[:, start:stop], self._part(values, start, stop))
        return total.reshape(*g.shape[:-1], in_features)

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        return (self.flat_positions.shape[0],)

    def mask(self, weight: Tensor) -> Tensor:
        ones = torch.ones_like(self.flat_positions, dtype=torch.bool)
        return self.to_dense(ones, (weight.shape[0], weight.shape[1]))

    def _are_few(self, out_features: int, one_in: int = positions.SPARSE) -> bool:
        return self.flat_positions.shape[0] * one_in <= out_features * self.in_features

    def _places(self) -> tuple[Tensor, Tensor]:
        return self.flat_positions // self.in_features, self.flat_positions % self.in_features

    def _sampled(self, g: Tensor, kept: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        # A dot product for each position.
        terms = widened(take(g, rows, 1, is_canonical=self.is_canonical)) * widened(kept.index_select(1, columns))
        return terms.sum(0).to(sum_dtype(g))

    def _in_pieces(self, g: Tensor, kept: Tensor) -> Tensor:
        # The same, of so much of the batch at a time that what is gathered stays in cache. Multiplied in place: what is
        # written for the first time comes from memory.
        rows, columns = self._places()
        size = max(positions.SAMPLED // max(rows.shape[0], 1), 1)

        def piece(start: int) -> Tensor:
            some, others = g[start : start + size], kept[start : start + size]
            return some.index_select(1, rows).mul_(others.index_select(1, columns)).sum(0)

        total = piece(0)
        for start in range(size, g.shape[0], size):
            total += piece(start)
        return total

    def _from_dense(self, g: Tensor, kept: Tensor) -> Tensor:
        # Of each half of the dense product the positions in it.
        g, columns = g.t(), self.in_features
        if g.shape[0] * columns <= positions.WHOLE:
            part = g @ kept
            return part.reshape(part.numel()).index_select(0, self.flat_positions)
        values = g.new_empty(self.flat_positions.shape)
        for start, stop, first, last in bounds(self.flat_positions, g.shape[0], columns):
            part = g[start:stop] @ kept
            local = self.flat_positions[first:last] - start * columns
            values[first:last] = part.reshape(part.numel()).index_select(0, local)  # in autocast of another dtype
        return values

    def _part(self, values: Tensor, start: int, stop: int) -> Tensor:
        # The rows from start to stop of the dense matrix: what belongs to others is written one beyond the end.
        size = (stop - start) * self.in_features
        inside, local = within(self.flat_positions, start * self.in_features, stop * self.in_features)
        part = put(values, torch.where(inside, local, size), 0, size + 1, is_canonical=True)
        return part[:size].reshape(stop - start, self.in_features)
