"""What the checks share: types and constants."""

from __future__ import annotations

import operator
from collections.abc import Sequence

Shape = tuple[int, ...]

FLOAT_DTYPES = ("float32", "float64", "bfloat16", "float16")
INTEGER_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def is_integer(value: object) -> bool:
    """Tell whether a value is an integer of any library, and no bool."""
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def one_of(names: Sequence[str]) -> str:
    """Return names as a list in words."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


ONE_LAYER = ("from_linear", "from_embedding")
"""Functions that convert one layer, which has no name."""


def where(name: str, function: str = "mask_linears") -> str:
    """Return what a message begins with: the function, and the layer's name unless the function takes that one alone.

    Args:
        name: Dotted name of the layer; "" for the model itself; or the name of a function of `ONE_LAYER`.
        function: Name of the function that converts a model.

    Example:
        >>> where("encoder.query"), where(""), where("from_linear")
        ('mask_linears: encoder.query', 'mask_linears: the model itself', 'from_linear')
    """
    return name if name in ONE_LAYER else f"{function}: {name or 'the model itself'}"
