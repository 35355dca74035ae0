"""Which weight of a torch model is which weight of its JAX port."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from parity import needs
from parity.models.inputs import of_both
from parity.models.weights import beside, blocks, containers, in_order, neighbours, recurrent
from parity.models.weights.crossed import crossed
from parity.models.weights.items import Item, Owner, items_of, owners_of, split_complex, split_fused, unstacked
from parity.models.weights.jax_side import JaxTree, in_call_order, jax_tree
from parity.models.weights.layouts import Fit, layouts_of
from parity.models.weights.matching import (
    BESIDE,
    ELSEWHERE,
    LIKELY,
    NAMES,
    ORDER,
    VALUES,
    Match,
    Names,
    fits,
    match,
    roles_paired,
    together,
)
from parity.models.weights.names import BIAS, COUNTED, VALUE, read
from parity.models.weights.pairs import WeightPair, one_to_one
from parity.models.weights.rules import Rule, told
from parity.models.weights.torch_side import TorchTree
from parity.models.weights.tree import Parts
from parity.models.weights.weight_map import AMBIGUOUS, Ambiguous, Unpaired, WeightMap

CONVENTIONAL = ("kernel", "w")
"""Names of JAX weights that are (in, out) by convention, where neither shapes nor values say."""


@needs.named("map_weights")
def map_weights(torch_model: Any, jax_model: Any, *, rules: Sequence[Rule] = (), inputs: Any = None) -> WeightMap:
    """Pair the weights of a torch model with those of its JAX port, and compare their values.

    The shapes and the layouts of the frameworks' layers say what is possible. Of that the names choose, with the words
    that ports use for one thing (`q_proj`, `query`), and the numbers of layers. Where names say nothing, equal values
    do, and the order of definition as the last resort; each pair says what decided it. What remains open is not paired:
    it is in `ambiguous`, with its candidates.

    Args:
        torch_model: An `nn.Module`.
        jax_model: A Flax NNX module; an Equinox module, or `(module, state)`; a Linen pair `(module, variables)`; or
            `(function, params)` with any pytree of arrays.
        rules: What you know better: see `Rule`.
        inputs: As of `compare_models`. JAX sorts the keys of a dict that it maps or compiles, so that nothing says in
            which order Linen made `Conv_0` and `BatchNorm_0`; a run on inputs does. Other models need none.

    Returns:
        The map: `pairs`, `unpaired`, `unequal`, `ambiguous`; `print` shows it as a table.

    Raises:
        TypeError: One of the models is none.
        ValueError: A rule does not fit.

    Example:
        >>> import numpy as np, torch, parity
        >>> params = {"dense": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
        >>> for pair in parity.map_weights(model, (lambda params, x: x, params)).pairs:
        ...     print(pair.torch[0], pair.jax[0], pair.rule)
        0.weight dense.kernel kernel = weight.T
        0.bias dense.bias bias = bias
    """
    if not hasattr(torch_model, "named_modules"):
        raise TypeError(f"the torch model: expected an nn.Module, got {type(torch_model).__name__}")
    jax = jax_tree(jax_model)
    if inputs is not None:
        jax = in_call_order(jax, of_both(inputs)[1])
    return map_trees(TorchTree(torch_model), jax, rules=rules)


def map_trees(torch: TorchTree, jax: JaxTree, *, rules: Sequence[Rule] = ()) -> WeightMap:
    """Pair the weights of two models that are read already."""
    return _Mapping(torch, jax, rules).run()


class _Mapping:
    """One run: the two sides, and what is found on the way."""

    def __init__(self, torch: TorchTree, jax: JaxTree, rules: Sequence[Rule]) -> None:
        self.torch, self.jax, self.rules = torch, jax, rules
        self.torch_values, self.jax_values = torch.weights(), jax.weights()
        self.pairs: list[WeightPair] = []
        self.ambiguous: list[Ambiguous] = []
        self.reasons: dict[str, str] = {}
        self.lost: dict[str, str] = {}

    def run(self) -> WeightMap:
        ours, theirs = items_of(self.torch.leaves), items_of(self.jax.leaves)
        self.pairs = told(self.rules, {i.leaf.name: i for i in ours}, {i.leaf.name: i for i in theirs})
        ours, theirs = self._without_told(ours, theirs)
        theirs = unstacked(theirs, ours)
        ours, theirs = split_complex(ours, theirs), split_complex(theirs, ours)
        cells, ours, theirs, self.lost = recurrent.paired(ours, theirs, ordered=self.jax.ordered)
        self.pairs += cells
        values = self.torch_values, self.jax_values
        ours, theirs = (
            split_fused(ours, theirs, torch=True, values=values),
            split_fused(theirs, ours, torch=False, values=values[::-1]),
        )
        torch, jax = owners_of(ours), owners_of(theirs)
        matches = self._settled(self._matched(*self._without_misfits(torch, jax)))
        matches = self._in_turns(matches) if self.jax.ordered else matches
        self._pair(matches)
        self._rest(ours, theirs)
        self._beside(ours, theirs)
        self._misfits(torch, jax)
        return WeightMap.of(self.torch, self.jax, self._in_order(), self.ambiguous, self._unpaired())

    def _without_misfits(self, torch: list[Owner], jax: list[Owner]) -> tuple[list[Owner], list[Owner]]:
        """Leave out layers of one path whose shapes do not fit: each is the other in another size, and no third."""
        by_path = {_path(one): one for one in jax}
        pairs = [(one, by_path[_path(one)]) for one in torch if len(_path(one)) > 1 and _path(one) in by_path]
        apart = [(one, other) for one, other in pairs if roles_paired(one, other) and not fits(one, other)]
        for one, other in apart:
            text = _misfit(one.main, other.main)
            self.reasons[one.main.leaf.name] = self.reasons[other.main.leaf.name] = text
        left = {id(owner) for pair in apart for owner in pair}
        return [one for one in torch if id(one) not in left], [one for one in jax if id(one) not in left]

    def _rest(self, ours: list[Item], theirs: list[Item]) -> None:
        """Pair what is left of layers that one side cuts otherwise, by names or equal values: a tied head's bias."""
        left, right = self._left(ours), self._left(theirs)
        torch, jax = (
            owners_of(replace(item, leaf=replace(item.leaf, aliases=())) for item in side) for side in (left, right)
        )
        names = Names(torch, jax)
        for one in match(torch, jax, ordered=self.jax.ordered):
            alike = one.evidence == NAMES and names.alignment(one.torch, one.jax)[0] >= LIKELY
            if alike or (self._equal(one.torch, one.jax) and np.ptp(self._value(one.torch.main, torch=True)) > 0):
                one.evidence = NAMES if alike else VALUES
                self._pair([one])

    def _left(self, side: list[Item]) -> list[Item]:
        views = {view for pair in self.pairs for view in (*pair.torch_views, *pair.jax_views)}
        return [item for item in side if item.view not in views and self.reasons.get(item.leaf.name) != AMBIGUOUS]

    def _beside(self, ours: list[Item], theirs: list[Item]) -> None:
        """Pair what is left of paired layers: their biases, under whatever name, and the lengths of normed weights."""
        parts = {name: leaf.parts for name, leaf in self.jax.leaves.items()}
        torch = [item for item in self._left(ours) if item.role in (BIAS, VALUE)]
        found = beside.paired(
            self.pairs, torch, self._left(theirs), parts, self._holds,
            lambda item: beside.varied(self._value(item, torch=True)),
        )  # fmt: skip
        for mine, other, fit, evidence in list(found):
            self._add(mine, other, fit, evidence)

    def _without_told(self, ours: list[Item], theirs: list[Item]) -> tuple[list[Item], list[Item]]:
        names = {name for pair in self.pairs for name in pair.torch}
        paths = {path for pair in self.pairs for path in pair.jax}
        return [i for i in ours if i.leaf.name not in names], [i for i in theirs if i.leaf.name not in paths]

    def _settled(self, matches: list[Match]) -> list[Match]:
        """Let equal values decide where names did not, then the layers around; the rest is ambiguous and left out."""
        left: set[int] = set()
        still = []
        for group in _groups(matches):
            members = [matches[k] for k in group]
            # Blocks that only their number tells apart are in that order: other values in them were loaded wrongly.
            if containers.of_blocks(members) or not self._by_values(members):
                still.append(group)
        unsure = {k for group in still for k in group}
        settled = [one for k, one in enumerate(matches) if k not in unsure]
        homes = _homes(settled)
        counted = [k for group in still if containers.by_number([matches[k] for k in group]) for k in group]
        sure = [*settled, *(matches[k] for k in counted)]
        for group in still:
            members = [matches[k] for k in group]
            if (
                _by_homes(members, homes)
                or _as_elsewhere(members, settled)
                or (group[0] not in counted and containers.settle(members, sure))
            ):
                continue
            if any(not one.evidence for one in members):
                for k, one in zip(group, members, strict=True):
                    if not one.evidence or one.rivals:
                        left.add(k)
                        self._refuse(one, members)
        return [one for k, one in enumerate(matches) if k not in left]

    def _matched(self, torch: list[Owner], jax: list[Owner]) -> list[Match]:
        """Match the layers: by blocks in order, by names, and what is alike, such as norms, by the layers beside it."""
        pairs = blocks.paired(torch, jax)
        inside = {id(owner) for pair in pairs for block in pair for owner in block}
        groups = [*pairs, tuple([one for one in side if id(one) not in inside] for side in (torch, jax))]
        matches = self._in_groups(groups)
        made: list[Match] = []
        unsure = []
        for family, sure in neighbours.families(matches):
            if self._by_values(family) or sure:
                made += family
            else:
                unsure.append(family)
        taken = {id(owner) for one in made for owner in (one.torch, one.jax)}
        if len(taken) == 2 * len(made) > 0:
            left = [tuple([one for one in side if id(one) not in taken] for side in group) for group in groups]
            matches = [*self._in_groups(left), *made]
        beside = {id(one.torch): one for one in neighbours.named_after(matches)}
        matches = [beside.get(id(one.torch), one) for one in matches]
        if (
            self.jax.ordered
            and (made := in_order.paired(torch, jax, matches))
            and not (_against_order(made) or crossed(made))
        ):
            for family in together(made):
                self._by_values(family)
            return self._in_turns(made)
        doubtful = [*unsure, *crossed(matches), *_against_order(matches)]
        if self.jax.ordered:
            matches = self._in_turns(matches)
        for family in doubtful:
            if not all(one.evidence == BESIDE for one in matches if any(one.torch is other.torch for other in family)):
                _open(matches, family)
        return matches

    def _in_turns(self, matches: list[Match]) -> list[Match]:
        """Pair norms by the layers beside them, where values do not say otherwise."""
        beside: dict[int, Match] = {}
        for family in neighbours.in_turns(matches):
            self._by_values(family)
            beside |= {id(one.torch): one for one in family}
        return [beside.get(id(one.torch), one) for one in matches]

    def _in_groups(self, groups: Sequence[tuple[list[Owner], ...]]) -> list[Match]:
        """Match the layers of each group of both sides."""
        matches: list[Match] = []
        for ours, theirs in groups:
            found = match(ours, theirs, ordered=self.jax.ordered)
            for one in found:
                one.rivals = [len(matches) + k for k in one.rivals]
            matches += found
        return matches

    def _refuse(self, one: Match, members: list[Match]) -> None:
        candidates = tuple(dict.fromkeys(_label(other.jax) for other in members if fits(one.torch, other.jax)))
        text = "the names do not say which, and the order of a sorted dict says nothing"
        if self.jax.framework == "linen" and not self.jax.ordered:
            text += " (map_weights(..., inputs=...) sees in which order the modules run)"
        self.ambiguous.append(
            Ambiguous(
                one.torch.main.leaf.name,
                candidates,
                text,
            )
        )
        for item in (*one.torch.items.values(), *one.jax.items.values()):
            self.reasons.setdefault(item.leaf.name, AMBIGUOUS)

    def _by_values(self, members: list[Match]) -> bool:
        """Pair the members anew by equal values, where these are all different; return whether that settled it."""
        from scipy.optimize import linear_sum_assignment

        mains = [self._value(one.torch.main, torch=True) for one in members]
        if any(np.array_equal(one, other) for k, one in enumerate(mains) for other in mains[:k]):
            return False
        same = np.array([[self._equal(one.torch, other.jax) for other in members] for one in members])
        rows, columns = linear_sum_assignment(same, maximize=True)
        if not same[rows, columns].all():
            return False
        owners = [one.jax for one in members]
        for one, column in zip(members, columns, strict=True):
            one.jax, one.evidence, one.rivals = owners[column], VALUES, []
        return True

    def _equal(self, torch: Owner, jax: Owner) -> bool:
        for ours, theirs in roles_paired(torch, jax):
            one, other = torch.items[ours], jax.items[theirs]
            if one is torch.main:
                role = "weight" if VALUE in (ours, theirs) else ours
                found = layouts_of(one.leaf, other.leaf, role=role)
                return any(self._holds(one, other, fit) for fit in found)
        return False

    def _holds(self, one: Item, other: Item, fit: Fit) -> bool:
        got = self._value(other, torch=False)
        made = fit.layout.to_jax(self._value(one, torch=True), other.leaf.shape)
        return bool(np.array_equal(made.astype(got.dtype), got))

    def _value(self, item: Item, *, torch: bool) -> np.ndarray:
        return item.view.of((self.torch_values if torch else self.jax_values)[item.view.name])

    def _pair(self, matches: list[Match]) -> None:
        """Pair the weights of the layers that are paired, each by its layout."""
        open_pairs: list[tuple[Item, Item, list[Fit], str]] = []
        votes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for one in matches:
            for ours, theirs in roles_paired(one.torch, one.jax):
                mine, other = one.torch.items[ours], one.jax.items[theirs]
                role = "weight" if VALUE in (ours, theirs) else ours
                found = layouts_of(mine.leaf, other.leaf, role=role)
                if not found:
                    self.reasons[mine.leaf.name] = self.reasons[other.leaf.name] = _misfit(mine, other)
                elif len(found) == 1:
                    self._add(mine, other, found[0], one.evidence)
                    if not found[0].certain:
                        votes[_usage(mine, other)][found[0].layout.name] += 1
                else:
                    open_pairs.append((mine, other, found, one.evidence))
            self._alone(one)
        for mine, other, found, evidence in open_pairs:
            self._choose(mine, other, found, evidence, votes[_usage(mine, other)])

    def _alone(self, one: Match) -> None:
        """Say of a weight that only one of two paired layers has."""
        shared = roles_paired(one.torch, one.jax)
        for role, item in one.torch.items.items():
            if role not in [ours for ours, _ in shared]:
                self.reasons.setdefault(item.leaf.name, f"its layer is {_label(one.jax)} in JAX, which has no {role}")
        for role, item in one.jax.items.items():
            if role not in [theirs for _, theirs in shared]:
                self.reasons.setdefault(
                    item.leaf.name, f"its layer is {_label(one.torch)} in torch, which has no {role}"
                )

    def _choose(self, mine: Item, other: Item, found: list[Fit], evidence: str, votes: Counter[str]) -> None:
        """Choose one of several layouts that fit: as the model's other weights of this name, by values, by custom."""
        if len(votes) == 1:
            name = next(iter(votes))
            if chosen := next((fit for fit in found if fit.layout.name == name), None):
                self._add(mine, other, chosen, evidence)
                return
        holding = [fit for fit in found if self._holds(mine, other, fit)]
        if len(holding) == 1:
            self._add(mine, other, holding[0], evidence)
        elif not holding and (kept := _as_it_is(mine, other, found)) is not None:
            self._add(mine, other, kept, evidence)
        elif holding or (read(other.leaf.parts)[2] in CONVENTIONAL and "ConvTranspose" not in mine.leaf.layer):
            self._add(mine, other, found[0], evidence)
        else:
            options = tuple(
                one_to_one(mine.view, other.view, mine.leaf.shape, other.leaf.shape, fit.layout, "", "").rule
                for fit in found
            )
            text = f"{other.leaf.name} is square, and neither its name nor its values say whether it is transposed"
            if "ConvTranspose" in mine.leaf.layer:
                text = (
                    f"{other.leaf.name} has as many channels in as out, and neither its module nor its values say"
                    " whether it is kept turned round (transpose_kernel=False) or not"
                )
            self.ambiguous.append(Ambiguous(mine.leaf.name, options, text))
            self.reasons.setdefault(mine.leaf.name, AMBIGUOUS)
            self.reasons.setdefault(other.leaf.name, AMBIGUOUS)

    def _add(self, mine: Item, other: Item, fit: Fit, evidence: str) -> None:
        pair = one_to_one(
            mine.view, other.view, mine.leaf.shape, other.leaf.shape, fit.layout, evidence or NAMES, mine.leaf.kind
        )
        if not any(pair.torch_views == old.torch_views and pair.jax_views == old.jax_views for old in self.pairs[-8:]):
            self.pairs.append(pair)

    def _misfits(self, torch: list[Owner], jax: list[Owner]) -> None:
        """Say of layers that are left, and whose names agree, that their shapes do not fit."""
        names = Names(torch, jax)
        paired = {name for pair in self.pairs for name in (*pair.torch, *pair.jax)}
        left = [o for o in torch if not o.alias and not o.optional and o.main.leaf.name not in paired]
        right = [o for o in jax if not o.alias and o.main.leaf.name not in paired]
        for one in left:
            scored = [(names(one, other), other) for other in right]
            score, other = max(scored, key=lambda pair: pair[0], default=(0.0, None))
            if other is not None and score >= 0.8 and one.main.leaf.name not in self.reasons:
                text = _misfit(one.main, other.main)
                self.reasons[one.main.leaf.name] = self.reasons[other.main.leaf.name] = text

    def _in_order(self) -> list[WeightPair]:
        places = {name: place for place, name in enumerate(self.torch.leaves)}
        return sorted(self.pairs, key=lambda pair: (places[pair.torch[0]], pair.torch_views[0].steps))

    def _unpaired(self) -> Unpaired:
        names = {name for pair in self.pairs for name in pair.torch}
        paths = {path for pair in self.pairs for path in pair.jax}
        found = Unpaired.of(self.torch.leaves, self.jax.leaves, names, paths, self.reasons)
        return replace(found, torch=(*found.torch, *self.lost), reasons={**found.reasons, **self.lost})


def _path(owner: Owner) -> tuple[str, ...]:
    return tuple(str(part).lower() for part in owner.parts if part != "params")


def _open(matches: Sequence[Match], family: Sequence[Match]) -> None:
    """Say of layers that are alike that names do not tell which is which, where they are paired among themselves."""
    ours, theirs = {id(one.torch) for one in family}, {id(one.jax) for one in family}
    places = [k for k, one in enumerate(matches) if id(one.torch) in ours and id(one.jax) in theirs]
    for k in places:
        matches[k].evidence, matches[k].rivals = "", [other for other in places if other != k]


def _against_order(matches: Sequence[Match]) -> list[list[Match]]:
    """Return the layers whose numbers in torch go against their order there, where Linen counts: `norm2` made first."""
    inside: dict[Parts, list[Match]] = defaultdict(list)
    for one in matches:
        if one.evidence in (NAMES, ORDER) and one.jax.parts and COUNTED.fullmatch(str(one.jax.parts[-1])):
            last = one.torch.tokens[-1][0].stem if one.torch.tokens else ""
            inside[(*one.torch.parts[:-1], last, *one.jax.parts[:-1], one.jax.tokens[-1][0].stem)].append(one)
    return [
        family
        for family in inside.values()
        if _numbered([one.torch for one in family])
        and not _in_order([one.torch for one in family])
        and all(fits(one.torch, family[0].jax) for one in family)
    ]


def _in_order(owners: Sequence[Owner]) -> bool:
    places = [one.place for one in sorted(owners, key=neighbours.number)]
    return places == sorted(places)


def _homes(matches: Sequence[Match]) -> dict[Parts, Parts]:
    """Return which JAX module holds the layers that a torch module holds, where all that is known agrees."""
    votes: dict[Parts, Counter[Parts]] = defaultdict(Counter)
    for one in (one for one in matches if one.evidence != ORDER):
        votes[one.torch.parts[:-1]][one.jax.parts[:-1]] += 1
    found = {ours: next(iter(counts)) for ours, counts in votes.items() if len(counts) == 1}
    return {ours: theirs for ours, theirs in found.items() if Counter(found.values())[theirs] == 1}


def _by_homes(members: list[Match], homes: dict[Parts, Parts]) -> bool:
    """Pair the members anew, each in the module that its neighbours are in; return whether that settled it.

    A norm goes with the convolution beside it. Several of one module go by their numbers, which `GroupNorm_0` and
    `GroupNorm_1` have in the order in which they are made.
    """
    inside: list[dict[Parts, list[Owner]]] = [defaultdict(list), defaultdict(list)]
    for one in members:
        for side, owner in zip(inside, (one.torch, one.jax), strict=True):
            side[owner.parts[:-1]].append(owner)
    chosen: dict[int, Owner] = {}
    for parent, ours in inside[0].items():
        theirs = inside[1].get(homes[parent], []) if parent in homes else []
        numbered = _numbered(ours) and _numbered(theirs) and _in_order(ours)
        if len(ours) != len(theirs) or not (len(ours) == 1 or numbered):
            return False
        ours, theirs = (sorted(side, key=neighbours.number) for side in (ours, theirs))
        if not all(fits(one, other) for one, other in zip(ours, theirs, strict=True)):
            return False
        chosen |= {id(one): other for one, other in zip(ours, theirs, strict=True)}
    for one in members:
        one.jax, one.evidence, one.rivals = chosen[id(one.torch)], ORDER, []
    return True


def _as_elsewhere(members: list[Match], settled: Sequence[Match]) -> bool:
    """Pair the members anew as layers of their names are paired in all other blocks; return whether that settled it.

    Where a shortcut has the shape of another convolution, it is which it is in the blocks where it has not.
    """
    seen: dict[tuple[Parts, Parts], set[tuple[Parts, Parts]]] = defaultdict(set)
    for one in settled:
        if one.evidence != ORDER:
            seen[_in_block(one.torch)].add(_in_block(one.jax))
    chosen: dict[int, Owner] = {}
    for one in members:
        names = seen[_in_block(one.torch)]
        found = [other.jax for other in members if {_in_block(other.jax)} == names and fits(one.torch, other.jax)]
        if len(found) != 1:
            return False
        chosen[id(one.torch)] = found[0]
    if len({id(owner) for owner in chosen.values()}) != len(members):
        return False
    for one in members:
        one.jax, one.evidence, one.rivals = chosen[id(one.torch)], ELSEWHERE, []
    return True


def _in_block(owner: Owner) -> tuple[Parts, Parts]:
    return blocks.kind(owner.parts), blocks.inside(owner.parts)


def _numbered(owners: Sequence[Owner]) -> bool:
    """Return whether layers are told apart by a number at the end of their names, and by nothing else."""
    numbers = {owner.tokens[-1][1] for owner in owners}
    return (
        len({owner.tokens[-1][0].stem for owner in owners}) == 1 and len(numbers) == len(owners) and None not in numbers
    )


def _groups(matches: list[Match]) -> list[list[int]]:
    """Return the matches that names left open, those that could be exchanged together."""
    parent = list(range(len(matches)))

    def root(k: int) -> int:
        while parent[k] != k:
            k = parent[k]
        return k

    for k, one in enumerate(matches):
        for other in one.rivals:
            parent[root(k)] = root(other)
    groups: dict[int, list[int]] = defaultdict(list)
    for k, one in enumerate(matches):
        if one.rivals or not one.evidence:
            groups[root(k)].append(k)
    return list(groups.values())


def _as_it_is(mine: Item, other: Item, found: Sequence[Fit]) -> Fit | None:
    """Return that a weight is not turned where no layer owns it and both sides call it alike: nothing turns such."""
    ours, theirs = (str(item.leaf.parts[-1]) for item in (mine, other))
    if ours != theirs or mine.leaf.layer or read(("layer", ours))[0] == ("layer",):
        return None
    return next((fit for fit in found if fit.layout.name == "same"), None)


def _usage(mine: Item, other: Item) -> tuple[str, str]:
    return read(other.leaf.parts)[2], mine.leaf.layer


def _label(owner: Owner) -> str:
    return str(owner) or "the model itself"


def _misfit(mine: Item, other: Item) -> str:
    return (
        f"the shapes do not fit: {mine.view} of torch is {mine.leaf.shape}, {other.view} of JAX {other.leaf.shape},"
        " and no layout leads from one to the other"
    )
