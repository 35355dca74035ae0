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
