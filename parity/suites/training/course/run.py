"""Running every world's training, in both precisions, and what they show side by side."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from parity.suites.training.course import numpy_training
from parity.suites.training.course.recipe import Course
from parity.suites.training.digits import network
from parity.suites.training.digits.network import Task

STEPS, QUICK_STEPS = 500, 60

WORLDS = {
    "torch eager": ("torch", False),
    "torch compiled": ("torch", True),
    "jax eager": ("jax", False),
    "jax jit": ("jax", True),
}
QUICK_WORLDS = ("torch eager", "jax jit")
"""One of each framework: what a quick run trains, and any run in native precision."""


@dataclass(frozen=True)
class Seen:
    """What the runs show.

    Attributes:
        task: What was trained.
        same: The runs in reproducible precision, by world.
        native: One native run of each framework.
        oracle: The run by hand.
        faults: What is wrong; empty if nothing is.
    """

    task: Task
    same: dict[str, Course]
    native: dict[str, Course]
    oracle: Course
    faults: tuple[str, ...]

    @property
    def differing(self) -> np.ndarray:
        """Share of weights whose bits differ between the two native runs, at each snapshot."""
        return np.array([_differing(a, b) for a, b in self._pairs()])

    @property
    def distance(self) -> np.ndarray:
        """Largest difference of a weight between the two native runs, at each snapshot."""
        return np.array([max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)) for a, b in self._pairs()])

    def _pairs(self) -> list[tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]]:
        torch, jax = self.native.values()
        return list(zip(torch.weights, jax.weights, strict=True))


def run(
    *,
    seed: int = 0,
    steps: int = STEPS,
    device: str = "cpu",
    worlds: Collection[str] = tuple(WORLDS),
    progress: Callable[[], None] = lambda: None,
) -> Seen:
    """Train in each world.

    Args:
        seed: Seed of the task.
        steps: Length of the training.
        device: "cpu" or "cuda".
        worlds: Names of WORLDS; QUICK_WORLDS are those that take seconds.
        progress: Called after each step of a run.
    """
    task = network.task(seed, steps)
    same = {
        name: _train(task, *world, "reproducible", device, progress) for name, world in WORLDS.items() if name in worlds
    }
    native = {name: _train(task, *WORLDS[name], "native", device, progress) for name in QUICK_WORLDS}
    oracle = numpy_training.train(task, progress)
    return Seen(task, same, native, oracle, tuple(_faults(task, same, oracle)))


def _train(
    task: Task, framework: str, compiled: bool, precision: str, device: str, progress: Callable[[], None]
) -> Course:
    trainer = importlib.import_module(f"parity.suites.training.course.{framework}_training")
    return trainer.train(task, precision=precision, compiled=compiled, device=device, progress=progress)


def _faults(task: Task, same: dict[str, Course], oracle: Course) -> list[str]:
    faults = []
    first = next(iter(same.values()))
    for name, course in same.items():
        for at, (ours, theirs) in enumerate(zip(course.digests, first.digests, strict=True)):
            if ours != theirs:
                faults.append(f"{name} parts from {first.name} by step {task.snapshots[at]}")
                break
        if not np.array_equal(course.losses, first.losses):
            faults.append(f"{name} has another loss curve than {first.name}")
        for at, right in enumerate(oracle.weights):
            if _differing(course.weights[at], right):
                faults.append(f"{name} parts from the oracle by step {task.snapshots[at]}")
                break
        start = [part for spec in task.layers for part in spec.initial()]
        trains = [part for spec in task.layers for part in spec.trains]
        changed = sum(
            int(np.sum((_bits(end) != _bits(begin)) & ~train))
            for end, begin, train in zip(course.weights[-1], start, trains, strict=True)
        )
        if changed:
            faults.append(f"{name}: {changed} frozen weights changed (S3)")
    if not first.losses[-1] < 0.8 * first.losses[0]:
        faults.append(f"the loss fell from {first.losses[0]:.3g} to {first.losses[-1]:.3g} only: nothing was learned")
    return faults


def _differing(left: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> float:
    pairs = list(zip(left, right, strict=True))
    return sum(int(np.sum(_bits(a) != _bits(b))) for a, b in pairs) / sum(a.size for a, _ in pairs)


def _bits(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32).view(np.uint32)
