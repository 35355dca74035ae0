"""Whether the sign of a zero counts: it does if nearby numbers have that sign, and does not if a zero cancels.

`tanh(-0.0)` is -0.0, and `tanh` of a small negative number is negative: the sign counts. The mean of zeros, subtracted
from zeros, is +0.0 or -0.0, depending on the formula, and for numbers near zero it has either sign: it does not count.
Nor does the sign of x times zero, where the other side has a plain zero, as dropout by a product and by a choice.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.execution.calls import Numbers, Outputs
from parity.execution.outputs import EAGER, Runs
from parity.records import Cell
from parity.verdict.compare import Mismatch

BESIDE = 2.0**-30
"""The size of the numbers that stand for zeros: small beside all else, and far from subnormal when they are squared."""

DRAWS = 24
"""How often they are drawn: a sign that says nothing comes as expected each time in 1 of 16 million cases."""


class LeftOpen(Mismatch):
    """Results differ in the signs of zeros alone, and the function has no sign there."""


def signs_are_meant(runs: Runs, cell: Cell, jax: Outputs, torch: Outputs) -> bool:
    """Return whether a zero of torch's, where JAX has the other sign, has the sign that is beside it.

    Where it has not, torch's own formula does not keep the sign, and no port has to.

    Args:
        runs: Runs of the pair.
        cell: A forward on signed zeros.
        jax: What JAX gives there, in float64.
        torch: What torch gives.
    """
    apart = {name: _apart(jax.values[name], value) for name, value in torch.values.items() if name in jax.values}
    numbers, there = runs.plain(cell.data, cell.dtype), replace(cell, world=EAGER["torch"])
    for name, mask in _times_zero(runs, cell, numbers, jax, torch).items():
        apart[name] &= ~mask
    for draw in range(DRAWS):
        beside = runs.rerun(there, "float64", _beside(numbers, draw))
        for name, mask in apart.items():
            limit = beside.values.get(name) if isinstance(beside, Outputs) else None
            if limit is None or limit.shape != mask.shape:
                return True
            apart[name] = mask & (np.signbit(limit) == np.signbit(torch.values[name]))
    return any(bool(np.any(mask)) for mask in apart.values())


def _times_zero(
    runs: Runs, cell: Cell, numbers: Numbers, jax: Outputs, torch: Outputs
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return which elements are zeros beside zero too, of the sign of what goes in on the side that has -0.0."""
    beside = _beside(numbers, 0)
    seen = {}
    for framework in EAGER:
        there = replace(cell, world=EAGER[framework])
        seen[framework] = [runs.rerun(there, "float64", one) for one in (beside, beside.changed(np.negative))]
    values = {
        name: [one.values for one in found if isinstance(one, Outputs)] for name, found in seen.items()
    }  # fmt: skip
    made = {}
    for name in torch.values.keys() & jax.values.keys():
        found = [one.get(name) for side in values.values() for one in side]
        if len(found) < 4 or any(one is None or one.shape != torch.values[name].shape for one in found):
            continue
        zero = np.all([one == 0 for one in found], axis=0)
        turns = {
            framework: np.signbit(one[name]) != np.signbit(other[name]) for framework, (one, other) in values.items()
        }
        minus = np.signbit(torch.values[name])
        made[name] = zero & np.where(minus, turns["torch"] & ~turns["jax"], turns["jax"] & ~turns["torch"])
    return made


def _apart(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.shape != right.shape or left.dtype.kind != "f" or right.dtype.kind != "f":
        return np.zeros(right.shape, bool)
    return (left == 0) & (right == 0) & (np.signbit(left) != np.signbit(right))


def _beside(numbers: Numbers, draw: int) -> Numbers:
    """Return numbers whose zeros are small numbers of their sign."""
    rng = np.random.Generator(np.random.PCG64([draw, 13]))

    def moved(values: np.ndarray) -> np.ndarray:
        return np.where(values == 0, np.copysign(BESIDE * rng.uniform(0.5, 1.0, values.shape), values), values)

    return numbers.changed(moved)
