"""What shows only over many numbers: errors in one direction (bias.py), and one framework with larger errors.

The user's own numbers are drawn several times, with the same shapes, so that compiled programs are used again. How far
rounding moves an element is measured on the first draw. The other draws use that measure, scaled by the size of the
element. It is measured only if results in units of the elements do not decide (`Slope.is_settled`), and if there are
enough numbers (`data.ENOUGH`) for their mean to say more than the bound of each. An output of few numbers (a loss) is
drawn more often.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from parity.execution.calls import Failure, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs, framework_of
from parity.operator import data
from parity.records import Cell, Judged
from parity.verdict import arithmetic, compare, sensitivity
from parity.verdict.bias import ROUNDED, Slope, assert_no_factor
from parity.verdict.bounds import UNIT
from parity.verdict.compare import Mismatch
from parity.verdict.outcomes import Outcome
from parity.verdict.refusals import LOW

FAR = 1e-7
"""A difference in float64, relative or of numbers of the size of one, at which another draw is judged by itself."""

TRANSFORMS = ("forward", "vjp")

SWEEP = "sweep#near."
"""How the names of further sweeps begin."""

ROUNDING, JUDGED = 2.0**-48, 3
"""A relative difference in float64 from which a sweep is judged, and how many are."""

TAIL = 32.0
"""Times the bound, up to which the worst of many sweeps shows nothing: errors of what is badly conditioned (a matrix of
numbers of all sizes) have a heavy tail, that of the worst of n draws is about n times the usual one."""

Slopes = dict[str, Slope]


@dataclass(frozen=True)
class Level:
    """How far rounding moves the elements of an output: by a part of their size, and by so much at least."""

    part: float
    floor: float


def held_over_draws(runs: Runs, cell: Cell, found: Outcome, judge: Callable[[Cell], Outcome]) -> Outcome:
    """Return the outcome of a cell after all draws of the user's own numbers.

    Args:
        runs: Runs of the pair.
        cell: On random numbers.
        found: On the first draw: the two agree there.
        judge: Judges another draw, element by element, where it is far off.
    """
    if found.error is None or cell.world == "torch-compiled" or runs.pair.numbers is not None:
        return found
    draws = data.variants(runs.pair, cell.data) if cell.transform in TRANSFORMS else (cell.data,)
    given = runs.outputs(cell)
    sizes = [one.size for one in given.values.values() if one.size] if isinstance(given, Outputs) else []
    if sizes and cell.transform in TRANSFORMS:
        draws = data.further_draws(runs.pair, draws, min(sizes))
    own, other = framework_of(cell), OTHER[framework_of(cell)]
    double, single = cell.dtype == "float64", cell.dtype
    # In float64 JAX is held to torch, in less each framework to its own float64 run.
    beside = runs.reference(other, cell)
    reference = beside if double else runs.reference(own, cell)

    def both(levels: dict[str, Level]) -> tuple[Slopes, Slopes | None]:
        mine = _slopes(runs, cell, draws, cell.world, reference, single, levels)
        return mine, None if double else _slopes(runs, cell, draws, beside, beside, single, levels)

    inside = arithmetic.Arithmetic()
    mine, twin = both(_unmeasured(runs, cell))
    unsettled = [one for one in (*mine.values(), *(twin or {}).values()) if not one.is_settled(UNIT[single])]
    if unsettled:
        if cell.transform not in TRANSFORMS and max(one.count for one in unsettled) < data.ENOUGH:
            return found
        if double:
            inside = arithmetic.of_cell(runs, cell, single)
        mine, twin = both(_levels(runs, cell))
    if double and own == "jax":
        for draw in draws[1:]:
            there = replace(cell, data=draw)
            if _is_far(runs.outputs(there), runs.outputs(there, world=reference)):
                seen = judge(there)
                if seen.verdict == "differs":
                    return replace(seen, variant=draw)
    twin_ratio = found.twin_ratio
    try:
        if twin is not None and own == "jax":
            # An output that the other framework did not give in this dtype has no ratio.
            shared = [name for name in mine if name in twin]
            torch, jax = ({name: _rms(one[name]) for name in shared} for one in (twin, mine))
            twin_ratio = compare.assert_error_ratios(torch, jax)
        if not double or own == "jax":
            tolerance = runs.pair.tolerance
            narrow = _single(runs, cell, reference) if double else set()
            tolerated = tolerance.rtol if tolerance else 0.0
            # What both compute in float32 inside, or a library does, errs as float32 does, whatever the outputs are.
            dtype = inside.lowest or inside.library or cell.dtype
            low = cell.dtype in LOW and dtype == cell.dtype
            directed = functools.partial(sensitivity.in_one_direction, runs, cell, UNIT[cell.dtype]) if low else None
            assert_no_factor(mine, dtype, twin, both=double, tolerated=tolerated, single=narrow, directed=directed)
    except Mismatch as mismatch:
        ratio = mismatch.finding.output == "error ratio"
        judged: Judged = "ratio" if ratio else "meaning" if double else "precision"
        return replace(
            found, verdict="differs", reason=str(mismatch), judged=judged, finding=mismatch.finding,
            twin_ratio=mismatch.finding.ratio if ratio else twin_ratio,
        )  # fmt: skip
    return replace(found, twin_ratio=twin_ratio)


def far_sweeps(runs: Runs, cell: Cell) -> tuple[str, ...]:
    """Return the further sweeps of a cell on which the two functions are the farthest from each other, in float64.

    All are run, and none is judged here: a threshold that one of the two has shows in few numbers.
    """
    if cell.transform not in TRANSFORMS or framework_of(cell) != "jax":
        return ()

    def find() -> tuple[str, ...]:
        found = []
        for variant in data.further_sweeps(runs.pair):
            there = replace(cell, data=variant)
            one, other = (runs.outputs(there, world=world, dtype="float64") for world in EAGER.values())
            if isinstance(one, Outputs) and isinstance(other, Outputs) and (off := _off(one, other)) > ROUNDING:
                found.append((off, variant))
        return tuple(variant for _, variant in sorted(found, reverse=True)[:JUDGED])

    made: tuple[str, ...] = runs.once(("far sweeps", cell.transform, cell.device, runs.drawn(SWEEP, cell.dtype)), find)
    return made


def is_in_the_tail(outcome: Outcome) -> bool:
    """Return whether a difference in float64 is no larger than that of the worst of many draws."""
    return outcome.judged == "meaning" and outcome.finding is not None and outcome.finding.ratio < TAIL


def _off(one: Outputs, other: Outputs) -> float:
    """Return the largest difference of two results, relative to each element."""
    worst = 0.0
    for name, left in one.values.items():
        right = other.values.get(name)
        if right is None or left.shape != right.shape:
            return np.inf
        apart = (left != right) & ~(np.isnan(left) & np.isnan(right)) if left.dtype.kind == "f" else left != right
        if apart.any() and (left.dtype.kind != "f" or right.dtype.kind != "f"):
            return np.inf
        if apart.any():
            off = np.abs(left - right)[apart] / np.maximum(np.abs(left), np.abs(right))[apart]
            worst = max(worst, float(np.max(np.where(np.isnan(off), np.inf, off))))
    return worst


def _is_far(one: Outputs | Failure, other: Outputs | Failure) -> bool:
    """Return whether two results in float64 differ by more than rounding does in all but rare cases."""
    if not isinstance(one, Outputs) or not isinstance(other, Outputs):
        return isinstance(one, Outputs) != isinstance(other, Outputs)
    for name, left in one.values.items():
        right = other.values.get(name)
        if right is None or left.shape != right.shape:
            return True
        if left.dtype.kind == "f" and not np.allclose(left, right, rtol=FAR, atol=FAR, equal_nan=True):
            return True
    return False


def _single(runs: Runs, cell: Cell, reference: str) -> set[str]:
    """Return the outputs that are float32 on one side at least, though all else is float64."""
    both = runs.outputs(cell), runs.outputs(cell, world=reference, dtype="float64")
    return {
        name for one in both if isinstance(one, Outputs) for name, dtype in one.dtypes.items() if dtype == "float32"
    }


def _unmeasured(runs: Runs, cell: Cell) -> dict[str, Level]:
    """Return no movement at all, of each output: errors are then counted in units of the element alone."""
    own = runs.outputs(cell)
    return {name: Level(0.0, 0.0) for name in own.values} if isinstance(own, Outputs) else {}


def _levels(runs: Runs, cell: Cell) -> dict[str, Level]:
    moved = sensitivity.of_cell(runs, cell, UNIT[cell.dtype])
    at = next(
        (
            one
            for framework in EAGER
            if isinstance(one := runs.outputs(cell, world=runs.reference(framework, cell), dtype="float64"), Outputs)
        ),
        Outputs({}),
    )
    sizes, made = sensitivity.sizes(at.values), {}
    for name, s in moved.spread.items():
        size = sizes.get(name)
        if size is None or size.shape != s.shape or not s.size:
            continue
        use = size > 0
        part = float(np.median(s[use] / size[use])) if use.any() else 0.0
        made[name] = Level(part, float(np.median(s)))
    return made


def _slopes(
    runs: Runs, cell: Cell, draws: tuple[str, ...], world: str, reference: str, dtype: str, levels: dict[str, Level]
) -> Slopes:
    total: Slopes = {}
    for draw in draws:
        there = replace(cell, data=draw)
        got, want = runs.outputs(there, world=world), runs.outputs(there, world=reference, dtype="float64")
        if not isinstance(got, Outputs) or not isinstance(want, Outputs):
            continue
        sizes = sensitivity.sizes(want.values)
        for name, level in levels.items():
            value, target = got.values.get(name), want.values.get(name)
            if value is None or target is None or value.shape != target.shape:
                continue
            if value.dtype.kind != "f" or name not in sizes:
                continue
            s = np.maximum(level.part * sizes[name], level.floor)
            slope = Slope.of(value, target, sensitivity.inherent(sizes[name], s, dtype))
            total[name] = total.get(name, Slope()) + slope
    return total


def _rms(slope: Slope) -> tuple[float, int]:
    found = (slope.error / slope.count) ** 0.5 if slope.count else 0.0
    return max(found, ROUNDED), slope.count
