"""Large arrays, shortened: a function runs the same program on special numbers at any size, so fewer of them will do.

Every kind of data but the user's own numbers runs on fewer numbers, if both programs are then the same, operator by
operator, with each axis unchanged or shorter by powers of one factor. These run at full size:

- the user's own numbers,
- a program that changes on shorter arrays (a size written into it, a loop over an axis) or raises there,
- every kind of data on which the shorter arrays show a difference,
- every kind of special points once: NaN, infinities and the signs of zeros must be in the same places. If they are
  not, the cell is judged at full size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.execution.calls import Call, Numbers, Outputs
from parity.execution.endings import RAISED
from parity.execution.outputs import EAGER, OTHER, Runs, framework_of, world_of
from parity.execution.programs import Steps
from parity.operator import trees
from parity.operator.data import POINTS
from parity.operator.pair import is_float
from parity.records import Cell

Shape = tuple[int, ...]

LARGE = 2**17
"""Floating numbers of all arguments, from which on they are shortened."""

LONG, LEFT = 128, 32
"""Axes as long as that may be shortened, to no less than the other."""

ENOUGH = 4096
"""Numbers that the largest array keeps: the strided ones, so that all parts of it are there."""

WORTH = 4
"""Times fewer numbers, at least."""


def shortened(runs: Runs) -> Runs | None:
    """Return runs of the same pair on shorter arrays, if it is the same pair there; else None."""
    pair = runs.pair
    promised = pair.numbers or pair.oracle or pair.exact or pair.frozen or pair.weights
    leaves = [np.asarray(leaf) for _, leaf in trees.leaves(pair.make(runs.seed))]
    if promised or not runs.shortens or any(leaf.dtype.kind in "iu" for leaf in leaves):
        return None
    by = factor([leaf.shape for leaf in leaves if is_float(leaf)])
    if by is None:
        return None
    fewer = copy.copy(pair)
    object.__setattr__(fewer, "inputs", lambda seed: _cut(pair.make(seed), by))
    there = Runs(fewer, runs.seed)
    names = pair.transform_names or ("forward", "vjp")
    return there if all(_is_same(runs, there, by, str(name)) for name in names) else None


def is_alike(runs: Runs, cell: Cell) -> bool:
    """Return whether both functions make the same kinds of numbers of whole arrays: NaN, infinities, zeros by sign.

    It is asked once for each kind of data that is the same points in every dtype, in the dtype that comes first.
    """
    kind = cell.data.partition("#")[0]
    return kind not in POINTS or bool(
        runs.once(("alike", cell.world, cell.device, cell.transform, kind), lambda: _is_alike(runs, cell))
    )


def _is_alike(runs: Runs, cell: Cell) -> bool:
    own, other = runs.outputs(cell), runs.outputs(cell, world=runs.reference(OTHER[framework_of(cell)], cell))
    if not isinstance(own, Outputs) or not isinstance(other, Outputs) or own.values.keys() != other.values.keys():
        return False
    return all(
        value.shape == (beside := other.values[name]).shape
        and all(
            np.array_equal(kind(value), kind(beside)) for kind in (np.isnan, np.isposinf, np.isneginf, _is_minus_zero)
        )
        for name, value in own.values.items() if value.dtype.kind == "f"
    )  # fmt: skip


def _is_minus_zero(values: np.ndarray) -> np.ndarray:
    return (values == 0) & np.signbit(values)


def factor(shapes: Sequence[Shape]) -> int | None:
    """Return by how much long axes are shortened, or None where arrays are small or do not stay as they are to another.

    Example:
        >>> factor([(1024, 1024), (1024,)]), factor([(1024, 1023)]), factor([(64, 64)])
        (16, None, None)
    """
    total = sum(map(math.prod, shapes))
    kept = {size for shape in shapes for size in shape if size < LONG}
    long = {size for shape in shapes for size in shape if size >= LONG}
    for by in (2**power for power in range(20, 0, -1)) if total >= LARGE and long else ():
        short = [tuple(size // by if size >= LONG else size for size in shape) for shape in shapes]
        if any(size % by or size // by < LEFT or size // by in kept for size in long):
            continue
        if len(set(short)) == len(set(shapes)) and max(map(math.prod, short)) >= ENOUGH:
            return by if sum(map(math.prod, short)) * WORTH <= total else None
    return None


def said(runs: Runs, there: Runs) -> str:
    """Return in words what was run in the place of the user's arrays."""
    before, after = (
        max((np.shape(leaf) for _, leaf in trees.leaves(one.pair.make(one.seed))), key=math.prod)
        for one in (runs, there)
    )
    return f"on shorter arrays ({after} in the place of {before}), on which both programs are the same"


def _cut(arguments: tuple[Any, ...], by: int) -> tuple[Any, ...]:
    def cut(leaf: Any) -> Any:
        axes = tuple(slice(None, None, by if size >= LONG and size % by == 0 else 1) for size in np.shape(leaf))
        return np.ascontiguousarray(leaf[axes]) if axes else leaf

    return trees.rebuild(arguments, iter([cut(leaf) for _, leaf in trees.leaves(arguments)]))


def _is_same(runs: Runs, there: Runs, by: int, transform: str) -> bool:
    """Return whether both frameworks' programs of a transform are the same on shorter arrays."""
    return all(
        (long := _steps(runs, framework, transform)) is not None
        and (short := _steps(there, framework, transform)) is not None
        and is_shorter(long, short, by)
        for framework in EAGER
    )


def is_shorter(long: Steps, short: Steps, by: int) -> bool:
    """Return whether a program is another one on arrays that are shorter by a factor.

    Example:
        >>> is_shorter([("mm", (1024, 8))], [("mm", (64, 8))], 16)
        True
        >>> is_shorter([("slice", (512, 8))], [("slice", (64, 8))], 16)
        False
    """
    powers = [by**power for power in range(6)]
    return len(long) == len(short) and all(
        one == other
        and len(shape) == len(less)
        and all(any(size == few * power for power in powers) for size, few in zip(shape, less, strict=True))
        for (one, shape), (other, less) in zip(long, short, strict=True)
    )


def _steps(runs: Runs, framework: str, transform: str) -> Steps | None:
    pair = runs.pair
    cell = pair.cell(pair.name, pair.group, "float32", transform, EAGER[framework], "cpu", "random")
    numbers = runs.numbers_in(cell, framework)
    if not isinstance(numbers, Numbers):
        return None
    asked = Call(runs.function(framework), pair.transform(transform), numbers, "float32")
    try:
        found: Steps = world_of(framework).steps(asked, "cpu")
    except RAISED:
        # It cannot be traced, or it raises: then it runs at full size, and what it raises is the cell's result.
        return None
    return found
