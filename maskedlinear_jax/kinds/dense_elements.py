"""Single elements among zeros, as the dense product gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core.positions import Positions
from maskedlinear_jax.kinds.base import Kind, Shape
from maskedlinear_jax.kinds.sums import dot, flat, transposed


@partial(jax.tree_util.register_dataclass, data_fields=["wanted"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class DenseElements(Kind, name="elements"):
    """Single elements: M itself, (O, I). Packed here means: among zeros, as the dense product gives them."""

    wanted: Array

    @classmethod
    def from_positions(cls, found: Positions, arrays: Sequence[Any], shape: Shape, *, is_canonical: bool) -> Self:
        (wanted,) = arrays
        return cls(wanted)

    def weight_grad(self, g: Array, kept: Array) -> Array:
        dense = dot(transposed(flat(g)), flat(kept))
        return jnp.where(self.wanted, dense, jnp.zeros_like(dense))

    def to_dense(self, values: Array, shape: Shape) -> Array:
        return values

    def pack(self, weight: Array) -> Array:
        return jnp.where(self.wanted, weight, jnp.zeros_like(weight))

    def mask_values(self, values: Array) -> Array:
        return jnp.where(self.wanted, values, jnp.zeros_like(values))

    def apply(self, kept: Array, values: Array, out_features: int) -> Array:
        return dot(kept, values.T)

    def input_grad(self, g: Array, values: Array, in_features: int) -> Array:
        return dot(g, values)

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def mask(self, weight: Array) -> Array:
        return self.wanted
