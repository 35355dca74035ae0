"""Where causes of a module's error are looked for, in order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from parity.explanation import axes, proof
from parity.explanation.claims import Claim
from parity.models.causes import (
    absent,
    buffers,
    chance,
    exchange,
    masks,
    moved,
    norm_order,
    positions,
    precision,
    repeats,
    shifts,
    terms,
    turned,
)
from parity.models.causes.context import Context
from parity.models.causes.naming import named
from parity.records import Diagnosis

Proposer = Callable[[Context], Iterator[Diagnosis]]


NOTHING_LEFT = re.compile(r"where (JAX|torch) has (0|none) \((?!mul)")
"""Says that a number is zero on one side, but for factors, which have no other name."""


def _constants(context: Context) -> Iterator[Diagnosis]:
    yield from _searched(context, proof.IN_PLACE)


def _order(context: Context) -> Iterator[Diagnosis]:
    yield from _searched(context, proof.IN_ORDER)


def _rest(context: Context) -> Iterator[Diagnosis]:
    factor, *rest = (stage for stage in proof.STAGES if stage not in (*proof.IN_PLACE, *proof.IN_ORDER))
    yield from _searched(context, (*rest, factor))  # a factor comes last: a length of an axis is many things


def _searched(context: Context, stages: tuple[Callable[..., Diagnosis | None], ...]) -> Iterator[Diagnosis]:
    at = context.bench
    found = proof.search(at, stages) if at is not None else None
    if found is None or at is None:
        return
    if NOTHING_LEFT.search(found.text):
        # A number that is nothing in its place makes one activation of another: ELU with the scale 0 is ReLU.
        other = proof.search(at, proof.FORMULAS)
        found = other if other is not None and "activation" in other.cause else found
    yield named(found, attends=_attends(context), rotates=_rotates(context), flattens=_flattens(context))


def _attends(context: Context) -> bool:
    """Return whether the module has heads: its program has a softmax, or attention as one operator."""
    at = context.bench
    names = {step.name for program in at.programs.values() for step in program.steps} if at is not None else set()
    return any("softmax" in name or "attention" in name for name in names) or {"exp", "div"} <= names


def _flattens(context: Context) -> bool:
    """Return whether a program makes one axis of several, the last with them."""
    at = context.bench
    for step in (step for program in at.programs.values() for step in program.steps) if at is not None else ():
        given = step.operands.get("self", step.operands.get(0))
        if step.name in FLATTENS and isinstance(given, np.ndarray) and step.result is not None:
            last = step.result.shape[-1:], given.shape[-1:]
            if given.ndim > step.result.ndim > 0 and last[0] > last[1]:
                return True
    return False


FLATTENS = ("view", "_unsafe_view", "reshape", "flatten", "collapse")


def _rotates(context: Context) -> bool:
    """Return whether a program multiplies by cosines, or is given none to read: the tables may come from outside."""
    at = context.bench
    made = False
    for program in at.programs.values() if at is not None else ():
        reached: set[Any] = set()
        for step in program.steps:
            known = reached & set(step.sources.values())
            if known and step.name in ("mul", "mul_", "einsum", "complex", "polar"):
                return True
            if step.name == "cos" or (known and step.name not in ("add", "add_", "add_any")):
                reached.add(step.key)
                made = True
    return not made


def _pooled(context: Context) -> Iterator[Diagnosis]:
    """Yield another proved pooling: the first word for the mean of all, the mean for the maximum of a window."""
    if context.bench is not None:
        programs = context.bench.programs
        steps = programs["torch"].steps
        places = (axes.by_places(name, one.steps) for name, one in programs.items())
        yield from _first(context, itertools.chain(axes.pooled(steps), *places, axes.windows(steps)))


def _normed(context: Context) -> Iterator[Diagnosis]:
    """Yield other axes of a norm that are proved."""
    if context.bench is not None:
        yield from _first(context, axes.norms(context.bench.programs["torch"].steps))


def _first(context: Context, claims: Iterator[Claim]) -> Iterator[Diagnosis]:
    if (found := context.first(claims)) is not None:
        yield found


PROPOSERS: tuple[Proposer, ...] = (
    absent.propose,
    precision.propose,
    buffers.propose,
    chance.propose,
    masks.propose,
    positions.propose,
    _constants,
    _pooled,
    _normed,
    turned.propose,
    shifts.propose,
    exchange.propose,
    norm_order.propose,
    repeats.propose,
    terms.propose,
    _order,
    moved.propose,
    _rest,
)
"""Where causes are looked for, in this order: what fits few differences first."""
