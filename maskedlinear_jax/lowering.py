"""From any mask to its kind, with the positions as arrays (SPEC S1): read where they can be, traced where not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core import masks, positions
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.indices import Index
from maskedlinear_jax.indexing import put
from maskedlinear_jax.kinds import Arrays, Blocks, DenseElements, Kind, Shape, SparseElements, Submatrix


def resolve(mask: masks.Mask, shape: Shape, *, packed: bool = False) -> tuple[Kind, Arrays]:
    """Return the kind and the arrays of positions of a mask for a weight of that shape.

    Args:
        mask: Any mask; its positions may be traced.
        shape: (out_features, in_features).
        packed: Whether values are packed (SPEC S7): then the arrays must tell how many positions there are.

    Raises:
        IndexError, ValueError: As `Mask.to_array`, for positions that can be read.
        TypeError: Packed, and how many positions there are cannot be known now.
    """
    if mask.is_traced:
        kind, traced = _resolve_traced(mask, shape)
        if packed and isinstance(kind, DenseElements):
            packed_checks.refuse_traced(repr(mask))
        return kind, traced
    key = packed, shape  # made once: it may be of the weight's shape
    if key not in mask.memo:
        found = mask.canonical(shape)
        mask.memo[key] = positions.packed(found) if packed else positions.unpacked(found)
    found = mask.memo[key]
    arrays = tuple(None if array is None else _narrow(array) for array in found.arrays)
    return canonical_kind(found, shape), arrays


def canonical_kind(found: positions.Positions, shape: Shape) -> Kind:
    """Return the kind for canonical positions."""
    if found.kind == "submatrix":
        return Submatrix(is_canonical=True)
    if found.kind == "blocks":
        return Blocks(found.grid_shape, found.block_shape, is_canonical=True)
    return SparseElements(shape[1], is_canonical=True) if found.kind == "entries" else DenseElements()


def _resolve_traced(mask: masks.Mask, shape: Shape) -> tuple[Kind, Arrays]:
    if isinstance(mask, masks.Columns) and not mask.index.is_traced_bool:
        return Submatrix(is_canonical=False), (None, _by_number("columns", mask.index, shape[1]))
    if isinstance(mask, masks.Rows) and not mask.index.is_traced_bool:
        return Submatrix(is_canonical=False), (_by_number("rows", mask.index, shape[0]), None)
    if isinstance(mask, masks.Submatrix) and not (mask.rows.is_traced_bool or mask.columns.is_traced_bool):
        rows = _by_number("submatrix rows", mask.rows, shape[0])
        return Submatrix(is_canonical=False), (rows, _by_number("submatrix columns", mask.columns, shape[1]))
    if isinstance(mask, masks.Blocks):
        mask_checks.mask_shape("blocks", mask.shape, shape)
        numbers = _by_number("blocks", mask.numbers, mask.grid_shape[0] * mask.grid_shape[1])
        return Blocks(mask.grid_shape, mask.block_shape, is_canonical=False), (numbers,)
    if isinstance(mask, masks.Entries):
        mask_checks.mask_shape("entries", mask.shape, shape)
        numbers = _by_number("entries", mask.index, shape[0] * shape[1])
        return SparseElements(shape[1], is_canonical=False), (numbers,)
    return DenseElements(), (_dense(mask, shape),)


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
    return put(jnp.ones_like(numbers, bool), numbers, 0, size, is_canonical=False)


def _by_number(name: str, index: Index, size: int) -> Array:
    """Return positions, sorted, where a duplicate or a position out of range is one of its own beyond `size`."""
    if index.length is not None:
        mask_checks.bool_length(name, index.length, size)
    if isinstance(index.values, slice):
        return jnp.sort(jnp.arange(size)[index.values])
    numbers = jnp.asarray(index.values).astype(jnp.int32)
    turn = jnp.arange(numbers.shape[0], dtype=jnp.int32)
    numbers = jnp.where(numbers < 0, numbers + size, numbers)
    numbers = jnp.where((numbers < 0) | (numbers >= size), size, numbers)
    # Of equal positions, now neighbours, the first wins. What is beyond the axis was sorted to the end.
    numbers = jax.lax.sort(numbers, is_stable=False)
    is_first = jnp.concatenate([jnp.ones_like(numbers[:1], bool), numbers[1:] != numbers[:-1]])
    return jax.lax.sort(jnp.where(is_first & (numbers < size), numbers, size + turn), is_stable=False)


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
    # Made once: every call of a compiled function flattens its arguments.
    skeleton = mask.memo.get(_Skeleton)
    if skeleton is None:
        skeleton = mask.memo[_Skeleton] = _Skeleton(mask)
    return mask.leaves, skeleton


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
