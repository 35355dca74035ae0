"""How far a correct computation of an unknown function may be from its float64 run.

Nothing is known of the function but what it does to numbers. Three things make its rounding errors, in units u of
the dtype:

*Conditioning.* A rounding anywhere acts on the result at least as one of the inputs does. What a relative change of
u in every input does to the result is measured: the float64 function is run at inputs perturbed by up to u, in DRAWS
random directions, and s is the root mean square of what it changes. Cancellation shows here. An algorithm rounds
inside of its sums as well: n terms meet sqrt(n) as much with overwhelming probability (bounds.py), times the same 4.
n is not known either: at most the size of the largest input.

*Storage.* Every operation of 16-bit eager code stores its result: `stages` roundings of u, of the size of the result.

*The size of the whole.* Where results are sums of much larger parts (transforms, linear algebra, normalisations),
errors are small compared with all of the output only: the same stages, of the root mean square of the output.

    bound = 4 sqrt(n) s + stages u (|y| + rms(y)) + stages * the smallest normal number

In float64 both sides err, each with a formula of its own: eight times the bound (bounds.ORACLE), and on the user's
own numbers what either formula loses in float32, scaled to float64 (with_formula).

At a kink a perturbed run takes the other branch, and s is as large as the jump: no difference would be seen. At
points that are chosen (all kinds of data but "random") jumps do not count: s is measured by perturbations of 2^-26
and of 2^-34, and where the smaller one does not do about 2^8 times less, it is a jump, and no rounding error.

A relative change does nothing to a zero, and where a result is 0 because large parts cancel there (the gradient of
log_softmax, at zeros) what is left of them is rounding. So zeros are moved by as much of the largest number of their
array, or of 1 in an array of zeros; of that jumps never count, as an input that is exactly zero is chosen, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parity.execution.calls import Failure, Numbers, Outputs
from parity.execution.outputs import EAGER, Runs
from parity.operator.data import SUBNORMAL
from parity.records import Cell
from parity.verdict.bounds import ORACLE, PROBABLE, UNIT

DRAWS = 3

COARSE, FINE = 2.0**-26, 2.0**-34

STAGES = 8
"""Operations of a function whose results are stored: the longest of common ones (tanh's GELU) has about ten."""

BESIDE_ZERO = ("small", "subnormal")
"""Kinds of data whose numbers are next to nothing beside 1."""

Tree = dict[str, np.ndarray]


def of_cell(runs: Runs, cell: Cell, unit: float) -> Tree:
    """Return the sensitivity of a cell's float64 results: of torch, or of JAX where torch fails.

    Args:
        runs: Of the pair.
        cell: On its numbers; its world does not matter.
        unit: The unit roundoff to speak of.
    """
    # At random numbers one measurement, in units of float32, serves float64 as well.
    measured = max(unit, UNIT["float32"]) if cell.data == "random" else unit
    key = ("spread", cell.device, cell.data, cell.dtype, cell.transform, str(measured))
    found = runs.once(key, lambda: _measured(runs, cell, measured))
    if measured != unit:
        found = {name: value * (unit / measured) for name, value in found.items()}
    return _with_cancelled(runs, cell, found, unit) if cell.data in BESIDE_ZERO else found


def with_formula(runs: Runs, cell: Cell, double: Tree) -> Tree:
    """Return the sensitivity with what the two formulas lose by themselves, as their float32 runs show.

    A formula that cancels (log(1 + x) for log1p) is off in float64 as well: by its float32 error, times the ratio
    of the units, times 16 for luck. Beyond that the meaning differs. Of the user's own numbers only.
    """
    if cell.data != "random":
        return double
    wider = dict(double)
    for world in EAGER.values():
        single, exact = (runs.outputs(cell, world=world, dtype=dtype) for dtype in ("float32", "float64"))
        if not isinstance(single, Outputs) or not isinstance(exact, Outputs):
            continue
        for name, value in exact.values.items():
            if name in wider and value.dtype.kind == "f" and value.shape == single.values[name].shape:
                with np.errstate(invalid="ignore"):
                    error = np.abs(single.values[name] - value)
                largest = float(np.max(error[np.isfinite(error)], initial=0.0))
                wider[name] = wider[name] + 16 * UNIT["float64"] / UNIT["float32"] * largest
    return wider


def _measured(runs: Runs, cell: Cell, unit: float) -> Tree:
    for framework, world in EAGER.items():
        at, numbers = runs.outputs(cell, world=world, dtype="float64"), runs.numbers_of(cell, framework)
        if isinstance(at, Outputs) and isinstance(numbers, Numbers):
            there = replace(cell, world=world)
            return spread(
                lambda numbers, there=there: runs.rerun(there, "float64", numbers),  # type: ignore[misc]
                numbers, at, unit, jumps=cell.data == "random",
            )  # fmt: skip
    return {}


def _with_cancelled(runs: Runs, cell: Cell, spread: Tree, unit: float) -> Tree:
    """Return the sensitivity beside zero with what cancellation leaves at zero itself, in the float64 runs.

    Numbers far below 1 move nothing where parts of the size of 1 cancel, and moving them by more would hide what
    such numbers are for. Where two float64 results at zeros differ by rounding, it is the rounding of the parts.
    """
    zeros = replace(cell, data="zeros")
    left, right = (runs.outputs(zeros, world=world, dtype="float64") for world in EAGER.values())
    if not isinstance(left, Outputs) or not isinstance(right, Outputs):
        return spread
    noise = of_cell(runs, zeros, UNIT["float64"])
    wider = dict(spread)
    for name in wider.keys() & left.values.keys() & right.values.keys() & noise.keys():
        one, other = left.values[name], right.values[name]
        if one.shape == other.shape == wider[name].shape and one.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                rest = np.abs(one - other)
            rest = np.where(np.isfinite(rest) & (rest <= 64 * noise[name]), rest, 0.0)
            wider[name] = wider[name] + float(np.max(rest, initial=0.0)) * (unit / UNIT["float64"])
    return wider


def spread(
    run: Callable[[Numbers], Outputs | Failure], numbers: Numbers, at: Outputs, unit: float, *, jumps: bool
) -> Tree:
    """Return the root mean square of what perturbations by up to `unit` do to the results, elementwise.

    Args:
        run: Runs the function in float64.
        numbers: The point.
        at: What it gives there.
        unit: The unit roundoff to speak of.
        jumps: Whether a jump counts (see the head of the file).
    """
    total = {name: np.zeros(value.shape) for name, value in at.values.items()}
    for draw in range(DRAWS):
        found = [_moved(run, numbers, at, unit, draw, zeros=False)] if jumps else []
        if not jumps or any(np.any(leaf == 0) for leaf in numbers.theta):
            coarse, fine = (_moved(run, numbers, at, size, draw, zeros=True) for size in (COARSE, FINE))
            smooth = {name: np.where(fine[name] > coarse[name] / 16, 0.0, coarse[name]) for name in coarse}
            found.append({name: value * (unit / COARSE) for name, value in smooth.items()})
        for moved in found:
            for name, value in moved.items():
                total[name] = np.hypot(total[name], value)  # squares would overflow
    return {name: value / math.sqrt(DRAWS) for name, value in total.items()}


def _moved(
    run: Callable[[Numbers], Outputs | Failure], numbers: Numbers, at: Outputs, size: float, draw: int, *, zeros: bool
) -> Tree:
    rng = np.random.Generator(np.random.PCG64([draw, 7]))

    def change(values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            step = size * rng.uniform(-1, 1, values.shape)
            changed = values * (1 + step)
            if not zeros:
                return changed
            largest = float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0)) or 1.0
            return np.where(values == 0, largest * step, changed)

    moved = run(numbers.changed(change))
    changes = {}
    for name, value in at.values.items():
        other = moved.values.get(name) if isinstance(moved, Outputs) else None
        if other is None or other.shape != value.shape or value.dtype.kind != "f":
            changes[name] = np.zeros(value.shape)
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            change_ = np.abs(other - value)
        changes[name] = np.where(np.isfinite(change_), change_, 0.0)
    return changes


def rms(values: np.ndarray) -> float:
    """Return the root mean square of what is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0
    largest = float(np.max(np.abs(finite)))
    return largest * float(np.sqrt(np.mean((finite / largest) ** 2))) if largest > 0 else 0.0


def inherent(want: np.ndarray, s: np.ndarray, dtype: str) -> np.ndarray:
    """Return what one rounding of the inputs and one of the result make: the unit that errors are counted in."""
    size = np.where(np.isfinite(want), np.abs(want), 0.0) + rms(want)
    return UNIT[dtype] * size + s + SUBNORMAL[dtype]


def bound(want: np.ndarray, s: np.ndarray, dtype: str, *, terms: int, order: int) -> np.ndarray:
    """Return the largest error of a correct computation, elementwise.

    Args:
        want: The float64 results.
        s: From `spread`, for the dtype's unit.
        dtype: The dtype computed in.
        terms: n.
        order: Of derivative: each stores as much as the function did.
    """
    stages = STAGES * (order + 1)
    size = np.where(np.isfinite(want), np.abs(want), 0.0) + rms(want)
    allowed = PROBABLE * math.sqrt(max(terms, 1)) * s + stages * UNIT[dtype] * size
    if dtype == "float64":
        allowed *= ORACLE
    return allowed + stages * SUBNORMAL[dtype]
