"""The precisions: how the rule's products are computed, native or reproducible (SPEC S2, S9)."""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core import guard
from maskedlinear_core import precision as core
from maskedlinear_core.checks import precision as checks
from maskedlinear_jax import _compat, integer_products, reproducible_products
from maskedlinear_jax.kinds import FULL, Arrays, Kind, flat
from maskedlinear_jax.reproducible_products import How, Operands


@dataclass(frozen=True)
class Native:
    """The framework's own products and their derivatives."""

    @property
    def summed_axes(self) -> frozenset[str]:
        """The axes of a mesh over which gradients are summed."""
        return frozenset()

    def linear(self, x: Array, w: Array, b: Array | None = None) -> Array:
        return x @ w.T if b is None else x @ w.T + b

    def back(self, g: Array, w: Array) -> Array:
        return g @ w

    def product(
        self, kind: Kind, arrays: Arrays, g: Array, kept: Array, row_max: Array | None, shape: tuple[int, int]
    ) -> Array:
        return kind.weight_grad(g, kept, *arrays)

    def tangent(self, kind: Kind, arrays: Arrays, x: Array, values: Array, shape: tuple[int, int]) -> Array:
        return kind.apply(kind.gather_input(x, *arrays), values, shape[0], *arrays)

    def total(self, g: Array) -> Array:
        return flat(g).sum(0)

    def spread(self, b: Array, x: Array) -> Array:
        return jnp.broadcast_to(b, (*x.shape[:-1], *b.shape))

    def add(self, a: Array, b: Array) -> Array:
        return a + b

    def row_max(self, x: Array, kept: Array) -> Array | None:
        """Return what the derivatives of a product need of a row of which not all is kept: nothing."""
        return None


@dataclass(frozen=True)
class Reproducible:
    """Every product as exact integers, rounded as SPEC S9 says."""

    how: How

    @property
    def summed_axes(self) -> frozenset[str]:
        """The axes of a mesh over which gradients are summed."""
        group = self.how.settings.group
        return frozenset(group if isinstance(group, tuple) else () if group is None else (group,))

    def linear(self, x: Array, w: Array, b: Array | None = None) -> Array:
        shape = (w.shape[0], w.shape[1])
        product = reproducible_products.Tangent(self.how, FULL, jnp.dtype(jnp.float32), shape, is_cut=False)
        y = reproducible_products.apply(product, Operands(x, w, None), (None, None))
        if b is not None:
            y = reproducible_products.settle(y + self.spread(b, x).astype(jnp.float32))
        return y.astype(x.dtype)

    def back(self, g: Array, w: Array) -> Array:
        shape = (w.shape[0], w.shape[1])
        return reproducible_products.apply(
            reproducible_products.Pull(self.how, FULL, g.dtype, shape), Operands(g, w, None), (None, None)
        )

    def product(
        self, kind: Kind, arrays: Arrays, g: Array, kept: Array, row_max: Array | None, shape: tuple[int, int]
    ) -> Array:
        return reproducible_products.apply(
            reproducible_products.Product(self.how, kind, g.dtype, shape), Operands(g, kept, row_max), arrays
        )

    def tangent(self, kind: Kind, arrays: Arrays, x: Array, values: Array, shape: tuple[int, int]) -> Array:
        tangent = reproducible_products.Tangent(self.how, kind, x.dtype, shape, is_cut=False)
        return reproducible_products.apply(tangent, Operands(x, values, None), arrays)

    def total(self, g: Array) -> Array:
        return reproducible_products.total(self.how, g)

    def spread(self, b: Array, x: Array) -> Array:
        return reproducible_products.spread(self.how, b, x.shape[:-1])

    def add(self, a: Array, b: Array) -> Array:
        return reproducible_products.settle(a + b)

    def row_max(self, x: Array, kept: Array) -> Array | None:
        """Return the largest magnitudes of the rows of which not all is kept."""
        return None if kept is x else integer_products.largest(jax.lax.stop_gradient(x).astype(jnp.float32), -1)


Precision = Native | Reproducible
NATIVE = Native()


def resolve(precision: Any, function: str, input: Array, weight: Array) -> Precision:
    """Return the precision that is asked for, with the engine that suits an array's device.

    Args:
        precision: "native", "reproducible" or `reproducible(...)`.
        function: Name of the public function, for messages.
        input: x, for the lengths of the sums to come.
        weight: W, for its device and dtype.

    Raises:
        TypeError, ValueError: No precision, no group of workers, a dtype without a reproducible answer, more bits
            than there are, or sums too long for an engine that was asked for.
        RuntimeError: The device fails the known-answer test.
    """
    settings = core.as_precision(precision)
    if isinstance(settings, core.Native):
        return NATIVE
    checks.dtype(function, weight.dtype.name)
    if settings.group is not None:
        names = settings.group if isinstance(settings.group, tuple) else (settings.group,)
        checks.group(settings.group, all(isinstance(name, str) for name in names), "the name of a mesh axis")
    device = _compat.device_of(weight) or jax.devices()[0]
    engine = _engine(settings.engine, device)
    for terms in (*weight.shape, math.prod(input.shape[:-1])):
        core.check_terms(settings, engine, terms)
    _known_answer(engine, device, *_flags())
    return Reproducible(How(settings, _ENGINES[engine]))


_ENGINES: dict[str, integer_products.Float64 | integer_products.Digits] = {
    "float64": integer_products.Float64(),
    "float32": integer_products.FLOAT32,
    "int8": integer_products.INT8,
}


def _engine(asked: core.Engine, device: Any) -> core.Engine:
    if asked != "auto":
        return asked
    return "float64" if _has_fast_float64(device) else "float32"


def _has_fast_float64(device: Any) -> bool:
    if device.platform in ("gpu", "cuda"):
        # Half the rate of float32: P100, V100, A100, H100 and H200, B200. Elsewhere it is 1/32 or 1/64.
        return getattr(device, "compute_capability", "") in ("6.0", "7.0", "8.0", "9.0", "10.0")
    return device.platform == "cpu"


@functools.cache
def _known_answer(engine: str, device: Any, matmul_precision: Any) -> None:
    problem = guard.problem()

    def answer() -> np.ndarray:
        with jax.default_matmul_precision(matmul_precision):
            x, w = (jax.device_put(array, device) for array in (problem.x, problem.w))
            return np.asarray(jax.jit(Reproducible(How(core.Reproducible(), _ENGINES[engine])).linear)(x, w))

    # In a thread of its own: there nothing is traced, and no mesh is in the context.
    with ThreadPoolExecutor(1) as thread:
        wrong = guard.difference(thread.submit(answer).result())
    if wrong:
        checks.refuse_device(device, engine, wrong)


def _flags() -> tuple[Any, ...]:
    # What changes how the device multiplies, so that the test is made again when one is changed.
    return (_compat.matmul_precision(),)
