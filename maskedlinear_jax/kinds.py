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
a canonical number: they are sorted, and a duplicate or a position out of range becomes one beyond
the axis, which is read as zero and never written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core import positions
from maskedlinear_jax.indexing import divided, gather, put, take, within, write

Arrays = tuple[Any, ...]
Shape = tuple[int, int]


@dataclass(frozen=True)
class Submatrix:
    """Columns, rows and their crossings; arrays = (rows, columns), None = all of the axis."""

    is_canonical: bool

    def gather_input(self, x: Array, rows: Array | None, columns: Array | None) -> Array:
        return self._take(x, columns, -1)

    def scatter_input(self, kept: Array, in_features: int, rows: Array | None, columns: Array | None) -> Array:
        return self._put(kept, columns, -1, in_features)

    def weight_grad(self, g: Array, kept: Array, rows: Array | None, columns: Array | None) -> Array:
        return _dot(_turned(flat(self._take(g, rows, -1))), _written_out(flat(kept)))

    def to_dense(self, values: Array, shape: Shape, rows: Array | None, columns: Array | None) -> Array:
        return self._put(self._put(values, columns, 1, shape[1]), rows, 0, shape[0])

    def pack(self, weight: Array, rows: Array | None, columns: Array | None) -> Array:
        return self._take(self._take(weight, rows, 0), columns, 1)

    def mask_values(self, values: Array, rows: Array | None, columns: Array | None) -> Array:
        return values

    def merge_into(self, weight: Array, values: Array, rows: Array | None, columns: Array | None) -> Array:
        values = values if columns is None else self._write(self._take(weight, rows, 0), values, columns, 1)
        return values if rows is None else self._write(weight, values, rows, 0)

    def apply(self, kept: Array, values: Array, out_features: int, rows: Array | None, columns: Array | None) -> Array:
        return self._put(_dot(kept, values.T), rows, -1, out_features)

    def input_grad(self, g: Array, values: Array, in_features: int, rows: Array | None, columns: Array | None) -> Array:
        return _dot(self._take(g, rows, -1), values)

    def values_shape(self, shape: Shape, rows: Array | None, columns: Array | None) -> tuple[int, ...]:
        return shape[0] if rows is None else rows.shape[0], shape[1] if columns is None else columns.shape[0]

    def mask(self, weight: Array, rows: Array | None, columns: Array | None) -> Array:
        return self._line(weight, rows, 0)[:, None] & self._line(weight, columns, 1)

    def _line(self, weight: Array, index: Array | None, axis: int) -> Array:
        if index is None:
            return jnp.ones(1, bool)
        return self._put(jnp.ones_like(index, bool), index, 0, weight.shape[axis])

    def _take(self, array: Array, index: Array | None, axis: int) -> Array:
        return array if index is None else take(array, index, axis, is_canonical=self.is_canonical)

    def _put(self, values: Array, index: Array | None, axis: int, size: int) -> Array:
        return values if index is None else put(values, index, axis, size, is_canonical=self.is_canonical)

    def _write(self, array: Array, values: Array, index: Array, axis: int) -> Array:
        return write(array, values, index, axis, is_canonical=self.is_canonical)


@dataclass(frozen=True)
class Blocks:
    """Blocks of a grid (Y, X) of blocks (h, w); arrays = (flat block numbers n,)."""

    grid_shape: Shape
    block_shape: Shape
    is_canonical: bool

    def gather_input(self, x: Array, numbers: Array) -> Array:
        return x

    def scatter_input(self, kept: Array, in_features: int, numbers: Array) -> Array:
        return kept

    def weight_grad(self, g: Array, kept: Array, numbers: Array) -> Array:
        g, kept = flat(g), flat(kept)
        if self.grid_shape[0] > 1 and positions.are_many(numbers.shape[0], self.grid_shape):
            return self._from_dense(g, kept, numbers)
        size = positions.batch_chunk(numbers.shape[0], self.block_shape)
        if not _in_pieces(g) or g.shape[0] <= size:
            return self._product(g, kept, numbers)
        count = g.shape[0] // size
        pieces = tuple(array[: count * size].reshape(count, size, array.shape[1]) for array in (g, kept))

        def add(total: Array, piece: tuple[Array, ...]) -> tuple[Array, None]:
            return total + self._product(piece[0], piece[1], numbers), None

        return jax.lax.scan(add, self._product(g[count * size :], kept[count * size :], numbers), pieces)[0]

    def to_dense(self, values: Array, shape: Shape, numbers: Array) -> Array:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        grid = put(values, numbers, 0, y * x, is_canonical=self.is_canonical)
        return grid.reshape(y, x, h, w).swapaxes(1, 2).reshape(shape)

    def pack(self, weight: Array, numbers: Array) -> Array:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        return take(
            weight.reshape(y, h, x, w).swapaxes(1, 2).reshape(y * x, h, w), numbers, 0, is_canonical=self.is_canonical
        )

    def mask_values(self, values: Array, numbers: Array) -> Array:
        return values

    def merge_into(self, weight: Array, values: Array, numbers: Array) -> Array:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        grid = weight.reshape(y, h, x, w).swapaxes(1, 2).reshape(y * x, h, w)
        grid = write(grid, values, numbers, 0, is_canonical=self.is_canonical)
        return grid.reshape(y, x, h, w).swapaxes(1, 2).reshape(weight.shape)

    def apply(self, kept: Array, values: Array, out_features: int, numbers: Array) -> Array:
        (y, x), (h, _) = self.grid_shape, self.block_shape
        columns = self._columns(flat(kept), numbers)
        parts = _dot(columns.swapaxes(0, 1), values.swapaxes(1, 2)).swapaxes(0, 1)
        sums = jnp.zeros((parts.shape[0], y, h), parts.dtype).at[:, divided(numbers, x)[0]].add(parts, mode="drop")
        return sums.reshape(*kept.shape[:-1], out_features)

    def input_grad(self, g: Array, values: Array, in_features: int, numbers: Array) -> Array:
        (_, x), (_, w) = self.grid_shape, self.block_shape
        parts = _dot(self._rows(flat(g), numbers).swapaxes(0, 1), values).swapaxes(0, 1)
        sums = jnp.zeros((parts.shape[0], x, w), parts.dtype).at[:, divided(numbers, x)[1]].add(parts)
        return sums.reshape(*g.shape[:-1], in_features)

    def values_shape(self, shape: Shape, numbers: Array) -> tuple[int, ...]:
        return numbers.shape[0], *self.block_shape

    def mask(self, weight: Array, numbers: Array) -> Array:
        block = jnp.ones((numbers.shape[0], *self.block_shape), bool)
        return self.to_dense(block, (weight.shape[0], weight.shape[1]), numbers)

    def _product(self, g: Array, kept: Array, numbers: Array) -> Array:
        # (n, h, B) times (n, B, w): one small product per block.
        return _dot(self._rows(g, numbers).transpose(1, 2, 0), self._columns(kept, numbers).swapaxes(0, 1))

    def _from_dense(self, g: Array, kept: Array, numbers: Array) -> Array:
        # Half of the grid's rows at a time: nothing of a large weight's size.
        (y, x), (h, w) = self.grid_shape, self.block_shape
        values = jnp.zeros((numbers.shape[0], h, w), _sum_dtype(g))
        for start, stop in positions.row_chunks(y):
            part = _dot(g[:, start * h : stop * h].T, kept)
            part = part.reshape(stop - start, h, x, w).swapaxes(1, 2).reshape((stop - start) * x, h, w)
            inside, local = within(numbers, start * x, stop * x)
            values = jnp.where(inside[:, None, None], gather(part, local, 0, is_inside=True), values)
        return values

    def _rows(self, g: Array, numbers: Array) -> Array:
        (y, x), (h, _) = self.grid_shape, self.block_shape
        return gather(g.reshape(g.shape[0], y, h), divided(numbers, x)[0], 1, is_inside=self.is_canonical)

    def _columns(self, kept: Array, numbers: Array) -> Array:
        (_, x), (_, w) = self.grid_shape, self.block_shape
        return gather(kept.reshape(kept.shape[0], x, w), divided(numbers, x)[1], 1, is_inside=True)


@dataclass(frozen=True)
class DenseElements:
    """Single elements; arrays = (M,). Packed here means: among zeros, as the dense product gives them."""

    def gather_input(self, x: Array, mask: Array) -> Array:
        return x

    def scatter_input(self, kept: Array, in_features: int, mask: Array) -> Array:
        return kept

    def weight_grad(self, g: Array, kept: Array, mask: Array) -> Array:
        dense = _dot(_turned(flat(g)), flat(kept))
        return jnp.where(mask, dense, jnp.zeros_like(dense))

    def to_dense(self, values: Array, shape: Shape, mask: Array) -> Array:
        return values

    def pack(self, weight: Array, mask: Array) -> Array:
        return jnp.where(mask, weight, jnp.zeros_like(weight))

    def mask_values(self, values: Array, mask: Array) -> Array:
        return jnp.where(mask, values, jnp.zeros_like(values))

    def merge_into(self, weight: Array, values: Array, mask: Array) -> Array:
        return jnp.where(mask, values, weight)

    def apply(self, kept: Array, values: Array, out_features: int, mask: Array) -> Array:
        return _dot(kept, values.T)

    def input_grad(self, g: Array, values: Array, in_features: int, mask: Array) -> Array:
        return _dot(g, values)

    def values_shape(self, shape: Shape, mask: Array) -> tuple[int, ...]:
        return shape

    def mask(self, weight: Array, mask: Array) -> Array:
        return mask


@dataclass(frozen=True)
class SparseElements:
    """Single elements that are few, or packed; arrays = (flat positions n,), row by row.

    Where one in `positions.SPARSE` or fewer are wanted, each is a dot product of its own. Else the dense
    product is made in halves and the wanted entries are taken: nothing of a large weight's size.
    """

    in_features: int
    is_canonical: bool

    def gather_input(self, x: Array, flat_positions: Array) -> Array:
        return x

    def scatter_input(self, kept: Array, in_features: int, flat_positions: Array) -> Array:
        return kept

    def weight_grad(self, g: Array, kept: Array, flat_positions: Array) -> Array:
        g, kept = flat(g), flat(kept)
        if self._are_few(flat_positions, g.shape[1]):
            rows, columns = divided(flat_positions, self.in_features)
            terms = _wide(gather(g.T, rows, 0, is_inside=self.is_canonical)) * _wide(
                gather(kept.T, columns, 0, is_inside=True)
            )
            return terms.sum(1).astype(_sum_dtype(g))
        values = jnp.zeros(flat_positions.shape, _sum_dtype(g))
        for start, stop in positions.row_chunks(g.shape[1]):
            part = _dot(g[:, start:stop].T, kept)
            inside, local = within(flat_positions, start * self.in_features, stop * self.in_features)
            values = jnp.where(inside, gather(part.reshape(part.size), local, 0, is_inside=True), values)
        return values

    def to_dense(self, values: Array, shape: Shape, flat_positions: Array) -> Array:
        return put(values, flat_positions, 0, shape[0] * shape[1], is_canonical=self.is_canonical).reshape(shape)

    def pack(self, weight: Array, flat_positions: Array) -> Array:
        return take(weight.reshape(weight.size), flat_positions, 0, is_canonical=self.is_canonical)

    def mask_values(self, values: Array, flat_positions: Array) -> Array:
        return values

    def merge_into(self, weight: Array, values: Array, flat_positions: Array) -> Array:
        line = weight.reshape(weight.size)
        return write(line, values, flat_positions, 0, is_canonical=self.is_canonical).reshape(weight.shape)

    def apply(self, kept: Array, values: Array, out_features: int, flat_positions: Array) -> Array:
        x = flat(kept)
        if self._are_few(flat_positions, out_features):
            rows, columns = divided(flat_positions, self.in_features)
            terms = _wide(gather(x, columns, 1, is_inside=True)) * _wide(values)
            sums = jnp.zeros((x.shape[0], out_features), terms.dtype).at[:, rows].add(terms, mode="drop")
            return sums.astype(_sum_dtype(x)).reshape(*kept.shape[:-1], out_features)
        parts = []
        for start, stop in positions.row_chunks(out_features):
            parts.append(_dot(x, self._part(values, flat_positions, start, stop).T))
        return jnp.concatenate(parts, 1).reshape(*kept.shape[:-1], out_features)

    def input_grad(self, g: Array, values: Array, in_features: int, flat_positions: Array) -> Array:
        line = flat(g)
        if self._are_few(flat_positions, line.shape[1]):
            rows, columns = divided(flat_positions, self.in_features)
            terms = _wide(gather(line, rows, 1, is_inside=self.is_canonical)) * _wide(values)
            sums = jnp.zeros((line.shape[0], in_features), terms.dtype).at[:, columns].add(terms)
            return sums.astype(_sum_dtype(g)).reshape(*g.shape[:-1], in_features)
        total = jnp.zeros((line.shape[0], in_features), _sum_dtype(g))
        for start, stop in positions.row_chunks(line.shape[1]):
            total = total + _dot(line[:, start:stop], self._part(values, flat_positions, start, stop))
        return total.reshape(*g.shape[:-1], in_features)

    def values_shape(self, shape: Shape, flat_positions: Array) -> tuple[int, ...]:
        return (flat_positions.shape[0],)

    def mask(self, weight: Array, flat_positions: Array) -> Array:
        ones = jnp.ones_like(flat_positions, bool)
        return self.to_dense(ones, (weight.shape[0], weight.shape[1]), flat_positions)

    def _are_few(self, flat_positions: Array, out_features: int) -> bool:
        return flat_positions.shape[0] * positions.SPARSE <= out_features * self.in_features

    def _part(self, values: Array, flat_positions: Array, start: int, stop: int) -> Array:
        # The rows from start to stop of the dense matrix: what belongs to others is written beyond the end.
        size = (stop - start) * self.in_features
        inside, local = within(flat_positions, start * self.in_features, stop * self.in_features)
        local = jnp.where(inside, local, size + jnp.arange(local.shape[0]))
        return put(values, local, 0, size, is_canonical=False).reshape(stop - start, self.in_features)


Kind = Submatrix | Blocks | DenseElements | SparseElements
"""What the rule works with."""

FULL = Submatrix(is_canonical=True)
"""The kind of all of a weight; its positions are (None, None)."""


def flat(array: Array) -> Array:
    """Return (*B, F) as (B, F). The size is spelled out: -1 cannot be told where F is 0."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _in_pieces(g: Array) -> bool:
    # Whether a sum over the batch may be made in pieces that stay in a CPU's cache: where the batch is a number
    # (exported for one of any size, it has none) and partial sums are not rounded to 16 bits.
    is_number = isinstance(g.shape[0], int)
    return is_number and jax.default_backend() == "cpu" and g.dtype in (jnp.float32, jnp.float64)


WRITTEN_OUT = 2**16
"""From so many numbers on an operand is written out before a product."""


def _turned(array: Array) -> Array:
    return _written_out(array.T)


def _written_out(array: Array) -> Array:
    # XLA on CPU makes the operands of a product on the way: it contracts the first axes of two large matrices slowly
    # (1.1 times as long in float32, twice in float64), and reads through a gather (1.5 times). Not of small ones, for
    # which there is nothing to gain and whose product, under vmap, can end the process (XLA looks for another layout
    # there).
    is_large = all(isinstance(size, int) for size in array.shape) and array.size >= WRITTEN_OUT
    return jax.lax.optimization_barrier(array) if is_large and jax.default_backend() == "cpu" else array


def _wide(array: Array) -> Array:
    # Products of 16-bit numbers are summed in float32, as the dense product does; those of int8 in int32.
    if array.dtype == jnp.int8:
        return array.astype(jnp.int32)
    return array.astype(jnp.float32) if array.dtype in (jnp.bfloat16, jnp.float16) else array


def _dot(a: Array, b: Array) -> Array:
    # Digits of 8 bits have a product of their own (integer_products.py).
    return jnp.matmul(a, b, preferred_element_type=jnp.int32) if a.dtype == jnp.int8 else a @ b


def _sum_dtype(array: Array) -> Any:
    return jnp.int32 if array.dtype == jnp.int8 else array.dtype
