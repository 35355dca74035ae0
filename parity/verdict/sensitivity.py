"""How far a correct computation of an unknown function may be from its float64 run, element by element.

Only the program of the function is known. So it runs again in float64 with random rounding errors: each result of an
operator that rounds is moved by up to a unit of the dtype, and each input of a sum of n numbers by sqrt(n) units. Fused
operators are taken apart first (execution/torch_programs.py). How far an element moves, s in the root mean square of
some draws, is how far rounding moves it. So cancellation shows wherever it is, and an element that was only copied or
selected does not move. The bound of an element depends on that element alone:

    bound = 8 s + stages u |y| + stages * the smallest normal number

The factor 8 allows for few draws and for errors above the mean. Movements are twice as large as rounding errors, so the
mean error of a correct result is a sixteenth of 8 s. The other term allows for what a program does not show: functions
that a library approximates (XLA's are off by a few units), and different formulas for one function. In float64 both
sides have errors, each by its own formula. There this term is eight times as large (bounds.ORACLE), and what either
formula loses in float32 is added, scaled to float64.

At a kink a moved run takes the other branch, so s is as large as the jump, and would hide any difference. So jumps do
not count at chosen points (zeros, ties, kinks): s is measured with movements of 2^-26 and of 2^-34, and if the smaller
movement does not have about 2^8 times less effect, the effect is a jump and not a rounding error.

If torch cannot run the function like this, its inputs are moved instead.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from parity.execution.calls import Numbers, Outputs
from parity.execution.outputs import EAGER, Runs, world_of
from parity.records import Cell
from parity.verdict.bounds import FLUSHED, ORACLE, UNIT

DRAWS, FEW = 6, 4
"""How often it is measured: of the function and its gradient, and of all else."""

FIRST = 2
"""Draws after which it is seen whether more are needed."""

FACTOR = 8.0
"""Times the root mean square of what movements do."""

COARSE, FINE = 2.0**-26, 2.0**-34

IN_FLOAT64 = 2.0**-50
"""The movement that is measured for float64, whose own unit would be lost in the rounding of the run itself."""

STAGES = 8
"""Units of an element itself."""

CHOSEN = ("zeros", "signed zeros", "ties", "kinks")
"""Kinds of data that are points where functions have kinks and jumps."""

LARGE = 2.0**500
"""Squares of numbers up to it, and of their inverses, are numbers."""

LUCK = 16.0
"""Times a formula's error in float32, scaled: a part of it shows by chance."""

Tree = dict[str, np.ndarray]


@dataclass(frozen=True)
class Moved:
    """What rounding does to the results of a cell.

    Attributes:
        spread: The root mean square of what movements do, elementwise, by output.
        seen: All results seen of outputs that are not floats, by output.
    """

    spread: Tree = field(default_factory=dict)
    seen: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def times(self, factor: float) -> Moved:
        """Return the same for another unit."""
        return replace(self, spread={name: value * factor for name, value in self.spread.items()})


NOTHING = Moved()
"""Before anything is measured: bounds are of what an element is itself."""


def of_cell(
    runs: Runs, cell: Cell, unit: float, *, lower: bool = False, formula: str = "", smooth: bool = False,
    draws: int | None = None, only: str = "",
) -> Moved:  # fmt: skip
    """Return what rounding does to a cell's float64 results: to torch's, or to JAX's where torch fails.

    Args:
        runs: Runs of the pair.
        cell: On its numbers; its world does not matter.
        unit: The unit roundoff to speak of.
        lower: Whether what the program computes in a type with a larger unit is rounded in that one.
        formula: The framework whose program is measured, in the place of the first that runs.
        smooth: Whether jumps do not count, as at points that are chosen.
        draws: How many are made at least, where not all: what those do that are not made is taken for nothing.
        only: What alone is rounded anew (`jax_rounding.run`; JAX's formula alone has this).
    """
    chosen = smooth or cell.data.split("#")[0] in CHOSEN
    size = unit if unit > IN_FLOAT64 else IN_FLOAT64
    key = (
        "moved",
        cell.device,
        cell.data,
        runs.drawn(cell.data, cell.dtype),
        cell.transform,
        str(size if not chosen else 0),
        str(lower),
        f"{formula} {only}",
    )
    asked = min(draws or _draws(cell), _draws(cell))

    def moved_by(size: float, fine: float | None = None) -> Moved:
        made: _Measuring = runs.once(
            key, lambda: _Measuring(runs, cell, size, fine=fine, lower=lower, formula=formula, only=only)
        )  # fmt: skip
        return made.after(asked)

    if chosen:
        # Measured once, for all units.
        return moved_by(1.0, 2.0**-8) if lower else moved_by(COARSE, FINE).times(unit / COARSE)
    return moved_by(1.0) if lower else moved_by(size).times(unit / size)


def growing(runs: Runs, cell: Cell, unit: float) -> Iterator[tuple[Moved, bool]]:
    """Give what rounding does to a cell, of `of_cell`, after few draws, then after all, and whether it is all.

    What is within the bound of few draws is within that of all, if nothing but the bound excuses it.
    """
    yield of_cell(runs, cell, unit, draws=FIRST), False
    yield of_cell(runs, cell, unit), True


def with_own(runs: Runs, cell: Cell, moved: Moved, unit: float) -> Moved:
    """Return the sensitivity of the program that is more sensitive, of the two: JAX may have another formula.

    In float64 a jump of JAX alone excuses nothing: floor(x + 0.5) is no round(x) at halves.
    """
    own = of_cell(runs, cell, unit, formula="jax", smooth=unit == UNIT["float64"])
    wider = {
        name: np.maximum(value, own.spread[name])
        if name in own.spread and own.spread[name].shape == value.shape
        else value
        for name, value in moved.spread.items()
    }
    return replace(moved, spread=wider)


def with_only(runs: Runs, cell: Cell, moved: Moved, unit: float, only: str) -> Moved:
    """Return the sensitivity with what a part of JAX's program does that no port has written.

    "scalars" are those that depend on no input. Torch has them as Python's own floats, of 64 bits, in any dtype: the
    bias correction 1 - 0.999**t of Adam, which loses three digits of float32 in optax. "special log_ndtr" is what
    this function of jax.scipy.special computes.
    """
    own = of_cell(runs, cell, unit, formula="jax", only=only)
    wider = {
        name: value + own.spread[name] if name in own.spread and own.spread[name].shape == value.shape else value
        for name, value in moved.spread.items()
    }
    return replace(moved, spread=wider)


def with_formula(runs: Runs, cell: Cell, moved: Moved) -> Moved:
    """Return the sensitivity with what the two formulas lose by themselves, as their float32 runs show.

    A formula that cancels (log(1 + x) for log1p) is off in float64 as well: by its float32 error in the same element,
    times the ratio of the units, times 16 for luck. Beyond that the meaning differs.
    """
    wider = dict(moved.spread)
    for framework in EAGER:
        world = runs.reference(framework, cell)
        single, exact = (runs.outputs(cell, world=world, dtype=dtype) for dtype in ("float32", "float64"))
        if not isinstance(single, Outputs) or not isinstance(exact, Outputs):
            continue
        for name, value in exact.values.items():
            if name in wider and value.dtype.kind == "f" and value.shape == single.values[name].shape:
                with np.errstate(invalid="ignore"):
                    error = np.abs(single.values[name] - value)
                error = np.where(np.isfinite(error), error, 0.0)
                wider[name] = wider[name] + LUCK / FACTOR * UNIT["float64"] / UNIT["float32"] * error
    return replace(moved, spread=wider)


def sizes(values: Tree) -> Tree:
    """Return the sizes of results: absolute values, of both parts of a complex number that of the whole."""
    made = {}
    for name, value in values.items():
        if value.dtype.kind != "f":
            continue
        stem, _, part = name.rpartition(".")
        other = values.get(f"{stem}.{'imag' if part == 'real' else 'real'}") if part in ("real", "imag") else None
        size = np.abs(value) if other is None or other.shape != value.shape else np.hypot(value, other)
        made[name] = np.where(np.isfinite(size), size, 0.0)
    return made


def inherent(size: np.ndarray, s: np.ndarray, dtype: str) -> np.ndarray:
    """Return what rounding inside and one rounding of the result make: the unit that errors are counted in."""
    return UNIT[dtype] * size + s + FLUSHED[dtype]


def bound(size: np.ndarray, s: np.ndarray, dtype: str, *, order: int) -> np.ndarray:
    """Return the largest error of a correct computation, elementwise.

    Args:
        size: Size of the float64 results (`sizes`).
        s: From `of_cell`, for the dtype's unit.
        dtype: The dtype computed in.
        order: Order of derivative: each stores as much as the function did.
    """
    stages = STAGES * (order + 1)
    own = stages * UNIT[dtype] * size
    if dtype == "float64":
        own, s = own * ORACLE, s * 2
    return FACTOR * s + own + stages * FLUSHED[dtype]


def rms(values: np.ndarray) -> float:
    """Return the root mean square of what is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0
    largest = float(np.max(np.abs(finite)))
    return largest * float(np.sqrt(np.mean((finite / largest) ** 2))) if largest > 0 else 0.0


def _draws(cell: Cell) -> int:
    return DRAWS if cell.transform in ("forward", "vjp") else FEW


def in_one_direction(runs: Runs, cell: Cell, size: float) -> dict[str, float]:
    """Return by which factor, less one, an output is off at most where each operator's results are all off alike.

    So are rounded constants, and functions that a library approximates. Sums of errors that have no direction are not
    in it: those of numbers that cancel. Nothing is returned where torch does not run it.
    """
    there = replace(cell, world=EAGER["torch"])

    def moved(by: float, draw: int) -> Tree | None:
        with world_of("torch").rounding(by, draw, alike=True):
            found = runs.rerun(there, "float64")
        return found.values if isinstance(found, Outputs) else None

    def find() -> dict[str, float]:
        still, worst = moved(0.0, 0), dict[str, float]()
        for draw in range(DRAWS if still is not None else 0):
            after = moved(size, draw)
            if after is None or still is None:
                return {}
            for name, value in still.items():
                if value.dtype.kind == "f" and value.size and after[name].shape == value.shape:
                    scale = np.abs(value) + float(np.max(np.abs(value))) * 2.0**-10 + np.finfo(float).tiny
                    off = ((after[name] - value) * value / scale**2).sum() / max((value**2 / scale**2).sum(), 1e-300)
                    worst[name] = max(worst.get(name, 0.0), abs(float(off)))
        return worst

    found: dict[str, float] = runs.once(("in one direction", cell.device, cell.transform, str(size)), find)
    return found


class _Measuring:
    """What movements do to a cell, measured as far as it is asked for.

    Args:
        runs: Runs of the pair.
        cell: On its numbers.
        size: Size of the movements; with `lower` in units of the types.
        fine: A smaller size. Where it does not do less, in proportion, the change is a jump and does not count.
        lower: Whether what is computed in a type with a larger unit is rounded in that one.
        formula: The framework whose program is measured, in the place of the first that runs.
        only: As for `of_cell`.
    """

    def __init__(
        self, runs: Runs, cell: Cell, size: float, *, fine: float | None = None, lower: bool = False, formula: str = "",
        only: str = "",
    ) -> None:  # fmt: skip
        self._made = _again(runs, cell, formula, only)
        self._size, self._fine, self._lower, self._all, self._done = size, fine, lower, _draws(cell), 0
        at = self._made[0].values if self._made else {}
        self._total = {name: np.zeros(value.shape) for name, value in at.items()}
        self._seen: dict[str, list[np.ndarray]] = {}

    def after(self, draws: int) -> Moved:
        """Return what so many draws show, of all: with fewer it is no larger."""
        if self._made is None:
            return NOTHING
        at, again = self._made
        for draw in range(self._done, draws):
            moved = again(self._size, draw, self._lower)
            changes = _changes(at, moved)
            if self._fine is not None:
                fewer, least = _changes(at, again(self._fine, draw, self._lower)), 16 * self._fine / self._size
                changes = {
                    name: np.where(fewer[name] > change * least, 0.0, change) for name, change in changes.items()
                }
            for name, change in changes.items():
                self._total[name] = _hypot(self._total[name], change)
            for name, value in moved.values.items() if moved and self._fine is None else ():
                if value.dtype.kind not in "f":
                    self._seen.setdefault(name, []).append(value)
        self._done = max(self._done, draws)
        return Moved({name: value / math.sqrt(self._all) for name, value in self._total.items()}, self._seen)


def _hypot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return np.hypot of numbers that are not negative; by squares, which is quicker, if none leaves the range."""
    for values in (one, other):
        if np.max(values, initial=0.0) > LARGE or np.any((values > 0) & (values < 1 / LARGE)):
            return np.hypot(one, other)
    return np.sqrt(one * one + other * other)


def _again(
    runs: Runs, cell: Cell, formula: str, only: str
) -> tuple[Outputs, Callable[[float, int, bool], Outputs | None]] | None:  # fmt: skip
    """Return a cell's float64 results, and what gives them anew, moved by a size; None where neither runs it."""
    for framework in EAGER:
        if formula not in ("", framework):
            continue
        world = runs.reference(framework, cell)
        at, numbers = runs.outputs(cell, world=world, dtype="float64"), runs.numbers_in(cell, framework)
        if not isinstance(at, Outputs) or not isinstance(numbers, Numbers):
            continue
        there = replace(cell, world=world)
        rounding = getattr(world_of(framework), "rounding", None)
        if rounding is not None and only:
            rounding = functools.partial(rounding, only=only)

        def again(
            size: float, draw: int, lower: bool, there: Cell = there, rounding: object = rounding,
            numbers: Numbers = numbers,
        ) -> Outputs | None:  # fmt: skip
            if callable(rounding):
                with rounding(size, draw, lower=lower):
                    found = runs.rerun(there, "float64")
            else:
                with contextlib.nullcontext():
                    found = runs.rerun(there, "float64", numbers.changed(_change(size, draw)))
            return found if isinstance(found, Outputs) else None

        # Fused operators taken apart are not quite what they are in one piece: changes are from the parts unmoved.
        key = ("unmoved", there.device, there.data, runs.drawn(there.data, there.dtype), there.transform, world)
        still = runs.once(key, functools.partial(again, 0.0, 0, False)) if callable(rounding) else at
        return (still or at), again
    return None


def _change(size: float, draw: int) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.Generator(np.random.PCG64([draw, 7]))

    def change(values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            step = size * rng.uniform(-1, 1, values.shape)
            largest = float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0)) or 1.0
            return np.where(values == 0, largest * step, values * (1 + step))

    return change


def _changes(at: Outputs, moved: Outputs | None) -> Tree:
    changes = {}
    for name, value in at.values.items():
        other = moved.values.get(name) if moved is not None else None
        if other is None or other.shape != value.shape or value.dtype.kind != "f":
            changes[name] = np.zeros(value.shape)
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            change = np.abs(other - value)
        changes[name] = np.where(np.isfinite(change), change, 0.0)
    return changes
