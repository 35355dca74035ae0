"""The arguments of a selection (contract S1, S10)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from maskedlinear_core.checks.words import Shape, is_integer, one_of


def refuse_scores(name: str, got: str) -> NoReturn:
    """Refuse scores that are not an array of real numbers."""
    if got in ("dict", "OrderedDict", "list", "tuple"):
        raise TypeError(
            f"{name}: expected the scores of one weight, an array of real numbers, got {got}; for those of a whole "
            "model call select.model_top_k, or call this for each weight"
        )
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


def refuse_variable(name: str, shape: Shape) -> NoReturn:
    """Refuse a variable of Flax, which does not tell whether it is a kernel (in, out) or a weight (out, in)."""
    raise TypeError(
        f"{name}: expected scores of the weight's shape (out_features, in_features), got a Flax variable of shape "
        f"{shape}, and kernels of Flax are (in_features, out_features); pass kernel[...].T, or a State of several to "
        "model_top_k, which knows them by name"
    )


def refuse_shape(value: object) -> NoReturn:
    """Refuse what is no shape."""
    got = f"a {type(value).__name__}"
    raise TypeError(f"random: expected shape as (out_features, in_features), got {got}; pass tuple(layer.weight.shape)")


@contextlib.contextmanager
def naming(layer: str) -> Iterator[None]:
    """Put a layer's name before the message of scores that cannot be used."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{layer}: {error}") from None


def layer_limit(value: Any, candidates: int) -> int:
    """Check a limit for each layer, and return it as a number of candidates.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, or a share outside of [0, 1].
    """
    if value is None:
        return candidates
    if is_integer(value):
        if value < 0:
            raise ValueError(
                f"model_top_k: expected per_layer_max of at least 0, got {value}; e.g. 100, or a share 0.5"
            )
        return min(int(value), candidates)
    density("model_top_k", value)
    return int(np.floor(float(value) * candidates + 0.5))


def budget(share: Any, count: Any, candidates: int) -> int:
    """Check how many are wanted of a model, by share or by number.

    Raises:
        TypeError: It is no number.
        ValueError: Neither or both are given, or it is out of range.
    """
    if (share is None) == (count is None):
        got = "neither" if share is None else "both"
        raise ValueError(f"model_top_k: expected exactly one of density and count, got {got}; e.g. density=0.05")
    if count is None:
        density("model_top_k", share)
        return int(np.floor(float(share) * candidates + 0.5))
    if not is_integer(count):
        raise TypeError(f"model_top_k: expected count as an integer, got {count!r}; a share is density=")
    if not 0 <= count <= candidates:
        raise ValueError(f"model_top_k: expected a count from 0 to {candidates}, all that there are, got {count}")
    return int(count)


def enough(wanted: int, eligible: int) -> None:
    """Check that the limits of the layers leave as many as are wanted.

    Raises:
        ValueError: They do not.
    """
    if wanted > eligible:
        raise ValueError(
            f"model_top_k: expected limits that leave {wanted} candidates, got per_layer_max that leaves {eligible}; "
            "raise it, or want fewer"
        )


def kind_of_score(value: Any, known: tuple[str, ...]) -> None:
    """Check what scores are made of.

    Raises:
        ValueError: It is unknown.
    """
    if value not in known:
        raise ValueError(f"Scores: expected one of {one_of(known)}, got {value!r}; choose one of these")


def given(of: str, needs: tuple[str, ...], has_gradients: bool, has_weights: bool) -> None:
    """Check that what a kind of score needs came.

    Raises:
        TypeError: It did not.
    """
    for need, has in (("gradient", has_gradients), ("weight", has_weights)):
        if need in needs and not has:
            raise TypeError(f"Scores.add: expected {need}s for scores of {of!r}, got none; pass {need}s=")


def two_sources(of: str, has_both: bool) -> None:
    """Check that gradients and weights came both where both are needed.

    Raises:
        TypeError: They did not.
    """
    if of == "weight_gradient" and not has_both:
        raise TypeError(
            "Scores.add: expected weights beside gradients for scores of 'weight_gradient', got one of them"
        )


def same_layers(found: list[list[str]], before: list[str]) -> None:
    """Check that all sources hold the same layers as the batches before.

    Raises:
        ValueError: They do not, or there are none.
    """
    expected = before or found[0]
    if not expected:
        raise ValueError(
            "Scores.add: expected weights of two axes by layer, got none; pass a model or a dict of arrays"
        )
    for names in found:
        if set(names) != set(expected):
            odd = sorted(set(names) ^ set(expected))
            raise ValueError(
                f"Scores.add: expected the layers {sorted(expected)}, got others: {odd}; pass the same model"
            )


def same_shape(name: str, shapes: list[Shape], before: Shape | None) -> None:
    """Check that a layer's arrays have the shape that it had.

    Raises:
        ValueError: They have not.
    """
    expected = before or shapes[0]
    for shape in shapes:
        if tuple(shape) != tuple(expected):
            raise ValueError(f"Scores.add: expected {name} of shape {tuple(expected)}, got {tuple(shape)}; as before")


def refuse_names(name: str) -> NoReturn:
    """Refuse two score arrays of one name."""
    raise ValueError(f"scores: expected a name of its own for each layer, got {name!r} twice; rename one")


def density(name: str, value: Any) -> None:
    """Check a share.

    Raises:
        TypeError: It is no real number.
        ValueError: It is outside of [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, float | int | np.floating | np.integer):
        raise TypeError(f"{name}: expected density as a number from 0 to 1, got {value!r}; e.g. 0.1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a density from 0 to 1, got {value}; it is a share, e.g. 0.1")


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
