"""Which layer of torch is which layer of JAX: by shapes, which decide what is possible, then names, then order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.models.weights.items import Owner
from parity.models.weights.layouts import layouts_of
from parity.models.weights.names import VALUE, Word, alike

IMPOSSIBLE = -1e6
DECIDED = 0.02
"""The least advantage of one pairing over an exchange of two that names must give, of a score of about 1.5."""
NAMES, SHAPE, ORDER, VALUES = "name and shape", "shape alone", "order of definition", "equal values"
BESIDE, ELSEWHERE, GUESS = "the layer beside it", "as in the other blocks", "a guess: beside its weight"
Words = tuple[tuple[Word, bool], ...]
"""The words of a path, and whether each has a number."""
UNLIKE_COUNTS = 0.999
"""Of two equal words, the one that has a number as well meets a word with a number: `layers_0` and not `layer`."""
ALIKE = 0.2
"""Names that agree less than this have nothing in common: then it was the shape."""
LIKELY = 0.6
"""How far the names of layers agree that are one, whatever else fits."""
AGREE = {(True, True): 1.0, (False, True): 0.85, (True, False): 0.8, (False, False): 0.0}
"""How far two numbers agree: (the same place among siblings, the same number)."""
UNMET = 0.4
"""How far a number agrees that has none to meet."""
SAME = 0.6
"""Words that agree less have other numbers, or none."""
NUMBERS_COUNT, MISSING_COUNTS, ORDER_COUNTS, OTHERS_COUNT = 0.5, 0.15, 0.01, 0.5
"""What counts beside the likeness of names: equal numbers, each weight that only one has, nearness in order, and each
weight that both have and that has another size, such as a bias."""


@dataclass
class Match:
    """Two layers, why they are paired, and the pairs with which the names would let them be exchanged."""

    torch: Owner
    jax: Owner
    score: float
    evidence: str
    rivals: list[int] = field(default_factory=list)


def roles_paired(torch: Owner, jax: Owner) -> list[tuple[str, str]]:
    """Return the roles that the two layers share, as (torch, JAX); a value by itself is the other side's weight."""
    shared = [(role, role) for role in torch.items if role in jax.items]
    left = [role for role in torch.items if role not in jax.items]
    right = [role for role in jax.items if role not in torch.items]
    # `bias_table` is a table and no bias: it has several axes, and is the only weight of its layer.
    alone = all(len(one.items) == 1 and len(one.main.leaf.shape) > 1 for one in (torch, jax))
    for ours in left:
        for theirs in right:
            if VALUE in (ours, theirs) and ("weight" in (ours, theirs) or alone):
                return [*shared, (ours, theirs)]
    return shared


def fits(torch: Owner, jax: Owner) -> bool:
    """Return whether the largest weights of two layers can be the same one."""
    main = torch.main
    for ours, theirs in roles_paired(torch, jax):
        if torch.items[ours] is main:
            role = "weight" if VALUE in (ours, theirs) else ours
            return bool(layouts_of(main.leaf, jax.items[theirs].leaf, role=role))
    return False


def exchangeable(one: Match, other: Match) -> bool:
    """Return whether the layers of two matches fit the other way round as well."""
    return fits(one.torch, other.jax) and fits(other.torch, one.jax)


def together(matches: Iterable[Match], alike: Callable[[Match, Match], bool] = exchangeable) -> list[list[Match]]:
    """Return the matches that are alike, in groups of two or more."""
    groups: list[list[Match]] = []
    for one in matches:
        for group in groups:
            if alike(one, group[0]):
                group.append(one)
                break
        else:
            groups.append([one])
    return [group for group in groups if len(group) > 1]


class Names:
    """How far the names of two layers agree. Words that every layer has in its path count little."""

    def __init__(self, torch: Sequence[Owner], jax: Sequence[Owner]) -> None:
        self._weights = [self._frequencies(torch), self._frequencies(jax)]
        self._aligned: dict[tuple[Words, Words], tuple[float, list[tuple[int, int, float]]]] = {}

    @staticmethod
    def _frequencies(owners: Sequence[Owner]) -> dict[str, float]:
        counts = Counter(text for owner in owners for text in {word.stem for word, _ in owner.tokens})
        return {text: 1.15 - count / max(len(owners), 1) for text, count in counts.items()}

    def alignment(self, torch: Owner, jax: Owner) -> tuple[float, list[tuple[int, int, float]]]:
        """Return how far the words agree, from 0 to 1, and which word met which."""
        ours, theirs = (tuple((word, number is not None) for word, number in owner.tokens) for owner in (torch, jax))
        if (ours, theirs) not in self._aligned:
            self._aligned[ours, theirs] = self._align(ours, theirs)
        return self._aligned[ours, theirs]

    def __call__(self, torch: Owner, jax: Owner) -> float:
        """Return the score: 1 and a half for equal names and numbers, 0.25 for nothing in common."""
        base, pairs = self.alignment(torch, jax)
        agree = []
        for i, j, likeness in pairs:
            numbers = torch.tokens[i][1], jax.tokens[j][1]
            if numbers == (None, None) or (likeness >= 0.9 and torch.tokens[i][0].concept and None in numbers):
                continue
            if None in numbers and likeness < SAME:
                agree.append(UNMET)  # `downsample.0` is not the more `down` for being the first
                continue
            agree.append(AGREE[torch.ranks[i] == jax.ranks[j], numbers[0] == numbers[1]])
        met = [{pair[side] for pair in pairs} for side in (0, 1)]
        alone = [
            [place for place, (_, number) in enumerate(owner.tokens) if place not in met[side] and number is not None]
            for side, owner in enumerate((torch, jax))
        ]
        if len(alone[0]) == len(alone[1]) == 1:  # lists of other names: `layers.1` is `flows.1` before `flows.2`
            (i,), (j,) = alone
            same = torch.tokens[i][1] == jax.tokens[j][1]
            agree.append(UNMET * (0.5 + AGREE[torch.ranks[i] == jax.ranks[j], same]))
            alone = [[], []]
        agree += [UNMET] * sum(map(len, alone))
        return base + NUMBERS_COUNT * (sum(agree) / len(agree) if agree else 0.5)

    def _align(self, ours: Words, theirs: Words) -> tuple[float, list[tuple[int, int, float]]]:
        """Align two paths in order, the last words with the most weight; return the likeness and what met what."""
        weigh = [
            [
                self._weights[side].get(word.stem, 1.0)
                * (2.0 if place == len(path) - 1 else 1.0)
                * (0.3 if not word.stem else 1.0)
                for place, (word, _) in enumerate(path)
            ]
            for side, path in enumerate((ours, theirs))
        ]
        best = np.zeros((len(ours) + 1, len(theirs) + 1))
        gains = np.zeros((len(ours), len(theirs)))
        like = np.zeros((len(ours), len(theirs)))
        for i, (one, numbered) in enumerate(ours):
            for j, (other, as_well) in enumerate(theirs):
                like[i, j] = _likeness(one, other, both_numbered=numbered and as_well)
                gains[i, j] = like[i, j] * (weigh[0][i] + weigh[1][j]) * (1.0 if numbered == as_well else UNLIKE_COUNTS)
                best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + gains[i, j])
        i, j = len(ours), len(theirs)
        pairs = []
        while i and j:
            if gains[i - 1, j - 1] > 0 and best[i, j] == best[i - 1, j - 1] + gains[i - 1, j - 1]:
                i, j = i - 1, j - 1
                pairs.append((i, j, float(like[i, j])))
            elif best[i, j] == best[i - 1, j]:
                i -= 1
            else:
                j -= 1
        total = sum(weigh[0]) + sum(weigh[1])
        return float(best[-1, -1] / total) if total else 1.0, pairs  # two weights of the models themselves


def _likeness(one: Word, other: Word, *, both_numbered: bool) -> float:
    if not (one.stem and other.stem):
        return 0.5 if one.stem == other.stem else 0.1
    # An index in a list is as good a number as one in the name: `layer.0` is `layer_0`.
    return 1.0 if one.stem == other.stem and both_numbered else alike(one, other)


def match(
    torch: Sequence[Owner], jax: Sequence[Owner], *, ordered: bool, compatible: np.ndarray | None = None,
    bonus: np.ndarray | None = None,
) -> list[Match]:  # fmt: skip
    """Pair layers so that the sum of the scores is largest.

    Args:
        torch: Torch's layers.
        jax: JAX's layers.
        ordered: Whether the JAX side's order is the order of definition.
        compatible: Which can be one; None to ask their shapes.
        bonus: What else counts for each pair.
    """
    from scipy.optimize import linear_sum_assignment

    if not torch or not jax:
        return []
    names = Names(torch, jax)
    scores = np.full((len(torch), len(jax)), IMPOSSIBLE)
    compatible = compatible_of(torch, jax) if compatible is None else compatible
    for i, j in zip(*np.nonzero(compatible), strict=True):
        one, other = torch[i], jax[j]
        shared = len(roles_paired(one, other))
        missing = len(one.items) + len(other.items) - 2 * shared
        others = sum(one.items[a].leaf.size != other.items[b].leaf.size for a, b in roles_paired(one, other))
        scores[i, j] = names(one, other) - MISSING_COUNTS * missing - 0.2 * (one.alias or one.optional)
        scores[i, j] -= OTHERS_COUNT * others
    scores += 0 if bonus is None else bonus
    order = _nearness(compatible)
    rows, columns = linear_sum_assignment(scores + ORDER_COUNTS * order, maximize=True)
    chosen = {int(i): int(j) for i, j in zip(rows, columns, strict=True) if compatible[i, j]}
    made = []
    for i, j in chosen.items():
        evidence, rivals = _evidence(i, chosen, scores, compatible, torch, jax, ordered=ordered)
        if evidence == NAMES and names.alignment(torch[i], jax[j])[0] < ALIKE:
            # What has its name on the other side is no rival, though the shapes would let it be one.
            named = {k for k, column in chosen.items() if names.alignment(torch[k], jax[column])[0] >= LIKELY}
            rows = {*map(int, np.nonzero(compatible[:, j])[0])} - named - {i}
            columns_left = {*map(int, np.nonzero(compatible[i])[0])} - {chosen[k] for k in named} - {j}
            rivals = [k for k, column in chosen.items() if k in rows and column in columns_left]
            alone = not rows and not columns_left
            told = ordered or _same_name([i, *rivals], chosen, torch, jax)
            evidence = SHAPE if alone else ORDER if told else ""
        made.append(Match(torch[i], jax[j], float(scores[i, j]), evidence, rivals))
    place = {i: number for number, i in enumerate(chosen)}
    for one in made:
        one.rivals = [place[i] for i in one.rivals if i in place]
    return made


def compatible_of(torch: Sequence[Owner], jax: Sequence[Owner]) -> np.ndarray:
    """Return which layers can be one by their shapes."""
    known: dict[tuple[object, ...], bool] = {}
    made = np.zeros((len(torch), len(jax)), dtype=bool)
    for i, one in enumerate(torch):
        for j, other in enumerate(jax):
            if one.main.leaf.size not in (item.leaf.size for item in other.items.values()):
                continue
            key = (_signature(one), _signature(other))
            if key not in known:
                known[key] = fits(one, other)
            made[i, j] = known[key]
    return made


def _signature(owner: Owner) -> tuple[object, ...]:
    return tuple(
        (
            role,
            item.leaf.shape,
            item.leaf.dtype,
            item.leaf.layer,
            str(item.leaf.parts[-1]),
            tuple(sorted(map(str, item.leaf.flags.items()))),
        )
        for role, item in owner.items.items()
    )


def _nearness(compatible: np.ndarray) -> np.ndarray:
    """Return how near two layers are in order, each among those of its side that fit the same."""
    rows, columns = _places(compatible), _places(compatible.T)
    return 1.0 - np.abs(rows[:, None] - columns[None, :])


def _places(compatible: np.ndarray) -> np.ndarray:
    """Return the place of each row, from 0 to 1, among the rows that have the same columns."""
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(compatible):
        groups.setdefault(row.tobytes(), []).append(i)
    made = np.zeros(len(compatible))
    for members in groups.values():
        for place, i in enumerate(members):
            made[i] = place / max(len(members), 1)
    return made


def _evidence(
    i: int,
    chosen: dict[int, int],
    scores: np.ndarray,
    compatible: np.ndarray,
    torch: Sequence[Owner],
    jax: Sequence[Owner],
    *,
    ordered: bool,
) -> tuple[str, list[int]]:
    """Return what decided a pair, and the torch layers with which names would let it be exchanged."""
    j = chosen[i]
    taken = set(chosen.values())
    alternatives = [int(k) for k in np.nonzero(compatible[i])[0] if k != j]
    others = [int(k) for k in np.nonzero(compatible[:, j])[0] if k != i]
    if not alternatives and not others:
        return NAMES, []
    rivals = []
    open_ended = False
    back = {column: row for row, column in chosen.items()}
    for k in alternatives:
        if k not in taken:
            open_ended |= scores[i, j] - scores[i, k] < DECIDED
            continue
        other = back[k]
        if compatible[other, j] and scores[i, j] + scores[other, k] - scores[i, k] - scores[other, j] < DECIDED:
            rivals.append(other)
    for other in others:
        open_ended |= other not in chosen and scores[i, j] - scores[other, j] < DECIDED and not torch[other].optional
    if not rivals and not open_ended:
        return NAMES, []
    if open_ended:
        return "", rivals
    return (ORDER if ordered or _same_name([i, *rivals], chosen, torch, jax) else ""), rivals


def _same_name(rows: Sequence[int], chosen: dict[int, int], torch: Sequence[Owner], jax: Sequence[Owner]) -> bool:
    """Return whether layers are told apart by their numbers alone, on both sides."""
    return len({_stems(torch[k]) for k in rows}) == 1 == len({_stems(jax[chosen[k]]) for k in rows})


def _stems(owner: Owner) -> tuple[str, ...]:
    return tuple(word.stem for word, _ in owner.tokens)
