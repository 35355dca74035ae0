"""Differences beyond the edge of the range: an intermediate that overflows, a subnormal that is flushed.

They say how two programs are built, and nothing of the function at ordinary numbers. A difference is one of them only
where the two agree on the user's own numbers, and a program leaves the range on those at hand. A sweep that leaves the
range is drawn again below smaller powers of two, where it does not: what differs there is no matter of the range
(softplus is x beyond a threshold of 20, and exp(-4096) is zero).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parity.execution.calls import Numbers, Outputs
from parity.execution.outputs import EAGER, Runs
from parity.operator import data
from parity.records import Cell
from parity.verdict.bounds import FLUSHED
from parity.verdict.outcomes import Outcome

KINDS = ("large", "small", "subnormal", "sweep")
"""Kinds of data that reach it."""

NO_NUMBERS = ("nan", "infinite")
"""Kinds of data with what is no number."""

NAMES = {"torch": "torch", "jax": "JAX"}


def apart(runs: Runs, cell: Cell, found: Outcome, judged: Callable[[Cell], Outcome]) -> Outcome:
    """Return the outcome of a cell that differs, as one at the edge of the range if it is that.

    Args:
        runs: Of the pair.
        cell: On a variant of a kind of data.
        found: It differs.
        judged: Judges another cell.
    """
    if (
        cell.data.split("#")[0] not in (*KINDS, *NO_NUMBERS)
        or found.finding is None
        or found.finding.output == "structure"
    ):
        return found
    if judged(replace(cell, data="random")).verdict not in ("identical", "within bound"):
        return found
    if _are_no_numbers(runs, cell):
        return replace(found, verdict="edge", reason=f"no number in both, of other kinds: {found.reason}")
    if _is_nowhere(runs, cell):
        return replace(found, verdict="edge", reason=f"a derivative where the function is no number: {found.reason}")
    if "~" in cell.data:
        return found  # it was drawn so as not to leave the range
    if cell.data.split("#")[0] in NO_NUMBERS:
        return found
    dtype = "float64" if found.judged == "meaning" else cell.dtype
    why = _why(runs, cell, dtype)
    if not why:
        return found
    for power in data.TAME if cell.data.startswith("sweep") else ():
        there = replace(cell, data=data.tamed(cell.data, power))
        if _why(runs, there, dtype):
            continue
        tame = judged(there)
        if tame.verdict == "differs":
            return tame
    return replace(found, verdict="edge", reason=f"at the edge of the range: {why}; there {found.reason}")


def _is_nowhere(runs: Runs, cell: Cell) -> bool:
    """Return whether a derivative is taken, on NaN or infinities, of what is NaN or infinite itself, in both."""
    if cell.data.split("#")[0] not in NO_NUMBERS or not runs.pair.transform(cell.transform).order:
        return False
    if runs.pair.brings(cell.transform):
        return False
    plain = replace(cell, transform="forward")
    seen = [runs.outputs(plain, world=world, dtype="float64") for world in EAGER.values()]
    return all(
        isinstance(one, Outputs)
        and any(v.dtype.kind == "f" and not np.all(np.isfinite(v)) for v in one.values.values())
        for one in seen
    )


def _are_no_numbers(runs: Runs, cell: Cell) -> bool:
    """Return whether results on NaN or infinities differ only where both are no numbers: inf - inf, 0 times inf."""
    if cell.data.split("#")[0] not in NO_NUMBERS:
        return False
    one, other = (runs.outputs(cell, world=world, dtype="float64") for world in EAGER.values())
    if not isinstance(one, Outputs) or not isinstance(other, Outputs) or one.values.keys() != other.values.keys():
        return False
    parted = False
    for name, left in one.values.items():
        right = other.values[name]
        if left.shape != right.shape or left.dtype.kind != right.dtype.kind:
            return False
        if left.dtype.kind != "f":
            continue
        apart = (left != right) & ~(np.isnan(left) & np.isnan(right)) & ~(np.isfinite(left) & np.isfinite(right))
        if np.any(apart & (np.isfinite(left) | np.isfinite(right))):
            return False
        parted |= bool(apart.any())
    return parted and _agree_elsewhere(one, other)


def _agree_elsewhere(one: Outputs, other: Outputs) -> bool:
    """Return whether the numbers that both have agree, to six digits: else something else differs as well."""
    for name, left in one.values.items():
        right = other.values[name]
        both = np.isfinite(left) & np.isfinite(right) if left.dtype.kind == "f" else np.ones(left.shape, bool)
        if not np.allclose(left[both], right[both], rtol=1e-6, atol=0):
            return False
    return True


def _why(runs: Runs, cell: Cell, dtype: str) -> str:
    large, small = [], []
    for framework in ("torch", "jax"):
        reading = runs.reading(cell, framework, dtype, ranges=True)
        if reading is None:
            continue
        if reading.large:
            large.append(f"{', '.join(sorted(reading.large)[:3])} in {NAMES[framework]}")
        if reading.small:
            small.append(f"{', '.join(sorted(reading.small)[:3])} in {NAMES[framework]}")
    if large:
        return f"an intermediate result overflows ({'; '.join(large)})"
    if small:
        return f"subnormal numbers, which XLA flushes to zero ({'; '.join(small)})"
    numbers = runs.numbers_of(cell)
    if isinstance(numbers, Numbers):
        for leaf in numbers.theta:
            if bool(np.any((leaf != 0) & (np.abs(leaf) < FLUSHED[dtype]))):
                return "subnormal numbers go in, which XLA flushes to zero"
    return ""
