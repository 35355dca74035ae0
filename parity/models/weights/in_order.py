"""Layers that Linen counted, paired by order: where the other side's order fits, and what names say is not in order.

`Transformer_1` and `Conv_2` say in which order modules of a class were made, and nothing else. Read layer by layer such
numbers mix up a model of many stages; both sides from first to last are paired without doubt.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from parity.models.weights.items import Owner
from parity.models.weights.matching import ORDER, Match, Names, compatible_of, roles_paired, together
from parity.models.weights.names import COUNTED, word
from parity.models.weights.tree import Parts

Pairs = dict[int, int]


def paired(torch: Sequence[Owner], jax: Sequence[Owner], matches: Sequence[Match]) -> list[Match]:
    """Return the layers of both sides paired in order, or nothing where the matches are in order or this does not fit.

    Args:
        torch: Torch's layers, in the order of definition.
        jax: JAX's layers, in the order in which their weights were made.
        matches: What names say.
    """
    ours = [one for one in torch if not (one.alias or one.optional)]
    theirs = _made(one for one in jax if not one.alias)
    homes = list(dict.fromkeys(one.parts[:-1] for one in theirs))
    place = {id(one): homes.index(one.parts[:-1]) for one in theirs}
    if not _counted(theirs) or not any(_turned(group, place) for group in together(matches)):
        return []
    fits = compatible_of(ours, theirs)
    names = Names(ours, theirs)
    gains = np.zeros(fits.shape)
    for i, j in zip(*np.nonzero(fits), strict=True):
        shared = roles_paired(ours[i], theirs[j])
        missing = len(ours[i].items) + len(theirs[j].items) - 2 * len(shared)
        gains[i, j] = 1 + _is_matrix(ours[i]) + names.alignment(ours[i], theirs[j])[0] - 0.15 * missing
    large = np.array([_is_matrix(one) for one in ours], dtype=bool)[:, None] & fits
    matrices = _aligned(gains * large)
    # Norms have an order of their own: torch may define one after the layer that it comes before. As many as can be are
    # paired, but for those whose modules say that they are elsewhere.
    around = _around(ours, theirs, matrices)
    near = len(ours) + around + 0.5 * _beside(fits.shape, matrices) + 0.2 * gains
    pairs = matrices | _aligned(fits * ~large * np.where(around < 0, 0.1, near))
    left = [np.setdiff1d(range(len(side)), found) for side, found in ((ours, [*pairs]), (theirs, [*pairs.values()]))]
    if any(_is_matrix(ours[i]) and fits[i, j] for i in left[0] for j in left[1]):
        return []  # one more of its kind on either side: which one it is the order does not say
    if any(_is_matrix(ours[i]) and not _same_sizes(ours[i], theirs[j]) for i, j in pairs.items()) or _mixed(
        {(ours[i].parts[:-1], theirs[j].parts[:-1]) for i, j in pairs.items() if _is_matrix(ours[i])}
    ):
        return []  # layers of a block are made in another order than they are defined
    return [Match(ours[i], theirs[j], float(gains[i, j]), ORDER) for i, j in sorted(pairs.items())]


def _made(owners: Iterable[Owner]) -> list[Owner]:
    """Return layers in the order in which their modules were made: those of a class in a module by their number."""
    slots: dict[Parts, list[str]] = defaultdict(list)
    found = list(owners)
    for one in found:
        for depth, part in enumerate(map(str, one.parts)):
            inside = slots[one.parts[:depth]]
            if part not in inside:
                inside.append(part)
    order: dict[Parts, dict[str, int]] = {}
    for parent, names in slots.items():
        classes: dict[str, list[str]] = defaultdict(list)
        for name in names:
            classes[word(name).stem if COUNTED.fullmatch(name) else name].append(name)
        taken = {stem: sorted(members, key=lambda name: word(name).number or 0) for stem, members in classes.items()}
        order[parent] = {
            made: names.index(slot)
            for stem, members in taken.items()
            for slot, made in zip(classes[stem], members, strict=True)
        }
    return sorted(found, key=lambda one: [order[one.parts[:depth]][str(part)] for depth, part in enumerate(one.parts)])


def _counted(owners: Sequence[Owner]) -> bool:
    """Return whether every number in the names of the modules around layers is one that Linen counted."""
    parts = {part for one in owners for part in one.parts[:-1]}
    numbered = [part for part in parts if isinstance(part, int) or word(part).number is not None]
    return bool(numbered) and all(COUNTED.fullmatch(str(part)) for part in numbered)


def _turned(group: Sequence[Match], place: dict[int, int]) -> bool:
    """Return whether layers that could be exchanged are in modules that are not in order, or are open in several."""
    ordered = sorted((one for one in group if id(one.jax) in place), key=lambda one: one.torch.place)
    places = [place[id(one.jax)] for one in ordered]
    if len(set(places)) > 1 and any(not one.evidence for one in ordered):
        return True
    return places != sorted(places) and any(one.evidence == ORDER or one.rivals for one in ordered)


def _same_sizes(one: Owner, other: Owner) -> bool:
    return all(one.items[a].leaf.size == other.items[b].leaf.size for a, b in roles_paired(one, other))


def _mixed(homes: set[tuple[Parts, Parts]]) -> bool:
    """Return whether a module's layers go to several modules, of which one holds layers of another module as well."""
    ours, theirs = Counter(one for one, _ in homes), Counter(other for _, other in homes)
    return any(ours[one] > 1 and theirs[other] > 1 for one, other in homes)


def _is_matrix(owner: Owner) -> bool:
    return sum(size > 1 for size in owner.main.leaf.shape) > 1


def _aligned(gains: np.ndarray) -> Pairs:
    """Return what is paired in order with the greatest gain, the first where two are alike, and of the rest again."""
    gains = gains[::-1, ::-1].copy()
    found: Pairs = {}
    while gains.any():
        best = np.zeros((len(gains) + 1, len(gains[0]) + 1))
        for i, row in enumerate(gains):
            best[i + 1, 1:] = np.maximum.accumulate(np.maximum(best[i, 1:], np.where(row > 0, best[i, :-1] + row, 0)))
        i, j = np.array(gains.shape)
        while i and j:
            if gains[i - 1, j - 1] > 0 and best[i, j] == best[i - 1, j - 1] + gains[i - 1, j - 1]:
                i, j = i - 1, j - 1
                found[len(gains) - 1 - int(i)] = len(gains[0]) - 1 - int(j)
                gains[i], gains[:, j] = 0, 0
            elif best[i, j] == best[i - 1, j]:
                i -= 1
            else:
                j -= 1
    return found


def _beside(shape: tuple[int, ...], pairs: Pairs) -> np.ndarray:
    """Return how near two layers are, counted in the pairs that come before them."""
    before = [
        np.searchsorted(sorted(side), range(count)) for side, count in zip((pairs, pairs.values()), shape, strict=True)
    ]
    return np.asarray(1 / (1 + np.abs(np.subtract.outer(*before))))


def _around(torch: Sequence[Owner], jax: Sequence[Owner], pairs: Pairs) -> np.ndarray:
    """Return how far the modules around two layers hold what is paired, and -1 where they hold what is elsewhere."""
    votes: dict[Parts, Counter[Parts]] = defaultdict(Counter)
    for i, j in pairs.items():
        if _is_matrix(torch[i]):
            for mine in _modules(torch[i]):
                votes[mine].update(_modules(jax[j]))
    made = np.zeros((len(torch), len(jax)))
    for i, one in enumerate(torch):
        if not _modules(one):
            made[i] = [not _modules(other) for other in jax]
            continue
        near = next((votes[mine] for mine in _modules(one) if mine in votes), Counter())
        most = max(near.values(), default=1)
        for j, other in enumerate(jax):
            made[i, j] = next((near[theirs] / most for theirs in _modules(other) if theirs in near), -bool(near))
    return made


def _modules(owner: Owner) -> list[Parts]:
    """Return the modules around a layer, the nearest first, without the model itself."""
    return [owner.parts[:length] for length in range(len(owner.parts) - 1, 0, -1)]
