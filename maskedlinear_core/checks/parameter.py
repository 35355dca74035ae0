"""Masks of parameters of any shape (contract S10, S13)."""

from __future__ import annotations

from typing import NoReturn

from maskedlinear_core.checks.words import Shape


def can_learn(dtype: str, is_float: bool, function: str = "masked_parameter") -> None:
    """Check that numbers of a dtype can have a gradient.

    Raises:
        TypeError: They are integers or bools.
    """
    if not is_float:
        raise TypeError(
            f"{function}: expected a weight of a float or complex dtype, got {dtype}, which takes no gradient; convert "
            "it first"
        )


def bool_of_shape(dtype: str, shape: Shape, expected: Shape) -> None:
    """Check a mask that came as an array.

    Raises:
        TypeError: It is not bool.
        ValueError: It has another shape.
    """
    if dtype != "bool":
        raise TypeError(
            f"masked_parameter: expected a bool grad_mask (True = the gradient flows), got dtype {dtype}; "
            "compare first, e.g. values != 0"
        )
    if shape != expected:
        raise ValueError(
            f"masked_parameter: expected a grad_mask of the weight's shape {expected}, got shape {shape}; expand it"
        )


def enough_axes(mask: object, is_rows: bool, shape: Shape) -> None:
    """Check that a mask over (out, in) has these axes.

    Raises:
        ValueError: It has not.
    """
    if len(shape) < (1 if is_rows else 2):
        raise ValueError(
            f"masked_parameter: expected a weight with the axes (out, in) for {mask!r}, got shape {shape}; give a bool "
            "array of the weight's shape (or rows of a vector)"
        )


def refuse_name(name: str, known: list[str]) -> NoReturn:
    """Refuse a name that is no parameter's."""
    raise ValueError(
        f"mask_parameter: expected the name of a parameter, one of {known}, got {name!r}; pass the module that owns it"
    )
