"""Weights made comparable: stacked ones taken apart, fused ones split where the other side is split, then by layer."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from parity.models.weights.names import THREE, VALUE, Word, plain, role_of, words
from parity.models.weights.tree import BUFFER, Leaf, Parts, Step, View, shared_path

FUSED = {"qkv": ("query", "key", "value"), "kv": ("key", "value"), "gate_up": ("gate", "up")}
"""Fused projections: the parts, in their order along the output axis."""


@dataclass(frozen=True)
class Item:
    """A weight or a part of one that is to be paired: `leaf` has the part's shape and name."""

    leaf: Leaf
    view: View

    @property
    def owner(self) -> Parts:
        return role_of(self.leaf.parts)[0]

    @property
    def role(self) -> str:
        return role_of(self.leaf.parts)[1]


def items_of(leaves: Mapping[str, Leaf]) -> list[Item]:
    """Return every weight as an item; integers (counters, positions) are none."""
    found = [
        Item(leaf, View(name)) for name, leaf in leaves.items() if leaf.dtype.startswith(("float", "bfloat", "complex"))
    ]
    return _named_pairs(found)


def _named_pairs(items: list[Item]) -> list[Item]:
    """Read a list or tuple of a matrix and a vector as a layer's weight and bias: the tutorial's `[(w, b), ...]`."""
    inside: dict[Parts, list[Item]] = defaultdict(list)
    for item in items:
        inside[item.leaf.parts[:-1]].append(item)
    names: dict[str, str] = {}
    for members in inside.values():
        if len(members) == 2 and all(isinstance(item.leaf.parts[-1], int) for item in members):
            large, small = sorted(members, key=lambda item: -len(item.leaf.shape))
            if len(large.leaf.shape) > 1 and len(small.leaf.shape) == 1 and small.leaf.shape[0] in large.leaf.shape:
                names |= {large.leaf.name: "w", small.leaf.name: "b"}
    return [
        Item(replace(item.leaf, parts=(*item.leaf.parts[:-1], names[item.leaf.name])), item.view)
        if item.leaf.name in names
        else item
        for item in items
    ]


@dataclass
class Owner:
    """A layer: its weights by role, and its path in words and numbers."""

    parts: Parts
    tokens: tuple[tuple[Word, int | None], ...]
    place: int
    items: dict[str, Item] = field(default_factory=dict)
    alias: bool = False
    ranks: tuple[int, ...] = ()

    @property
    def main(self) -> Item:
        return max(self.items.values(), key=lambda item: (item.leaf.size, item.role in ("weight", VALUE)))

    @property
    def optional(self) -> bool:
        return all(item.leaf.kind == BUFFER for item in self.items.values())

    @property
    def concept(self) -> str:
        return self.tokens[-1][0].concept if self.tokens else ""

    def __str__(self) -> str:
        return ".".join(map(str, self.parts))


def owners_of(items: Iterable[Item]) -> list[Owner]:
    """Return the layers that own the weights, each tied weight's other names as weights of theirs."""
    found: dict[Parts, Owner] = {}
    for item in items:
        for parts in (item.leaf.parts, *item.leaf.aliases):
            path, role = role_of(parts)
            alias = parts is not item.leaf.parts
            key = path if role not in getattr(found.get(path), "items", {}) else parts
            if key not in found:
                found[key] = Owner(path if key != parts else parts, _tokens(words(path)), len(found), alias=alias)
            found[key].items.setdefault(role, item)
            found[key].alias &= alias
    owners = list(found.values())
    _name_three(owners)
    ranked(owners)
    return owners


def _name_three(owners: Sequence[Owner]) -> None:
    """Read `w1`, `w2` and `w3` of one module as Llama's gate, down and up."""
    inside: dict[Parts, dict[str, Owner]] = defaultdict(dict)
    for owner in owners:
        if owner.parts and owner.parts[-1] in THREE:
            inside[owner.parts[:-1]][str(owner.parts[-1])] = owner
    for members in inside.values():
        for name, owner in members.items() if members.keys() == THREE.keys() else ():
            last, number = owner.tokens[-1]
            owner.tokens = (*owner.tokens[:-1], (replace(last, concept=THREE[name]), number))


def tokens_of(parts: Parts) -> tuple[tuple[Word, int | None], ...]:
    """Return a path in words and numbers."""
    return _tokens(words(parts))


def _tokens(parts: Sequence[Word | int]) -> tuple[tuple[Word, int | None], ...]:
    """Return the words of a path, each with its number: "layers", 3 and "layers_3" are alike."""
    tokens: list[tuple[Word, int | None]] = []
    for part in parts:
        if isinstance(part, Word):
            tokens.append((part, part.number))
        elif tokens and tokens[-1][1] is None:
            tokens[-1] = (tokens[-1][0], part)
        else:
            tokens.append((NOTHING, part))
    return tuple(tokens)


NOTHING = Word("", "", None)


def ranked(owners: list[Owner]) -> None:
    """Number the numbers of every path from 0, among siblings: Sequential's 0, 2, 4 are 0, 1, 2."""
    siblings: dict[tuple[object, ...], set[int]] = defaultdict(set)

    def keys(owner: Owner) -> list[tuple[object, ...]]:
        made: list[tuple[object, ...]] = []
        before: tuple[object, ...] = ()
        for place, (word, number) in enumerate(owner.tokens):
            last = place == len(owner.tokens) - 1
            kind = (len(owner.items), min(len(owner.main.leaf.shape), 2)) if last else ()
            made.append((before, word.stem, kind))
            before = (*before, word.stem, number)
        return made

    for owner in owners:
        for key, (_, number) in zip(keys(owner), owner.tokens, strict=True):
            siblings[key].add(-1 if number is None else number)
    for owner in owners:
        owner.ranks = tuple(
            sorted(siblings[key]).index(-1 if number is None else number)
            for key, (_, number) in zip(keys(owner), owner.tokens, strict=True)
        )


def unstacked(items: list[Item], others: list[Item]) -> list[Item]:
    """Take stacked weights apart: those under one path that all have a leading axis of as many as torch's layers.

    Args:
        items: The JAX side.
        others: The torch side.
    """
    counts = _repeats(others)
    sizes = {item.leaf.size for item in others}
    ranked = {(item.leaf.size, _rank_of(item.leaf.shape)) for item in others}
    made: list[list[Item]] = [[item] for item in items]
    places = {item.leaf.name: place for place, item in enumerate(items)}
    done: set[str] = set()
    for prefix in _prefixes(items):
        inside = [item for item in items if item.leaf.parts[: len(prefix)] == prefix and item.leaf.name not in done]
        lengths = {item.leaf.shape[0] if item.leaf.shape else 0 for item in inside}
        length = next(iter(lengths)) if len(lengths) == 1 else 0
        if length not in counts or len(inside) < 2 - bool(prefix):
            continue
        prefix = shared_path([item.leaf.parts[:-1] for item in inside])
        # By chance two layers of width 12 have as many numbers as one of 24: as many axes are no chance.
        stacked = [
            sum((item.leaf.size // length, _rank_of(item.leaf.shape[1:])) in ranked for item in inside),
            sum(item.leaf.size // length in sizes for item in inside),
        ]
        single = [
            sum((item.leaf.size, _rank_of(item.leaf.shape)) in ranked for item in inside),
            sum(item.leaf.size in sizes for item in inside),
        ]
        if stacked <= single:
            continue
        for item in inside:
            done.add(item.leaf.name)
            made[places[item.leaf.name]] = []
        made[places[inside[0].leaf.name]] = [
            _layer_of_stack(item, len(prefix), number) for number in range(length) for item in inside
        ]
    for place, item in enumerate(items):  # experts beside a router: what is around them is no stack
        length = item.leaf.shape[0] if item.leaf.shape else 0
        layer = (item.leaf.size // max(length, 1), _rank_of(item.leaf.shape[1:]))
        if made[place] == [item] and length in counts and item.leaf.size not in sizes and layer in ranked:
            made[place] = [_layer_of_stack(item, len(item.leaf.parts) - 1, number) for number in range(length)]
    return [item for group in made for item in group]


def _rank_of(shape: tuple[int, ...]) -> int:
    return sum(length != 1 for length in shape)


def _layer_of_stack(item: Item, place: int, number: int) -> Item:
    leaf = item.leaf
    parts = (*leaf.parts[:place], number, *leaf.parts[place:])
    return Item(replace(leaf, parts=parts, shape=leaf.shape[1:], aliases=()), item.view.then(("index", 0, number, 0)))


def _prefixes(items: list[Item]) -> list[Parts]:
    """Return every path above a weight, the shortest first."""
    found = {item.leaf.parts[:length] for item in items for length in range(len(item.leaf.parts))}
    return sorted(found, key=lambda parts: (len(parts), str(parts)))


def _repeats(items: list[Item]) -> set[int]:
    """Return how often layers repeat: the numbers of entries of the lists of a model."""
    lists: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for item in items:
        tokens = _tokens(words(item.owner))
        for place, (word, number) in enumerate(tokens):
            if number is not None:
                lists[(tokens[:place], word.stem)].add(number)
    return {len(numbers) for numbers in lists.values()}


def split_fused(
    items: list[Item], others: list[Item], *, torch: bool,
    values: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] = ({}, {}),
) -> list[Item]:  # fmt: skip
    """Split the fused projections of one side where the other side has none of the same kind.

    Args:
        items: The side to split.
        others: The other side.
        torch: Whether `items` are torch's.
        values: Of both sides, by name: they say whether each head has its own queries, keys and values together.
    """
    theirs = Counter(_concept(item) for item in others)
    heads = _Heads(others, *values)
    made: list[list[Item]] = [[] for _ in items]
    for place, item in sorted(enumerate(items), key=lambda one: -one[1].leaf.size):
        concept = _concept(item)
        names = FUSED.get(concept, ())
        if not names or theirs[concept] or not all(theirs[name] for name in names):
            made[place] = [item]
            continue
        made[place] = _split(item, names, others, torch=torch, heads=heads) or [item]
    return [one for group in made for one in group]


PART = re.compile(r"(.*?)_?(real|imag|re|im)", re.I)
"""The name of a complex weight that is kept in two, and which part of it this is."""


def split_complex(items: list[Item], others: list[Item]) -> list[Item]:
    """Split weights of pairs (real, imaginary) along their last axis where the other side keeps the parts apart.

    Args:
        items: The side to split: `C` of shape (h, n, 2), torch's `view_as_real`.
        others: The other side: `C_re` and `C_im` of shape (h, n).
    """
    theirs: dict[tuple[str, tuple[int, ...]], set[str]] = defaultdict(set)
    names: dict[tuple[str, tuple[int, ...], str], str] = {}
    for item in others:
        if found := PART.fullmatch(str(item.leaf.parts[-1])):
            key, part = (plain(found[1]), item.leaf.shape), found[2][0].lower()
            theirs[key].add(part)
            names[*key, part] = str(item.leaf.parts[-1])
    made: list[Item] = []
    for item in items:
        leaf = item.leaf
        key = plain(str(leaf.parts[-1])), leaf.shape[:-1]
        if leaf.shape[-1:] != (2,) or theirs[key] != {"r", "i"}:
            made.append(item)
            continue
        for number, part in enumerate("ri"):
            parts, step = (*leaf.parts[:-1], names[*key, part]), ("index", len(leaf.shape) - 1, number, 0)
            made.append(Item(replace(leaf, parts=parts, shape=leaf.shape[:-1], aliases=()), item.view.then(step)))
    return made


class _Heads:
    """Tells by values into how many heads a fused projection is cut before it is cut into queries, keys and values."""

    def __init__(self, others: list[Item], ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
        self.ours, self.theirs, self.others = ours, theirs, others
        self.known: dict[str, set[tuple[int, int, int]]] = {}
        self.decided: dict[Parts, int] = {}

    def of(self, item: Item, axis: int, names: Sequence[str], sizes: Sequence[int]) -> int:
        """Return the number of heads that each have a part of each kind; 1 where the parts lie one after the other."""
        if item.owner in self.decided:  # the matrix comes first: a bias may be zero, and says nothing
            return self.decided[item.owner]
        self.decided[item.owner] = self._found(item, axis, names, sizes)
        return self.decided[item.owner]

    def _found(self, item: Item, axis: int, names: Sequence[str], sizes: Sequence[int]) -> int:
        whole = self.ours.get(item.view.name)
        if whole is None or len(set(sizes)) != 1:
            return 1
        for heads in (count for count in range(1, min(sizes[0], MOST_HEADS) + 1) if sizes[0] % count == 0):
            part = item.view.then(("heads", axis, 0, len(names), heads)).of(whole)
            if _numbers(part) in self._of_concept(names[0]):
                return heads
        return 1

    def _of_concept(self, name: str) -> set[tuple[int, int, int]]:
        if name not in self.known:
            self.known[name] = {
                _numbers(item.view.of(self.theirs[item.view.name])) for item in self.others if _concept(item) == name
            }
        return self.known[name]


MOST_HEADS = 256


def _numbers(array: np.ndarray) -> tuple[int, int, int]:
    """Return what arrays have in common that hold the same numbers, in whatever order."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return array.size, int(bits.sum(dtype=np.uint64)), int((bits * bits).sum(dtype=np.uint64))


def _concept(item: Item) -> str:
    tokens = words(item.owner)
    last = next((part for part in reversed(tokens) if isinstance(part, Word)), NOTHING)
    return last.concept


def _split(item: Item, names: Sequence[str], others: list[Item], *, torch: bool, heads: _Heads) -> list[Item]:
    leaf = item.leaf
    vector = item.role != "weight" or len(leaf.shape) == 1
    if leaf.shape[0] == len(names) and vector and not torch:  # bias (3, heads, size)
        axis, sizes = 0, None
    elif not torch and len(leaf.shape) >= 4 and leaf.shape[1] == len(names):  # kernel (in, 3, heads, size)
        axis, sizes = 1, None
    else:
        axis = 0 if vector else _output_axis(leaf, torch=torch)
        sizes = _sizes(item, axis, names, others)
        if sizes is None:
            return []
    made, start = [], 0
    count = 1 if sizes is None else heads.of(item, axis, names, sizes)
    base = item.owner[:-1] if not isinstance(item.owner[-1], int) else item.owner[:-2]
    for number, name in enumerate(names):
        step: Step
        if sizes is None:
            step = ("index", axis, number, 0)
            shape = leaf.shape[:axis] + leaf.shape[axis + 1 :]
        else:
            step = ("rows", axis, start, start + sizes[number])
            if count > 1:
                step = ("heads", axis, number, len(names), count)
            shape = (*leaf.shape[:axis], sizes[number], *leaf.shape[axis + 1 :])
            start += sizes[number]
        own = "weight" if torch and item.role == "weight" else "bias" if torch else str(leaf.parts[-1])
        own = own if own in ("weight", "kernel", "bias", "w", "b") else item.role
        made.append(Item(replace(leaf, parts=(*base, name, own), shape=shape, aliases=()), item.view.then(step)))
    return made


def _output_axis(leaf: Leaf, *, torch: bool) -> int:
    """Return the axis along which the parts of a fused matrix lie."""
    if torch:
        return 1 if leaf.layer == "Conv1D (transformers)" else 0
    return 0 if leaf.layer == "Linear" and str(leaf.parts[-1]) == "weight" else len(leaf.shape) - 1


def _sizes(item: Item, axis: int, names: Sequence[str], others: list[Item]) -> list[int] | None:
    """Return the sizes of the parts: those of the other side's layers, where they add up, or equal ones."""
    total = item.leaf.shape[axis]
    rest = item.leaf.size // max(total, 1)
    theirs: dict[str, int] = {}
    for other in others:
        concept = _concept(other)
        if concept in names and other.role == item.role and other.leaf.size % max(rest, 1) == 0:
            theirs.setdefault(concept, other.leaf.size // max(rest, 1))
    sizes = [theirs.get(name, 0) for name in names]
    if sum(sizes) == total and all(sizes):
        return sizes
    return [total // len(names)] * len(names) if total % len(names) == 0 else None
