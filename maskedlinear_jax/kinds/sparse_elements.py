"""Single elements by their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core import positions
from maskedlinear_core.positions import Positions
from maskedlinear_jax.indexing import divided, gather, put, take, within, write
from maskedlinear_jax.kinds.base import Kind, Shape
from maskedlinear_jax.kinds.sums import dot, flat, sum_dtype, widened


@partial(jax.tree_util.register_dataclass, data_fields=["flat_positions"], meta_fields=["in_features", "is_canonical"])
@dataclass(frozen=True, eq=False)
class SparseElements(Kind, name="entries"):
    """Single elements that are few, or packed: flat positions (n,), row by row.

    Where one in `positions.SPARSE` or fewer are wanted, each is a dot product of its own. Otherwise the dense
    product is made in halves and the wanted entries are taken: nothing has the size of a large weight.
    """

    flat_positions: Array
    in_features: int
    is_canonical: bool

    @classmethod
    def from_positions(cls, found: Positions, arrays: Sequence[Any], shape: Shape, *, is_canonical: bool) -> Self:
        (flat_positions,) = arrays
        return cls(flat_positions, shape[1], is_canonical)

    def weight_grad(self, g: Array, kept: Array) -> Array:
        g, kept = flat(g), flat(kept)
        if self._are_few(g.shape[1]):
            rows, columns = divided(self.flat_positions, self.in_features)
            terms = widened(gather(g.T, rows, 0, is_inside=self.is_canonical)) * widened(
                gather(kept.T, columns, 0, is_inside=True)
            )
            return terms.sum(1).astype(sum_dtype(g))
        values = jnp.zeros(self.flat_positions.shape, sum_dtype(g))
        for start, stop in positions.row_chunks(g.shape[1]):
            part = dot(g[:, start:stop].T, kept)
            inside, local = within(self.flat_positions, start * self.in_features, stop * self.in_features)
            values = jnp.where(inside, gather(part.reshape(part.size), local, 0, is_inside=True), values)
        return values

    def to_dense(self, values: Array, shape: Shape) -> Array:
        return put(values, self.flat_positions, 0, shape[0] * shape[1], is_canonical=self.is_canonical).reshape(shape)

    def pack(self, weight: Array) -> Array:
        return take(weight.reshape(weight.size), self.flat_positions, 0, is_canonical=self.is_canonical)

    def merge_into(self, weight: Array, values: Array) -> Array:
        line = weight.reshape(weight.size)
        return write(line, values, self.flat_positions, 0, is_canonical=self.is_canonical).reshape(weight.shape)

    def apply(self, kept: Array, values: Array, out_features: int) -> Array:
        x = flat(kept)
        if self._are_few(out_features):
            rows, columns = divided(self.flat_positions, self.in_features)
            terms = widened(gather(x, columns, 1, is_inside=True)) * widened(values)
            sums = jnp.zeros((x.shape[0], out_features), terms.dtype).at[:, rows].add(terms, mode="drop")
            return sums.astype(sum_dtype(x)).reshape(*kept.shape[:-1], out_features)
        parts = []
        for start, stop in positions.row_chunks(out_features):
            parts.append(dot(x, self._part(values, start, stop).T))
        return jnp.concatenate(parts, 1).reshape(*kept.shape[:-1], out_features)

    def input_grad(self, g: Array, values: Array, in_features: int) -> Array:
        line = flat(g)
        if self._are_few(line.shape[1]):
            rows, columns = divided(self.flat_positions, self.in_features)
            terms = widened(gather(line, rows, 1, is_inside=self.is_canonical)) * widened(values)
            sums = jnp.zeros((line.shape[0], in_features), terms.dtype).at[:, columns].add(terms)
            return sums.astype(sum_dtype(g)).reshape(*g.shape[:-1], in_features)
        total = jnp.zeros((line.shape[0], in_features), sum_dtype(g))
        for start, stop in positions.row_chunks(line.shape[1]):
            total = total + dot(line[:, start:stop], self._part(values, start, stop))
        return total.reshape(*g.shape[:-1], in_features)

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        return (self.flat_positions.shape[0],)

    def mask(self, weight: Array) -> Array:
        ones = jnp.ones_like(self.flat_positions, bool)
        return self.to_dense(ones, (weight.shape[0], weight.shape[1]))

    def _are_few(self, out_features: int) -> bool:
        return self.flat_positions.shape[0] * positions.SPARSE <= out_features * self.in_features

    def _part(self, values: Array, start: int, stop: int) -> Array:
        # The rows from start to stop of the dense matrix: what belongs to others is written beyond the end.
        size = (stop - start) * self.in_features
        inside, local = within(self.flat_positions, start * self.in_features, stop * self.in_features)
        local = jnp.where(inside, local, size + jnp.arange(local.shape[0]))
        return put(values, local, 0, size, is_canonical=False).reshape(stop - start, self.in_features)
