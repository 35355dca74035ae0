"""What the machine does in torch: devices, threads, FLOPs, bandwidth. Twin of jax_machine.py."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.torch_rivals import DTYPES

SIDE, LENGTH = 2048, 1 << 26
REPEATS = 4


def devices() -> tuple[str, ...]:
    """Return the devices that are present."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def threads() -> int:
    """Return how many threads products run on."""
    return torch.get_num_threads()


def flops(dtype: str, device: str) -> float:
    """Return FLOPs a second of a large square product, the best of a few."""
    a, b = (torch.ones(SIDE, SIDE, dtype=DTYPES[dtype], device=device) for _ in range(2))
    return 2 * SIDE**3 / _best(lambda: a @ b, device)


def bandwidth(device: str) -> float:
    """Return bytes a second, read and written, of a large copy, the best of a few."""
    a, b = (torch.ones(LENGTH, device=device) for _ in range(2))
    return 2 * LENGTH * 4 / _best(lambda: b.copy_(a), device)


def _best(program: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    program()
    seconds = []
    for _ in range(REPEATS):
        wait()
        start = time.perf_counter()
        program()
        wait()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
