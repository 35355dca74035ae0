"""What is trained, and how: every step outside of the layers' products is exact, or rounded once.

The images, batches, masks and initial values are those of the digits task. Between the layers is a ReLU, which
is exact; it is where native runs part by a jump when a sum within rounding of zero has another sign. The loss
is the mean of (y - t)^2 / 2 over a batch, t one where the digit is and zero elsewhere. With B = 128 images

    r = y - t                one rounding
    g = r / B                exact: a power of two
    v <- v / 2 + d           one rounding, d the gradient that the layers give for the cotangent g
    w <- w - v / 2           one rounding
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parity.suites.training.digits.network import BATCH, Task

MOMENTUM, RATE = 0.5, 2.0**-1

Progress = Callable[[], None]


@dataclass(frozen=True)
class Course:
    """What a run went through.

    Attributes:
        name: Name of the world.
        losses: Before each step, the mean of (y - t)^2 / 2 in float64 of the float32 residuals.
        weights: Weight and bias of each layer at the task's snapshots, float32.
    """

    name: str
    losses: np.ndarray
    weights: tuple[tuple[np.ndarray, ...], ...]

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of all weights and biases, by snapshot."""
        return tuple(digest(parts) for parts in self.weights)


def digest(parts: tuple[np.ndarray, ...]) -> str:
    """Return the SHA-256 of the bits of float32 arrays, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part, "<f4").tobytes())
    return found.hexdigest()


def targets(task: Task) -> np.ndarray:
    """Return t, one row for each training image."""
    return np.eye(10, dtype=np.float32)[task.labels]


def loss(residual: np.ndarray) -> float:
    """Return the mean of r^2 / 2, from float32 residuals, in float64."""
    return float(np.square(residual, dtype=np.float64).sum() / 2 / BATCH)
