"""Whether arrays of the two frameworks are equal up to rounding, whose effect is measured on torch's whole program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.models import bounds
from parity.models.matching import pieces, relative_distance, typical
from parity.models.shelf import Shelf
from parity.verdict import sensitivity
from parity.verdict.bounds import UNIT

DRAWS = 4
"""How often torch's program is run again, with other rounding."""

Arranged = tuple[str, Callable[[np.ndarray], np.ndarray]]
"""An array of torch's program by name, and what leads from it to the arrangement that is compared."""


@dataclass
class Compared:
    """Arrays of both models that are the same quantity, and what came of comparing them.

    Attributes:
        torch: Torch's names, joined by " + ", or "input " and the input's name.
        jax: JAX's paths.
        verdict: "identical", "within bound", "differs" or "not judged".
        error: The largest difference, relative to a typical element of torch's; None where nothing was compared.
        ratio: The largest difference over its bound.
        reason: How it differs, where that is known; what is frozen, and by whom.
    """

    torch: str
    jax: str
    verdict: str
    error: float | None = None
    ratio: float = 0.0
    reason: str = ""


class Statistic(Compared):
    """A running statistic after one forward in the mode that trains."""


class Parameter(Compared):
    """A parameter after the steps of an optimizer."""


@dataclass
class Training:
    """What came of optimizer steps.

    Attributes:
        parameters: Every paired parameter that torch trains: after the first step, or the first that differs.
        distances: After each step, the largest distance of a parameter in JAX from torch's, relative to how far
            torch's has moved from its start.
        losses: Before each step, torch's and JAX's loss.
    """

    parameters: list[Parameter]
    distances: list[float] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Weighed:
    """What came of comparing arrays: the verdict, the largest relative error, the largest error over its bound."""

    verdict: str
    error: float
    ratio: float = 0.0


class Weighing:
    """Judges arrays that one torch program gives; its sensitivity is measured when it is first needed, and once.

    Args:
        again: Runs torch's program and returns its arrays by name.
        dtype: Returns the least precise type that either program computes in.
        order: Of derivative, for the bound.
        double: Whether both programs ran in float64.
        floor: What errors are relative to where an array is smaller: one that is zero but for rounding has none.
        native: The dtype of torch's model. What it could not show is no difference: some of torch's backward kernels
            (hardsigmoid's) hold constants of float32, also in float64, and no program tells.
        known: Of a torch program that ran elsewhere: what rounding does to each array, relative to the type's unit.
    """

    def __init__(
        self,
        again: Callable[[], Mapping[str, np.ndarray]],
        dtype: Callable[[], str],
        *,
        order: int,
        double: bool,
        floor: float = 0.0,
        native: str = "float64",
        known: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.again, self.find_dtype, self.order, self.double, self.floor = again, dtype, order, double, floor
        self.unseen = UNIT[native] if double else 0.0
        self.known = known
        self._measured: tuple[str, Mapping[str, np.ndarray]] | None = None

    def of(self, names: Sequence[Arranged], want: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> Weighed:
        """Judge JAX's arrays against torch's."""
        error = max((self._error(one, other) for one, other in zip(want, got, strict=True)), default=0.0)
        if all(_is_equal(one, other) for one, other in zip(want, got, strict=True)):
            return Weighed("identical", 0.0)
        if self.double and all(bounds.negligible(other, one) for one, other in zip(want, got, strict=True)):
            return Weighed("within bound", error)
        dtype, moved = self.measured()
        # At a kink (ReLU's) rounding decides which side an element is on, and some draws hit few of them: the array's
        # other elements say how often that happens, and how far it goes.
        pooled = self.order > 0 and UNIT[dtype] > UNIT["float64"]
        ratio = 0.0
        for (name, arranged), one, other in zip(names, want, got, strict=True):
            s = arranged(moved[name]) if name in moved else np.zeros(one.shape)
            s = s + sensitivity.rms(s) if pooled else s
            finite = np.isfinite(one) & np.isfinite(other)
            size = np.where(finite, np.abs(one.astype(np.float64)), 0.0)
            allowed = bounds.SIDES * sensitivity.bound(size, s, dtype, order=self.order)
            alike = (one == other) | (np.isnan(one) & np.isnan(other))
            with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
                far = np.abs(other.astype(np.float64) - one.astype(np.float64)) / allowed
            ratio = max(ratio, float(np.where(alike, 0.0, np.where(finite, far, np.inf)).max(initial=0.0)))
        if ratio > 1 and all(self._is_unseen(one, other) for one, other in zip(want, got, strict=True)):
            return Weighed("within bound", error, 1.0)
        return Weighed("differs" if ratio > 1 else "within bound", error, ratio)

    def _is_unseen(self, want: np.ndarray, got: np.ndarray) -> bool:
        if self.order == 0 or self.unseen <= UNIT["float64"] or not bounds.same_kind(got, want):
            return False
        finite = np.isfinite(want)
        sizes = np.abs(np.where(finite, want, 0.0))
        with np.errstate(invalid="ignore"):
            difference = np.where(finite, np.abs(got - want), 0.0)
        return bool(np.all(difference <= self.unseen * (sizes + max(typical(want), self.floor))))

    def _error(self, want: np.ndarray, got: np.ndarray) -> float:
        size = typical(want)
        return relative_distance(want, got) * (size or 1.0) / (max(size, self.floor) or 1.0)

    def measured(self) -> tuple[str, Mapping[str, np.ndarray]]:
        """Return the type, and what rounding to it does to each array, in the root mean square."""
        if self._measured is None:
            dtype = self.find_dtype()
            if self.known is None:
                self._measured = dtype, measured(self.again, UNIT[dtype], double=self.double)
            else:
                found = {name: value.astype(np.float64) * UNIT[dtype] for name, value in self.known.items()}
                self._measured = dtype, found
        return self._measured


def _is_equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and all(np.array_equal(a, b, equal_nan=True) for a, b in pieces(one, other))


def moved(again: Callable[[], Mapping[str, np.ndarray]], size: float, draw: int) -> Mapping[str, np.ndarray]:
    """Return what a torch program gives with other rounding."""
    from parity.execution.torch_programs import Rounding

    try:
        with Rounding(size, draw):
            return again()
    except Exception:  # a program that a dispatch mode cannot see into: elements have their own bound only
        return {}


def measured(again: Callable[[], Mapping[str, np.ndarray]], unit: float, *, double: bool) -> Mapping[str, np.ndarray]:
    """Return what rounding of a unit does to each array of a torch program, in the root mean square."""
    size = max(unit, sensitivity.IN_FLOAT64) if double else unit
    still = moved(again, 0.0, 0)
    total = Shelf()
    for draw in range(DRAWS):
        for name, value in moved(again, size, draw).items():
            if name in still and value.dtype.kind == "f":
                with np.errstate(all="ignore"):
                    change = np.abs(value.astype(np.float64) - still[name])
                total[name] = np.hypot(total.get(name, 0.0), np.where(np.isfinite(change), change, 0.0))
    for name, value in total.items():
        total[name] = value * (unit / size / math.sqrt(DRAWS))
    return total
