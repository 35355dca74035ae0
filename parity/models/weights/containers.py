"""Layers of equal shapes, paired by the modules around them: a block that holds what the other side's block holds.

Linen counts modules by class (`PreNorm_0`, `Attention_0`), and a tree of variables that was mapped is sorted by name,
so that nothing says which norm is made before which attention. The modules whose other layers are paired say it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from parity.models.weights.items import Owner
from parity.models.weights.matching import BESIDE, ORDER, Match, fits
from parity.models.weights.names import COUNTED
from parity.models.weights.tree import Parts, shared_path


def settle(members: Sequence[Match], settled: Sequence[Match]) -> bool:
    """Pair the members anew, each in the module that holds it on both sides; return whether that settled it.

    Several in one module go by their numbers, where only these tell them apart.

    Args:
        members: Layers that could be exchanged.
        settled: Layers whose partners are known.
    """
    partners = _partners(settled)
    known = set(partners.values())
    homes = [_deepest(one.jax.parts, known) for one in members]
    inside: dict[Parts, tuple[list[Owner], list[Owner]]] = defaultdict(lambda: ([], []))
    for one, home in zip(members, homes, strict=True):
        inside[home][1].append(one.jax)
        around = (partners[prefix] for prefix in _prefixes(one.torch.parts) if prefix in partners)
        inside[next((home for home in around if home in homes), ())][0].append(one.torch)
    chosen: dict[int, tuple[Owner, str]] = {}
    for ours, theirs in inside.values():
        for group, other in _by_kind(ours, theirs):
            # With no module known nothing says that the numbers of both sides are one count.
            numbered = len(group) == 1 or (partners and _listed(group) and _counted(other))
            if len(group) != len(other) or not numbered:
                return False
            group, other = sorted(group, key=lambda one: one.place), sorted(other, key=_numbers)
            if not all(map(fits, group, other)):
                return False
            evidence = BESIDE if len(group) == 1 else ORDER
            chosen |= {id(one): (layer, evidence) for one, layer in zip(group, other, strict=True)}
    if len(chosen) != len(members):
        return False
    for one in members:
        one.jax, one.evidence = chosen[id(one.torch)]
        one.rivals = []
    return True


def by_number(members: Sequence[Match]) -> bool:
    """Return whether layers that could be exchanged are told apart by their numbers alone, on both sides."""
    sides = [one.torch for one in members], [one.jax for one in members]
    return all(one.evidence for one in members) and all(len({_stems(one) for one in side}) == 1 for side in sides)


def of_blocks(members: Sequence[Match]) -> bool:
    """Return whether layers are one in each of several blocks, which both sides number alike, and are paired so."""
    if not by_number(members):
        return False
    numbers = [(_numbers(one.torch), _numbers(one.jax)) for one in members]
    inner = all(ours[:-1].count(-1) < len(ours) - 1 and len(theirs) > 1 for ours, theirs in numbers)
    return inner and len({ours[-1] for ours, _ in numbers}) == 1 == len({theirs[-1] for _, theirs in numbers})


def _by_kind(ours: Sequence[Owner], theirs: Sequence[Owner]) -> list[tuple[list[Owner], list[Owner]]]:
    """Return layers by their names without numbers, with those that are as many; all together where two are as many."""
    kinds: list[dict[tuple[str, ...], list[Owner]]] = [defaultdict(list), defaultdict(list)]
    for side, owners in zip(kinds, (ours, theirs), strict=True):
        for one in owners:
            side[_stems(one)].append(one)
    sizes = [{len(group): group for group in side.values()} for side in kinds]
    if set(sizes[0]) != set(sizes[1]) or any(len(found) != len(side) for found, side in zip(sizes, kinds, strict=True)):
        return [(list(ours), list(theirs))]
    return [(group, sizes[1][count]) for count, group in sizes[0].items()]


def _partners(settled: Sequence[Match]) -> dict[Parts, Parts]:
    """Return the JAX module of each torch module whose layers are all in it, and no others."""
    below: dict[Parts, list[Owner]] = defaultdict(list)
    back: dict[Parts, Counter[int]] = defaultdict(Counter)
    for one in settled:
        for prefix in _prefixes(one.torch.parts):
            below[prefix].append(one.jax)
        for prefix in _prefixes(one.jax.parts):
            back[prefix][id(one.jax)] += 1
    found = {}
    for ours, owners in below.items():
        shared = shared_path([owner.parts[:-1] for owner in owners])
        if shared and set(back[shared]) == {id(owner) for owner in owners}:
            found[ours] = shared
    return found


def _prefixes(parts: Parts) -> list[Parts]:
    """Return the paths of the modules around a layer, the nearest first."""
    return [parts[:length] for length in range(len(parts) - 1, 0, -1)]


def _deepest(parts: Parts, known: set[Parts]) -> Parts:
    return next((prefix for prefix in _prefixes(parts) if prefix in known), ())


def _listed(owners: Sequence[Owner]) -> bool:
    """Return whether layers are told apart by their numbers alone, and defined in the order of these."""
    ordered = sorted(owners, key=lambda one: one.place)
    numbers = [_numbers(one) for one in ordered]
    return len({_stems(one) for one in owners}) == 1 and numbers == sorted(numbers)


def _counted(owners: Sequence[Owner]) -> bool:
    """Return whether the names that tell layers apart are those that Linen counted."""
    parts = {len(one.parts) for one in owners}
    if len(parts) != 1 or len({_stems(one) for one in owners}) != 1:
        return False
    columns = zip(*(one.parts for one in owners), strict=True)
    return all(len(set(names)) == 1 or all(COUNTED.fullmatch(str(name)) for name in names) for names in columns)


def _stems(owner: Owner) -> tuple[str, ...]:
    return tuple(word.stem for word, _ in owner.tokens)


def _numbers(owner: Owner) -> list[int]:
    return [-1 if number is None else number for _, number in owner.tokens]
