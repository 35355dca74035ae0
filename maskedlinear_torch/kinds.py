"""The kinds of mask: what each keeps of the input, and its packed gradient (SPEC S1, S6).

Letters: B batch, O out_features, I in_features; x (*B, I) input, g (*B, O) cotangent, W (O, I) weight,
M (O, I) mask. A kind holds what is static; the arrays of positions travel beside it, so that they can
be batched, traced and moved. Every kind answers the same questions:

    gather_input(x)          what of x the backward needs
    scatter_input(k)         its transpose: back to the shape of x
    weight_grad(g, kept)     the packed gradient: the wanted entries of g^T x
    input_grad(g, v)         gather_input(g V), V the dense matrix of the packed values v
    apply(kept, v)           x V^T
    to_dense(v)              the dense matrix V: packed values among zeros
    pack(W)                  its transpose: the packed entries of W
    merge_into(W, v)         W with packed values in the place of its entries
    mask_values(v)           packed values as a product gives them: zero where none is wanted
    values_shape()           the shape of packed values
    mask()                   M, in a shape that broadcasts to (O, I)

Positions are canonical (sorted, in range, each once) when they were readable. Traced positions are given
a canonical number: they are sorted, and a duplicate or a position out of range becomes the size of
the axis, which is read as zero and never written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskedlinear_core import positions
from maskedlinear_torch import _compat
from maskedlinear_torch.indexing import (
    bounds,
    can_write_in_place,
    fill_blocks,
    fill_crossings,
    put,
    take,
    within,
    write,
)

Arrays = tuple[Any, ...]
Shape = tuple[int, int]


@dataclass(frozen=True)
class Submatrix:
    """Columns, rows and their crossings; arrays = (rows, columns), None = all of the axis."""

    is_canonical: bool

    def gather_input(self, x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        return x if columns is None else take(x, columns, -1, is_canonical=self.is_canonical)

    def scatter_input(self, kept: Tensor, in_features: int, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        return self._put(kept, columns, -1, in_features)

    def weight_grad(self, g: Tensor, kept: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        g = g if rows is None else take(g, rows, -1, is_canonical=self.is_canonical)
        return _dot((g if g.dim() == 2 else flat(g)).t(), kept if kept.dim() == 2 else flat(kept))

    def to_dense(self, values: Tensor, shape: Shape, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        if (
            rows is not None
            and columns is not None
            and self.is_canonical
            and values.is_cpu
            and can_write_in_place(values)
        ):
            return fill_crossings(values.new_zeros(shape), values, rows, columns)
        values = values if columns is None else put(values, columns, 1, shape[1], is_canonical=self.is_canonical)
        return values if rows is None else put(values, rows, 0, shape[0], is_canonical=self.is_canonical)

    def pack(self, weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        return self._take(self._take(weight, rows, 0), columns, 1)

    def mask_values(self, values: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        return values

    def merge_into(self, weight: Tensor, values: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        if (
            rows is not None
            and columns is not None
            and self.is_canonical
            and weight.is_cpu
            and can_write_in_place(weight)
        ):
            matrix = weight.clone(memory_format=torch.contiguous_format)
            return fill_crossings(matrix, values, rows, columns)
        values = values if columns is None else self._write(self._take(weight, rows, 0), values, columns, 1)
        return values if rows is None else self._write(weight, values, rows, 0)

    def apply(
        self, kept: Tensor, values: Tensor, out_features: int, rows: Tensor | None, columns: Tensor | None
    ) -> Tensor:
        return self._put(_dot(kept, values.t()), rows, -1, out_features)

    def input_grad(
        self, g: Tensor, values: Tensor, in_features: int, rows: Tensor | None, columns: Tensor | None
    ) -> Tensor:
        return _dot(self._take(g, rows, -1), values)

    def values_shape(self, shape: Shape, rows: Tensor | None, columns: Tensor | None) -> tuple[int, ...]:
        return shape[0] if rows is None else rows.shape[0], shape[1] if columns is None else columns.shape[0]

    def mask(self, weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        return self._line(weight, rows, 0)[:, None] & self._line(weight, columns, 1)

    def _line(self, weight: Tensor, index: Tensor | None, dim: int) -> Tensor:
        if index is None:
            return torch.ones(1, dtype=torch.bool, device=weight.device)
        return self._put(torch.ones_like(index, dtype=torch.bool), index, 0, weight.shape[dim])

    def _take(self, tensor: Tensor, index: Tensor | None, dim: int) -> Tensor:
        return tensor if index is None else take(tensor, index, dim, is_canonical=self.is_canonical)

    def _put(self, values: Tensor, index: Tensor | None, dim: int, size: int) -> Tensor:
        return values if index is None else put(values, index, dim, size, is_canonical=self.is_canonical)

    def _write(self, tensor: Tensor, values: Tensor, index: Tensor, dim: int) -> Tensor:
        return write(tensor, values, index, dim, is_canonical=self.is_canonical)


@dataclass(frozen=True)
class Blocks:
    """Blocks of a grid (Y, X) of blocks (h, w); arrays = (flat numbers n, their rows and their columns of the grid)."""

    grid_shape: Shape
    block_shape: Shape
    is_canonical: bool

    def gather_input(self, x: Tensor, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        return x

    def scatter_input(self, kept: Tensor, in_features: int, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        return kept

    def weight_grad(self, g: Tensor, kept: Tensor, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        g, kept = flat(g), flat(kept)
        if self.grid_shape[0] > 1 and positions.are_many(numbers.shape[0], self.grid_shape):
            return self._from_dense(g, kept, numbers, ys, xs)
        batch = g.shape[0]
        if not _in_pieces(g) or batch <= positions.LEAST_CHUNK:  # asked first: a traced batch is no number
            return self._product(g, kept, ys, xs)
        size = min(positions.batch_chunk(numbers.shape[0], self.block_shape), batch)
        total = self._product(g[:size], kept[:size], ys, xs)
        for start in range(size, batch, size):
            total += self._product(g[start : start + size], kept[start : start + size], ys, xs)
        return total

    def to_dense(self, values: Tensor, shape: Shape, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        if self.is_canonical and values.is_cpu and can_write_in_place(values):
            return fill_blocks(values.new_zeros(shape), values, self.grid_shape, self.block_shape, ys, xs)
        grid = put(values, numbers, 0, y * x, is_canonical=self.is_canonical)
        return grid.reshape(y, x, h, w).transpose(1, 2).reshape(shape)

    def pack(self, weight: Tensor, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        return take(
            weight.reshape(y, h, x, w).transpose(1, 2).reshape(y * x, h, w), numbers, 0, is_canonical=self.is_canonical
        )

    def mask_values(self, values: Tensor, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        return values

    def merge_into(self, weight: Tensor, values: Tensor, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        if self.is_canonical and weight.is_cpu and can_write_in_place(weight):
            return fill_blocks(
                weight.clone(memory_format=torch.contiguous_format), values, self.grid_shape, self.block_shape, ys, xs
            )
        grid = weight.reshape(y, h, x, w).transpose(1, 2).reshape(y * x, h, w)
        grid = write(grid, values, numbers, 0, is_canonical=self.is_canonical)
        return grid.reshape(y, x, h, w).transpose(1, 2).reshape(weight.shape)

    def apply(self, kept: Tensor, values: Tensor, out_features: int, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        (y, _), (h, _) = self.grid_shape, self.block_shape
        columns = self._columns(flat(kept), xs)
        parts = _dot(columns.transpose(0, 1), values.transpose(1, 2)).transpose(0, 1)
        sums = parts.new_zeros(parts.shape[0], y + 1, h).index_add(1, ys, parts)
        return sums[:, :y].reshape(*kept.shape[:-1], out_features)

    def input_grad(
        self, g: Tensor, values: Tensor, in_features: int, numbers: Tensor, ys: Tensor, xs: Tensor
    ) -> Tensor:
        (_, x), (_, w) = self.grid_shape, self.block_shape
        parts = _dot(self._rows(flat(g), ys).transpose(0, 1), values).transpose(0, 1)
        sums = parts.new_zeros(parts.shape[0], x, w).index_add(1, xs, parts)
        return sums.reshape(*g.shape[:-1], in_features)

    def values_shape(self, shape: Shape, numbers: Tensor, ys: Tensor, xs: Tensor) -> tuple[int, ...]:
        return numbers.shape[0], *self.block_shape

    def mask(self, weight: Tensor, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        block = torch.ones_like(numbers, dtype=torch.bool)[:, None, None].expand(-1, *self.block_shape)
        return self.to_dense(block, (weight.shape[0], weight.shape[1]), numbers, ys, xs)

    def _product(self, g: Tensor, kept: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        # (n, h, B) times (n, B, w): one small product per block.
        left, right = self._rows(g, ys).permute(1, 2, 0), self._columns(kept, xs).transpose(0, 1)
        return _dot(left, right) if left.dtype == torch.int8 else left.bmm(right)  # `@` asks for more

    def _from_dense(self, g: Tensor, kept: Tensor, numbers: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        # Half of the grid's rows at a time: nothing of a large weight's size.
        (y, x), (h, w) = self.grid_shape, self.block_shape
        g, count = g.t(), numbers.shape[0]

        def grid(start: int, stop: int) -> Tensor:
            return _dot(g[start * h : stop * h], kept).reshape(stop - start, h, x, w).transpose(1, 2)

        if self.is_canonical and _in_pieces(g):
            if y * h * x * w <= positions.WHOLE:
                return grid(0, y)[ys, xs]
            values = g.new_empty(count, h, w)
            for start, stop, first, last in bounds(numbers, y, x):
                values[first:last] = grid(start, stop)[ys[first:last] - start, xs[first:last]]
            return values
        values = g.new_zeros((count, h, w), dtype=_sum_dtype(g))
        for start, stop in positions.row_chunks(y):
            part = grid(start, stop).reshape((stop - start) * x, h, w)
            inside, local = within(numbers, start * x, stop * x)
            values = torch.where(inside[:, None, None], part.index_select(0, local), values)
        return values

    def _rows(self, g: Tensor, ys: Tensor) -> Tensor:
        return take(g.reshape(-1, self.grid_shape[0], self.block_shape[0]), ys, 1, is_canonical=self.is_canonical)

    def _columns(self, kept: Tensor, xs: Tensor) -> Tensor:
        return take(kept.reshape(-1, self.grid_shape[1], self.block_shape[1]), xs, 1, is_canonical=True)


@dataclass(frozen=True)
class DenseElements:
    """Single elements; arrays = (M,). Packed here means: among zeros, as the dense product gives them."""

    def gather_input(self, x: Tensor, mask: Tensor) -> Tensor:
        return x

    def scatter_input(self, kept: Tensor, in_features: int, mask: Tensor) -> Tensor:
        return kept

    def weight_grad(self, g: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
        dense = _dot(flat(g).t(), flat(kept))
        if not can_write_in_place(dense):
            return torch.where(mask, dense, 0)
        # In place: no second gradient of the weight's size. As whole numbers: times one keeps every bit, times
        # zero is +0.0 whatever it was, and `where` takes eight times as long on a CPU.
        dense.view(_WHOLE[dense.element_size()]).mul_(mask)
        return dense

    def to_dense(self, values: Tensor, shape: Shape, mask: Tensor) -> Tensor:
        return values

    def pack(self, weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight, 0)

    def mask_values(self, values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, values, 0)

    def merge_into(self, weight: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, values, weight)

    def apply(self, kept: Tensor, values: Tensor, out_features: int, mask: Tensor) -> Tensor:
        return _dot(kept, values.t())

    def input_grad(self, g: Tensor, values: Tensor, in_features: int, mask: Tensor) -> Tensor:
        return _dot(g, values)

    def values_shape(self, shape: Shape, mask: Tensor) -> tuple[int, ...]:
        return shape

    def mask(self, weight: Tensor, mask: Tensor) -> Tensor:
        return mask


@dataclass(frozen=True)
class SparseElements:
    """Single elements that are few, or packed; arrays = (flat positions n,), row by row.

    Where one in `positions.SPARSE` or fewer are wanted, each is a dot product of its own. Else the dense
    product is made in halves and the wanted entries are taken: nothing of a large weight's size.
    """

    in_features: int
    is_canonical: bool

    def gather_input(self, x: Tensor, flat_positions: Tensor) -> Tensor:
        return x

    def scatter_input(self, kept: Tensor, in_features: int, flat_positions: Tensor) -> Tensor:
        return kept

    def weight_grad(self, g: Tensor, kept: Tensor, flat_positions: Tensor) -> Tensor:
        g, kept = flat(g), flat(kept)
        if self._are_few(flat_positions, g.shape[1]):
            rows, columns = flat_positions // self.in_features, flat_positions % self.in_features
            terms = _wide(take(g, rows, 1, is_canonical=self.is_canonical)) * _wide(kept.index_select(1, columns))
            return terms.sum(0).to(_sum_dtype(g))
        if self.is_canonical and _in_pieces(g):
            return self._taken(g, kept, flat_positions)
        values = g.new_zeros(flat_positions.shape, dtype=_sum_dtype(g))
        for start, stop in positions.row_chunks(g.shape[1]):
            part = _dot(g[:, start:stop].t(), kept)
            inside, local = within(flat_positions, start * self.in_features, stop * self.in_features)
            values = torch.where(inside, part.reshape(part.numel()).index_select(0, local), values)
        return values

    def to_dense(self, values: Tensor, shape: Shape, flat_positions: Tensor) -> Tensor:
        return put(values, flat_positions, 0, shape[0] * shape[1], is_canonical=self.is_canonical).reshape(shape)

    def pack(self, weight: Tensor, flat_positions: Tensor) -> Tensor:
        return take(weight.reshape(weight.numel()), flat_positions, 0, is_canonical=self.is_canonical)

    def mask_values(self, values: Tensor, flat_positions: Tensor) -> Tensor:
        return values

    def merge_into(self, weight: Tensor, values: Tensor, flat_positions: Tensor) -> Tensor:
        line = weight.reshape(weight.numel())
        return write(line, values, flat_positions, 0, is_canonical=self.is_canonical).reshape(weight.shape)

    def apply(self, kept: Tensor, values: Tensor, out_features: int, flat_positions: Tensor) -> Tensor:
        x = flat(kept)
        if self._are_few(flat_positions, out_features):
            rows, columns = flat_positions // self.in_features, flat_positions % self.in_features
            terms = _wide(x.index_select(1, columns)) * _wide(values)
            sums = terms.new_zeros(x.shape[0], out_features + 1).index_add(1, rows, terms)
            return sums[:, :out_features].to(_sum_dtype(x)).reshape(*kept.shape[:-1], out_features)
        parts = []
        for start, stop in positions.row_chunks(out_features):
            parts.append(_dot(x, self._part(values, flat_positions, start, stop).t()))
        return torch.cat(parts, 1).reshape(*kept.shape[:-1], out_features)

    def input_grad(self, g: Tensor, values: Tensor, in_features: int, flat_positions: Tensor) -> Tensor:
        line = flat(g)
        if self._are_few(flat_positions, line.shape[1]):
            rows, columns = flat_positions // self.in_features, flat_positions % self.in_features
            terms = _wide(take(line, rows, 1, is_canonical=self.is_canonical)) * _wide(values)
            sums = terms.new_zeros(line.shape[0], in_features).index_add(1, columns, terms)
            return sums.to(_sum_dtype(g)).reshape(*g.shape[:-1], in_features)
        total = line.new_zeros(line.shape[0], in_features, dtype=_sum_dtype(g))
        for start, stop in positions.row_chunks(line.shape[1]):
            total = total + _dot(line[:, start:stop], self._part(values, flat_positions, start, stop))
        return total.reshape(*g.shape[:-1], in_features)

    def values_shape(self, shape: Shape, flat_positions: Tensor) -> tuple[int, ...]:
        return (flat_positions.shape[0],)

    def mask(self, weight: Tensor, flat_positions: Tensor) -> Tensor:
        ones = torch.ones_like(flat_positions, dtype=torch.bool)
        return self.to_dense(ones, (weight.shape[0], weight.shape[1]), flat_positions)

    def _are_few(self, flat_positions: Tensor, out_features: int) -> bool:
        return flat_positions.shape[0] * positions.SPARSE <= out_features * self.in_features

    def _taken(self, g: Tensor, kept: Tensor, flat_positions: Tensor) -> Tensor:
        # Of each half of the dense product the positions in it.
        g, columns = g.t(), self.in_features
        if g.shape[0] * columns <= positions.WHOLE:
            part = g @ kept
            return part.reshape(part.numel()).index_select(0, flat_positions)
        values = g.new_empty(flat_positions.shape)
        for start, stop, first, last in bounds(flat_positions, g.shape[0], columns):
            part = g[start:stop] @ kept
            local = flat_positions[first:last] - start * columns
            values[first:last] = part.reshape(part.numel()).index_select(0, local)  # in autocast of another dtype
        return values

    def _part(self, values: Tensor, flat_positions: Tensor, start: int, stop: int) -> Tensor:
        # The rows from start to stop of the dense matrix: what belongs to others is written one beyond the end.
        size = (stop - start) * self.in_features
        inside, local = within(flat_positions, start * self.in_features, stop * self.in_features)
        part = put(values, torch.where(inside, local, size), 0, size + 1, is_canonical=True)
        return part[:size].reshape(stop - start, self.in_features)


Kind = Submatrix | Blocks | DenseElements | SparseElements
"""What the rule works with."""

FULL = Submatrix(is_canonical=True)
"""The kind of all of a weight; its positions are (None, None)."""


def flat(tensor: Tensor) -> Tensor:
    """Return (*B, F) as (B, F). The size is spelled out: -1 cannot be told where F is 0."""
    return tensor if tensor.dim() == 2 else tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _in_pieces(g: Tensor) -> bool:
    # Whether a sum over the batch may be made in pieces that stay in a CPU's cache: in plain eager code, where
    # the batch is a number and partial sums are not rounded to 16 bits.
    return (
        g.is_cpu
        and g.dtype in (torch.float32, torch.float64)
        and can_write_in_place(g)
        and not (torch.compiler.is_compiling() or _compat.in_dispatch_mode())
    )


def _wide(tensor: Tensor) -> Tensor:
    # Products of 16-bit numbers are summed in float32, as the dense product does; those of int8 in int32.
    if tensor.dtype == torch.int8:
        return tensor.to(torch.int32)
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # Digits of 8 bits have a product of their own (integer_products.py).
    return _compat.int8_product(a, b) if a.dtype == torch.int8 else a @ b


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.int32 if tensor.dtype == torch.int8 else tensor.dtype
