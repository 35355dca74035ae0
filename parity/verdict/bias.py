"""Errors in one direction: a wrong factor that stays within the bound of each element shows in the mean.

Let n elements have errors e, values y and inherent units h (`sensitivity.inherent`). The factor that fits best,
weighted by 1/h^2, is 1 + b with b = sum(e y / h^2) / sum(y^2 / h^2). Rounding errors have no direction, so b goes to
zero as 1/sqrt(n). Rounded constants have one, and so do functions that libraries approximate, by a fraction of their
whole error. A factor of 1 + 4 units in the last place is a b of 8 u.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from parity.records import Finding
from parity.verdict.bounds import UNIT
from parity.verdict.compare import TWIN_RATIO, Mismatch

UNITS = 1.5
"""Units of the result that constants and functions may be off by in one direction."""

SHARE = 0.5
"""Part of the inherent unit that they may, where the function is sensitive to them."""

DIRECTED = 2.0
"""Times the largest of some draws, which another may exceed."""

LUCK = 5.0
"""Standard errors."""

ROUNDED = 0.25
"""The RMS error, in inherent units, of results that are as good as their dtype: less does not count as better.

Eager 16-bit code stores after every operation and has two or three units where a fused kernel has a third of one. That
is no other precision.
"""

ENOUGH = 8
"""Elements below which a mean says nothing."""


@dataclass(frozen=True)
class Slope:
    """Sums over elements, of which those of several draws are added.

    Attributes:
        cross: Sum of e y / h^2.
        square: Sum of y^2 / h^2.
        error: Sum of e^2 / h^2.
        count: How many elements.
    """

    cross: float = 0.0
    square: float = 0.0
    error: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, got: np.ndarray, want: np.ndarray, inherent: np.ndarray) -> Slope:
        """Return the sums over what is a number, and no zero, on both sides."""
        use = np.isfinite(got) & np.isfinite(want) & (want != 0) & (inherent > 0)
        with np.errstate(over="ignore", under="ignore"):
            if not use.all():
                got, want, inherent = got[use], want[use], inherent[use]
            error, value = ((got - want) / inherent).ravel(), (want / inherent).ravel()
            return cls(float(error @ value), float(value @ value), float(error @ error), int(use.sum()))

    def __add__(self, other: Slope) -> Slope:
        return Slope(
            self.cross + other.cross, self.square + other.square, self.error + other.error, self.count + other.count
        )

    @property
    def factor(self) -> float:
        """By how much results are too large, relative."""
        return self.cross / self.square if self.square > 0 else 0.0

    def allowed(self, unit: float) -> float:
        """Return the largest factor, relative, that rounding makes plausible."""
        if self.count < ENOUGH or not self.square > 0:
            return math.inf
        sensitive = math.sqrt(self.count / self.square)
        return UNITS * unit + SHARE * sensitive + LUCK * self._luck

    def least(self, unit: float) -> float:
        """Return the largest factor, relative, that is plausible of a function that is not sensitive."""
        if self.count < ENOUGH or not self.square > 0:
            return math.inf
        return UNITS * unit + LUCK * self._luck

    def is_settled(self, unit: float) -> bool:
        """Return whether units of the elements alone show what wider ones, measured, would show: nothing.

        A factor that is allowed in any case is `UNITS + SHARE` units, and this one is smaller for certain. An RMS of
        results that are good to so few units is no `TWIN_RATIO` times another's (`ROUNDED`).
        """
        if not self.count:
            return True
        few = self.error <= (TWIN_RATIO * ROUNDED) ** 2 * self.count
        if self.count < ENOUGH or not self.square > 0:
            return few
        return few and abs(self.factor) + LUCK * self._luck <= (UNITS + SHARE) * unit

    @property
    def _luck(self) -> float:
        """The standard error of the factor."""
        rest = max(self.error - self.cross**2 / self.square, 0.0)  # what the factor leaves
        return math.sqrt(rest / self.count / self.square)


def assert_no_factor(
    mine: Mapping[str, Slope], dtype: str, other: Mapping[str, Slope] | None = None, *, both: bool = False,
    tolerated: float = 0.0, single: Collection[str] = (), directed: Callable[[], Mapping[str, float]] | None = None,
) -> None:  # fmt: skip
    """Raise if an output is too large or too small by a factor that rounding does not explain.

    Args:
        mine: Slopes of the results that are judged, by output.
        dtype: What they were computed in.
        other: Slopes of the other framework's results: a factor that it has as well is no difference.
        both: Whether two runs that both err are compared.
        tolerated: A factor, relative, that the user tolerates.
        single: Outputs that are float32 in any case.
        directed: Measures by output which factor errors in one direction make (`sensitivity.in_one_direction`): asked
            where an output is sensitive and its factor is more than constants make of one that is not.
    """
    asked = dtype
    for name, slope in mine.items():
        dtype = "float32" if name in single else asked
        allowed = slope.allowed(UNIT[dtype]) * (2 if both else 1)
        beside = 0.0 if other is None or name not in other else other[name].factor
        off = abs(slope.factor) - abs(beside) - tolerated
        if directed is not None and slope.least(UNIT[dtype]) < off <= allowed:
            allowed = min(allowed, slope.least(UNIT[dtype]) + DIRECTED * directed().get(name, math.inf))
        if off > allowed:
            text = (
                f"{name}: {slope.factor / UNIT[dtype]:+.3g} units of {dtype} on average over {slope.count} numbers, "
                f"all in one direction; {allowed / UNIT[dtype]:.2g} can be rounding"
            )
            raise Mismatch(Finding(name, (), 1 + slope.factor, 1.0, off / allowed, text))
