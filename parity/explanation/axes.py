"""Axes that a step sums, averages, normalises or broadcasts along: others are tried; and what else is taken there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from parity.explanation.claims import Claim, change_all, grouped, place
from parity.explanation.programs.program import Operand, Operation, Step, with_first
from parity.explanation.substitution import Change

FIX = "Reduce along the same axes on both sides: dim= in torch, axis= in JAX; None is all of them, the batch included."

REDUCES: dict[str, Callable[..., np.ndarray]] = {
    "sum": np.sum, "mean": np.mean, "prod": np.prod, "amax": np.max, "amin": np.min,
    "linalg_vector_norm": lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)),
}  # fmt: skip
"""Operators of torch that reduce an array, written out (a norm: of order 2)."""

MOST = 4
"""Axes of arrays that are tried: of more there are too many sets."""

NORMS = ("native_layer_norm", "native_batch_norm", "_native_batch_norm_legit", "native_group_norm")
NORM_FIX = "Normalize over the same axes: normalized_shape in torch, reduction_axes in Flax, shape in Equinox."


def claims(steps: Sequence[Step], others: Sequence[Step]) -> Iterator[Claim]:
    """Yield other sets of axes, where the other program has a result of that shape; and other groups of channels.

    Args:
        steps: Of torch.
        others: Of JAX.
    """
    shapes = {one.result.shape for one in others if one.result is not None and one.name.startswith("reduce_")}
    for group in grouped(steps, lambda step: step.name in REDUCES and _is_plain(step)):
        values, now = group[0].operands["self"], _axes(group[0])
        if values.ndim > MOST:
            continue
        sets = [c for n in range(1, values.ndim + 1) for c in itertools.combinations(range(values.ndim), n)]
        for axes in reversed(sets):
            left = tuple(size for axis, size in enumerate(values.shape) if axis not in axes)
            # One axis in the place of one other is told by the operator's argument.
            if axes != now and left in shapes and max(len(axes), len(now)) > 1:
                yield Claim(
                    change_all("torch", group, _reduced(axes)), "default argument: dim",
                    f"{group[0].name} along {_said(now, values.ndim)}", _said(axes, values.ndim), FIX,
                )  # fmt: skip
    yield from norms(steps)
    yield from _extremes(steps)
    yield from _broadcast(steps)


EXTREMES: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "minimum": ("maximum", np.maximum), "maximum": ("minimum", np.minimum),
}  # fmt: skip
"""Of two numbers each, the one in the place of the other."""


def _extremes(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield the larger of two numbers in the place of the smaller, and the other way round."""
    for group in grouped(steps, lambda step: step.name in EXTREMES):
        name, function = EXTREMES[group[0].name]

        def extreme(operation: Operation, function: Callable[..., np.ndarray] = function) -> Any:
            one, two = (operation.operands[place] for place in ("self", "other"))
            return operation.like(function(operation.numpy(one), operation.numpy(two)), one)

        yield Claim(
            change_all("torch", group, extreme), "another formula", f"the {group[0].name} of two numbers",
            f"their {name}", "Take the smaller of two or the larger alike: a sign in front exchanges them.",
        )  # fmt: skip


JOINS = ("mul", "div", "add", "sub")
"""Operators of two arrays, of which one may lie along one axis of the other."""


def _broadcast(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield a vector along another axis of the array that it scales: columns in the place of rows."""
    for step in steps:
        if step.name not in JOINS or step.result is None or step.result.ndim < 2:
            continue
        for operand, values in step.operands.items():
            if not isinstance(values, np.ndarray) or values.shape == step.result.shape or not values.size > 1:
                continue
            if values.size != max(values.shape):
                continue
            now = step.result.ndim - values.ndim + int(np.argmax(values.shape))
            for axis, length in enumerate(step.result.shape):
                if axis != now and length == values.size:
                    shape = tuple(length if one == axis else 1 for one in range(step.result.ndim))

                    def along(operation: Operation, operand: Operand = operand, shape: Any = shape) -> Any:
                        given = operation.operands[operand]
                        return operation.compute({**operation.operands, operand: given.reshape(shape)})

                    yield Claim(
                        change_all("torch", [step], along), "default argument: dim",
                        f"a vector along axis {now} ({step.name}, step {place(step)})", f"it along axis {axis}",
                        "Put a new axis on the same side: x[:, None] scales rows, x[None, :] columns.",
                    )  # fmt: skip


def _is_plain(step: Step) -> bool:
    values = step.operands.get("self")
    reduces = isinstance(values, np.ndarray) and values.ndim > 0 and values.size > 0
    return reduces and step.operands.get("ord", 2) == 2


def _axes(step: Step) -> tuple[int, ...]:
    rank, dim = step.operands["self"].ndim, step.operands.get("dim")
    several = dim if isinstance(dim, list | tuple) else [] if dim is None else [dim]
    return tuple(sorted(axis % rank for axis in several)) or tuple(range(rank))


def _said(axes: tuple[int, ...], rank: int) -> str:
    return "all axes" if len(axes) == rank else _over(axes)


def _reduced(axes: tuple[int, ...]) -> Callable[[Operation], Any]:
    def edit(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        values = operation.numpy(operation.operands["self"])
        found = REDUCES[operation.name](values, axis=axes, keepdims=bool(operation.operands.get("keepdim", False)))
        return operation.like(found, result)

    return edit


def norms(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield norms over other axes of an example, or over channels in groups of another size: of all steps, or of one.

    An instance norm of torch is a batch norm of all channels of all examples, as of one example.
    """
    for group in grouped(steps, lambda step: step.name in NORMS and isinstance(step.operands.get("input"), np.ndarray)):
        step, values = group[0], group[0].operands["input"]
        if step.name == "native_layer_norm":
            own = tuple(range(values.ndim - len(step.operands["normalized_shape"]), values.ndim))
            sets = (c for count in range(1, values.ndim) for c in itertools.combinations(range(1, values.ndim), count))
            has, tried = _over(own), [(_over(one), partial(_normalised, axes=one)) for one in sets if one != own]
        else:
            by_itself = step.name != "native_group_norm"
            if by_itself and (values.shape[0] != 1 or step.operands.get("training", True) is False):
                continue
            channels = values.shape[1]
            now = channels if by_itself else int(step.operands["group"])
            counts = (one for one in range(1, channels + 1) if not channels % one and one != now)
            has = _of(channels // now)
            tried = [(_of(channels // one), partial(_normalised, groups=one)) for one in counts]
        for needs, edit in tried:
            change = change_all("torch", group, edit)
            yield Claim(change, "normalization axes", f"a norm over {has} ({step.name})", f"one over {needs}", NORM_FIX)


def _over(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {' and '.join(map(str, axes))}"


def _of(channels: int) -> str:
    return "each channel" if channels == 1 else f"{channels} channels together"


def _normalised(operation: Operation, axes: tuple[int, ...] = (), groups: int = 1) -> Any:
    import torch

    o = operation.operands
    result, x = operation.compute(o), o["input"]
    parts = x if axes else x.reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(parts, axes or (-1,), correction=0, keepdim=True)
    made = ((parts - mean) * torch.rsqrt(variance + o["eps"])).reshape(x.shape)
    weight, bias = (
        one if axes or one is None else one.reshape(1, -1, *[1] * (x.ndim - 2))
        for one in (o.get("weight"), o.get("bias"))
    )
    made = made if weight is None else made * weight
    return with_first(result, made if bias is None else made + bias)


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
POOL_FIX = "Pool alike on both sides."


def pooled(steps: Sequence[Step], kinds: Collection[str] = ("one", *ALONG)) -> Iterator[Claim]:
    """Yield what else is taken along the axes of a step: one element, the mean, the largest, the sum."""
    for step in steps:
        values, dim = step.operands.get("self"), step.operands.get("dim")
        if TAKEN.get(step.name) not in kinds or not isinstance(values, np.ndarray) or values.dtype.kind != "f":
            continue
        axes = tuple(dim or range(values.ndim)) if dim is None or isinstance(dim, list) else (dim,)
        if not axes or not all(isinstance(axis, int) for axis in axes):
            continue
        index = step.operands.get("index") if step.name == "select" else None
        ends = {0: "the first", -1: "the last", values.shape[axes[0]] - 1: "the last"}
        has = ends.get(index, TAKEN[step.name]) if isinstance(index, int) else TAKEN[step.name]
        count = math.prod(values.shape[axis] for axis in axes)
        said = f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(str(axis % values.ndim) for axis in axes)}"
        for needs, function in ALONG.items():
            if needs in kinds and needs != has and (len(axes) == 1 or needs not in OF_ONE_AXIS):
                yield Claim(
                    Change("torch", {step.key: partial(_taken, function=function, axes=axes)}),
                    "pooling",
                    f"{has} of {count} along {said} is taken",
                    needs,
                    POOL_FIX,
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
                    POOL_FIX,
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
                    POOL_FIX,
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
