"""From any mask to its kind, with the positions as arrays (contract S1): read where they can be, traced where not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core import masks, positions
from maskedlinear_core.arrays import dtype_name
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.indices import Index
from maskedlinear_jax.indexing import put
from maskedlinear_jax.kinds import DenseElements, Kind, Shape


def resolve(mask: masks.Mask, shape: Shape, *, packed: bool = False) -> Kind:
    """Return the kind of a mask, with its positions, for a weight of that shape.

    Args:
        mask: Any mask; its positions may be traced.
        shape: (out_features, in_features).
        packed: Whether values are packed (contract S7): then the arrays must tell how many positions there are.

    Raises:
        IndexError, ValueError: As `Mask.to_array`, for positions that can be read.
        TypeError: Packed, and how many positions there are cannot be known now.
    """
    if mask.is_traced:
        kind = _resolve_traced(mask, shape)
        if packed and isinstance(kind, DenseElements):
            packed_checks.refuse_traced(repr(mask))
        return kind
    key = packed, shape  # made once: it may be of the weight's shape
    if key not in mask.memo:
        found = mask.canonical(shape)
        mask.memo[key] = positions.packed(found) if packed else positions.unpacked(found)
    found = mask.memo[key]
    arrays = [None if array is None else _narrow(array) for array in found.arrays]
    return Kind.by_name[found.kind].from_positions(found, arrays, shape, is_canonical=True)


def _resolve_traced(mask: masks.Mask, shape: Shape) -> Kind:
    trace = _Trace()
    found = mask.traced(shape)
    # How many positions a traced bool vector selects is unknown, so it can only be priced as elements.
    return DenseElements(mask.traced_array(shape, trace)) if found is None else trace.kind(found, shape)


@dataclass(frozen=True)
class _Trace:
    """What a traced mask is made of (`Mask.traced_array`)."""

    def kind(self, found: positions.Positions, shape: Shape) -> Kind:
        arrays = [unread and _by_number(unread.name, unread.index, unread.size) for unread in found.arrays]
        return Kind.by_name[found.kind].from_positions(found, arrays, shape, is_canonical=False)

    def dense(self, found: positions.Positions, shape: Shape) -> Array:
        return self.kind(found, shape).mask(jnp.empty(shape))

    def line(self, unread: positions.Unread) -> Array:
        name, index, size = unread
        if index.is_traced_bool:
            mask_checks.bool_length(name, index.values.shape[0], size)
            return jnp.asarray(index.values)
        numbers = _by_number(name, index, size)
        return put(jnp.ones_like(numbers, bool), numbers, 0, size, is_canonical=False)

    def spread(self, array: Array, shape: Shape) -> Array:
        return jnp.broadcast_to(array, shape)

    def array(self, values: Any, views: dict[str, Any]) -> Array:
        return jnp.asarray(values)


def _by_number(name: str, index: Index, size: int) -> Array:
    """Return positions, sorted, where a duplicate or a position out of range is one of its own beyond `size`."""
    if index.length is not None:
        mask_checks.bool_length(name, index.length, size)
    if isinstance(index.values, slice):
        return jnp.sort(jnp.arange(size)[index.values])
    numbers = jnp.asarray(index.values)
    if jnp.issubdtype(numbers.dtype, jnp.floating):  # an average of whole pytrees, say, which may be off by rounding
        mask_checks.float_positions(name, dtype_name(numbers), size)
        numbers = jnp.rint(numbers)
    numbers = numbers.astype(jnp.int32)
    turn = jnp.arange(numbers.shape[0], dtype=jnp.int32)
    numbers = jnp.where(numbers < 0, numbers + size, numbers)
    numbers = jnp.where((numbers < 0) | (numbers >= size), size, numbers)
    # Of equal positions, now neighbours, the first wins. What is beyond the axis was sorted to the end.
    numbers = jax.lax.sort(numbers, is_stable=False)
    is_first = jnp.concatenate([jnp.ones_like(numbers[:1], bool), numbers[1:] != numbers[:-1]])
    return jax.lax.sort(jnp.where(is_first & (numbers < size), numbers, size + turn), is_stable=False)


def _narrow(array: np.ndarray) -> np.ndarray:
    # 32 bits, as JAX has by default: the same program whether jax_enable_x64 is set or not.
    return array.astype(np.int32) if array.dtype.kind in "iu" else array


def read(array: Array) -> np.ndarray | None:
    """Return the values of an array as NumPy, or None if it is traced (the core's reader for JAX)."""
    try:
        values = np.asarray(array)
    except jax.errors.TracerArrayConversionError:
        return None
    return values.astype(np.float32) if values.dtype == jnp.bfloat16 else values


def register_pytree(kind: type[masks.Mask]) -> None:
    """Make a class of mask a pytree whose leaves are its positions (contract S1)."""
    jax.tree_util.register_pytree_node(kind, _flatten, _unflatten)


def _flatten(mask: masks.Mask) -> tuple[tuple[object, ...], _Skeleton]:
    # Made once: every call of a compiled function flattens its arguments. What such a function returns has 32 bits, so
    # a mask that was in none has them too: checkpoints of the one are loaded into the other.
    found = mask.memo.get(_Skeleton)
    if found is None:
        leaves = tuple([_narrow(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in mask.leaves])
        found = mask.memo[_Skeleton] = leaves, _Skeleton(mask)
    return found


def _unflatten(skeleton: _Skeleton, leaves: tuple[object, ...]) -> masks.Mask:
    return skeleton.mask.with_leaves(tuple(leaves))


class _Skeleton:
    """A mask without its leaves, as JAX compares the static part of a pytree."""

    def __init__(self, mask: masks.Mask) -> None:
        self.mask = mask.with_leaves(tuple(None for _ in mask.leaves))
        self.says = (type(mask), mask.static)
        self.hash = hash(self.says)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Skeleton) and self.says == other.says)

    def __hash__(self) -> int:
        return self.hash
