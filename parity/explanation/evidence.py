"""What is known of a cell that differs: the input of every diagnosis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.execution.calls import Failure, Numbers, Outputs
from parity.operator import data
from parity.records import WHO, Cell, Diagnosis
from parity.verdict.refusals import OWN_ERROR, RAN_IN_NEITHER


@dataclass(frozen=True)
class Widened:
    """A program as a function has it in one dtype, run in float64.

    Attributes:
        outputs: What it gives.
        sums: Its operators that add many numbers in 16 bits.
    """

    outputs: dict[str, np.ndarray]
    sums: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a cell.

    Attributes:
        cell: The cell.
        verdict: Its verdict.
        judged: By what it was judged.
        reason: In words.
        output: The output of the worst element; empty where there is none.
        got: That output, as it came.
        want: What it was held against.
        spread: How far float64 rounding alone can move it, elementwise (sensitivity.py).
        own: All that this world returned.
        other: All that the other framework returns, in the same dtype.
        numbers: What went in.
        framework: Whose result `got` is, "torch" or "jax".
        at_random: Whether the same transform differs on the user's own numbers.
        at_ordinary: Gives the diagnosis of the same transform on the user's own numbers, where it differs there.
        forward: The diagnosis of the forward on the same numbers, where a derivative is looked at.
        recompute: Runs this framework's function in float64 on other numbers.
        against_oracle: Whether it is the user's oracle that the function does not agree with.
        proved: Looks for a cause that is proved by substitution (proof.py); once for a pair and a kind of data.
        alike_nearby: Tells whether the two functions agree in float64 at a distance from the points of the cell.
        wrong_derivative: Tells in a sentence whose derivative is not that of its function, by finite differences.
        widened: Runs in float64 the program that this framework's function has in the cell's dtype.
        made_by: Tells which step of a framework's program makes NaN (or infinity) of other numbers (origins.py).
        stopped_by: Tells which step of a framework's program makes a number of NaN (or infinity): proved.
        inexact: Looks for special functions that are less exact than SciPy's, proved by substitution (origins.py).
        near_zero: Looks for an eps that is proved by substitution on tiny numbers.
        unsteady: The frameworks whose function gives other results when it is run again on the same numbers.
    """

    cell: Cell
    verdict: str
    judged: str | None
    reason: str
    output: str
    got: np.ndarray
    want: np.ndarray
    spread: np.ndarray
    own: Outputs | Failure
    other: Outputs | Failure
    numbers: Numbers
    framework: str
    at_random: bool = False
    at_ordinary: Callable[[], Diagnosis | None] = field(default=lambda: None)
    forward: Any = None
    recompute: Any = field(default=lambda numbers: Failure("not run"))
    proved: Any = field(default=lambda: None)
    alike_nearby: Callable[..., bool] = field(default=lambda distance=0.0: True)
    wrong_derivative: Callable[[], str] = field(default=lambda: "")
    widened: Callable[[], Widened | None] = field(default=lambda: None)
    made_by: Callable[[str, bool], str] = field(default=lambda framework, nan: "")
    stopped_by: Callable[[str, bool], str] = field(default=lambda framework, nan: "")
    inexact: Callable[[], Diagnosis | None] = field(default=lambda: None)
    near_zero: Callable[[], Diagnosis | None] = field(default=lambda: None)
    against_oracle: bool = False
    unsteady: tuple[str, ...] = ()

    @property
    def derivative(self) -> bool:
        """Whether a derivative is looked at."""
        return self.cell.transform != "forward" and not self.cell.transform.startswith("vmap")

    @property
    def mistake(self) -> bool:
        """Whether both sides raise, and the function itself is why."""
        return self.reason.endswith((OWN_ERROR, RAN_IN_NEITHER))

    @property
    def who(self) -> str:
        """The framework whose result `got` is, by the name people write."""
        return WHO[self.framework]

    @property
    def whose(self) -> str:
        """Whose result `want` is: the other framework's, or of a lower dtype the same one's in float64."""
        return (
            {"torch": "JAX", "jax": "torch"}[self.framework] if self.judged == "meaning" else f"{self.who} in float64"
        )

    @property
    def name(self) -> str:
        """What the output is called, in a sentence."""
        if self.output.startswith("by "):
            return f"the gradient {self.output}"
        return self.output or "the result"

    @property
    def same_shape(self) -> bool:
        """Whether elements can be compared at all."""
        return (
            bool(self.output)
            and self.got.shape == self.want.shape
            and self.got.dtype.kind == "f"
            and self.want.dtype.kind == "f"
        )

    @property
    def off(self) -> np.ndarray:
        """Which elements differ by more than rounding: in kind, or by a part in 10^6 (float64), or 16 units."""
        unit = {"float64": 1e-6, "float32": 2.0**-20, "bfloat16": 2.0**-4, "float16": 2.0**-7}[self.dtype]
        with np.errstate(invalid="ignore", over="ignore"):
            far = (
                np.abs(self.got - self.want) > unit * np.abs(self.want) + 64 * self.spread + data.SUBNORMAL[self.dtype]
            )
        other_kind = (np.isnan(self.got) != np.isnan(self.want)) | (
            (np.isinf(self.got) | np.isinf(self.want)) & ~np.isnan(self.got) & (self.got != self.want)
        )
        return far | other_kind

    @property
    def dtype(self) -> str:
        """What was compared in: meaning is in float64."""
        return "float64" if self.judged == "meaning" else self.cell.dtype

    def with_rounded(self, digits: int) -> list[np.ndarray]:
        """Return what the float64 function gives if what goes in is rounded to so many binary digits.

        Two answers: with the arguments rounded, and with cotangents and tangents rounded as well.
        """
        everything = self.numbers.changed(lambda values: to_digits(values, digits))
        found = []
        for numbers in (everything, replace(self.numbers, theta=everything.theta)):
            seen = self.recompute(numbers)
            value = seen.values.get(self.output) if isinstance(seen, Outputs) else None
            if value is not None and value.shape == self.got.shape:
                found.append(value)
        return found


def to_digits(values: np.ndarray, digits: int) -> np.ndarray:
    """Return numbers rounded to a significand of so many binary digits.

    Example:
        >>> to_digits(np.array([1.0 + 2.0**-9]), 8)
        array([1.])
    """
    mantissa, exponent = np.frexp(values)
    return np.where(np.isfinite(values), np.ldexp(np.rint(np.ldexp(mantissa, digits)), exponent - digits), values)
