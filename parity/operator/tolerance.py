"""A tolerance of the user's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import SupportsFloat

WITHIN = "within the tolerance given: "
"""What the reason of a cell says that agrees by it only, before the user's own words."""

TOLERATED = "The functions agree within the tolerance given alone, and the derivative differs by more."
"""What is said of a derivative that differs where its function is tolerated."""


@dataclass(frozen=True)
class Tolerance:
    """By how much results may differ in addition to rounding, and why. The report prints the reason where it counts.

    Attributes:
        reason: Why these functions may differ so much.
        rtol: Relative to the size of an element; a number of any library, such as `np.finfo(np.float32).eps`.
        atol: The same for every element.

    Raises:
        TypeError: The reason is not a string, or a tolerance is not a number.
        ValueError: There is no reason, or nothing is tolerated.

    Example:
        >>> Tolerance("the port stores its tables in bfloat16", rtol=2**-8)
        Tolerance(reason='the port stores its tables in bfloat16', rtol=0.00390625, atol=0.0)
    """

    reason: str
    rtol: float = 0.0
    atol: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str):
            raise TypeError(
                f"tolerance: expected a reason, got {type(self.reason).__name__}; write Tolerance(reason, rtol=)"
            )
        if not self.reason.strip():
            raise ValueError("tolerance: expected a reason, got an empty text")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            number = _number(value)
            if number is None:
                raise TypeError(f"tolerance: expected {name} as a number, got {type(value).__name__}")
            if not (number >= 0 and math.isfinite(number)):
                raise ValueError(f"tolerance: expected {name} of 0 or more, got {number}")
            object.__setattr__(self, name, number)
        if not (self.rtol or self.atol):
            raise ValueError("tolerance: expected rtol or atol above 0, got neither")


def _number(value: object) -> float | None:
    # Only NumPy's float64 is a float to `isinstance`; float32 and bfloat16 (`jnp.finfo(...).eps`) are not.
    if not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # an array of several numbers
        return None
