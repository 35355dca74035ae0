"""Recurrent cells: torch keeps the gates of one layer in four arrays, the JAX frameworks in three other ways."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.models.weights.items import Item, Owner, ranked, tokens_of
from parity.models.weights.layouts import LAYOUTS, Layout
from parity.models.weights.matching import NAMES, SHAPE, match
from parity.models.weights.pairs import Sum, WeightPair, one_to_one
from parity.models.weights.tree import Parts, View

GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n")}
"""Torch's order of the gates along the first axis; Equinox's and Flax's fused cells have the same."""
KINDS = {"LSTM": "LSTM", "LSTMCell": "LSTM", "GRU": "GRU", "GRUCell": "GRU"}
NO_BIAS = "nnx.GRUCell has no bias of the new gate's hidden part: this one cannot be expressed in it (flax #5594)"


@dataclass
class Cell:
    """One layer and direction of a recurrent module, of either side: its arrays by their names in it."""

    kind: str
    place: Parts
    items: dict[str, Item] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the sizes of input and state."""
        found = {name: item.leaf.shape for name, item in self.items.items()}
        state = next(min(shape) for name, shape in found.items() if name in HIDDEN)
        gates = len(GATES[self.kind]) * state

        def size(name: str, shape: tuple[int, ...]) -> int:  # weights are (gates x state, size), kernels (size, ...)
            told = gates if name in FUSED else state
            return shape[1] if shape[0] == told and (shape[1] != told or name.startswith("weight")) else shape[0]

        return next(size(name, shape) for name, shape in found.items() if name in INPUT), state

    @property
    def direction(self) -> str:
        """Return "backward" or "forward" where the place says so, or an empty text."""
        text = ".".join(map(str, self.place)).lower()
        return next(
            (name for name, words in DIRECTIONS.items() if re.search(rf"(?<![a-z])({words})(?![a-z])", text)), ""
        )


DIRECTIONS = {"backward": "backward|bwd?|rev|reversed?|r2l", "forward": "forward|fwd?|l2r"}
FUSED = ("weight_ih", "weight_hh", "dense_i.kernel", "dense_h.kernel")
HIDDEN = ("weight_hh", "dense_h.kernel", "hi.kernel", "hr.kernel")
INPUT = ("weight_ih", "dense_i.kernel", "ii.kernel", "ir.kernel")
WHICH = "the names do not say which cell of the other side it is, and the order of a sorted dict says nothing"


def paired(
    ours: list[Item], theirs: list[Item], *, ordered: bool
) -> tuple[list[WeightPair], list[Item], list[Item], dict[str, str]]:
    """Pair the recurrent cells of both sides, and return the pairs, what is left of both, and what cannot be paired.

    Args:
        ours: Torch's weights.
        theirs: JAX's weights.
        ordered: Whether the order of JAX's is the order of definition.
    """
    torch, jax = _torch_cells(ours), _jax_cells(theirs)
    pairs: list[WeightPair] = []
    done: set[int] = set()
    lost: dict[str, str] = {}
    for kind in GATES:
        left = [cell for cell in jax if cell.kind == kind]
        mine = [cell for cell in torch if cell.kind == kind]
        for one, other, evidence in _matched(mine, left, ordered=ordered):
            done |= {id(item) for cell in (one, other) for item in cell.items.values()}
            if not evidence:
                lost |= {item.leaf.name: WHICH for item in one.items.values()}
                continue
            made, gone = _pairs(one, other, evidence)
            pairs += made
            lost |= gone
    return pairs, [i for i in ours if id(i) not in done], [i for i in theirs if id(i) not in done], lost


def _matched(torch: Sequence[Cell], jax: Sequence[Cell], *, ordered: bool) -> list[tuple[Cell, Cell, str]]:
    """Return which cell is which, by sizes, direction and names, and what decided it: nothing where nothing did."""
    told = any(cell.direction for cell in jax)
    owners = [
        [_owner(cell, place, number) for place, (cell, number) in enumerate(zip(cells, numbers, strict=True))]
        for cells, numbers in ((torch, _numbers(torch, flat=not told)), (jax, [None] * len(jax)))
    ]
    for side in owners:
        ranked(side)
    fits = np.array([[one.sizes == other.sizes for other in jax] for one in torch]).reshape(len(torch), len(jax))
    agree = np.array([[one.direction == other.direction for other in jax] for one in torch], float).reshape(fits.shape)
    found = match(*owners, ordered=ordered, compatible=fits, bonus=agree if told else None)
    made = []
    for one in found:
        i, j = one.torch.place, one.jax.place
        directed = (
            told
            and fits[i].sum() > 1
            and (fits[i] & (agree[i] > 0)).sum() == 1 == (fits[:, j] & (agree[:, j] > 0)).sum()
        )
        made.append((torch[i], jax[j], NAMES if one.evidence == SHAPE or directed else one.evidence))
    return made


def _owner(cell: Cell, place: int, number: int | None) -> Owner:
    parts = (*cell.place[:-2], number) if number is not None else cell.place
    return Owner(parts, tokens_of(parts), place, dict(cell.items))


def _numbers(cells: Sequence[Cell], *, flat: bool) -> list[int]:
    """Return the number of each of torch's cells: of its layer, or counted with its directions."""
    both = {cell.place[:-2] for cell in cells if cell.place[-1] == "backward"}
    return [
        2 * number + (cell.place[-1] == "backward") if flat and cell.place[:-2] in both else number
        for cell in cells
        for number in (int(cell.place[-2]),)
    ]


def _torch_cells(items: Sequence[Item]) -> list[Cell]:
    cells: dict[Parts, Cell] = {}
    for item in items:
        found = re.fullmatch(r"((?:weight|bias)_[ih]h)(?:_l(\d+))?(_reverse)?", str(item.leaf.parts[-1]))
        if found and item.leaf.layer in KINDS:
            place = (*item.leaf.parts[:-1], int(found[2] or 0), "backward" if found[3] else "forward")
            cell = cells.setdefault(place, Cell(KINDS[item.leaf.layer], place))
            cell.items[found[1]] = item
    return list(cells.values())


def _jax_cells(items: Sequence[Item]) -> list[Cell]:
    by_place: dict[Parts, dict[str, Item]] = {}
    for item in items:
        parts = item.leaf.parts
        if own := OWN.get(str(parts[-1]).lower()):
            by_place.setdefault(parts[:-1], {})[own] = item
        if len(parts) > 1:
            name = f"{str(parts[-2]).removesuffix('_')}.{parts[-1]}"
            by_place.setdefault(parts[:-2], {})[name] = item
    cells = []
    for place, found in by_place.items():
        kind = _kind(found)
        if kind:
            names = _names(kind)
            cells.append(Cell(kind, place, {name: item for name, item in found.items() if name in names}))
    return cells


OWN = {name: name for name in ("weight_ih", "weight_hh", "bias", "bias_ih", "bias_hh", "bias_n")} | {
    **dict.fromkeys(("w_ih", "kernel_ih", "wih"), "weight_ih"),
    **dict.fromkeys(("w_hh", "kernel_hh", "whh"), "weight_hh"),
    **{"b": "bias", "b_ih": "bias_ih", "b_hh": "bias_hh", "bih": "bias_ih", "bhh": "bias_hh"},
}
"""What cells that people write call their weights."""


def _kind(found: dict[str, Item]) -> str:
    if {"ii.kernel", "hf.kernel", "ig.kernel", "ho.kernel"} <= found.keys():
        return "LSTM"
    if {"ir.kernel", "hz.kernel", "in.kernel", "hn.kernel"} <= found.keys():
        return "GRU"
    for hidden in ("weight_hh", "dense_h.kernel"):
        if hidden in found and len(found[hidden].leaf.shape) == 2:
            return {4: "LSTM", 3: "GRU"}.get(max(found[hidden].leaf.shape) // min(found[hidden].leaf.shape), "")
    return ""


def _names(kind: str) -> set[str]:
    split = {f"{side}{gate}.{own}" for side in "ih" for gate in GATES[kind] for own in ("kernel", "bias")}
    fused = {f"dense_{side}.{own}" for side in "ih" for own in ("kernel", "bias")}
    return {*split, *fused, *OWN.values()}


def _pairs(torch: Cell, jax: Cell, evidence: str) -> tuple[list[WeightPair], dict[str, str]]:
    state = torch.sizes[1]
    gates = GATES[torch.kind]
    whole = (0, len(gates) * state)
    made: list[WeightPair] = []
    lost: dict[str, str] = {}

    def weight(name: str, path: str, rows: tuple[int, int], layout: Layout) -> None:
        mine, other = torch.items[name], jax.items[path]
        view, shape = _rows(mine, rows)
        made.append(one_to_one(view, other.view, shape, other.leaf.shape, layout, evidence, mine.leaf.kind))

    def bias(names: Sequence[str], path: str, rows: tuple[int, int], into: tuple[int, int] | None = None) -> None:
        mine = [torch.items[name] for name in names if name in torch.items]
        if not mine or path not in jax.items:
            return
        views = [_rows(item, rows) for item in mine]
        other = jax.items[path]
        view, shape = _rows(other, into) if into else (other.view, other.leaf.shape)
        if len(views) == 1:
            made.append(one_to_one(views[0][0], view, views[0][1], shape, LAYOUTS["same"], evidence, mine[0].leaf.kind))
            return
        whole_names, shapes = tuple(item.leaf.name for item in mine), tuple(one[1] for one in views)
        text = f"{path} = {' + '.join(name.rpartition('.')[2] for name in whole_names)}"
        parts, kind = tuple(one[0] for one in views), mine[0].leaf.kind
        made.append(
            WeightPair(whole_names, (other.leaf.name,), text, evidence, parts, (view,), shapes, shape, Sum(), kind)
        )

    both, same, turned = ("bias_ih", "bias_hh"), LAYOUTS["same"], LAYOUTS["transpose"]
    shared = (0, 2 * state)
    last = (2 * state, 3 * state)
    if "weight_ih" in jax.items or "dense_i.kernel" in jax.items:
        equinox = "weight_ih" in jax.items
        for side in "ih":
            name, path = f"weight_{side}h", f"weight_{side}h" if equinox else f"dense_{side}.kernel"
            alike = torch.items[name].leaf.shape == jax.items[path].leaf.shape
            weight(name, path, whole, same if equinox and alike else turned)
        if "bias_ih" in jax.items and "bias_hh" in jax.items:
            for name in both:
                bias((name,), name, whole)
        elif torch.kind == "LSTM":
            bias(both, "bias" if equinox else "dense_h.bias", whole)
        else:
            bias(both, "bias" if equinox else "dense_i.bias", shared, shared)
            bias(("bias_ih",), "bias" if equinox else "dense_i.bias", last, last)
            bias(("bias_hh",), "bias_n", last)
            if not equinox and "bias_hh" in torch.items:
                view, _ = _rows(torch.items["bias_hh"], last)
                lost[str(view)] = NO_BIAS
        return made, lost
    for number, gate in enumerate(gates):
        rows = (number * state, (number + 1) * state)
        for side in "ih":
            weight(f"weight_{side}h", f"{side}{gate}.kernel", rows, turned)
        if torch.kind == "LSTM":
            bias(both, f"h{gate}.bias", rows)
        elif gate == "n":
            bias(("bias_ih",), "in.bias", rows)
            bias(("bias_hh",), "hn.bias", rows)
        else:
            bias(both, f"i{gate}.bias", rows)
    return made, lost


def _rows(item: Item, rows: tuple[int, int]) -> tuple[View, tuple[int, ...]]:
    """Return the view of some rows of an array, all of it where they are all, and its shape."""
    if rows == (0, item.leaf.shape[0]):
        return item.view, item.leaf.shape
    return item.view.then(("rows", 0, *rows)), (rows[1] - rows[0], *item.leaf.shape[1:])
