"""The products that the rule is written on: the framework's own, or reproducible ones (contract S2, S9)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_jax import integer_products, reproducible_products
from maskedlinear_jax.kinds import FULL, Kind
from maskedlinear_jax.kinds.sums import flat
from maskedlinear_jax.reproducible_products import Arithmetic, Operands


@dataclass(frozen=True)
class NativeProducts:
    """The framework's own products and their derivatives."""

    @property
    def summed_axes(self) -> frozenset[str]:
        """The axes of a mesh over which gradients are summed."""
        return frozenset()

    def linear(self, x: Array, w: Array, b: Array | None = None) -> Array:
        return x @ w.T if b is None else x @ w.T + b

    def input_grad(self, g: Array, w: Array) -> Array:
        return g @ w

    def weight_grad(self, kind: Kind, g: Array, kept: Array, row_max: Array | None, shape: tuple[int, int]) -> Array:
        return kind.weight_grad(g, kept)

    def apply(self, kind: Kind, x: Array, values: Array, shape: tuple[int, int]) -> Array:
        return kind.apply(kind.gather_input(x), values, shape[0])

    def sum_batch(self, g: Array) -> Array:
        return flat(g).sum(0)

    def expand_batch(self, b: Array, x: Array) -> Array:
        return jnp.broadcast_to(b, (*x.shape[:-1], *b.shape))

    def add(self, a: Array, b: Array) -> Array:
        return a + b

    def row_max(self, x: Array, kept: Array) -> Array | None:
        """Return what the derivatives of a product need of a row of which not all is kept: nothing."""
        return None


@dataclass(frozen=True)
class ReproducibleProducts(Arithmetic):
    """Every product as exact integers, rounded as contract S9 says."""

    @property
    def summed_axes(self) -> frozenset[str]:
        """The axes of a mesh over which gradients are summed."""
        group = self.settings.group
        return frozenset(group if isinstance(group, tuple) else () if group is None else (group,))

    def linear(self, x: Array, w: Array, b: Array | None = None) -> Array:
        shape = (w.shape[0], w.shape[1])
        product = reproducible_products.Apply(self, jnp.dtype(jnp.float32), shape, is_cut=False)
        y = reproducible_products.evaluate(product, Operands(x, w, None), FULL)
        if b is not None:
            y = reproducible_products.canonicalize(y + self.expand_batch(b, x).astype(jnp.float32))
        return y.astype(x.dtype)

    def input_grad(self, g: Array, w: Array) -> Array:
        shape = (w.shape[0], w.shape[1])
        return reproducible_products.evaluate(
            reproducible_products.InputGrad(self, g.dtype, shape), Operands(g, w, None), FULL
        )

    def weight_grad(self, kind: Kind, g: Array, kept: Array, row_max: Array | None, shape: tuple[int, int]) -> Array:
        return reproducible_products.evaluate(
            reproducible_products.WeightGrad(self, g.dtype, shape), Operands(g, kept, row_max), kind
        )

    def apply(self, kind: Kind, x: Array, values: Array, shape: tuple[int, int]) -> Array:
        product = reproducible_products.Apply(self, x.dtype, shape, is_cut=False)
        return reproducible_products.evaluate(product, Operands(x, values, None), kind)

    def sum_batch(self, g: Array) -> Array:
        return reproducible_products.sum_batch(self, g)

    def expand_batch(self, b: Array, x: Array) -> Array:
        return reproducible_products.expand_batch(self, b, x.shape[:-1])

    def add(self, a: Array, b: Array) -> Array:
        return reproducible_products.canonicalize(a + b)

    def row_max(self, x: Array, kept: Array) -> Array | None:
        """Return the largest magnitudes of the rows of which not all is kept."""
        return None if kept is x else integer_products.largest(jax.lax.stop_gradient(x).astype(jnp.float32), -1)


Products = NativeProducts | ReproducibleProducts
NATIVE = NativeProducts()
