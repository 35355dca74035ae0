"""Pooling of another kind: the first word for the mean of all, the mean for the maximum of a window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Operation
from parity.explanation.substitution import Change
from parity.models.causes.context import Context
from parity.records import Diagnosis

ALONG: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "the first": lambda x, axis: np.take(x, 0, axis),
    "the last": lambda x, axis: np.take(x, -1, axis),
    "the mean": lambda x, axis: np.mean(x, axis),
    "the maximum": lambda x, axis: np.max(x, axis),
    "the sum": lambda x, axis: np.sum(x, axis),
}
TAKEN = {"select": "one", "mean": "the mean", "amax": "the maximum", "max": "the maximum", "sum": "the sum"}
WINDOWS = ("max_pool2d_with_indices", "max_pool2d", "avg_pool2d")
FIX = "Pool alike on both sides."


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield another proved pooling."""
    at = context.bench
    if at is None:
        return
    steps = at.programs["torch"].steps
    for claims in (_along(steps), _windows(steps)):
        found = context.first(claims)
        if found is not None:
            yield found


def _along(steps: Any) -> Iterator[Claim]:
    for step in steps:
        values, dim = step.operands.get("self"), step.operands.get("dim")
        if step.name not in TAKEN or not isinstance(values, np.ndarray) or values.dtype.kind != "f":
            continue
        axes = dim if isinstance(dim, list) else [dim]
        if len(axes) != 1 or not isinstance(axes[0], int) or values.ndim < 2:
            continue
        has = "the first" if step.name == "select" and step.operands.get("index") == 0 else TAKEN[step.name]
        for needs, function in ALONG.items():
            if needs != has:
                yield Claim(
                    Change("torch", {step.key: partial(_taken, function=function, axis=axes[0])}),
                    "pooling",
                    f"{has} of {values.shape[axes[0]]} along axis {axes[0]} is taken",
                    needs,
                    FIX,
                )


def _taken(operation: Operation, function: Callable[[np.ndarray, int], np.ndarray], axis: int) -> Any:
    result = operation.compute(operation.operands)
    first = result[0] if isinstance(result, tuple) else result
    values = function(operation.numpy(operation.operands["self"]), axis)
    changed = operation.like(values.reshape(operation.numpy(first).shape), first)
    return (changed, *result[1:]) if isinstance(result, tuple) else changed


def _windows(steps: Any) -> Iterator[Claim]:
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
