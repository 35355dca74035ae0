"""Layers of equal shapes, paired by their neighbours: a norm belongs to the convolution before it.

Linen numbers the layers of a module by class, in the order in which they are made (`Conv_0`, `BatchNorm_0`), and
torch's names (`bn1`, `downsample.1`) say nothing of that order. Where shapes tell the convolutions apart, the norms go
with them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from parity.models.weights.items import Owner
from parity.models.weights.matching import BESIDE, ORDER, Match, fits, together
from parity.models.weights.names import COUNTED
from parity.models.weights.tree import Parts

SIDES = (-1, 1)
"""A layer's neighbour is the one that is defined before it, or else the one after it, as in pre-activation blocks."""


def families(matches: Sequence[Match]) -> list[tuple[list[Match], bool]]:
    """Return, for each module of JAX and class of layers in it, its layers with their torch layers.

    Only where the layers beside them are of one class, are told apart by their shapes, and are as many. Beside each
    stands whether it is sure: a port may make its shortcut's convolution first and the norm of it last, so both sides
    must make the layers beside them in one order.
    """
    places = {one.torch.place: one.torch for one in matches}
    homes = _homes(matches)
    inside: dict[Parts, list[Owner]] = defaultdict(list)
    classes: dict[Parts, dict[str, list[Owner]]] = defaultdict(lambda: defaultdict(list))
    for one in matches:
        if one.torch.parts[:-1] in homes:
            inside[homes[one.torch.parts[:-1]]].append(one.torch)
        if one.jax.tokens and one.jax.tokens[-1][1] is not None:
            classes[one.jax.parts[:-1]][one.jax.tokens[-1][0].stem].append(one.jax)
    found = []
    for home, layers in classes.items():
        told = {stem: _told_by_shape(owners, inside[home]) for stem, owners in layers.items()}
        for stem, owners in layers.items():
            for other, known in told.items():
                if other == stem or len(known) != len(owners) or len(owners) < 2:
                    continue
                if made := _beside(owners, known, places, inside[home]):
                    found.append((made, [one.place for one in known] == sorted(one.place for one in known)))
                    break
    return found


def named_after(matches: Sequence[Match]) -> list[Match]:
    """Return layers that only their order tells apart, each with the torch layer beside the one it is named after.

    `expand_bn` belongs to `expand_conv`: where that is torch's `expand`, it is the norm beside it. A tree of sorted
    names, or a module of NNX that was merged, has no order of definition.
    """
    unsure = [one for one in matches if one.evidence in ("", ORDER) or one.rivals]
    known = [one for one in matches if not any(one is other for other in unsure)]
    places = {one.torch.place: one.torch for one in unsure}
    found: list[Match] = []
    for group in together(unsure):
        counts = Counter(word for one in group for word in _ends(one.jax))
        own = [{word for word in _ends(one.jax) if counts[word] == 1} for one in group]
        beside = [
            [one.torch.place for one in known if one.jax.parts[:-1] == layer.jax.parts[:-1] and _ends(one.jax) & words]
            for layer, words in zip(group, own, strict=True)
        ]
        if any(len(one) != 1 for one in beside):
            continue
        for side in reversed(SIDES):
            ours = [places.get(place + side) for (place,) in beside]
            if {id(one) for one in ours} == {id(one.torch) for one in group}:
                found += [Match(one, layer.jax, 0.0, BESIDE) for one, layer in zip(ours, group, strict=True) if one]
                break
    return found


def in_turns(matches: Sequence[Match]) -> list[list[Match]]:
    """Return the norms that Linen counted in a module, each with torch's beside the layer it is made after, or before.

    `BatchNorm_2` says nothing of which convolution it follows; that `Conv_2` was made just before it does. Only where
    all norms of a module have such a layer, on both sides of the comparison on the same side.

    Args:
        matches: What is paired so far; the order of JAX's layers is the order in which they were made.
    """
    ours, theirs = {one.torch.place: one.torch for one in matches}, {one.jax.place: one for one in matches}
    homes: dict[Parts, list[Match]] = defaultdict(list)
    for one in matches:
        if not _is_matrix(one.jax) and one.jax.parts and COUNTED.fullmatch(str(one.jax.parts[-1])):
            homes[one.jax.parts[:-1]].append(one)
    found: list[list[Match]] = []
    for home, norms in homes.items():
        for side in SIDES if len(norms) > 1 else ():
            made = []
            for one in norms:
                layer = theirs.get(one.jax.place + side)
                if layer is None or not _is_matrix(layer.jax) or layer.jax.parts[:-1] != home or not layer.evidence:
                    break
                norm = ours.get(layer.torch.place - side)
                if norm is None or _is_matrix(norm) or not fits(norm, one.jax):
                    break
                made.append(Match(norm, one.jax, 0.0, BESIDE))
            if {id(one.torch) for one in made} == {id(one.torch) for one in norms}:
                found.append(made)
                break
    return found


def _is_matrix(owner: Owner) -> bool:
    return sum(size > 1 for size in owner.main.leaf.shape) > 1


def _ends(owner: Owner) -> set[tuple[int, str]]:
    """Return the first and the last word of a layer's name, and which of them it is."""
    words = re.split(r"_|(?<=[a-z])(?=[A-Z])", str(owner.parts[-1]) if owner.parts else "")
    return {(0, words[0]), (-1, words[-1])} if len(words) > 1 else set()


def _homes(matches: Sequence[Match]) -> dict[Parts, Parts]:
    """Return in which JAX module the layers of a torch module are, by those whose partners are sure."""
    votes: dict[Parts, set[Parts]] = defaultdict(set)
    for one in matches:
        if one.evidence not in ("", ORDER) and not one.rivals:
            votes[one.torch.parts[:-1]].add(one.jax.parts[:-1])
    return {ours: next(iter(theirs)) for ours, theirs in votes.items() if len(theirs) == 1}


def _told_by_shape(theirs: Sequence[Owner], ours: Sequence[Owner]) -> list[Owner]:
    """Return the torch layers of one module in the order of the JAX layers' numbers, or nothing."""
    fitting = [[one for one in ours if fits(one, other)] for other in sorted(theirs, key=number)]
    found = [one for layers in fitting for one in layers]
    alone = all(len(layers) == 1 for layers in fitting) and len({id(one) for one in found}) == len(found)
    return found if alone else []


def _beside(
    theirs: Sequence[Owner], known: Sequence[Owner], places: dict[int, Owner], inside: Sequence[Owner]
) -> list[Match]:
    """Return the layers that are alike with the torch layers beside the known ones in one module, if one side fits."""
    found = []
    for side in SIDES:
        ours = [places.get(one.place - side) for one in known]
        pairs = [
            (one, other)
            for one, other in zip(ours, sorted(theirs, key=number), strict=True)
            if one is not None and any(one is layer for layer in inside) and fits(one, other)
        ]
        if len(pairs) == len(theirs) and not {id(one) for one, _ in pairs} & {id(one) for one in known}:
            found.append([Match(one, other, 0.0, BESIDE) for one, other in pairs])
    return found[0] if len(found) == 1 else []


def number(owner: Owner) -> int:
    """Return the number at the end of a layer's name, or 0."""
    return owner.tokens[-1][1] or 0
