"""The types of what public functions take, for type checkers and readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from maskedlinear_core.masks import Mask
from maskedlinear_core.precision import Native, Reproducible


class SupportsArray(Protocol):
    """An array of NumPy, torch or JAX; it may be traced."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    def __array__(self, dtype: Any = None, /) -> Any:
        """Return it as a NumPy array."""


Index = int | slice | range | Sequence[int] | Sequence[bool] | SupportsArray
"""Positions of rows or columns: numbers (negative ones count from the end), a slice, or one bool a position."""

MaskLike = Mask | SupportsArray
"""What `grad_mask=` takes: a mask, or a bool array of the weight's shape."""

BiasMaskLike = SupportsArray
"""What `bias_mask=` takes: an array of one bool an output feature."""

PrecisionLike = Literal["native", "reproducible"] | Native | Reproducible
"""What `precision=` takes: a name, or what `reproducible(...)` returns."""
