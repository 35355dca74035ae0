"""Choosing what trains: masks from scores, or at random (SPEC S1).

The choice depends on the numbers alone: ties go to the lower position (row by row), and the score of
a column, row or block is the float64 sum of its entries, added one after the other in a fixed order.
So every machine and both frameworks choose the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from maskedlinear_core.arrays import is_framework_array, to_numpy
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.checks import selection as selection_checks
from maskedlinear_core.constructors import blocks, columns, elements, rows
from maskedlinear_core.masks import Mask

Along = Literal["elements", "columns", "rows", "blocks"]


def top_k(scores: Any, density: float, *, along: Along = "elements", block_shape: Any = None) -> Mask:
    """Train the share of the weight with the highest scores.

    Args:
        scores: Array of the weight's shape (out_features, in_features), e.g. the magnitude of the
            weight or of an accumulated gradient. Of any framework.
        density: Share to train, 0 to 1. Of n candidates floor(density * n + 1/2) are taken.
        along: What is chosen: single elements, or whole columns, rows or blocks by their summed scores.
        block_shape: (rows, columns) of a block; with along="blocks" only.

    Raises:
        TypeError: The scores are no array of real numbers, or density is no number.
        ValueError: A NaN score, a density outside of [0, 1], an unknown `along`, or blocks that do not fit.

    Example:
        >>> top_k(np.array([[1.0, 5.0, 2.0], [1.0, 0.0, 2.0]]), 1 / 3, along="columns")
        columns([1])
    """
    values = _scores("top_k", scores)
    totals, build = _candidates("top_k", values, along, block_shape)
    return build(_marked(_highest(totals.ravel(), _count("top_k", density, totals.size)), totals.shape))


def random(
    shape: tuple[int, int], density: float, *, along: Along = "elements", seed: int, block_shape: Any = None
) -> Mask:
    """Train a random share of the weight, the same for a seed on every machine.

    Args:
        shape: The weight's shape (out_features, in_features).
        density: As for `top_k`.
        along: As for `top_k`.
        seed: Seed of NumPy's PCG64.
        block_shape: As for `top_k`.

    Raises:
        TypeError: A wrong kind of argument.
        ValueError: As for `top_k`.

    Example:
        >>> random((4, 8), 0.25, along="columns", seed=0).density((4, 8))
        0.25
    """
    size = mask_checks.weight_shape(tuple(shape))
    totals, build = _candidates("random", np.zeros(size), along, block_shape)
    draws = np.random.Generator(np.random.PCG64(module_checks.seed(seed))).random(totals.size)
    return build(_marked(_highest(-draws, _count("random", density, totals.size)), totals.shape))


def n_of_m(scores: Any, n: int, m: int) -> Mask:
    """Train the n highest of every m consecutive entries of a row, as in 2:4 sparsity.

    Args:
        scores: As for `top_k`.
        n: How many of each group train.
        m: Size of a group; it divides in_features.

    Raises:
        TypeError: The scores are no array of real numbers, or n and m no integers.
        ValueError: A NaN score, n outside of [0, m], or m that does not divide in_features.

    Example:
        >>> n_of_m(np.array([[1.0, 4.0, 3.0, 3.0]]), 2, 4).to_array((1, 4))
        array([[False,  True,  True, False]])
    """
    values = _scores("n_of_m", scores)
    selection_checks.group(n, m, values.shape[1])
    groups = values.reshape(values.shape[0], values.shape[1] // m, m)
    order = np.argsort(-groups, axis=-1, kind="stable")
    wanted = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(wanted, order[..., :n], True, axis=-1)
    return elements(wanted.reshape(values.shape))


def _scores(name: str, scores: Any) -> np.ndarray:
    if not is_framework_array(scores):
        selection_checks.refuse_scores(name, type(scores).__name__)
    values = to_numpy(scores)
    if values.dtype.kind not in "fiub":
        selection_checks.refuse_scores(name, values.dtype.name)
    selection_checks.scores(name, values.shape, bool(np.isnan(values.astype(np.float64)).any()))
    return values.astype(np.float64)


def _candidates(
    name: str, values: np.ndarray, along: str, block_shape: Any
) -> tuple[np.ndarray, Callable[[np.ndarray], Mask]]:
    """Return the score of each candidate, and what makes a mask of a bool array over the candidates."""
    selection_checks.along(name, along, block_shape is not None)
    if along == "columns":
        return _sum(values), columns
    if along == "rows":
        return _sum(values.T), rows
    if along == "blocks":
        h, w = mask_checks.block_shape(block_shape)
        selection_checks.blocks_fit(name, values.shape, (h, w))
        grid = values.reshape(values.shape[0] // h, h, values.shape[1] // w, w)
        totals = _sum(grid.transpose(1, 3, 0, 2).reshape(h * w, *grid.shape[::2]))
        return totals, lambda chosen: blocks(chosen, (h, w))
    return values, elements


def _sum(values: np.ndarray) -> np.ndarray:
    # Not np.sum: how that orders its additions is NumPy's and the processor's affair.
    total = np.zeros(values.shape[1:])
    with np.errstate(invalid="ignore"):  # inf and -inf: see _highest
        for line in values:
            total = total + line
    return total


def _highest(totals: np.ndarray, count: int) -> np.ndarray:
    # Of equal ones the first; a sum of inf and -inf is least. Without sorting: of a million numbers that takes ten
    # times as long.
    if count == 0:
        return np.zeros(0, np.int64)
    totals = np.where(np.isnan(totals), -np.inf, totals)
    least = np.partition(totals, totals.size - count)[totals.size - count]
    above, equal = np.flatnonzero(totals > least), np.flatnonzero(totals == least)
    return np.concatenate([above, equal[: count - above.size]])


def _count(name: str, density: float, candidates: int) -> int:
    selection_checks.density(name, density)
    return int(np.floor(float(density) * candidates + 0.5))


def _marked(chosen: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    marked = np.zeros(shape, np.bool_)
    marked.flat[chosen] = True
    return marked
