"""Finding the cheapest kind of mask that says the same (SPEC S1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskedlinear_core import checks
from maskedlinear_core.arrays import is_framework_array, to_numpy
from maskedlinear_core.masks import Mask, blocks, columns, elements, rows, submatrix

SMALLEST_BLOCK = 64
"""Blocks of fewer elements are left to `elements`: gathering them costs more than the dense product saves."""


def simplify(array: Any) -> Mask:
    """Return the cheapest kind of mask that selects the same positions.

    Tried in this order, which is the order of cost at a given share (SPEC S6): `columns`, `rows`,
    `submatrix`, `blocks` of at least `SMALLEST_BLOCK` elements, `elements`.

    Args:
        array: Bool array of the weight's shape (out_features, in_features).

    Raises:
        TypeError: The array is not bool.
        ValueError: The array is not two-dimensional.

    Example:
        >>> simplify(np.array([[True, False], [True, False]]))
        columns([0])
        >>> simplify(np.eye(2, dtype=bool))
        elements(2 of 4 in a weight of (2, 2))
    """
    if not is_framework_array(array) and not isinstance(array, list | tuple):
        checks.refuse_bool_matrix("simplify", "array", array)
    wanted = to_numpy(array)
    checks.bool_matrix("simplify", "array", wanted.shape, wanted.dtype.name)
    some_rows: np.ndarray = np.any(wanted, axis=1)
    some_columns: np.ndarray = np.any(wanted, axis=0)
    if wanted.all():
        return columns(slice(None))
    if np.array_equal(wanted, np.broadcast_to(some_columns, wanted.shape)):
        return columns(np.flatnonzero(some_columns))
    if np.array_equal(wanted, np.broadcast_to(some_rows[:, None], wanted.shape)):
        return rows(np.flatnonzero(some_rows))
    if np.array_equal(wanted, np.outer(some_rows, some_columns)):
        return submatrix(np.flatnonzero(some_rows), np.flatnonzero(some_columns))
    height, width = _period(wanted), _period(wanted.T)
    if height * width >= SMALLEST_BLOCK:
        return blocks(wanted[::height, ::width], (height, width))
    return elements(wanted)


def _period(array: np.ndarray) -> int:
    # The largest block height: it divides every row at which the pattern changes, and the number of rows.
    changes = 1 + np.flatnonzero((array[1:] != array[:-1]).any(axis=1))
    return int(np.gcd.reduce(np.append(changes, array.shape[0])))
