"""Whole numbers that are asked for: seeds and counts, of Python or of NumPy."""

from __future__ import annotations

import operator
from typing import Any


def whole(what: str, value: Any) -> int:
    """Return a whole number as Python's own, which a report can keep: JSON knows no integer of NumPy.

    Args:
        what: What it is of, for the message.
        value: What came.

    Raises:
        TypeError: It is no integer.
        ValueError: It is below zero.

    Example:
        >>> import numpy as np
        >>> whole("seed", np.int64(3))
        3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{what}: expected a whole number from 0 on, got {value!r}")
    if number < 0:
        raise ValueError(f"{what}: expected a whole number from 0 on, got {number}")
    return number
