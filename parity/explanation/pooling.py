"""Pooling of another kind: the first word for the mean of all, the mean for the maximum of a window."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Operation, Step
from parity.explanation.substitution import Change

Axes = tuple[int, ...]
ALONG: dict[str, Callable[[np.ndarray, Axes], np.ndarray]] = {
    "the first": lambda x, axes: np.take(x, 0, axes[0]),
    "the last": lambda x, axes: np.take(x, -1, axes[0]),
    "the mean": lambda x, axes: np.mean(x, axes),
    "the maximum": lambda x, axes: np.max(x, axes),
    "the sum": lambda x, axes: np.sum(x, axes),
}
OF_ONE_AXIS = ("the first", "the last")
TAKEN = {"select": "one", "mean": "the mean", "amax": "the maximum", "max": "the maximum", "sum": "the sum"}
WINDOWS = ("max_pool2d_with_indices", "max_pool2d", "avg_pool2d")
FIX = "Pool alike on both sides."


def along(steps: Sequence[Step], kinds: Collection[str] = tuple(ALONG)) -> Iterator[Claim]:
    """Yield what else is taken along the axes of a step: one element, the mean, the largest, the sum."""
    for step in steps:
        values, dim = step.operands.get("self"), step.operands.get("dim")
        if (
            TAKEN.get(step.name) not in (*kinds, "one")
            or not isinstance(values, np.ndarray)
            or values.dtype.kind != "f"
        ):
            continue
        axes = tuple(dim or range(values.ndim)) if dim is None or isinstance(dim, list) else (dim,)
        if not axes or not all(isinstance(axis, int) for axis in axes):
            continue
        place = step.operands.get("index") if step.name == "select" else None
        ends = {0: "the first", -1: "the last", values.shape[axes[0]] - 1: "the last"}
        has = ends.get(place, TAKEN[step.name]) if isinstance(place, int) else TAKEN[step.name]
        count = math.prod(values.shape[axis] for axis in axes)
        along = f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(str(axis % values.ndim) for axis in axes)}"
        for needs, function in ALONG.items():
            if needs in kinds and needs != has and (len(axes) == 1 or needs not in OF_ONE_AXIS):
                yield Claim(
                    Change("torch", {step.key: partial(_taken, function=function, axes=axes)}),
                    "pooling",
                    f"{has} of {count} along {along} is taken",
                    needs,
                    FIX,
                )


PICKS = {"torch": ("index", "gather"), "jax": ("gather",)}
OPERANDS: dict[str, str | int] = {"torch": "self", "jax": 0}


def by_places(framework: str, steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield the first or the last of an axis for an element of each example, as the last that is not padding."""
    for step in steps:
        values, made = step.operands.get(OPERANDS[framework]), step.result
        if step.name not in PICKS[framework] or not isinstance(values, np.ndarray) or made is None:
            continue
        if values.dtype.kind != "f":
            continue
        for axis in range(1, values.ndim):
            count = values.shape[axis]
            if count < 2 or made.size * count != values.size:
                continue
            for needs in OF_ONE_AXIS:

                def picked(operation: Operation, axis: int = axis, f: Any = ALONG[needs]) -> Any:
                    result = operation.compute(operation.operands)
                    found = f(operation.numpy(operation.operands[OPERANDS[framework]]), (axis,))
                    return operation.like(found.reshape(operation.numpy(result).shape), result)

                yield Claim(
                    Change(framework, {step.key: picked}),
                    "pooling",
                    f"one of {count} along axis {axis}, at a place of its own for each example,",
                    needs,
                    FIX,
                )


def _taken(operation: Operation, function: Callable[[np.ndarray, Axes], np.ndarray], axes: Axes) -> Any:
    result = operation.compute(operation.operands)
    first = result[0] if isinstance(result, tuple) else result
    values = function(operation.numpy(operation.operands["self"]), axes)
    changed = operation.like(values.reshape(operation.numpy(first).shape), first)
    return (changed, *result[1:]) if isinstance(result, tuple) else changed


def windows(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield the mean of windows in the place of their maximum, and the other way round."""
    alike = [[step for step in steps if step.name == name] for name in WINDOWS]
    # All of a model first, then each by itself.
    for group in [*alike, *([step] for found in alike if len(found) > 1 for step in found)]:
        if group:
            maximum = "max" in group[0].name
            names = ("the maximum", "the mean") if maximum else ("the mean", "the maximum")
            for counted in (True, False) if maximum else (True,):
                yield Claim(
                    Change("torch", {step.key: partial(_pooled, counted=counted) for step in group}),
                    "pooling",
                    f"{names[0]} of windows is taken",
                    names[1],
                    FIX,
                )


def _pooled(operation: Operation, counted: bool) -> Any:
    import torch.nn.functional as F

    o = operation.operands
    sizes = (o["self"], list(o["kernel_size"]), list(o["stride"]) or None, list(o["padding"]), bool(o["ceil_mode"]))
    if "max" not in operation.name:
        return F.max_pool2d(*sizes[:4], ceil_mode=sizes[4])
    mean = F.avg_pool2d(*sizes, count_include_pad=counted)
    result = operation.compute(o)
    return (mean, *result[1:]) if isinstance(result, tuple) else mean
