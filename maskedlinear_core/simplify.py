"""The cheapest kind of mask for a bool array (contract S1)."""

from __future__ import annotations

from collections.abc import Sequence

from maskedlinear_core import positions
from maskedlinear_core.annotations import SupportsArray
from maskedlinear_core.arrays import is_framework_array, to_numpy
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.constructors import blocks, columns, elements, rows, submatrix
from maskedlinear_core.masks import Mask


def simplify(array: SupportsArray | Sequence[Sequence[bool]]) -> Mask:
    """Return the cheapest kind of mask that selects the same positions.

    The kinds are tried in order of their cost at a given share (contract S6): `columns`, `rows`, `submatrix`,
    `blocks` of at least 64 elements each, `elements`.

    Args:
        array: Bool array of the weight's shape (out_features, in_features).

    Raises:
        TypeError: The array is not bool.
        ValueError: The array is not two-dimensional.

    Example:
        >>> import numpy as np
        >>> simplify(np.array([[True, False], [True, False]]))
        columns([0])
        >>> simplify(np.eye(2, dtype=bool))
        elements(2 of 4 in a weight of (2, 2))
    """
    if not is_framework_array(array) and not isinstance(array, list | tuple):
        mask_checks.refuse_bool_matrix("simplify", "array", array)
    wanted = to_numpy(array)
    mask_checks.bool_matrix("simplify", "array", wanted.shape, wanted.dtype.name)
    kind, arrays, _, block_shape = positions.cheapest(wanted)
    if kind == "blocks":
        return blocks(wanted[:: block_shape[0], :: block_shape[1]], block_shape)
    if kind in ("elements", "entries"):
        return elements(wanted)
    some_rows, some_columns = arrays
    if some_rows is None:
        return columns(slice(None) if some_columns is None else some_columns)
    return rows(some_rows) if some_columns is None else submatrix(some_rows, some_columns)
