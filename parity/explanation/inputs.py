"""Inputs: one that only one side looks at, and two that are exchanged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from parity.execution.calls import Numbers
from parity.explanation.claims import Claim
from parity.explanation.substitution import Bench, Change, other, with_theta
from parity.operator import trees
from parity.operator.trees import is_float
from parity.records import WHO, Diagnosis

ORDER = "Hand the arguments over in one order: the same name stands in another place in many signatures."
USE = "Use {name} in {whose} as {who} does, or leave it out on both sides."

NEUTRAL: dict[str, tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...]] = {
    "f": (
        ("zero", np.zeros_like),
        ("one", np.ones_like),
        ("minus infinity", lambda x: np.full_like(x, -np.inf)),
        ("infinity", lambda x: np.full_like(x, np.inf)),
    ),
    "b": (("True", np.ones_like), ("False", np.zeros_like)),
    "i": (("zero", np.zeros_like), ("one", np.ones_like)),
}
"""Values at which an input does nothing: a bias of zero, a weight of one, a mask that lets all through."""


def exchanged(bench: Bench) -> Iterator[Claim]:
    """Yield pairs of inputs of one shape that one side may take for each other."""
    numbers = bench.numbers[0]
    for i, j in itertools.combinations(range(len(numbers.theta)), 2):
        one, two = numbers.names[i], numbers.names[j]
        parts = one.rpartition(".")[0] == two.rpartition(".")[0] and one.endswith((".real", ".imag"))
        if numbers.theta[i].shape == numbers.theta[j].shape and one != two and not parts:
            change = Change("torch", inputs=partial(_swapped, i=i, j=j))
            yield Claim(change, "arguments exchanged", f"{one} and {two}", f"{two} and {one}", ORDER)


def _swapped(theta: tuple[np.ndarray, ...], i: int, j: int) -> tuple[np.ndarray, ...]:
    found = list(theta)
    found[i], found[j] = theta[j], theta[i]
    return tuple(found)


def unused(bench: Bench) -> Diagnosis | None:
    """Return an input that changes one side's results and not the other's, and does nothing at a neutral value."""
    for index, (path, leaf) in enumerate(trees.leaves(bench.numbers[0].arguments)):
        uses = {name: _matters(bench, name, index) for name in bench.programs}
        if bench.late:
            break
        if sorted(uses.values()) != [False, True]:
            continue
        who = "torch" if uses["torch"] else "jax"
        name = _name(bench.numbers[0], index) or f"the input {path}"
        for word, neutral in NEUTRAL.get("i" if leaf.dtype.kind == "u" else leaf.dtype.kind, ()):
            if bench.proves(Change(who, numbers=partial(_with, index=index, of=neutral))):
                return _diagnosis(who, name, f"; with {name} {word} everywhere in {WHO[who]} the two agree")
    return None


def _diagnosis(who: str, name: str, proof: str) -> Diagnosis:
    whose = WHO[other(who)]
    return Diagnosis(
        "input not used",
        f"{name} changes what {WHO[who]} returns, and nothing in {whose}{proof}.",
        USE.format(name=name, who=WHO[who], whose=whose),
    )


def _matters(bench: Bench, framework: str, index: int) -> bool:
    """Return whether another value of an input gives other results."""
    numbers = bench.numbers[0]
    for of in (_other_values, np.zeros_like, _far, _far_below):
        found = bench.programs[framework].run(_with(numbers, index, of), {})
        before = bench.outputs[framework][0]
        if found is None or any(not np.array_equal(found[name], before[name], equal_nan=True) for name in before):
            return True
    return False


def _far(values: np.ndarray) -> np.ndarray:
    """Return numbers large enough to pass thresholds and to win over others."""
    if values.dtype.kind == "f":
        return values * np.random.default_rng(4).uniform(500, 1500, values.shape) + 1000
    return values if values.dtype.kind == "b" else values * 1000 + 1000


def _far_below(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind in "bu" else -_far(values)


def _other_values(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "b":
        return ~values
    if values.dtype.kind in "iu":
        return np.roll(values.ravel(), 1).reshape(values.shape)
    return values * np.random.default_rng(3).uniform(0.5, 1.5, values.shape) + 0.25


def _with(numbers: Numbers, index: int, of: Callable[[np.ndarray], Any]) -> Numbers:
    """Return numbers with one leaf of the arguments changed."""
    leaves = [leaf for _, leaf in trees.leaves(numbers.arguments)]
    if is_float(leaves[index]):
        place = _place(leaves, index)
        theta = list(numbers.theta)
        theta[place] = of(theta[place])
        return with_theta(numbers, tuple(theta))
    leaves[index] = of(np.asarray(leaves[index]))
    return replace(numbers, arguments=trees.rebuild(numbers.arguments, iter(leaves)))


def _place(leaves: list[Any], index: int) -> int:
    """Return where a leaf's numbers begin among those that are differentiated: a complex one has two."""
    return sum(2 if leaf.dtype.kind == "c" else 1 for leaf in leaves[:index] if is_float(leaf))


def _name(numbers: Numbers, index: int) -> str:
    leaves = [leaf for _, leaf in trees.leaves(numbers.arguments)]
    return numbers.names[_place(leaves, index)] if is_float(leaves[index]) else ""
