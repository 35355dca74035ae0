"""The verdict on a training run: same course within rounding, frozen weights bit-identical, the others moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.suites.training.digits.network import History, Task

STRAY = 2.0
"""How much further than the NumPy float32 run a framework may stray from the float64 run (RMS over all weights).

All three round the same operations to the same 24 bits and differ in the order of their sums: the size
of the distance is theirs in common, its direction is not (seen: within 10 %). TF32 strays 1000 times further.
"""


@dataclass(frozen=True)
class Comparison:
    """What the runs show side by side.

    Attributes:
        histories: torch and JAX.
        oracle: The NumPy float64 run.
        yardstick: The NumPy float32 run.
        distance: RMS distance of all weights from the oracle at each snapshot, by run.
        apart: Largest difference of a weight between torch and JAX at each snapshot.
        frozen: Number of frozen weights and biases.
        changed: How many of them changed a bit, by run.
        moved: Share of the trainable ones that moved, by run.
        faults: What is wrong; empty if nothing is.
    """

    histories: tuple[History, History]
    oracle: History
    yardstick: History
    distance: dict[str, np.ndarray]
    apart: np.ndarray
    frozen: int
    changed: dict[str, int]
    moved: dict[str, float]
    faults: tuple[str, ...]


def compare(task: Task, torch: History, jax: History, oracle: History, yardstick: History) -> Comparison:
    """Compare the runs of both frameworks with the oracle and with each other."""
    trains = [part for spec in task.layers for part in spec.trains]
    start = [part for spec in task.layers for part in spec.initial()]
    distance = {run.name: _distance(run, oracle) for run in (torch, jax, yardstick)}
    apart = np.array([
        max(float(np.max(np.abs(a - b))) for a, b in zip(left, right, strict=True))
        for left, right in zip(torch.weights, jax.weights, strict=True)
    ])  # fmt: skip
    changed, moved, faults = {}, {}, []
    for run in (torch, jax):
        differs = [_bits(a) != _bits(b) for a, b in zip(run.weights[-1], start, strict=True)]
        changed[run.name] = sum(int(np.sum(d & ~t)) for d, t in zip(differs, trains, strict=True))
        moved[run.name] = sum(int(np.sum(d & t)) for d, t in zip(differs, trains, strict=True)) / sum(
            int(t.sum()) for t in trains
        )
        if changed[run.name]:
            faults.append(f"{run.name}: {changed[run.name]} frozen weights changed (S3)")
        if moved[run.name] < 0.5:
            faults.append(f"{run.name}: only {moved[run.name]:.0%} of the trainable weights moved")
        allowed = STRAY * np.maximum.accumulate(distance[yardstick.name])
        beyond = np.flatnonzero(distance[run.name] > allowed)
        if beyond.size:
            at = int(beyond[0])
            faults.append(
                f"{run.name}: after step {task.snapshots[at]} the weights are {distance[run.name][at]:.3g} from the "
                f"float64 run, allowed {allowed[at]:.3g} ({STRAY:g} times what float32 strays by rounding)"
            )
    frozen = sum(int(np.sum(~t)) for t in trains)
    return Comparison((torch, jax), oracle, yardstick, distance, apart, frozen, changed, moved, tuple(faults))


def _distance(run: History, oracle: History) -> np.ndarray:
    def rms(left: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> float:
        squares = [np.square(a.astype(np.float64) - b).ravel() for a, b in zip(left, right, strict=True)]
        return float(np.sqrt(np.mean(np.concatenate(squares))))

    return np.array([rms(left, right) for left, right in zip(run.weights, oracle.weights, strict=True)])


def _bits(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32).view(np.uint32)
