"""Blocks that a pairing crosses: the pairing of one layer contradicts that of another.

Names and numbers are read layer by layer. If they send two layers of one block to two blocks, or the blocks of a stage
to blocks in another order, they are not used. Then only values, or the user, can decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from parity.models.weights import blocks
from parity.models.weights.items import Owner
from parity.models.weights.matching import BESIDE, VALUES, Match, exchangeable, together
from parity.models.weights.tree import Parts

Pair = tuple[Parts, Parts]


def crossed(matches: Sequence[Match]) -> list[list[Match]]:
    """Return the layers, those that could be exchanged together, whose pairing contradicts itself."""
    inside: dict[Pair, list[Match]] = defaultdict(list)
    for one in matches:
        ours, theirs = _block(one.torch), _block(one.jax)
        if ours and theirs and one.evidence not in (VALUES, BESIDE):
            inside[ours, theirs].append(one)
    doubtful = [one for pair in _spread(list(inside)) | _turned(list(inside)) for one in inside[pair]]
    return together(doubtful, lambda one, other: _in_name(one) == _in_name(other) and exchangeable(one, other))


def _block(owner: Owner) -> Parts:
    return owner.parts[: len(owner.parts) - len(blocks.inside(owner.parts))]


def _in_name(one: Match) -> Parts:
    return blocks.inside(one.torch.parts)


def _spread(pairs: Sequence[Pair]) -> set[Pair]:
    """Return the pairs of blocks of which each has layers in another block of the other side as well."""
    ours, theirs = defaultdict(set), defaultdict(set)
    for mine, other in pairs:
        ours[mine, _family(other)].add(other)
        theirs[other].add(mine)
    return {(mine, other) for mine, other in pairs if len(ours[mine, _family(other)]) > 1 and len(theirs[other]) > 1}


def _turned(pairs: Sequence[Pair]) -> set[Pair]:
    """Return the pairs of blocks of one stage whose numbers go up on one side and down on the other."""
    stages: dict[object, list[Pair]] = defaultdict(list)
    for mine, other in pairs:
        stages[_family(mine), _family(other)].append((mine, other))
    return {
        pair
        for stage in stages.values()
        for pair in stage
        if any(
            (blocks.number(pair[0]) - blocks.number(one[0])) * (blocks.number(pair[1]) - blocks.number(one[1])) < 0
            for one in stage
        )
    }


def _family(block: Parts) -> tuple[Parts, str]:
    return block[:-1], blocks.stem(block)
