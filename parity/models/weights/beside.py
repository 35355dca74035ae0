"""What is left of layers whose weights are paired: a bias goes with its weight, whatever the two are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from parity.models.weights.items import Item
from parity.models.weights.layouts import Fit, layouts_of
from parity.models.weights.matching import BESIDE, VALUES
from parity.models.weights.names import word
from parity.models.weights.pairs import WeightPair
from parity.models.weights.tree import Parts

Found = tuple[Item, Item, Fit, str]


def paired(
    pairs: Sequence[WeightPair], torch: Sequence[Item], jax: Sequence[Item], parts: dict[str, Parts],
    holds: Callable[[Item, Item, Fit], bool], varied: Callable[[Item], bool],
) -> Iterator[Found]:  # fmt: skip
    """Yield weights that are left, each with the one that stands beside its layer's weight in JAX.

    Args:
        pairs: Those that are paired.
        torch: Torch's that are left.
        jax: JAX's.
        parts: The path of every weight of JAX, by name.
        holds: Whether a weight of JAX holds the numbers of one of torch's, in a layout.
        varied: Whether a weight has several numbers: zeros are equal everywhere.
    """
    homes = {name.rpartition(".")[0]: parts[pair.jax[0]] for pair in pairs for name in pair.torch}
    near: dict[int, list[tuple[Item, Fit]]] = {}
    for at, mine in enumerate(torch):
        home = homes.get(mine.leaf.name.rpartition(".")[0])
        beside = [other for other in jax if home is not None and other.leaf.parts[:-1] == home[:-1]]
        fits = [(other, fit) for other in beside for fit in layouts_of(mine.leaf, other.leaf, role=mine.role)]
        equal = [(other, fit) for other, fit in fits if holds(mine, other, fit)] if varied(mine) else []
        numbered = [(other, fit) for other, fit in fits if home and _number(other.leaf.parts) == _number(home)]
        near[at] = equal[:1] if len({other.view for other, _ in equal}) == 1 else numbered or fits
        near[at] = near[at] if len(near[at]) == 1 else []
    taken = [other.view for found in near.values() for other, _ in found]
    for at, found in near.items():
        for other, fit in found:
            if taken.count(other.view) == 1:
                evidence = VALUES if varied(torch[at]) and holds(torch[at], other, fit) else BESIDE
                yield torch[at], other, fit, evidence


def _number(parts: Parts) -> int | None:
    return word(parts[-1]).number if parts and isinstance(parts[-1], str) else None


def varied(array: np.ndarray) -> bool:
    """Return whether an array has several numbers.

    Example:
        >>> varied(np.zeros(3)), varied(np.arange(3))
        (False, True)
    """
    return bool(array.size) and float(np.ptp(array)) > 0
