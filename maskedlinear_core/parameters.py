"""Masks over parameters of any shape (contract S13)."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskedlinear_core.arrays import dtype_name, is_framework_array, to_numpy
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import parameter as parameter_checks
from maskedlinear_core.masks import Mask, Rows


def over_two_axes(mask: Mask, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the shape (out, in) of a mask over a parameter, and the one in which it is broadcast over the other axes.

    Args:
        mask: Over the first two axes; `rows` over one.
        shape: Shape of the parameter.

    Raises:
        ValueError: The parameter has fewer axes.

    Example:
        >>> over_two_axes(Rows([0]), (4, 3, 2)), over_two_axes(Rows([0]), (4,))
        (((4, 3), (4, 3, 1)), ((4, 1), (4,)))
    """
    parameter_checks.enough_axes(mask, isinstance(mask, Rows), shape)
    return (shape[0], shape[1] if len(shape) > 1 else 1), shape[:2] + (1,) * (len(shape) - 2)


def to_array(grad_mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask as a bool array of a parameter's shape.

    Args:
        grad_mask: A bool array of that shape, or a mask over the first two axes (out, in); of one axis `rows`.
        shape: Any.

    Raises:
        TypeError: It is neither.
        ValueError: It has another shape, or more axes than the parameter.
        IndexError: A position lies outside of it.

    Example:
        >>> to_array(Rows([0]), (2,))
        array([ True, False])
        >>> to_array(Rows([0]), (2, 1, 2)).tolist()
        [[[True, True]], [[False, False]]]
    """
    if isinstance(grad_mask, Mask):
        two, across = over_two_axes(grad_mask, shape)
        return np.ascontiguousarray(np.broadcast_to(grad_mask.to_array(two).reshape(across), shape))
    if not is_framework_array(grad_mask):
        call_checks.refuse_mask(grad_mask)
    parameter_checks.bool_of_shape(dtype_name(grad_mask), tuple(grad_mask.shape), tuple(shape))
    return to_numpy(grad_mask).copy()
