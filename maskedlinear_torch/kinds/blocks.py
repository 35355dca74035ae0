"""Blocks of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from maskedlinear_core import positions
from maskedlinear_core.positions import Positions
from maskedlinear_torch.indexing import bounds, can_write_in_place, fill_blocks, put, take, within, write
from maskedlinear_torch.kinds.base import Kind, Shape
from maskedlinear_torch.kinds.sums import can_sum_in_pieces, dot, flat, sum_dtype


@dataclass(frozen=True, eq=False)
class Blocks(Kind, name="blocks"):
    """Blocks of a grid (Y, X) of blocks (h, w): flat numbers (n,), and their rows and columns of the grid."""

    numbers: Tensor
    ys: Tensor
    xs: Tensor
    grid_shape: Shape
    block_shape: Shape
    is_canonical: bool

    @classmethod
    def from_positions(cls, found: Positions, arrays: Sequence[Any], shape: Shape, *, is_canonical: bool) -> Self:
        (numbers,) = arrays
        # A number beyond the grid is in a row beyond it.
        ys, xs = numbers // found.grid_shape[1], numbers % found.grid_shape[1]
        return cls(numbers, ys, xs, found.grid_shape, found.block_shape, is_canonical)

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        return self.numbers, self.ys, self.xs

    def with_arrays(self, arrays: Sequence[Any]) -> Self:
        numbers, ys, xs = arrays
        return type(self)(numbers, ys, xs, self.grid_shape, self.block_shape, self.is_canonical)

    def weight_grad(self, g: Tensor, kept: Tensor) -> Tensor:
        g, kept = g if g.dim() == 2 else flat(g), kept if kept.dim() == 2 else flat(kept)  # a call less each
        if self.grid_shape[0] > 1 and positions.are_many(self.numbers.shape[0], self.grid_shape):
            return self._from_dense(g, kept)
        if not can_sum_in_pieces(g):  # asked first: a traced batch is no number
            return self._product_of_some(g, kept)
        batch = g.shape[0]
        if batch <= positions.LEAST_CHUNK:
            return self._product(g, kept)
        size = positions.batch_chunk(self.numbers.shape[0], self.block_shape)
        return self._product_in_pieces(g, kept, size=min(size, batch))

    def to_dense(self, values: Tensor, shape: Shape) -> Tensor:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        if self.is_canonical and values.is_cpu and can_write_in_place(values):
            return fill_blocks(values.new_zeros(shape), values, self.grid_shape, self.block_shape, self.ys, self.xs)
        grid = put(values, self.numbers, 0, y * x, is_canonical=self.is_canonical)
        return grid.reshape(y, x, h, w).transpose(1, 2).reshape(shape)

    def pack(self, weight: Tensor) -> Tensor:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        return take(
            weight.reshape(y, h, x, w).transpose(1, 2).reshape(y * x, h, w),
            self.numbers,
            0,
            is_canonical=self.is_canonical,
        )

    def merge_into(self, weight: Tensor, values: Tensor) -> Tensor:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        if self.is_canonical and weight.is_cpu and can_write_in_place(weight):
            return fill_blocks(
                weight.clone(memory_format=torch.contiguous_format),
                values,
                self.grid_shape,
                self.block_shape,
                self.ys,
                self.xs,
            )
        grid = weight.reshape(y, h, x, w).transpose(1, 2).reshape(y * x, h, w)
        grid = write(grid, values, self.numbers, 0, is_canonical=self.is_canonical)
        return grid.reshape(y, x, h, w).transpose(1, 2).reshape(weight.shape)

    def overwrite(self, weight: Tensor, values: Tensor) -> bool:
        if not (self.is_canonical and weight.is_contiguous()):
            return False
        fill_blocks(weight, values, self.grid_shape, self.block_shape, self.ys, self.xs)
        return True

    def apply(self, kept: Tensor, values: Tensor, out_features: int) -> Tensor:
        (y, _), (h, _) = self.grid_shape, self.block_shape
        columns = self._columns(flat(kept))
        parts = dot(columns.transpose(0, 1), values.transpose(1, 2)).transpose(0, 1)
        sums = parts.new_zeros(parts.shape[0], y + 1, h).index_add(1, self.ys, parts)
        return sums[:, :y].reshape(*kept.shape[:-1], out_features)

    def input_grad(self, g: Tensor, values: Tensor, in_features: int) -> Tensor:
        (_, x), (_, w) = self.grid_shape, self.block_shape
        parts = dot(self._rows(flat(g)).transpose(0, 1), values).transpose(0, 1)
        sums = parts.new_zeros(parts.shape[0], x, w).index_add(1, self.xs, parts)
        return sums.reshape(*g.shape[:-1], in_features)

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        return self.numbers.shape[0], *self.block_shape

    def mask(self, weight: Tensor) -> Tensor:
        block = torch.ones_like(self.numbers, dtype=torch.bool)[:, None, None].expand(-1, *self.block_shape)
        return self.to_dense(block, (weight.shape[0], weight.shape[1]))

    def _product(self, g: Tensor, kept: Tensor) -> Tensor:
        # (n, h, B) times (n, B, w): one small product per block.
        left, right = self._rows(g).permute(1, 2, 0), self._columns(kept).transpose(0, 1)
        return dot(left, right) if left.dtype == torch.int8 else left.bmm(right)  # `@` asks for more

    def _product_of_some(self, g: Tensor, kept: Tensor) -> Tensor:
        # Of some blocks at a time: their rows and columns are no more numbers than come in.
        if torch.compiler.is_compiling() or not isinstance(g.shape[0], int):
            return self._product(g, kept)
        size = positions.blocks_at_once(g.shape[0], self.grid_shape, self.block_shape)
        if self.numbers.shape[0] <= size:
            return self._product(g, kept)
        parts = zip(*(array.split(size) for array in self.arrays), strict=True)
        return torch.cat([self.with_arrays(part)._product(g, kept) for part in parts])

    def _product_in_pieces(self, g: Tensor, kept: Tensor, *, size: int) -> Tensor:
        total = self._product(g[:size], kept[:size])
        for start in range(size, g.shape[0], size):
            total += self._product(g[start : start + size], kept[start : start + size])
        return total

    def _from_dense(self, g: Tensor, kept: Tensor) -> Tensor:
        # Half of the grid's rows at a time: nothing of a large weight's size.
        (y, x), (h, w) = self.grid_shape, self.block_shape
        g, count = g.t(), self.numbers.shape[0]

        def grid(start: int, stop: int) -> Tensor:
            return dot(g[start * h : stop * h], kept).reshape(stop - start, h, x, w).transpose(1, 2)

        if self.is_canonical and can_sum_in_pieces(g):
            if y * h * x * w <= positions.WHOLE:
                return grid(0, y)[self.ys, self.xs]
            values = g.new_empty(count, h, w)
            for start, stop, first, last in bounds(self.numbers, y, x):
                values[first:last] = grid(start, stop)[self.ys[first:last] - start, self.xs[first:last]]
            return values
        values = g.new_zeros((count, h, w), dtype=sum_dtype(g))
        for start, stop in positions.row_chunks(y):
            part = grid(start, stop).reshape((stop - start) * x, h, w)
            inside, local = within(self.numbers, start * x, stop * x)
            values = torch.where(inside[:, None, None], part.index_select(0, local), values)
        return values

    def _rows(self, g: Tensor) -> Tensor:
        return take(
            g.reshape(g.shape[0], self.grid_shape[0], self.block_shape[0]), self.ys, 1, is_canonical=self.is_canonical
        )

    def _columns(self, kept: Tensor) -> Tensor:
        return take(kept.reshape(kept.shape[0], self.grid_shape[1], self.block_shape[1]), self.xs, 1, is_canonical=True)
