"""The arguments of a selection (SPEC S1, S10)."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from maskedlinear_core.checks.words import Shape, is_integer, one_of


def refuse_scores(name: str, got: str) -> NoReturn:
    """Refuse scores that are not an array of real numbers.

    Raises:
        TypeError: Always.
    """
    raise TypeError(f"{name}: expected scores as an array of real numbers, got {got}; pass e.g. the weight's magnitude")


def scores(name: str, shape: Shape, has_nan: bool) -> None:
    """Check the shape and the values of scores.

    Raises:
        ValueError: They are not two-dimensional, or one of them is NaN.
    """
    if len(shape) != 2:
        raise ValueError(
            f"{name}: expected scores of the weight's shape (out_features, in_features), got shape {tuple(shape)}; "
            "score every entry of the weight"
        )
    if has_nan:
        raise ValueError(f"{name}: expected scores that can be ordered, got NaN; replace it, e.g. by -inf")


def density(name: str, value: Any) -> None:
    """Check a share.

    Raises:
        TypeError: It is no real number.
        ValueError: It is outside of [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, float | int | np.floating | np.integer):
        raise TypeError(f"{name}: expected density as a number from 0 to 1, got {value!r}; e.g. 0.1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a density from 0 to 1, got {value!r}; it is a share, e.g. 0.1")


def along(name: str, value: Any, has_block_shape: bool) -> None:
    """Check what is chosen along, and that a block shape comes with blocks and only with blocks.

    Raises:
        ValueError: It is unknown, or does not go with block_shape.
    """
    known = ("elements", "columns", "rows", "blocks")
    if value not in known:
        raise ValueError(f"{name}: expected along to be {one_of(known)}, got {value!r}; choose one of these")
    if (value == "blocks") != has_block_shape:
        got = "a block_shape" if has_block_shape else "no block_shape"
        raise ValueError(
            f'{name}: expected block_shape with along="blocks" and only with it, got along={value!r} and {got}; '
            "e.g. block_shape=(16, 16)"
        )


def blocks_fit(name: str, shape: Shape, block: tuple[int, int]) -> None:
    """Check that whole blocks cover a weight.

    Raises:
        ValueError: They do not.
    """
    if shape[0] % block[0] or shape[1] % block[1]:
        raise ValueError(
            f"{name}: expected a block shape that divides the weight's shape {tuple(shape)}, got {block}; "
            "choose divisors"
        )


def group(n: Any, m: Any, in_features: int) -> None:
    """Check the group sizes of n:m selection.

    Raises:
        TypeError: n or m is not an integer.
        ValueError: n is not within [0, m], or m does not divide in_features.
    """
    if not is_integer(n) or not is_integer(m):
        raise TypeError(f"n_of_m: expected integers n and m, got {n!r} and {m!r}; e.g. n=2, m=4")
    if m < 1 or not 0 <= n <= m:
        raise ValueError(f"n_of_m: expected 0 <= n <= m and m >= 1, got n={n}, m={m}; e.g. n=2, m=4")
    if in_features % m:
        raise ValueError(f"n_of_m: expected m to divide the {in_features} input features, got m={m}; choose a divisor")
