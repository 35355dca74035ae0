"""Where a window begins: padding put on another side, a slice that begins elsewhere, a roll, another dilation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Operation, Step
from parity.explanation.substitution import Change
from parity.models.causes.context import Context
from parity.records import Diagnosis

MOST_STARTS = 8
"""Places at which a slice may begin that are tried."""

DILATIONS = (1, 2, 4, 8, 16)

SPLITS: dict[str, Callable[[int], tuple[int, int]]] = {
    "before": lambda total: (total, 0),
    "after": lambda total: (0, total),
    "half of it on either side": lambda total: (total // 2, total - total // 2),
    "half of it on either side, the more before": lambda total: (total - total // 2, total // 2),
}


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield a proved shift: a model has the same in each of its layers, or in one of them."""
    at = context.bench
    if at is None:
        return
    steps = at.programs["torch"].steps
    for claims in (_rolls(steps), _pads(steps), _slices(steps), _dilations(steps)):
        found = context.first(claims)
        if found is not None:
            yield found
            return


def _groups(steps: Sequence[Step], key: Callable[[Step], Hashable | None]) -> Iterator[list[Step]]:
    """Yield the steps that are alike together, then each by itself."""
    found: dict[Hashable, list[Step]] = {}
    for step in steps:
        if (kind := key(step)) is not None:
            found.setdefault(kind, []).append(step)
    yield from found.values()
    for group in found.values():
        yield from ([step] for step in group if len(group) > 1)


def _pads(steps: Sequence[Step]) -> Iterator[Claim]:
    def one_axis(step: Step) -> Hashable | None:
        pad = step.operands.get("pad")
        if step.name != "constant_pad_nd" or not isinstance(pad, list | tuple):
            return None
        return (len(pad), bool(pad[0]), bool(pad[1])) if sum(pad[:2]) and not any(pad[2:]) else None

    for group in _groups(steps, one_axis):
        first = list(group[0].operands["pad"])
        for words, split in SPLITS.items():
            if split(first[0] + first[1]) == tuple(first[:2]):
                continue

            def moved(operation: Operation, split: Any = split) -> Any:
                pad = list(operation.operands["pad"])
                return operation.compute({**operation.operands, "pad": [*split(pad[0] + pad[1]), *pad[2:]]})

            yield Claim(
                Change("torch", {step.key: moved for step in group}),
                "padding",
                f"padding of {tuple(first[:2])} before and after (constant_pad_nd)",
                f"all of it {words}" if words in ("before", "after") else words,
                "Pad alike: a causal convolution has all of its padding, dilation * (size - 1), before the first.",
            )


def _slices(steps: Sequence[Step]) -> Iterator[Claim]:
    def cut(step: Step) -> Hashable | None:
        values, dim = step.operands.get("self"), step.operands.get("dim", 0)
        if step.name != "slice" or not isinstance(values, np.ndarray) or step.result is None:
            return None
        if not isinstance(dim, int) or step.operands.get("step", 1) not in (1, None) or values.dtype.kind != "f":
            return None
        over = values.shape[dim] - step.result.shape[dim]
        # Half of an axis is another thing: a part, which is exchanged and not shifted.
        return (dim, step.operands.get("start"), over) if 0 < over < step.result.shape[dim] else None

    for group in _groups(steps, cut):
        values, dim = group[0].operands["self"], group[0].operands.get("dim", 0)
        length = group[0].result.shape[dim]  # type: ignore[union-attr] # a slice gives an array
        start = (group[0].operands.get("start") or 0) % values.shape[dim]
        for begin in range(min(values.shape[dim] - length + 1, MOST_STARTS)):
            if begin == start:
                continue

            def shifted(operation: Operation, begin: int = begin, dim: int = dim) -> Any:
                result = operation.numpy(operation.compute(operation.operands))
                given = operation.numpy(operation.operands["self"])
                taken = np.take(given, np.arange(begin, begin + result.shape[dim]), dim)
                return operation.like(taken, operation.operands["self"])

            yield Claim(
                Change("torch", {step.key: shifted for step in group}),
                "padding",
                f"{length} of {values.shape[dim]} along axis {dim % values.ndim}, from {start} on",
                f"those from {begin} on: shifted by {begin - start}",
                "Cut the same part: after a convolution that pads both sides, the first ones are the causal ones.",
            )


def _rolls(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield rolls in the other direction, and none: of all in a module, of those of one shift, of each."""
    rolled = [step for step in steps if step.name == "roll" and isinstance(step.operands.get("shifts"), list | tuple)]
    for group in (rolled, *_groups(rolled, lambda step: tuple(step.operands["shifts"]))):
        if not group:
            continue
        shifts = list(dict.fromkeys(tuple(step.operands["shifts"]) for step in group))
        by_each = " and ".join(str(one[0] if len(one) == 1 else one) for one in shifts)
        has, it = (f"a roll by {by_each}", "one") if len(shifts) == 1 else (f"rolls by {by_each}", "them")
        for by, needs in ((-1, f"{it} in the other direction"), (0, "none")):

            def other(operation: Operation, by: int = by) -> Any:
                o = operation.operands
                return operation.compute({**o, "shifts": [by * shift for shift in o["shifts"]]})

            yield Claim(
                Change("torch", {step.key: other for step in group}), "roll", has, needs,
                "Roll by the same shifts along the same axes, and back by their negatives.",
            )  # fmt: skip


def _dilations(steps: Sequence[Step]) -> Iterator[Claim]:
    padded = {step.key: step for step in steps if step.name == "constant_pad_nd"}

    def dilated(step: Step) -> Hashable | None:
        dilation, weight = step.operands.get("dilation"), step.operands.get("weight")
        if not isinstance(dilation, list | tuple) or not isinstance(weight, np.ndarray):
            return None
        return (tuple(dilation), weight.shape[2:]) if len(set(dilation)) == 1 and weight.ndim > 2 else None

    for group in _groups(steps, dilated):
        has = int(group[0].operands["dilation"][0])
        for needs in DILATIONS:
            if needs == has:
                continue

            def other(operation: Operation, has: int = has, needs: int = needs) -> Any:
                o = operation.operands
                padding = [p * needs // has for p in o["padding"]]
                return operation.compute({**o, "dilation": [needs] * len(o["dilation"]), "padding": padding})

            def pad(operation: Operation, has: int = has, needs: int = needs) -> Any:
                o = operation.operands
                return operation.compute({**o, "pad": [p * needs // has for p in o["pad"]]})

            edits: dict[Any, Any] = {step.key: other for step in group}
            for step in group:
                edits |= {source: pad for source in step.sources.values() if source in padded}
            yield Claim(
                Change("torch", edits),
                "dilation",
                f"a dilation of {has}",
                str(needs),
                "Use one dilation on both sides.",
            )
