"""What a mask may be made of, and whether it fits a weight (contract S1, S10)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from maskedlinear_core.checks.words import INTEGER_DTYPES, Shape, is_integer


def index_dtype(kind: str, dtype: str) -> None:
    """Check the dtype of an index of positions.

    Raises:
        TypeError: It is neither an integer nor bool.
    """
    if dtype not in INTEGER_DTYPES and dtype != "bool":
        raise TypeError(
            f"{kind}: expected integer positions, a slice or a bool vector, got dtype {dtype}; "
            "convert the positions to integers"
        )


def index_rank(kind: str, shape: Shape) -> None:
    """Check that an index of positions is a vector.

    Raises:
        ValueError: It has another number of dimensions.
    """
    if len(shape) != 1:
        raise ValueError(
            f"{kind}: expected a one-dimensional index, got shape {tuple(shape)}; flatten it or use elements(array)"
        )


def index_size(kind: str, highest: int) -> None:
    """Check that positions are numbers an index can hold.

    Raises:
        IndexError: They exceed 63 bits.
    """
    if highest >= 2**63:
        raise IndexError(f"{kind}: expected positions below 2**63, got {highest}; check how it was computed")


def index_sequence(kind: str, value: Sequence[Any]) -> np.ndarray:
    """Return a sequence of positions as an array; an empty one is of integers.

    Raises:
        ValueError: The sequence is ragged.
    """
    if not len(value):
        return np.zeros(0, np.int64)
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{kind}: expected a one-dimensional index, got a ragged sequence; flatten it or use elements(array)"
        ) from None


def refuse_index(kind: str, value: object) -> NoReturn:
    """Refuse an index that is not a vector of positions."""
    raise TypeError(
        f"{kind}: expected a sequence of integers, an integer vector, a slice or a bool vector, "
        f"got {type(value).__name__}; write {kind}([3]) for a single position"
    )


def slice_bounds(kind: str, index: slice) -> None:
    """Check that a slice is made of integers and has a step that is not zero.

    Raises:
        TypeError: A bound is not an integer.
        ValueError: The step is zero.
    """
    for bound in (index.start, index.stop, index.step):
        if bound is not None and not is_integer(bound):
            raise TypeError(f"{kind}: expected a slice of integers, got {index!r}; use integer bounds")
    if index.step == 0:
        raise ValueError(f"{kind}: expected a slice whose step is not zero, got {index!r}; use a step of 1 or more")


def index_range(kind: str, lowest: int, highest: int, size: int) -> None:
    """Check that positions lie within `size` features.

    Raises:
        IndexError: One of them does not.
    """
    wrong = highest if highest >= size else lowest
    if lowest < -size or highest >= size:
        allowed = f"positions from {-size} to {size - 1}" if size else "no position at all"
        raise IndexError(
            f"{kind}: expected {allowed} for {size} {_features(kind)}, got {wrong}; check the weight's shape"
        )


def float_positions(kind: str, dtype: str, size: int, apart: float = 0.0) -> None:
    """Check that positions which some function of a whole pytree made floats of are still the same ones.

    Args:
        kind: Name of the mask kind.
        dtype: Dtype of the positions.
        size: Number of features along the axis.
        apart: How far the positions are from integers, where they can be read.

    Raises:
        TypeError: The dtype does not hold every position, or they are no integers.
    """
    if size <= _WHOLE_UP_TO.get(dtype, size) and apart < _ROUNDING:
        return
    got = f"{dtype}, which does not hold each of {size}" if apart < _ROUNDING else f"{dtype} between two integers"
    raise TypeError(
        f"{kind}: expected positions as integers, got {got}; cast or average leaves of floats alone "
        "(partition(model)[0], equinox.is_inexact_array), and models with one mask"
    )


_WHOLE_UP_TO = {"bfloat16": 2**8, "float16": 2**11}
_ROUNDING = 0.01
"""An average of equal positions is off by rounding alone, which is less; one of different ones by a half or so."""


def bool_length(kind: str, length: int, size: int) -> None:
    """Check that a bool vector has one entry per feature.

    Raises:
        ValueError: Its length is another.
    """
    if length != size:
        raise ValueError(
            f"{kind}: expected a bool vector of length {size}, one per {_features(kind)[:-1]}, got length {length}; "
            "check the weight's shape"
        )


def bool_matrix(kind: str, what: str, shape: Shape, dtype: str) -> None:
    """Check the bool array of `elements` or the grid of `blocks`.

    Raises:
        TypeError: It is not bool.
        ValueError: It is not two-dimensional.
    """
    if dtype != "bool":
        raise TypeError(
            f"{kind}: expected a bool {what} (True = the gradient flows), got dtype {dtype}; "
            "compare first, e.g. values != 0"
        )
    if len(shape) != 2:
        raise ValueError(
            f"{kind}: expected a two-dimensional {what}, got shape {tuple(shape)}; "
            "rows are output features, columns are input features"
        )


def refuse_bool_matrix(kind: str, what: str, value: object) -> NoReturn:
    """Refuse a mask array that is no array."""
    raise TypeError(f"{kind}: expected a bool {what}, got {type(value).__name__}; give a two-dimensional bool array")


def block_shape(value: object) -> tuple[int, int]:
    """Check and return a block shape.

    Args:
        value: (block rows, block columns), both positive integers.

    Raises:
        TypeError: It is not a pair of integers.
        ValueError: A size is not positive.

    Example:
        >>> block_shape([2, 4])
        (2, 4)
    """
    if not isinstance(value, Sequence) or len(value) != 2 or not all(is_integer(size) for size in value):
        raise TypeError(
            f"blocks: expected block_shape as a pair of integers (rows, columns), got {value!r}; e.g. (16, 16)"
        )
    rows, columns = operator.index(value[0]), operator.index(value[1])
    if rows < 1 or columns < 1:
        raise ValueError(f"blocks: expected block sizes of at least 1, got ({rows}, {columns}); e.g. (16, 16)")
    return rows, columns


def traced_blocks() -> NoReturn:
    """Refuse a traced grid of blocks: how many blocks it selects must be known."""
    raise TypeError(
        "blocks: expected a grid whose values can be read, got a traced array; build the mask outside of jit, vmap and "
        "compile and pass it in, or use elements(array)"
    )


def traced_mask() -> NoReturn:
    """Refuse to read a mask whose positions are traced."""
    raise TypeError(
        "mask: expected positions whose values can be read, got a traced mask; "
        "call this outside of jit, vmap and compile"
    )


def mask_shape(mask: str, expected: Shape, weight_shape: Shape) -> None:
    """Check that a mask with a shape of its own fits the weight.

    Raises:
        ValueError: It does not.
    """
    if tuple(expected) != tuple(weight_shape):
        raise ValueError(
            f"{mask}: expected a weight of the mask's shape {tuple(expected)}, got weight of shape "
            f"{tuple(weight_shape)}; the mask is (out_features, in_features)"
        )


def combined_shapes(left: Shape | None, right: Shape | None) -> None:
    """Check that two masks can be combined.

    Raises:
        ValueError: Both have a shape of their own and they differ.
    """
    if left is not None and right is not None and tuple(left) != tuple(right):
        raise ValueError(
            f"mask algebra: expected two masks for one weight, got masks of shapes {tuple(left)} and {tuple(right)}; "
            "masks are (out_features, in_features)"
        )


def weight_shape(value: object) -> tuple[int, int]:
    """Check and return the shape of a weight.

    Args:
        value: (out_features, in_features).

    Raises:
        TypeError: It is not a pair of integers.
        ValueError: A size is negative.
    """
    if not isinstance(value, Sequence) or len(value) != 2 or not all(is_integer(size) for size in value):
        raise TypeError(
            f"mask: expected the weight's shape as a pair of integers (out_features, in_features), got {value!r}; "
            "pass weight.shape"
        )
    if value[0] < 0 or value[1] < 0:
        raise ValueError(f"mask: expected sizes of at least 0, got {tuple(value)}; pass weight.shape")
    return operator.index(value[0]), operator.index(value[1])


def _features(kind: str) -> str:
    if kind == "entries":
        return "entries of the weight"
    return "output features" if kind in ("rows", "submatrix rows") else "input features"
