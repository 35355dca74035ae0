"""Sums over the workers that share a batch: exponents by a maximum, integers by a sum, so their number does not show.

Cost per step and layer, beside the (O I p + O) numbers of 4 bytes of a plain all-reduce of gradients: the
maxima of the columns of g and x, 4 bytes each, and two float64 partial sums for each gradient entry.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from maskedlinear_jax.integer_products import Operand


def synchronize(group: Any, left: Operand, right: Operand) -> tuple[Operand, Operand, int]:
    """Return two operands that are contracted over the batch, with the exponents of all of it, and its size K."""
    if group is None:
        return left, right, left.values.shape[0]
    (left, right), terms = _synchronize(group, left, right)
    return left, right, terms


def synchronize_one(group: Any, x: Operand) -> tuple[list[Operand], int]:
    """Return an operand that is summed over the batch, as `synchronize` does."""
    return ([x], x.values.shape[0]) if group is None else _synchronize(group, x)


def add_up(group: Any, parts: list[Array]) -> list[Array]:
    """Return the sums of exact partial sums over the workers; they are exact, in whatever order."""
    return parts if group is None else [jax.lax.psum(part, group) for part in parts]


def _synchronize(group: Any, *operands: Operand) -> tuple[list[Operand], int]:
    terms = operands[0].values.shape[0] * jax.lax.axis_size(group)
    # NaN is not ordered, and a maximum may lose it: the bits are, and NaN is beyond all numbers there.
    bits = [jax.lax.bitcast_convert_type(abs(x.vector_max), jax.numpy.int32) for x in operands]
    found_max = [
        jax.lax.bitcast_convert_type(jax.lax.pmax(vector_max, group), jax.numpy.float32) for vector_max in bits
    ]
    return [Operand(x.values, vector_max) for x, vector_max in zip(operands, found_max, strict=True)], terms
