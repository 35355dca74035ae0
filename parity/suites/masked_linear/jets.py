"""Multilinear jets: numbers a + sum of a_S e_S with nilpotent e_1, e_2, e_3 (e_i * e_i = 0).

Evaluating a formula on x + e_1 v_1 + e_2 v_2 gives, as the coefficient of e_1 e_2, its derivative along v_1
and v_2. Nothing is differentiated by a framework or by finite differences: the arithmetic is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Bilinear = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Jet:
    """An array for each set of directions, the set written as the bits of an int; a missing one is zero."""

    def __init__(self, parts: dict[int, np.ndarray]) -> None:
        self.parts = parts

    @classmethod
    def along(cls, value: np.ndarray, directions: Sequence[np.ndarray]) -> Jet:
        """Return value + sum e_i directions[i]."""
        return cls({0: value, **{1 << i: direction for i, direction in enumerate(directions)}})

    def map(self, linear: Callable[[np.ndarray], np.ndarray]) -> Jet:
        """Apply a linear function."""
        return Jet({key: linear(part) for key, part in self.parts.items()})

    def plus(self, other: Jet, add: Bilinear = np.add) -> Jet:
        """Add, coefficient by coefficient."""
        parts = dict(self.parts)
        for key, part in other.parts.items():
            parts[key] = add(parts[key], part) if key in parts else part
        return Jet(parts)

    def times(self, other: Jet, product: Bilinear, add: Bilinear = np.add) -> Jet:
        """Apply a bilinear function: directions that both carry would be squared, and vanish."""
        total = Jet({})
        for left, a in self.parts.items():
            for right, b in other.parts.items():
                if not left & right:
                    total = total.plus(Jet({left | right: product(a, b)}), add)
        return total

    def coefficient(self, key: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return the array of one set of directions."""
        return self.parts.get(key, np.zeros(shape))
