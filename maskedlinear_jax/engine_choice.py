"""Which products a call gets: decided by precision, dtype, device and lengths; and the test of the device (SPEC S9)."""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax import Array

from maskedlinear_core import guard
from maskedlinear_core import precision as core
from maskedlinear_core.checks import precision as checks
from maskedlinear_jax import _compat, integer_products
from maskedlinear_jax.products import NATIVE, Products, ReproducibleProducts


def choose(precision: Any, function: str, input: Array, weight: Array) -> Products:
    """Return the products of the precision that is asked for, by the engine that suits an array's device.

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
    fast = ("cpu", "cuda") if device.platform != "cpu" and _has_fast_float64(device) else ("cpu",)
    return ReproducibleProducts(settings, _ENGINES[engine], fast if settings.engine == "auto" else None)


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
            return np.asarray(jax.jit(ReproducibleProducts(core.Reproducible(), _ENGINES[engine]).linear)(x, w))

    # In a thread of its own: there nothing is traced, and no mesh is in the context.
    with ThreadPoolExecutor(1) as thread:
        wrong = guard.difference(thread.submit(answer).result())
    if wrong:
        checks.refuse_device(device, engine, wrong)


def _flags() -> tuple[Any, ...]:
    # What changes how the device multiplies, so that the test is made again when one is changed.
    return (_compat.matmul_precision(),)
