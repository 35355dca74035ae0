"""Blocks of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core import positions
from maskedlinear_core.positions import Positions
from maskedlinear_jax.indexing import divided, gather, put, take, within, write
from maskedlinear_jax.kinds.base import Kind, Shape
from maskedlinear_jax.kinds.sums import can_sum_in_pieces, dot, flat, sum_dtype


@partial(
    jax.tree_util.register_dataclass, data_fields=["numbers"], meta_fields=["grid_shape", "block_shape", "is_canonical"]
)
@dataclass(frozen=True, eq=False)
class Blocks(Kind, name="blocks"):
    """Blocks of a grid (Y, X) of blocks (h, w): flat numbers (n,)."""

    numbers: Array
    grid_shape: Shape
    block_shape: Shape
    is_canonical: bool

    @classmethod
    def from_positions(cls, found: Positions, arrays: Sequence[Any], shape: Shape, *, is_canonical: bool) -> Self:
        (numbers,) = arrays
        return cls(numbers, found.grid_shape, found.block_shape, is_canonical)

    def weight_grad(self, g: Array, kept: Array) -> Array:
        g, kept = flat(g), flat(kept)
        if self.grid_shape[0] > 1 and positions.are_many(self.numbers.shape[0], self.grid_shape):
            return self._from_dense(g, kept)
        size = positions.batch_chunk(self.numbers.shape[0], self.block_shape)
        if not can_sum_in_pieces(g):
            return self._product_of_some(g, kept)
        if g.shape[0] <= size:
            return self._product(g, kept)
        # Decided when the program is lowered: pieces are for a CPU's cache.
        in_pieces = partial(self._product_in_pieces, size=size)
        return jax.lax.platform_dependent(g, kept, cpu=in_pieces, default=self._product_of_some)

    def to_dense(self, values: Array, shape: Shape) -> Array:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        grid = put(values, self.numbers, 0, y * x, is_canonical=self.is_canonical)
        return grid.reshape(y, x, h, w).swapaxes(1, 2).reshape(shape)

    def pack(self, weight: Array) -> Array:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        return take(
            weight.reshape(y, h, x, w).swapaxes(1, 2).reshape(y * x, h, w),
            self.numbers,
            0,
            is_canonical=self.is_canonical,
        )

    def merge_into(self, weight: Array, values: Array) -> Array:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        grid = weight.reshape(y, h, x, w).swapaxes(1, 2).reshape(y * x, h, w)
        grid = write(grid, values, self.numbers, 0, is_canonical=self.is_canonical)
        return grid.reshape(y, x, h, w).swapaxes(1, 2).reshape(weight.shape)

    def apply(self, kept: Array, values: Array, out_features: int) -> Array:
        (y, x), (h, _) = self.grid_shape, self.block_shape
        columns = self._columns(flat(kept))
        parts = dot(columns.swapaxes(0, 1), values.swapaxes(1, 2)).swapaxes(0, 1)
        sums = jnp.zeros((parts.shape[0], y, h), parts.dtype).at[:, divided(self.numbers, x)[0]].add(parts, mode="drop")
        return sums.reshape(*kept.shape[:-1], out_features)

    def input_grad(self, g: Array, values: Array, in_features: int) -> Array:
        (_, x), (_, w) = self.grid_shape, self.block_shape
        parts = dot(self._rows(flat(g)).swapaxes(0, 1), values).swapaxes(0, 1)
        sums = jnp.zeros((parts.shape[0], x, w), parts.dtype).at[:, divided(self.numbers, x)[1]].add(parts)
        return sums.reshape(*g.shape[:-1], in_features)

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        return self.numbers.shape[0], *self.block_shape

    def mask(self, weight: Array) -> Array:
        block = jnp.ones((self.numbers.shape[0], *self.block_shape), bool)
        return self.to_dense(block, (weight.shape[0], weight.shape[1]))

    def _product(self, g: Array, kept: Array) -> Array:
        # (n, h, B) times (n, B, w): one small product per block.
        return dot(self._rows(g).transpose(1, 2, 0), self._columns(kept).swapaxes(0, 1))

    def _product_of_some(self, g: Array, kept: Array) -> Array:
        # Of some blocks at a time: their rows and columns are no more numbers than come in.
        if not isinstance(g.shape[0], int):
            return self._product(g, kept)
        size = positions.blocks_at_once(g.shape[0], self.grid_shape, self.block_shape)
        if self.numbers.shape[0] <= size:
            return self._product(g, kept)
        count = self.numbers.shape[0] // size

        def some(numbers: Array) -> Array:
            return replace(self, numbers=numbers)._product(g, kept)

        first = jax.lax.map(some, self.numbers[: count * size].reshape(count, size))
        return jnp.concatenate([first.reshape(count * size, *self.block_shape), some(self.numbers[count * size :])])

    def _product_in_pieces(self, g: Array, kept: Array, *, size: int) -> Array:
        count = g.shape[0] // size
        pieces = tuple(array[: count * size].reshape(count, size, array.shape[1]) for array in (g, kept))

        def add(total: Array, piece: tuple[Array, ...]) -> tuple[Array, None]:
            return total + self._product(piece[0], piece[1]), None

        return jax.lax.scan(add, self._product(g[count * size :], kept[count * size :]), pieces)[0]

    def _from_dense(self, g: Array, kept: Array) -> Array:
        # Half of the grid's rows at a time: nothing of a large weight's size.
        (y, x), (h, w) = self.grid_shape, self.block_shape
        values = jnp.zeros((self.numbers.shape[0], h, w), sum_dtype(g))
        for start, stop in positions.row_chunks(y):
            part = dot(g[:, start * h : stop * h].T, kept)
            part = part.reshape(stop - start, h, x, w).swapaxes(1, 2).reshape((stop - start) * x, h, w)
            inside, local = within(self.numbers, start * x, stop * x)
            values = jnp.where(inside[:, None, None], gather(part, local, 0, is_inside=True), values)
        return values

    def _rows(self, g: Array) -> Array:
        (y, x), (h, _) = self.grid_shape, self.block_shape
        return gather(g.reshape(g.shape[0], y, h), divided(self.numbers, x)[0], 1, is_inside=self.is_canonical)

    def _columns(self, kept: Array) -> Array:
        (_, x), (_, w) = self.grid_shape, self.block_shape
        return gather(kept.reshape(kept.shape[0], x, w), divided(self.numbers, x)[1], 1, is_inside=True)
