"""Whether the constant matrix of a packed layer is another than at first: told by bits that count for nothing.

A file of what learned goes over the matrix that a layer was made with. Another mask freezes what has learned before,
which is no part of that matrix. What the matrix holds at trainable positions counts for nothing: there a mark is left,
which goes wherever the layer goes, through compiled code and checkpoints too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core.annotations import MaskLike
from maskedlinear_jax import packing

_MARK = 0x2F5A7C1D9E3B4D61
"""Bits of a small number in every dtype, from its first ones on."""

_BITS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


def marked(base: Array, mask: MaskLike) -> Array:
    """Return a matrix with the mark at its trainable positions.

    Example:
        >>> from maskedlinear_jax import columns
        >>> bool(is_marked(marked(jnp.ones((2, 2)), columns([1])), columns([1])))
        True
    """
    values = packing.pack(base, grad_mask=mask)
    return packing.unpack(base, jnp.broadcast_to(_mark(base), values.shape), grad_mask=mask)


def is_marked(base: Array, mask: MaskLike) -> Array:
    """Tell whether a matrix has the mark. One without a trainable position has none."""
    values = _bits(packing.pack(base, grad_mask=mask))
    return jnp.bool_(values.size > 0) & (values == _bits(_mark(base))).all()


def repacked(base: Array, values: Array, old: MaskLike, new: MaskLike, whole: Array) -> Array:
    """Return the matrix of a layer that gets another mask: the whole weight, marked if the old values had moved.

    Args:
        base: The old matrix (out_features, in_features).
        values: The old values.
        old: Their mask.
        new: The other mask.
        whole: The matrix with the values in their places.
    """
    moved = (_bits(packing.pack(base, grad_mask=old)) != _bits(values.astype(base.dtype))).any()
    return jnp.where(moved, marked(whole, new), whole)


def _mark(base: Array) -> Array:
    size = base.dtype.itemsize
    return jax.lax.bitcast_convert_type(jnp.asarray(_MARK >> (64 - 8 * size), _BITS[size]), base.dtype)


def _bits(array: Any) -> Array:
    return jax.lax.bitcast_convert_type(array, _BITS[array.dtype.itemsize])
