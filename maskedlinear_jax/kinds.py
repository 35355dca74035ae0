"""The kinds of mask: what each keeps of the input, and its packed gradient (SPEC S1, S6).

Letters: B batch, O out_features, I in_features; x (*B, I) input, g (*B, O) cotangent, W (O, I) weight,
M (O, I) mask. A kind holds what is static; the arrays of positions travel beside it, so that they can
be batched, traced and moved. Every kind answers the same questions:

    keep(x)             what of x the backward needs
    product(g, kept)    the packed gradient: the wanted entries of g^T x, and no others
    place(values)       the dense gradient: packed values among zeros
    take(W)             its transpose: the packed entries of W
    tangent(kept, v)    x V^T, V the dense matrix of the packed entries v
    mask()              M, in a shape that broadcasts to (O, I)

The torch twin has `unkeep` beside these, the transpose of `keep`, which JAX derives by itself.

Positions are exact (sorted, in range, each once) when they were readable. Traced positions are made
canonical by number: a duplicate or a position out of range becomes one beyond the axis, which is
read as zero and never written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core import masks
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.indices import Index

Arrays = tuple[Any, ...]
Shape = tuple[int, int]


@dataclass(frozen=True)
class Submatrix:
    """Columns, rows and their crossings; arrays = (rows, columns), None = all of the axis."""

    exact: bool

    def keep(self, x: Array, rows: Array | None, columns: Array | None) -> Array:
        return self._take(x, columns, -1)

    def product(self, g: Array, kept: Array, rows: Array | None, columns: Array | None) -> Array:
        return flat(self._take(g, rows, -1)).T @ flat(kept)

    def place(self, values: Array, shape: Shape, rows: Array | None, columns: Array | None) -> Array:
        return self._put(self._put(values, columns, 1, shape[1]), rows, 0, shape[0])

    def take(self, weight: Array, rows: Array | None, columns: Array | None) -> Array:
        return self._take(self._take(weight, rows, 0), columns, 1)

    def tangent(
        self, kept: Array, values: Array, out_features: int, rows: Array | None, columns: Array | None
    ) -> Array:
        return self._put(kept @ values.T, rows, -1, out_features)

    def mask(self, weight: Array, rows: Array | None, columns: Array | None) -> Array:
        return self._line(weight, rows, 0)[:, None] & self._line(weight, columns, 1)

    def _line(self, weight: Array, index: Array | None, axis: int) -> Array:
        if index is None:
            return jnp.ones(1, bool)
        return self._put(jnp.ones_like(index, bool), index, 0, weight.shape[axis])

    def _take(self, array: Array, index: Array | None, axis: int) -> Array:
        return array if index is None else take(array, index, axis, exact=self.exact)

    def _put(self, values: Array, index: Array | None, axis: int, size: int) -> Array:
        return values if index is None else put(values, index, axis, size, exact=self.exact)


@dataclass(frozen=True)
class Blocks:
    """Blocks of a grid (Y, X) of blocks (h, w); arrays = (flat block numbers n,)."""

    grid_shape: Shape
    block_shape: Shape
    exact: bool

    def keep(self, x: Array, numbers: Array) -> Array:
        return x

    def product(self, g: Array, kept: Array, numbers: Array) -> Array:
        # (n, h, B) times (n, B, w): one small product per block.
        return self._rows(flat(g), numbers).transpose(1, 2, 0) @ self._columns(flat(kept), numbers).swapaxes(0, 1)

    def place(self, values: Array, shape: Shape, numbers: Array) -> Array:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        grid = put(values, numbers, 0, y * x, exact=self.exact)
        return grid.reshape(y, x, h, w).swapaxes(1, 2).reshape(shape)

    def take(self, weight: Array, numbers: Array) -> Array:
        (y, x), (h, w) = self.grid_shape, self.block_shape
        return take(weight.reshape(y, h, x, w).swapaxes(1, 2).reshape(y * x, h, w), numbers, 0, exact=self.exact)

    def tangent(self, kept: Array, values: Array, out_features: int, numbers: Array) -> Array:
        (y, x), (h, _) = self.grid_shape, self.block_shape
        parts = (self._columns(flat(kept), numbers).swapaxes(0, 1) @ values.swapaxes(1, 2)).swapaxes(0, 1)
        sums = jnp.zeros((parts.shape[0], y, h), parts.dtype).at[:, numbers // x].add(parts, mode="drop")
        return sums.reshape(*kept.shape[:-1], out_features)

    def mask(self, weight: Array, numbers: Array) -> Array:
        block = jnp.ones((numbers.shape[0], *self.block_shape), bool)
        return self.place(block, (weight.shape[0], weight.shape[1]), numbers)

    def _rows(self, g: Array, numbers: Array) -> Array:
        (y, x), (h, _) = self.grid_shape, self.block_shape
        return _gather(g.reshape(g.shape[0], y, h), numbers // x, 1)

    def _columns(self, kept: Array, numbers: Array) -> Array:
        (_, x), (_, w) = self.grid_shape, self.block_shape
        return _gather(kept.reshape(kept.shape[0], x, w), numbers % x, 1)


@dataclass(frozen=True)
class Elements:
    """Single elements; arrays = (M,)."""

    def keep(self, x: Array, mask: Array) -> Array:
        return x

    def product(self, g: Array, kept: Array, mask: Array) -> Array:
        return flat(g).T @ flat(kept)

    def place(self, values: Array, shape: Shape, mask: Array) -> Array:
        return jnp.where(mask, values, jnp.zeros_like(values))

    def take(self, weight: Array, mask: Array) -> Array:
        return jnp.where(mask, weight, jnp.zeros_like(weight))

    def tangent(self, kept: Array, values: Array, out_features: int, mask: Array) -> Array:
        return kept @ values.T

    def mask(self, weight: Array, mask: Array) -> Array:
        return mask


Kind = Submatrix | Blocks | Elements
"""What the rule works with."""


def resolve(mask: masks.Mask, shape: Shape) -> tuple[Kind, Arrays]:
    """Return the kind and the arrays of positions of a mask for a weight of that shape.

    Args:
        mask: Any mask; its positions may be traced.
        shape: (out_features, in_features).

    Raises:
        IndexError, ValueError: As `Mask.to_array`, for positions that can be read.
    """
    if mask.is_traced:
        return _resolve_traced(mask, shape)
    positions = mask.canonical(shape)
    arrays = tuple(None if array is None else _narrow(array) for array in positions.arrays)
    return exact_kind(positions), arrays


def exact_kind(positions: masks.Positions) -> Kind:
    """Return the kind for canonical positions."""
    if positions.kind == "submatrix":
        return Submatrix(exact=True)
    if positions.kind == "blocks":
        return Blocks(positions.grid_shape, positions.block_shape, exact=True)
    return Elements()


def flat(array: Array) -> Array:
    """Return (*B, F) as (B, F). The size is spelled out: -1 cannot be told where F is 0."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def take(array: Array, index: Array, axis: int, *, exact: bool) -> Array:
    """Return `array[index]` along `axis`; an index beyond the axis, possible if not exact, reads zero."""
    return jnp.take(
        array, index, axis, mode="fill", fill_value=0, unique_indices=True, indices_are_sorted=exact
    )  # fmt: skip


def put(values: Array, index: Array, axis: int, size: int, *, exact: bool) -> Array:
    """Return zeros with `values` at `index` along `axis`; an index beyond the axis is dropped."""
    axis %= values.ndim
    zeros = jnp.zeros((*values.shape[:axis], size, *values.shape[axis + 1 :]), values.dtype)
    where = (*(slice(None) for _ in range(axis)), index)
    return zeros.at[where].set(values, mode="drop", unique_indices=True, indices_are_sorted=exact)


def _gather(array: Array, index: Array, axis: int) -> Array:
    # As take, for an index that may name a position more than once.
    return jnp.take(array, index, axis, mode="fill", fill_value=0)


def _resolve_traced(mask: masks.Mask, shape: Shape) -> tuple[Kind, Arrays]:
    if isinstance(mask, masks.Columns) and not mask.index.is_traced_bool:
        return Submatrix(exact=False), (None, _by_number("columns", mask.index, shape[1]))
    if isinstance(mask, masks.Rows) and not mask.index.is_traced_bool:
        return Submatrix(exact=False), (_by_number("rows", mask.index, shape[0]), None)
    if isinstance(mask, masks.Submatrix) and not (mask.rows.is_traced_bool or mask.columns.is_traced_bool):
        rows = _by_number("submatrix rows", mask.rows, shape[0])
        return Submatrix(exact=False), (rows, _by_number("submatrix columns", mask.columns, shape[1]))
    if isinstance(mask, masks.Blocks):
        mask_checks.mask_shape("blocks", mask.shape, shape)
        numbers = _by_number("blocks", mask.numbers, mask.grid_shape[0] * mask.grid_shape[1])
        return Blocks(mask.grid_shape, mask.block_shape, exact=False), (numbers,)
    return Elements(), (_dense(mask, shape),)


def _dense(mask: masks.Mask, shape: Shape) -> Array:
    # How many positions a traced bool vector selects is unknown, so it can only be priced as elements.
    if isinstance(mask, masks.Combination):
        return type(mask).combine(*(_dense(operand, shape) for operand in mask.masks))
    if isinstance(mask, masks.Elements):
        mask_checks.mask_shape("elements", mask.shape, shape)
        return jnp.asarray(mask.array)
    if isinstance(mask, masks.Columns):
        return jnp.broadcast_to(_line("columns", mask.index, shape[1]), shape)
    if isinstance(mask, masks.Rows):
        return jnp.broadcast_to(_line("rows", mask.index, shape[0])[:, None], shape)
    if isinstance(mask, masks.Submatrix):
        rows = _line("submatrix rows", mask.rows, shape[0])
        return rows[:, None] & _line("submatrix columns", mask.columns, shape[1])
    kind, arrays = _resolve_traced(mask, shape)
    return kind.mask(jnp.empty(shape), *arrays)


def _line(name: str, index: Index, size: int) -> Array:
    if index.is_traced_bool:
        mask_checks.bool_length(name, index.values.shape[0], size)
        return jnp.asarray(index.values)
    numbers = _by_number(name, index, size)
    return put(jnp.ones_like(numbers, bool), numbers, 0, size, exact=False)


def _by_number(name: str, index: Index, size: int) -> Array:
    """Return positions, where a duplicate or a position out of range is one of its own beyond `size`."""
    if index.length is not None:
        mask_checks.bool_length(name, index.length, size)
    if isinstance(index.values, slice):
        return jnp.arange(size)[index.values]
    numbers = jnp.asarray(index.values).astype(jnp.int32)
    turn = jnp.arange(numbers.shape[0], dtype=jnp.int32)
    numbers = jnp.where(numbers < 0, numbers + size, numbers)
    numbers = jnp.where((numbers < 0) | (numbers >= size), size, numbers)
    # One of several equal positions wins, whichever: they read and write the same.
    winner = jnp.zeros(size + 1, jnp.int32).at[numbers].set(turn)
    return jnp.where((winner[numbers] == turn) & (numbers < size), numbers, size + turn)


def _narrow(array: np.ndarray) -> np.ndarray:
    # 32 bits, as JAX has by default: the same program whether jax_enable_x64 is set or not.
    return array if array.dtype == np.bool_ else array.astype(np.int32)


def read(array: Array) -> np.ndarray | None:
    """Return the values of an array as NumPy, or None if it is traced (the core's reader for JAX)."""
    try:
        values = np.asarray(array)
    except jax.errors.TracerArrayConversionError:
        return None
    return values.astype(np.float32) if values.dtype == jnp.bfloat16 else values


def register_pytrees(classes: tuple[type[masks.Mask], ...]) -> None:
    """Make every class of mask a pytree whose leaves are its positions (SPEC S1)."""
    for kind in classes:
        jax.tree_util.register_pytree_node(kind, _flatten, _unflatten)


def _flatten(mask: masks.Mask) -> tuple[tuple[object, ...], _Skeleton]:
    return mask.leaves, _Skeleton(mask)


def _unflatten(skeleton: _Skeleton, leaves: tuple[object, ...]) -> masks.Mask:
    return skeleton.mask.with_leaves(tuple(leaves))


class _Skeleton:
    """A mask without its leaves, as JAX compares the static part of a pytree."""

    def __init__(self, mask: masks.Mask) -> None:
        self.mask = mask.with_leaves(tuple(None for _ in mask.leaves))
        self.says = (type(mask), mask.static)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Skeleton) and self.says == other.says

    def __hash__(self) -> int:
        return hash(self.says)
