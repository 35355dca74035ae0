"""The types of what public functions take, for type checkers and readers."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

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

BiasMaskLike = SupportsArray | Sequence[bool]
"""What `bias_mask=` takes: one bool an output feature, as an array or a sequence."""

PrecisionLike = Literal["native", "reproducible"] | Native | Reproducible
"""What `precision=` takes: a name, or what `reproducible(...)` returns."""

Target = str | os.PathLike[str] | BinaryIO
"""Where `save_packed` writes: a path, or a file that is open for writing bytes."""

Source = Target | bytes | Mapping[str, np.ndarray]
"""What `load_packed` reads: a file's path, the file, its bytes, or the arrays of `packed_arrays`."""

Rename = Mapping[str, str] | Callable[[str], str] | None
"""What `rename=` takes: the name in the model by the stored name, or a function of a stored name."""


class HasWeight(Protocol):
    """A layer with a weight (rows, columns), such as an embedding."""

    @property
    def weight(self) -> SupportsArray:
        """Its weight."""


class HasWeightAndBias(HasWeight, Protocol):
    """A linear layer with a weight (out_features, in_features), and a bias (out_features,) or None."""

    @property
    def bias(self) -> SupportsArray | None:
        """Its bias."""


class Later:
    """A module that is imported when something of it is asked for: `typing.get_type_hints` finds its types.

    For a package that takes long to import or may be missing. A type checker is shown the module itself, under
    `TYPE_CHECKING`.

    Example:
        >>> Later("decimal").Decimal
        <class 'decimal.Decimal'>
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)
