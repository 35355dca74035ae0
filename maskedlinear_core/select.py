"""Choosing what trains: masks from scores, or at random (contract S1).

The choice depends on the numbers alone: ties go to the lower position (row by row), and the score of
a column, row or block is the float64 sum of its entries, added one after the other in a fixed order.
So every machine and both frameworks choose the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from maskedlinear_core.annotations import SupportsArray
from maskedlinear_core.arrays import is_framework_array, to_numpy
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.checks import selection as selection_checks
from maskedlinear_core.constructors import blocks, columns, elements, rows
from maskedlinear_core.masks import Mask
from maskedlinear_core.score_trees import is_model, is_variable, layers_of

Along = Literal["elements", "columns", "rows", "blocks"]


def top_k(
    scores: SupportsArray, density: float, *, along: Along = "elements", block_shape: Sequence[int] | None = None
) -> Mask:
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
    shape: Sequence[int],
    density: float,
    *,
    along: Along = "elements",
    seed: int,
    block_shape: Sequence[int] | None = None,
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
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        selection_checks.refuse_shape(shape)
    size = mask_checks.weight_shape(tuple(shape))
    totals, build = _candidates("random", np.zeros(size), along, block_shape)
    draws = np.random.Generator(np.random.PCG64(module_checks.seed(seed))).random(totals.size)
    return build(_marked(_highest(-draws, _count("random", density, totals.size)), totals.shape))


def n_of_m(scores: SupportsArray, n: int, m: int) -> Mask:
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


def model_top_k(
    scores: Any,
    density: float | None = None,
    *,
    count: int | None = None,
    along: Along = "elements",
    per_layer_max: float | int | None = None,
    block_shape: Sequence[int] | None = None,
) -> dict[str, Mask]:
    """Train the positions with the highest scores of a whole model.

    Ties go to the layer that comes first, in the order of definition, and in it to the lower position. With
    along="columns", "rows" or "blocks" a candidate's score is the sum of its entries.

    Args:
        scores: `Scores`; or the scores of each layer by name, or a pytree of them: nested dicts and lists, or in JAX
            anything that `jax.tree` knows. Each of the layer's shape (out_features, in_features). In a pytree of
            NNX the leaf `kernel` is taken as (in_features, out_features).
        density: Share of all candidates to train, 0 to 1: floor(density * n + 1/2) of n. Give this or `count`.
        count: How many candidates to train.
        along: As for `top_k`.
        per_layer_max: The most candidates of each layer: a number (an integer) or a share (a float).
        block_shape: As for `top_k`.

    Returns:
        The mask of each layer by its dotted name, as `mask_linears` takes them.

    Raises:
        TypeError: Scores that are not arrays of real numbers, or an argument of a wrong type.
        ValueError: A NaN score, a density outside of [0, 1], or more candidates wanted than there may be.

    Example:
        >>> masks = model_top_k({"a": np.array([[1.0, 5.0]]), "b": np.array([[5.0, 5.0]])}, count=2)
        >>> {name: mask.to_array((1, 2)).tolist() for name, mask in masks.items()}
        {'a': [[False, True]], 'b': [[True, False]]}
    """
    named = scores.by_name if isinstance(scores, Scores) else layers_of(scores)
    totals, builds, eligible = {}, {}, {}
    for name, values in named.items():
        with selection_checks.naming(name):
            one, builds[name] = _candidates("model_top_k", _scores("model_top_k", values), along, block_shape)
        limit = selection_checks.layer_limit(per_layer_max, one.size)
        totals[name], eligible[name] = one, np.sort(_highest(one.ravel(), limit))
    wanted = selection_checks.budget(density, count, sum(one.size for one in totals.values()))
    selection_checks.enough(wanted, sum(one.size for one in eligible.values()))
    line = np.concatenate([totals[name].ravel()[eligible[name]] for name in totals] or [np.zeros(0)])
    chosen = np.zeros(line.size, np.bool_)
    chosen[_highest(line, wanted)] = True
    found, start = {}, 0
    for name, places in eligible.items():
        mine = places[chosen[start : start + places.size]]
        found[name] = builds[name](_marked(mine, totals[name].shape))
        start += places.size
    return found


class Scores:
    """Scores of the layers of a model, gathered over batches, for `model_top_k`.

    Args:
        of: What each `add` adds to the score: "gradient" |g|, "fisher" g^2, "weight" |w|, "weight_gradient" |w g|.

    Raises:
        ValueError: Another word.

    Attributes:
        count: How often `add` was called.

    Example:
        >>> scores = Scores("fisher")
        >>> scores.add({"a": np.array([[1.0, -2.0]])})
        >>> scores.add({"a": np.array([[3.0, 0.0]])})
        >>> scores.by_name["a"]
        array([[5., 2.]])
    """

    def __init__(self, of: str = "gradient") -> None:
        selection_checks.kind_of_score(of, tuple(_SCORES))
        self.of: str = of
        self.count: int = 0
        self._sums: dict[str, np.ndarray] = {}

    @property
    def by_name(self) -> dict[str, np.ndarray]:
        """The mean of each layer's scores over the batches, float64, by its dotted name."""
        return {name: total / self.count for name, total in self._sums.items()}

    def add(self, gradients: Any = None, weights: Any = None) -> None:
        """Add the scores of a batch, from its gradients, the weights, or both: whichever this kind of score needs.

        Args:
            gradients: A torch module after `backward` (its `.grad` are read: zero them before each batch); or arrays
                by layer name; or a pytree, e.g. what `jax.grad` gives. For scores of the weight alone it may be
                left out.
            weights: The same of the weights. In torch the module given as `gradients` has them too.

        Raises:
            TypeError: What is needed is missing, or no array.
            ValueError: Other layers or shapes than in the batches before.
        """
        needs = _SCORES[self.of][0]
        read_weights = weights if weights is not None else gradients
        selection_checks.given(self.of, needs, gradients is not None, read_weights is not None)
        selection_checks.two_sources(self.of, weights is not None or is_model(gradients))
        found = {
            "gradient": layers_of(gradients, "gradient") if "gradient" in needs else {},
            "weight": layers_of(read_weights, "weight") if "weight" in needs else {},
        }
        names = list(found[needs[0]])
        selection_checks.same_layers([list(found[need]) for need in needs], list(self._sums))
        fresh = {}
        for name in names:
            arrays = [_scores("Scores.add", found[need][name]) for need in needs]
            selection_checks.same_shape(
                name, [one.shape for one in arrays], getattr(self._sums.get(name), "shape", None)
            )
            fresh[name] = _SCORES[self.of][1](*arrays)
        for name, one in fresh.items():
            self._sums[name] = self._sums.get(name, 0.0) + one
        self.count += 1


_SCORES: dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]] = {
    "gradient": (("gradient",), np.abs),
    "fisher": (("gradient",), np.square),
    "weight": (("weight",), np.abs),
    "weight_gradient": (("weight", "gradient"), lambda weight, gradient: np.abs(weight * gradient)),
}


def _scores(name: str, scores: Any) -> np.ndarray:
    if is_variable(scores):
        selection_checks.refuse_variable(name, tuple(scores.shape))
    if not is_framework_array(scores) or isinstance(scores, type):
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
