"""What the machine does in JAX: devices, threads, FLOPs, bandwidth. Twin of torch_machine.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.jax_rivals import DTYPES

SIDE, LENGTH = 2048, 1 << 26
REPEATS = 4


def devices() -> tuple[str, ...]:
    """Return the devices that are present."""
    return ("cpu", "cuda") if any(one.platform in ("gpu", "cuda") for one in jax.devices()) else ("cpu",)


def threads() -> int:
    """Return how many threads products run on."""
    return len(os.sched_getaffinity(0))  # XLA takes what it is let have


def flops(dtype: str, device: str) -> float:
    """Return FLOPs a second of a large square product, the best of a few."""
    a, b = (_ones((SIDE, SIDE), DTYPES[dtype], device) for _ in range(2))
    product = jax.jit(lambda a, b: a @ b)
    return 2 * SIDE**3 / _best(lambda: product(a, b))


def bandwidth(device: str) -> float:
    """Return bytes a second, read and written, of a large copy, the best of a few."""
    a, copy = _ones((LENGTH,), jnp.float32, device), jax.jit(jnp.negative, donate_argnums=0)

    def turn() -> jax.Array:
        nonlocal a
        a = copy(a)  # in place, as the copy of the twin's is into memory that is there
        return a

    return 2 * LENGTH * 4 / _best(turn)


def _ones(shape: tuple[int, ...], dtype: Any, device: str) -> jax.Array:
    return jax.device_put(jnp.ones(shape, dtype), jax.devices("cpu" if device == "cpu" else "gpu")[0])


def _best(program: Callable[[], jax.Array]) -> float:
    jax.block_until_ready(program())
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(program())
        seconds.append(time.perf_counter() - start)
    return min(seconds)
