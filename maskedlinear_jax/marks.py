"""Whether the constant matrix of a packed layer is still the one that the layer was made with.

A file of `save_packed` is loaded over that matrix. If another mask froze entries that had learned, the matrix has
changed. The entries of the matrix at trainable positions are never read, so a mark is stored there. It stays with the
layer in compiled code and in checkpoints.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core.annotations import MaskLike
from maskedlinear_jax import packing
from maskedlinear_jax.bits import BITS, as_bits

_MARK = 0x2F5A7C1D9E3B4D61
"""Bits of a small number in every dtype, from its first ones on."""


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
    values = as_bits(packing.pack(base, grad_mask=mask))
    return jnp.bool_(values.size > 0) & (values == as_bits(_mark(base))).all()


def repacked(base: Array, values: Array, old: MaskLike, new: MaskLike, whole: Array) -> Array:
    """Return the matrix of a layer that gets another mask: the whole weight, marked if the old values had moved.

    Args:
        base: The old matrix (out_features, in_features).
        values: The old values.
        old: Their mask.
        new: The other mask.
        whole: The matrix with the values in their places.
    """
    moved = (as_bits(packing.pack(base, grad_mask=old)) != as_bits(values.astype(base.dtype))).any()
    return jnp.where(moved, marked(whole, new), whole)


def _mark(base: Array) -> Array:
    size = base.dtype.itemsize
    return jax.lax.bitcast_convert_type(jnp.asarray(_MARK >> (64 - 8 * size), BITS[size]), base.dtype)
