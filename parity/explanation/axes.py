"""Axes that a step sums, averages, normalises or broadcasts along: others are tried; and the larger for the smaller."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from parity.explanation.claims import Claim, change_all, grouped, place
from parity.explanation.programs.program import Operand, Operation, Step, first_of, with_first

FIX = "Reduce along the same axes on both sides: dim= in torch, axis= in JAX; None is all of them, the batch included."

REDUCES: dict[str, Callable[..., np.ndarray]] = {
    "sum": np.sum, "mean": np.mean, "prod": np.prod, "amax": np.max, "amin": np.min,
    "linalg_vector_norm": lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)),
}  # fmt: skip
"""Operators of torch that reduce an array, written out (a norm: of order 2)."""

MOST = 4
"""Axes of arrays that are tried: of more there are too many sets."""

NORMALISES = ("native_batch_norm", "_native_batch_norm_legit", "native_group_norm")
"""Operators that normalise channels, each alone or in groups."""


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
                    change_all("torch", group, _along(axes)), "default argument: dim",
                    f"{group[0].name} along {_said(now, values.ndim)}", _said(axes, values.ndim), FIX,
                )  # fmt: skip
    for group in grouped(steps, lambda step: step.name in NORMALISES and step.result is not None):
        yield from _groups(group)
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
    if len(axes) == rank:
        return "all axes"
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {' and '.join(map(str, axes))}"


def _along(axes: tuple[int, ...]) -> Callable[[Operation], Any]:
    def edit(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        values = operation.numpy(operation.operands["self"])
        found = REDUCES[operation.name](values, axis=axes, keepdims=bool(operation.operands.get("keepdim", False)))
        return operation.like(found, result)

    return edit


def _groups(group: Sequence[Step]) -> Iterator[Claim]:
    """Yield channels that are normalised in groups of another size.

    An instance norm of torch is a batch norm of all channels of all examples, as of one example.
    """
    step = group[0]
    values = step.operands.get("input")
    if not isinstance(values, np.ndarray) or values.ndim < 2:
        return
    own = step.name != "native_group_norm"
    if own and (values.shape[0] != 1 or step.operands.get("training", True) is False):
        return
    channels = values.shape[1]
    now = channels if own else int(step.operands.get("group", 1))
    for count in range(1, channels + 1):
        if channels % count or count == now:
            continue
        yield Claim(
            change_all("torch", group, _normalised(count)), "other statistics",
            f"statistics of {_of(channels // now)} ({step.name})", f"those of {_of(channels // count)}",
            "Take mean and variance over the same axes and groups: an instance norm has those of each channel of an "
            "example, a layer norm those of all.",
        )  # fmt: skip


def _of(channels: int) -> str:
    return "each channel" if channels == 1 else f"{channels} channels together"


def _normalised(count: int) -> Callable[[Operation], Any]:
    def edit(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        values = operation.numpy(operation.operands["input"])
        parts = values.reshape(values.shape[0], count, -1)
        mean, var = parts.mean(-1, keepdims=True), parts.var(-1, keepdims=True)
        found = ((parts - mean) / np.sqrt(var + operation.operands["eps"])).reshape(values.shape)
        at = (1, -1, *[1] * (values.ndim - 2))
        for name, join in (("weight", np.multiply), ("bias", np.add)):
            if (one := operation.operands.get(name)) is not None:
                found = join(found, operation.numpy(one).reshape(at))
        return with_first(result, operation.like(found, first_of(result)))

    return edit
