"""Running the whole comparison: both trainers and the two runs by hand."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from parity.suites.training.digits import compare, network, numpy_training

STEPS, QUICK_STEPS = 300, 60


def run(
    *,
    seed: int = 0,
    steps: int = STEPS,
    device: str = "cpu",
    tasks: dict[str, network.Task] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> tuple[network.Task, compare.Comparison]:
    """Train in torch, in JAX and by hand, and compare.

    Args:
        seed: Seed of the task.
        steps: Length of the training.
        device: "cpu" or "cuda", for the frameworks.
        tasks: Another task for a framework ("torch", "jax"), to show that a wrong run is seen.
        progress: Called after each step of a framework.
    """
    task = network.task(seed, steps)
    runs = {}
    for name in ("torch", "jax"):
        trainer = importlib.import_module(f"parity.suites.training.digits.{name}_training")
        runs[name] = trainer.train((tasks or {}).get(name, task), device, progress)
    oracle, yardstick = numpy_training.train(task, np.float64), numpy_training.train(task, np.float32)
    return task, compare.compare(task, runs["torch"], runs["jax"], oracle, yardstick)
