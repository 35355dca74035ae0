"""How the kinds multiply and add: shapes, dtypes, and what may be computed in pieces."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def flat(array: Array) -> Array:
    """Return (*B, F) as (B, F). The size is given in full: -1 is ambiguous where F is 0."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def can_sum_in_pieces(g: Array) -> bool:
    """Tell whether a sum over the batch may be made in pieces that stay in a CPU's cache.

    It may where the batch is a number (exported for a batch of any size, it is none), unless partial sums would be
    rounded to 16 bits.
    """
    return isinstance(g.shape[0], int) and g.dtype in (jnp.float32, jnp.float64)


WRITTEN_OUT = 2**16
"""An operand of this many numbers or more is written to memory before a product."""


def transposed(array: Array) -> Array:
    """Return the transpose of a matrix, written out if it is large."""
    return written_out(array.T)


def written_out(array: Array) -> Array:
    """Return an operand of a product, written to memory first if it is large and the program is lowered for a CPU."""
    # XLA on CPU makes the operands of a product while it computes it. It is slow at contracting the first axes of two
    # large matrices (1.1 times as long in float32, twice in float64) and at reading through a gather (1.5 times). Small
    # operands gain nothing, and under vmap their product can end the process: XLA looks for another layout there.
    is_large = all(isinstance(size, int) for size in array.shape) and array.size >= WRITTEN_OUT
    if not is_large:
        return array
    return jax.lax.platform_dependent(array, cpu=jax.lax.optimization_barrier, default=lambda array: array)


def widened(array: Array) -> Array:
    """Return 16-bit numbers in float32, in which a dense product sums them, and int8 in int32."""
    if array.dtype == jnp.int8:
        return array.astype(jnp.int32)
    return array.astype(jnp.float32) if array.dtype in (jnp.bfloat16, jnp.float16) else array


def dot(a: Array, b: Array) -> Array:
    """Return a matrix product; digits of 8 bits (integer_products.py) have one of their own."""
    return jnp.matmul(a, b, preferred_element_type=jnp.int32) if a.dtype == jnp.int8 else a @ b


def sum_dtype(array: Array) -> Any:
    """Return the dtype of a product of such numbers."""
    return jnp.int32 if array.dtype == jnp.int8 else array.dtype
