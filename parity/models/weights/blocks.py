"""Blocks that one side numbers throughout and the other by stages: `Bottleneck_4` is `layer2.1`.

Names would pair the numbers. Where the blocks of both sides, in order, hold layers of the same sizes, the order
decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from parity.models.weights.items import Owner
from parity.models.weights.names import word
from parity.models.weights.tree import Parts

Block = list[Owner]


def paired(torch: Sequence[Owner], jax: Sequence[Owner]) -> list[tuple[Block, Block]]:
    """Return the blocks of both sides that are one, or nothing where both number them alike or more than one fits.

    The stages must be numbered too, in one module: names alone have no order in a dict that JAX has sorted.

    Args:
        torch: Torch's layers, in the order of definition.
        jax: JAX's layers; the numbers in their names say the order.
    """
    found = []
    for flat, staged, turned in ((jax, torch, False), (torch, jax, True)):
        own = [*_families(staged)]
        for depth in _by_depth(staged):
            if not _numbered_stages(depth) or any(_alike(family, depth) for family in own):
                continue
            if any(_alike(other, depth) for other in _by_depth(flat) if len({name[:-1] for name in other}) > 1):
                continue
            for family in (family for family in _families(flat) if _alike(family, depth)):
                pairs = list(zip(family.values(), depth.values(), strict=True))
                found.append(pairs if turned else [(one, other) for other, one in pairs])
    return found[0] if len(found) == 1 else []


def _numbered_stages(depth: dict[Parts, Block]) -> bool:
    """Return whether blocks lie in several modules that are told apart by their numbers alone."""
    stages = {prefix[:-1] for prefix in depth}
    if len(stages) < 2 or not all(stages):
        return False
    read = [_named(stage[-1]) for stage in stages]
    return len({stage[:-1] for stage in stages}) == 1 == len({stem for stem, _ in read}) and None not in {
        number for _, number in read
    }


def kind(parts: Parts) -> Parts:
    """Return what is before a layer's name in its block, without numbers.

    Example:
        >>> kind(("layer1", 0, "downsample", 0)), kind(("Bottleneck_4", "Conv_3"))
        (('layer', ''), ('bottleneck',))
    """
    return tuple(_named(part)[0] for part in parts[: len(parts) - len(inside(parts))])


def inside(parts: Parts) -> Parts:
    """Return the name of a layer in its block: after the first number that layers stand behind, in a list or a name.

    Example:
        >>> inside(("layer1", 0, "downsample", 0)), inside(("Bottleneck_4", "Conv_3")), inside(("head",))
        (('downsample', 0), ('Conv_3',), ('head',))
    """
    numbered = [at for at, part in enumerate(parts[:-1]) if _named(part)[1] is not None]
    lists = [at for at in numbered if isinstance(parts[at], int)]
    return parts[(lists or numbered)[0] + 1 :] if numbered else parts


def stem(block: Parts) -> str:
    """Return the name of a numbered module without its number: "" in a list."""
    return _named(block[-1])[0]


def number(block: Parts) -> int:
    """Return the number of a numbered module."""
    return _named(block[-1])[1] or 0


def _alike(one: dict[Parts, Block], other: dict[Parts, Block]) -> bool:
    return len(one) == len(other) and all(map(_same_sizes, one.values(), other.values()))


def _same_sizes(one: Block, other: Block) -> bool:
    ours, theirs = (sorted(owner.main.leaf.size for owner in block) for block in (one, other))
    return ours == theirs


def _families(owners: Sequence[Owner]) -> list[dict[Parts, Block]]:
    """Return the numbered modules of one name in one module, in the order of their numbers."""
    found: dict[tuple[Parts, str], dict[Parts, Block]] = defaultdict(dict)
    for depth in _by_depth(owners):
        for prefix, block in depth.items():
            found[prefix[:-1], _named(prefix[-1])[0]][prefix] = block
    return list(found.values())


def _by_depth(owners: Sequence[Owner]) -> list[dict[Parts, Block]]:
    """Return the numbered modules that hold several layers, those of one depth together, in order."""
    found: dict[int, dict[Parts, Block]] = defaultdict(lambda: defaultdict(list))
    for owner in owners:
        for depth in range(1, len(owner.parts)):
            if _named(owner.parts[depth - 1])[1] is not None:
                found[depth][owner.parts[:depth]].append(owner)
    return [
        {prefix: blocks[prefix] for prefix in sorted(blocks, key=lambda parts: [*map(_key, parts)])}
        for blocks in (
            {prefix: block for prefix, block in blocks.items() if len(block) > 1} for blocks in found.values()
        )
        if len(blocks) > 1
    ]


def _named(part: str | int) -> tuple[str, int | None]:
    if isinstance(part, int):
        return "", part
    read = word(part)
    return read.stem, read.number


def _key(part: str | int) -> tuple[str, int]:
    stem, number = _named(part)
    return stem, -1 if number is None else number
