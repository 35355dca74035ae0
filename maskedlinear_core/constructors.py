"""How masks are written: one function for each kind (contract S1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskedlinear_core.annotations import Index, SupportsArray
from maskedlinear_core.arrays import is_framework_array, visible
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.masks import Blocks, Columns, Elements, Mask, Rows, Submatrix


def columns(index: Index) -> Columns:
    """Train whole columns of the weight: the weights of some input features.

    Args:
        index: Sequence of ints, integer vector (NumPy, torch or JAX), slice, or bool vector of length
            in_features. Negative counts from the end; order and duplicates carry no meaning.

    Returns:
        The mask (contract S1). The product for dW costs its share of the dense one, and only these
        columns of the input are kept for the backward (contract S6).

    Raises:
        TypeError: The index is not made of integers or bools.
        ValueError: The index is not one-dimensional.

    Example:
        >>> columns([3, 1, -1])
        columns([3, 1, -1])
        >>> columns([0, 1]) == columns([1, 0, 0])
        True
    """
    return Columns(index)


def rows(index: Index) -> Rows:
    """Train whole rows of the weight: the weights of some output features.

    Args:
        index: As for `columns`, over the out_features.

    Returns:
        The mask (contract S1). The product for dW costs its share of the dense one.

    Raises:
        TypeError: The index is not made of integers or bools.
        ValueError: The index is not one-dimensional.

    Example:
        >>> rows(slice(0, 2)).density((8, 5))
        0.25
    """
    return Rows(index)


def submatrix(rows: Index, columns: Index) -> Submatrix:
    """Train the entries where some rows and some columns cross.

    Args:
        rows: As for `rows`.
        columns: As for `columns`.

    Returns:
        The mask (contract S1). The product for dW costs its share of the dense one, and only these columns of the
        input are kept for the backward.

    Raises:
        TypeError: An index is not made of integers or bools.
        ValueError: An index is not one-dimensional.

    Example:
        >>> submatrix([0], [1, 2]).to_array((2, 3))
        array([[False,  True,  True],
               [False, False, False]])
    """
    return Submatrix(rows, columns)


def blocks(grid: SupportsArray | Sequence[Sequence[bool]], block_shape: Sequence[int]) -> Blocks:
    """Train whole blocks of a regular grid.

    Args:
        grid: Bool array (block rows, block columns): True = this block trains. Its values must be
            readable: the number of blocks decides the cost.
        block_shape: (rows, columns) of one block; the weight's shape is the grid's times this.

    Returns:
        The mask (contract S1). If at most a third of the blocks train, the product for dW costs their share of the
        dense one. If more do, it is the dense one, which then takes less time than many small products.

    Raises:
        TypeError: The grid is not bool, or traced; the block shape is not a pair of integers.
        ValueError: The grid is not two-dimensional, or a block size is not positive.

    Example:
        >>> blocks([[True, False]], (2, 2)).to_array((2, 4))
        array([[ True,  True, False, False],
               [ True,  True, False, False]])
    """
    return Blocks(grid, block_shape)


def elements(array: SupportsArray | Sequence[Sequence[bool]]) -> Elements:
    """Train single elements.

    Args:
        array: Bool array of the weight's shape (out_features, in_features).

    Returns:
        The mask (contract S1). The dense dW is computed, and masked.

    Raises:
        TypeError: The array is not bool.
        ValueError: The array is not two-dimensional.

    Example:
        >>> import numpy as np
        >>> elements(np.eye(3, dtype=bool))
        elements(3 of 9 in a weight of (3, 3))
    """
    return Elements(array)


def as_mask(value: Any) -> Mask:
    """Return the mask for an argument `grad_mask=`, which is a mask or a plain bool array (contract S1).

    Raises:
        TypeError: It is neither.
        ValueError: The array is not two-dimensional.

    Example:
        >>> import numpy as np
        >>> as_mask(np.ones((2, 2), bool))
        elements(4 of 4 in a weight of (2, 2))
    """
    if isinstance(value, Mask):
        return value
    if not is_framework_array(value):
        call_checks.refuse_mask(value)
    return Elements(value)


def as_bias_mask(value: Any) -> Any:
    """Return the array for an argument `bias_mask=`, an array or a sequence. Its dtype and shape are not checked.

    Raises:
        TypeError: It is neither.

    Example:
        >>> as_bias_mask([True, False])
        array([ True, False])
    """
    value = value if is_framework_array(value) else visible(value)
    try:
        return value if is_framework_array(value) else np.asarray(value)
    except ValueError:
        call_checks.refuse_array("bias_mask", value)
