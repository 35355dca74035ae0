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
    """Return the blocks of both sides that are one, or nothing where both number them alike.

    Args:
        torch: Torch's layers, in the order of definition.
        jax: JAX's layers; the numbers in their names say the order.
    """
    for flat, staged, turned in ((jax, torch, False), (torch, jax, True)):
        for depth in _by_depth(staged):
            stages = {prefix[:-1] for prefix in depth}
            for family in _families(flat):
                if len(stages) > 1 and len(family) == len(depth) and _alike(family, depth):
                    found = list(zip(family.values(), depth.values(), strict=True))
                    return found if turned else [(one, other) for other, one in found]
    return []


def inside(parts: Parts) -> Parts:
    """Return the name of a layer in its block: after the first number that layers stand behind, in a list or a name.

    Example:
        >>> inside(("layer1", 0, "downsample", 0)), inside(("Bottleneck_4", "Conv_3")), inside(("head",))
        (('downsample', 0), ('Conv_3',), ('head',))
    """
    numbered = [at for at, part in enumerate(parts[:-1]) if _named(part)[1] is not None]
    lists = [at for at in numbered if isinstance(parts[at], int)]
    return parts[(lists or numbered)[0] + 1 :] if numbered else parts


def _alike(one: dict[Parts, Block], other: dict[Parts, Block]) -> bool:
    return [_sizes(block) for block in one.values()] == [_sizes(block) for block in other.values()]


def _sizes(block: Block) -> list[int]:
    return sorted(owner.main.leaf.size for owner in block)


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
