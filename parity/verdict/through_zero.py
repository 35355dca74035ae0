"""NaN that is zero times infinity: a result that is NaN in one framework by an input that does not reach it.

A dense product multiplies by zero what another formula leaves out: the weights of a resized image outside of its
window, the padding of a convolution. On numbers the two are one function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from parity.execution.calls import Numbers, Outputs
from parity.execution.outputs import EAGER, Runs
from parity.records import Cell

MOST = 16
"""Elements that are looked at; of more, as many are taken from all parts."""

SCALES = (1.0, 10.0, 100.0)
"""Sizes of the numbers that are tried where an input is said not to reach a result."""

SAME, NEAR = 1e-12, 1e-5
"""A result that does not move, and results that agree where a program passes through float32."""


def came_through_zero(runs: Runs, cell: Cell) -> bool:
    """Return whether two functions differ on NaN or infinities only by inputs that do not reach what differs.

    Each element that differs is NaN in one framework alone. Inputs by which its derivative is zero, and which do not
    move it whatever number they have, get their usual numbers again: then the two must agree on it.

    Args:
        runs: Of the pair.
        cell: Of the function itself, on a variant of data with NaN or infinities.
    """
    numbers, usual = runs.numbers_of(cell), runs.numbers_of(replace(cell, data="random"))
    if cell.transform != "forward" or not isinstance(numbers, Numbers) or not isinstance(usual, Numbers):
        return False
    apart = list(_apart(runs, cell))
    if len(apart) > MOST:
        apart = [apart[at] for at in np.linspace(0, len(apart) - 1, MOST, dtype=int)]
    return bool(apart) and all(
        alone and _only_by_what_does_not_reach(runs, cell, numbers, usual, name, at) for name, at, alone in apart
    )


def _values(runs: Runs, cell: Cell, numbers: Numbers | None = None) -> list[dict[str, np.ndarray]]:
    """Return the outputs of both frameworks in float64; nothing of one that raises."""
    found = [runs.rerun(replace(cell, world=world), "float64", numbers) for world in EAGER.values()]
    return [one.values for one in found if isinstance(one, Outputs)]


def _apart(runs: Runs, cell: Cell) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Give the elements that differ, and whether they are NaN in one framework alone."""
    values = _values(runs, cell)
    for name in values[0] if len(values) == 2 and values[0].keys() == values[1].keys() else ():
        torch, jax = (one[name] for one in values)
        if torch.shape == jax.shape and torch.dtype.kind == jax.dtype.kind == "f":
            for at in np.argwhere(~np.isclose(torch, jax, rtol=NEAR, atol=NEAR, equal_nan=True)):
                yield name, tuple(at), bool(np.isnan(torch[tuple(at)]) != np.isnan(jax[tuple(at)]))


def _only_by_what_does_not_reach(
    runs: Runs, cell: Cell, numbers: Numbers, usual: Numbers, name: str, at: tuple[int, ...]
) -> bool:  # fmt: skip
    plain = replace(cell, data="random")
    before = _values(runs, plain)
    floats = [one for one, value in before[0].items() if value.dtype.kind == "f"] if len(before) == 2 else []
    if name not in floats or len(floats) != len(usual.cotangents):
        return False
    chosen = [np.zeros_like(one) for one in usual.cotangents]
    chosen[floats.index(name)][at] = 1.0
    by = _values(runs, replace(plain, transform="vjp"), replace(usual, cotangents=tuple(chosen)))
    if len(by) < 2 or any(f"by {one}" not in values for one in usual.names for values in by):
        return False
    beside = [
        ~np.isfinite(leaf) & np.all([values[f"by {one}"] == 0 for values in by], axis=0)
        for one, leaf in zip(usual.names, numbers.theta, strict=True)
    ]
    rng = np.random.default_rng(0)
    for scale in SCALES:
        drawn = [rng.standard_normal(leaf.shape) * scale for leaf in usual.theta]
        after = _values(runs, plain, _with(usual, beside, drawn))
        if len(after) < 2 or not all(
            np.isclose(one[name][at], other[name][at], rtol=SAME, atol=SAME)
            for one, other in zip(before, after, strict=True)
        ):
            return False
    found = _values(runs, cell, _with(numbers, beside, list(usual.theta)))
    return len(found) == 2 and bool(
        np.isclose(found[0][name][at], found[1][name][at], rtol=NEAR, atol=NEAR, equal_nan=True)
    )


def _with(numbers: Numbers, places: list[np.ndarray], others: list[np.ndarray]) -> Numbers:
    theta = tuple(np.where(*each) for each in zip(places, others, numbers.theta, strict=True))
    return replace(numbers, theta=theta)
