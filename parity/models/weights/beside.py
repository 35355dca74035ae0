"""What is left of layers whose weights are paired: a bias goes with its weight, whatever the two are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from parity.models.weights.items import Item
from parity.models.weights.layouts import Fit, layouts_of
from parity.models.weights.matching import BESIDE, GUESS, NAMES, VALUES
from parity.models.weights.names import VALUE, Word, read, word
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
    # Names that say which layer a weight belongs to go before values: equal ones that contradict them are exchanged.
    homes = {name.rpartition(".")[0]: parts[pair.jax[0]] for pair in pairs for name in pair.torch}
    near: dict[int, list[tuple[Item, Fit]]] = {}
    named, by_number = set[int](), set[int]()
    for at, mine in enumerate(torch):
        layer = mine.leaf.name.rpartition(".")[0]
        home = homes.get(layer)
        beside = [other for other in jax if home is not None and other.leaf.parts[:-1] == home[:-1]]
        said = [_said(other.leaf.parts, homes) for other in beside]
        if said.count({layer}) == 1:
            beside = [beside[said.index({layer})]]
            named.add(at)
        else:
            beside = [other for other, layers in zip(beside, said, strict=True) if not layers or layer in layers]
        fits = [(other, fit) for other in beside for fit in layouts_of(mine.leaf, other.leaf, role=mine.role)]
        equal = [(other, fit) for other, fit in fits if holds(mine, other, fit)] if varied(mine) else []
        number = _number(home) if home else None
        numbered = [(other, fit) for other, fit in fits if _number(other.leaf.parts) == number]
        if number is not None and len(numbered) == 1 and _counted_alike(home, homes, jax):
            by_number.add(at)
            near[at] = numbered
            continue
        near[at] = equal[:1] if len({other.view for other, _ in equal}) == 1 else numbered or fits
        near[at] = near[at] if len(near[at]) == 1 else []
    taken = [other.view for found in near.values() for other, _ in found]
    for at, found in near.items():
        for other, fit in found:
            if taken.count(other.view) == 1:
                held = varied(torch[at]) and holds(torch[at], other, fit)
                told = at in by_number or torch[at].role == VALUE
                yield torch[at], other, fit, NAMES if at in named else VALUES if held else BESIDE if told else GUESS


def _counted_alike(home: Parts | None, homes: dict[str, Parts], jax: Sequence[Item]) -> bool:
    """Return whether the weights that are left in a module have all numbers of those that are paired: from 1, say."""
    left = {_number(item.leaf.parts) for item in jax if home and item.leaf.parts[:-1] == home[:-1]}
    return {_number(other) for other in homes.values() if home and other[:-1] == home[:-1]} <= left


def _said(parts: Parts, homes: dict[str, Parts]) -> set[str]:
    """Return the layers beside a weight of which its name holds the name, JAX's or torch's: `q_shift` is `wq`'s."""
    pieces = str(parts[-1]).split("_")
    texts = ["_".join(half) for at in range(1, len(pieces)) for half in (pieces[:at], pieces[at:])]
    own = [word(text) for text in texts if not text.isdecimal()]
    near = {layer: home for layer, home in homes.items() if home[:-1] == parts[:-1]}
    names = {layer: str((read(home)[0] or home)[-1]) for layer, home in near.items()}
    for known in (names, {layer: layer.rpartition(".")[2] for layer in near}):
        words = {layer: word(name) for layer, name in known.items() if not name.isdecimal()}
        if found := {layer for layer, other in words.items() if any(_same(one, other) for one in own)}:
            return found
    return set()


def _same(one: Word, other: Word) -> bool:
    return one.text == other.text or bool(one.concept and one.concept == other.concept)


def _number(parts: Parts) -> int | None:
    return word(parts[-1]).number if parts and isinstance(parts[-1], str) else None


def varied(array: np.ndarray) -> bool:
    """Return whether an array has several numbers.

    Example:
        >>> varied(np.zeros(3)), varied(np.arange(3))
        (False, True)
    """
    return bool(array.size) and bool(np.any(array != array.flat[0]))
