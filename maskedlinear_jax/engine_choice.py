"""Which products a call gets, by precision, dtype, device and lengths; and the test of the device (contract S9)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax import Array

from maskedlinear_core import guard
from maskedlinear_core import precision as core
from maskedlinear_core.checks import precision as checks
from maskedlinear_jax import _compat
from maskedlinear_jax.products import NATIVE, Products, ReproducibleProducts


def choose(precision: Any, function: str, input: Array, weight: Array) -> Products:
    """Return the products of the precision that is asked for.

    Args:
        precision: "native", "reproducible" or `reproducible(...)`.
        function: Name of the public function, for messages.
        input: x, for the lengths of the sums to come.
        weight: W, for its shape and dtype.

    Raises:
        TypeError, ValueError: No precision, no group of workers, a dtype without a reproducible answer, more bits
            than there are, sums too long for an engine that was asked for, or of a symbolic length.
        RuntimeError: A device that is here fails the known-answer test: where a program is lowered for it.
    """
    settings = core.as_precision(precision)
    if isinstance(settings, core.Native):
        return NATIVE
    checks.dtype(function, weight.dtype.name)
    if settings.group is not None:
        names = settings.group if isinstance(settings.group, tuple) else (settings.group,)
        checks.group(settings.group, all(isinstance(name, str) for name in names), "the name of a mesh axis")
    engine = "float64" if settings.engine == "auto" else settings.engine  # of digits, when a program of them is lowered
    for terms in (*weight.shape, math.prod(input.shape[:-1])):
        if not isinstance(terms, int | np.integer):
            checks.refuse_symbolic(function, terms)
        core.check_terms(settings, engine, terms)
    return ReproducibleProducts(settings, _engine_on)


def _engine_on(asked: core.Engine, platform: str) -> core.Engine:
    # What a program that is lowered for a platform adds with. Devices of it that are here are tested.
    try:
        devices = jax.devices(platform)
    except RuntimeError:  # none is here
        devices = []
    engine = _engine(asked, platform, devices)
    mine = [one for one in devices if one.process_index == jax.process_index()]
    if mine:
        _known_answer(engine, mine[0], *_flags())
    return engine


def _engine(asked: core.Engine, platform: str, devices: Sequence[Any]) -> core.Engine:
    if asked != "auto":
        return asked
    return "float64" if _has_fast_float64(platform, devices) else "float32"


def _has_fast_float64(platform: str, devices: Sequence[Any]) -> bool:
    if platform == "cuda":
        # Half the rate of float32: P100, V100, A100, H100 and H200, B200. Elsewhere it is 1/32 or 1/64.
        fast = ("6.0", "7.0", "8.0", "9.0", "10.0")
        return bool(devices) and all(getattr(one, "compute_capability", "") in fast for one in devices)
    return platform == "cpu"


@functools.cache
def _known_answer(engine: core.Engine, device: Any, matmul_precision: Any) -> None:
    problem = guard.problem()

    def answer() -> np.ndarray:
        with jax.default_matmul_precision(matmul_precision):
            x, w = (jax.device_put(array, device) for array in (problem.x, problem.w))
            products = ReproducibleProducts(core.Reproducible(engine=engine), lambda asked, platform: asked)
            return np.asarray(jax.jit(products.linear)(x, w))

    # In a thread of its own: there nothing is traced, and no mesh is in the context.
    with ThreadPoolExecutor(1) as thread:
        wrong = guard.difference(thread.submit(answer).result())
    if wrong:
        checks.refuse_device(device, engine, wrong)


def _flags() -> tuple[Any, ...]:
    # What changes how the device multiplies, so that the test is made again when one is changed.
    return (_compat.matmul_precision(),)
