"""What is read from a program of either framework: the dtypes in which it computes, and where it leaves the range."""

from __future__ import annotations

from dataclasses import dataclass, field

from parity.verdict.bounds import UNIT

REAL = {"complex128": "float64", "complex64": "float32"}


Steps = list[tuple[str, tuple[int, ...]]]
"""The operators of a program in their order, each with the shape of a result."""


@dataclass
class Reading:
    """What a program does inside.

    Attributes:
        types: The operators that compute in a type, by its name, in the order in which they were seen.
        large: Operators that make infinities or NaN of finite numbers.
        small: Operators whose results are subnormal.
        casts: By type with a larger unit that numbers are cast to, whose code does it: a library's name, or an empty
            text for the user's own.
        special: The special functions of a library that it calls, which no port has written.
    """

    types: dict[str, list[str]] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    small: set[str] = field(default_factory=set)
    casts: dict[str, set[str]] = field(default_factory=dict)
    special: set[str] = field(default_factory=set)

    def note(self, dtype: str, operator: str) -> None:
        """Note that an operator computes in a type."""
        seen = self.types.setdefault(REAL.get(dtype, dtype), [])
        if operator not in seen:
            seen.append(operator)

    def cast(self, source: str, target: str, library: str) -> None:
        """Note that numbers are cast from a type to another, if that has the larger unit."""
        source, target = REAL.get(source, source), REAL.get(target, target)
        if source in UNIT and target in UNIT and UNIT[target] > UNIT[source]:
            self.casts.setdefault(target, set()).add(library)

    def below(self, dtype: str) -> dict[str, list[str]]:
        """Return the operators that compute in types with a larger unit than a type has, by type.

        Example:
            >>> reading = Reading({"float32": ["exp"], "float64": ["add"]})
            >>> reading.below("float64")
            {'float32': ['exp']}
        """
        return {name: found for name, found in self.types.items() if name in UNIT and UNIT[name] > UNIT[dtype]}
