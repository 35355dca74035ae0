"""Reading and writing at positions: what the kinds of mask (kinds/) are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

GATHERED = 32
"""Where one position in so many or more is written, each reads its value; else each value is written.

XLA writes one value after the other on a CPU, 10 nanoseconds each, and reads 0.25 for each position, in parallel.
"""


COMPARED = 2**13
"""Up to so many pairs of a place and a position are compared: XLA compiles that faster than a loop that writes."""


def take(array: Array, index: Array, axis: int, *, is_canonical: bool) -> Array:
    """Return `array[index]` along `axis`. What is beyond the axis, as traced positions can be, reads zero."""
    return gather(array, index, axis, is_inside=is_canonical, is_unique=True)


def put(values: Array, index: Array, axis: int, size: int, *, is_canonical: bool) -> Array:
    """Return zeros with `values` at `index` along `axis`; an index beyond the axis is dropped."""
    axis %= values.ndim
    if index.shape[0] * GATHERED >= size:
        return gather(values, _inverse(index, size, is_canonical=is_canonical), axis)
    zeros = jnp.zeros((*values.shape[:axis], size, *values.shape[axis + 1 :]), values.dtype)
    return write(zeros, values, index, axis, is_canonical=is_canonical)


def write(array: Array, values: Array, index: Array, axis: int, *, is_canonical: bool) -> Array:
    """Return a copy of `array` with `values` at `index` along `axis`; an index beyond the axis is dropped."""
    axis %= array.ndim
    others = tuple(other for other in range(array.ndim) if other != axis)
    numbers = jax.lax.ScatterDimensionNumbers(others, (axis,), (axis,))
    return jax.lax.scatter(
        array, jnp.asarray(index)[:, None], values, numbers, unique_indices=True, indices_are_sorted=is_canonical,
        mode="promise_in_bounds" if is_canonical else "drop",
    )  # fmt: skip


def within(numbers: Array, first: int, last: int) -> tuple[Array, Array]:
    """Tell which numbers are in [first, last), and each as counted from first: any that is in there, of the others."""
    inside = (numbers >= first) & (numbers < last)
    return inside, (numbers - first).clip(0, last - first - 1)


def _inverse(index: Array, size: int, *, is_canonical: bool) -> Array:
    # Where the value of each position is among those at `index`; beyond them where there is none.
    count = index.shape[0]
    if size * count <= COMPARED:
        turns = jax.lax.broadcasted_iota(jnp.int32, (size, count), 1)
        is_here = jax.lax.broadcasted_iota(jnp.int32, (size, count), 0) == jnp.asarray(index)[None, :]
        return jnp.where(is_here, turns, count).min(1, initial=count)
    none = jnp.full(size, count, jnp.int32)
    turn = jnp.arange(count, dtype=jnp.int32)
    return write(none, turn, index, 0, is_canonical=is_canonical)


def gather(array: Array, index: Array, axis: int, *, is_inside: bool = False, is_unique: bool = False) -> Array:
    """Return what `take` does, for an index that may name a position more than once."""
    # No index is negative: what NumPy's indexing does about those, and about those beyond the axis where there are
    # none, would be compiled each time.
    axis %= array.ndim
    if array.shape[axis] == 0:
        return jnp.take(array, index, axis, mode="fill", fill_value=0)
    sizes = (*array.shape[:axis], 1, *array.shape[axis + 1 :])
    others = tuple(other for other in range(array.ndim) if other != axis)
    numbers = jax.lax.GatherDimensionNumbers(others, (axis,), (axis,))
    return jax.lax.gather(
        array, jnp.asarray(index)[:, None], numbers, sizes, unique_indices=is_unique,
        indices_are_sorted=is_inside and is_unique, mode="promise_in_bounds" if is_inside else "fill", fill_value=0,
    )  # fmt: skip


def divided(numbers: Array, size: int) -> tuple[Array, Array]:
    """Return `divmod` of numbers that are not negative: what // and % do about those would be compiled each time."""
    divisor = jnp.full_like(numbers, size)
    return jax.lax.div(numbers, divisor), jax.lax.rem(numbers, divisor)
