"""The bits of floats as unsigned integers: code that selects parameters by dtype does not select them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
"""The unsigned integer of so many bytes."""


def as_bits(array: Array) -> Array:
    """Return an array of unsigned integers with the bits of another.

    Example:
        >>> as_bits(jnp.float32(1.0)).item() == 0x3F800000
        True
    """
    return jax.lax.bitcast_convert_type(array, BITS[array.dtype.itemsize])
