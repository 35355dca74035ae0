"""Columns, rows and their crossings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core.positions import Positions
from maskedlinear_jax.indexing import put, take, write
from maskedlinear_jax.kinds.base import Kind, Shape
from maskedlinear_jax.kinds.sums import dot, flat, transposed, written_out


@partial(jax.tree_util.register_dataclass, data_fields=["rows", "columns"], meta_fields=["is_canonical"])
@dataclass(frozen=True, eq=False)
class Submatrix(Kind, name="submatrix"):
    """Columns, rows and their crossings; None = all of the axis."""

    rows: Array | None
    columns: Array | None
    is_canonical: bool

    @classmethod
    def from_positions(cls, found: Positions, arrays: Sequence[Any], shape: Shape, *, is_canonical: bool) -> Self:
        rows, columns = arrays
        return cls(rows, columns, is_canonical)

    def gather_input(self, x: Array) -> Array:
        return self._take(x, self.columns, -1)

    def scatter_input(self, kept: Array, in_features: int) -> Array:
        return self._put(kept, self.columns, -1, in_features)

    def weight_grad(self, g: Array, kept: Array) -> Array:
        return dot(transposed(flat(self._take(g, self.rows, -1))), written_out(flat(kept)))

    def to_dense(self, values: Array, shape: Shape) -> Array:
        return self._put(self._put(values, self.columns, 1, shape[1]), self.rows, 0, shape[0])

    def pack(self, weight: Array) -> Array:
        return self._take(self._take(weight, self.rows, 0), self.columns, 1)

    def merge_into(self, weight: Array, values: Array) -> Array:
        if self.columns is not None:
            some = weight if self.rows is None else take(weight, self.rows, 0, is_canonical=self.is_canonical)
            values = write(some, values, self.columns, 1, is_canonical=self.is_canonical)
        return values if self.rows is None else write(weight, values, self.rows, 0, is_canonical=self.is_canonical)

    def apply(self, kept: Array, values: Array, out_features: int) -> Array:
        return self._put(dot(kept, values.T), self.rows, -1, out_features)

    def input_grad(self, g: Array, values: Array, in_features: int) -> Array:
        return dot(self._take(g, self.rows, -1), values)

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        return shape[0] if self.rows is None else self.rows.shape[0], shape[
            1
        ] if self.columns is None else self.columns.shape[0]

    def mask(self, weight: Array) -> Array:
        return self._line(weight, self.rows, 0)[:, None] & self._line(weight, self.columns, 1)

    def _line(self, weight: Array, index: Array | None, axis: int) -> Array:
        if index is None:
            return jnp.ones(1, bool)
        return self._put(jnp.ones_like(index, bool), index, 0, weight.shape[axis])

    def _take(self, array: Array, index: Array | None, axis: int) -> Array:
        return array if index is None else take(array, index, axis, is_canonical=self.is_canonical)

    def _put(self, values: Array, index: Array | None, axis: int, size: int) -> Array:
        return values if index is None else put(values, index, axis, size, is_canonical=self.is_canonical)


FULL = Submatrix(None, None, is_canonical=True)
"""All of a weight."""
