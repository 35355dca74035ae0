"""What is held frozen (SPEC S8, S10)."""

from __future__ import annotations

from typing import NoReturn

from maskedlinear_core.checks.words import Shape


def same_names(before: set[str], after: set[str], masks: set[str]) -> None:
    """Check that both sides hold arrays of the same names, and masks of these.

    Raises:
        ValueError: They do not.
    """
    if before != after:
        raise ValueError(
            f"assert_frozen: expected the same arrays before and after, got {sorted(before ^ after)} on one side only; "
            "compare the same model"
        )
    if not masks <= before:
        raise ValueError(
            f"assert_frozen: expected masks of the arrays {sorted(before)}, got masks of {sorted(masks - before)} too; "
            "check the names"
        )


def same_shape(name: str, before: Shape, after: Shape) -> None:
    """Check that an array kept its shape.

    Raises:
        ValueError: It did not.
    """
    if before != after:
        raise ValueError(
            f"assert_frozen: expected {name} of shape {before} as before, got shape {after}; compare the same model"
        )


def bool_of_shape(name: str, dtype: str, shape: Shape, expected: Shape) -> None:
    """Check a mask that came as an array.

    Raises:
        TypeError: It is not bool.
        ValueError: It has another shape.
    """
    if dtype != "bool":
        raise TypeError(
            f"mask of {name}: expected a bool array (True = the gradient flows), got dtype {dtype}; "
            "compare first, e.g. values != 0"
        )
    if shape not in ((), expected):
        raise ValueError(f"mask of {name}: expected shape {expected}, got shape {shape}; masks have the array's shape")


def refuse_nothing_frozen() -> NoReturn:
    """Refuse a proof that proves nothing.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        "assert_frozen: expected frozen entries to compare, got none; pass masks, or a model with masked layers"
    )


def refuse_masks(value: object) -> NoReturn:
    """Refuse to guess what is frozen.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        f"assert_frozen: expected masks beside {type(value).__name__}, got none; pass {{name: mask}} or a model with "
        "masked layers"
    )


def refuse_optimizer(expected: str, value: object) -> NoReturn:
    """Refuse what is no optimizer.

    Raises:
        TypeError: Always.
    """
    raise TypeError(f"hold_frozen: expected {expected}, got {type(value).__name__}; pass the optimizer itself")


def refuse_nothing_held() -> NoReturn:
    """Refuse to hold nothing.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        "hold_frozen: expected a model with masked layers whose parameters the optimizer has, got none; "
        "convert the model first (a packed layer needs no holding)"
    )
