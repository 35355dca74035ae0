"""Arrangement: axes and channels in another order, in an input, an intermediate result or an output."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from parity.execution.calls import Numbers
from parity.explanation.claims import Claim, place
from parity.explanation.programs.program import Edit, Operation, Step, set_result
from parity.explanation.substitution import Bench, Change, holder, other, where_they_part
from parity.operator import trees

ORDERS = {2: "halves", 3: "thirds", 4: "quarters"}


@dataclass(frozen=True)
class Rearrangement:
    """Another order of the entries of an array, of the same shape.

    Attributes:
        cause: A slug.
        words: What it is.
        of: The array in the other order.
        fix: What to do.
        axis: The axis whose order it changes; None for several.
        along: The same along any axis of any array.
    """

    cause: str
    words: str
    of: Callable[[np.ndarray], np.ndarray]
    fix: str
    axis: int | None = None
    along: Callable[[np.ndarray, int], np.ndarray] | None = None


TRANSPOSE = "Transpose one of them: check dim, axis and the order of einsum's letters."
INTERLEAVE = (
    "Pair channels alike: neighbours (0, 1), (2, 3) or halves (0, n/2), (1, n/2 + 1); permute the weights once."
)
GATES = "Reorder the parts (gates, or q, k and v) once, where weights are converted."
FLIP = "Flip the kernel where weights are converted: lax.conv_transpose without transpose_kernel does not flip it."
REVERSE = "Reverse that axis on one side, or pass the argument that does (increasing=, reverse=, descending=)."
SHIFT = "Check where counting begins, and which side is padded."
QUATERNION = (
    f"{SHIFT} A quaternion has its real part first (w, x, y, z) in some libraries, last (x, y, z, w) in others."
)
HEADS = "Split heads alike: (parts, heads, width) against (heads, parts, width); reorder the weights once."


def rearrangements(shape: tuple[int, ...], weights: bool) -> Iterator[Rearrangement]:
    """Yield the finite list of orders that people get wrong.

    Args:
        shape: Of the array.
        weights: Whether orders of parts (gates, kernels) are tried as well.
    """
    n = len(shape)
    for i, j in itertools.combinations(range(n), 2):
        if shape[i] == shape[j] > 1:
            yield Rearrangement(
                "transposed", f"axes {i} and {j} exchanged", partial(np.swapaxes, axis1=i, axis2=j), TRANSPOSE
            )
        elif shape[i] > 1 and shape[j] > 1:
            yield Rearrangement(
                "arrangement: reshaped",
                f"axes {i} and {j} exchanged, and reshaped back",
                partial(_swapped_flat, i=i, j=j),
                "A reshape does not transpose: move the axis first (transpose, moveaxis), then reshape.",
            )
            turned = [*shape]
            turned[i], turned[j] = shape[j], shape[i]
            yield Rearrangement(
                "arrangement: reshaped",
                f"read with axes {i} and {j} exchanged",
                partial(_read_swapped, shape=tuple(turned), i=i, j=j),
                "A reshape does not transpose: move the axis first (transpose, moveaxis), then reshape.",
            )
    for axis in range(n):
        for cause, words, along, fix in _along(shape[axis], weights):
            yield Rearrangement(
                cause, f"{words} along axis {axis}", partial(_at_axis, along=along, axis=axis), fix, axis, along
            )
    for count in (2, 3):
        if n > count:
            axes = tuple(range(n - count, n))
            yield Rearrangement(
                "arrangement: kernel flip",
                f"flipped along the last {count} axes",
                partial(np.flip, axis=axes),
                FLIP,
            )
            axes = tuple(range(count))
            yield Rearrangement(
                "arrangement: kernel flip",
                f"flipped along the first {count} axes",
                partial(np.flip, axis=axes),
                FLIP,
            )


Along = Callable[[np.ndarray, int], np.ndarray]


def _along(size: int, weights: bool) -> Iterator[tuple[str, str, Along, str]]:
    """Yield a cause, words, the order and a fix for each order along one axis of a size."""
    if size < 2:
        return
    for a in range(2, size):
        if size % a == 0:
            b = size // a
            pairs = a == 2 or b == 2
            words = "interleaved" if pairs else f"read as ({b}, {a}) in the place of ({a}, {b})"
            yield (
                "arrangement: interleaved" if pairs else "arrangement: channel order",
                words,
                partial(_split, shape=(a, b), order=(1, 0)),
                INTERLEAVE,
            )
    yield "arrangement: reversed", "reversed", np.flip, FLIP if weights else REVERSE
    for by in (1, -1):
        yield (
            "arrangement: shifted",
            f"shifted by {by}",
            partial(_rolled, by=by),
            QUATERNION if size == 4 else SHIFT,
        )
    for parts, word in ORDERS.items():
        if size % parts == 0 and (weights or parts == 2):
            for order in itertools.permutations(range(parts)):
                if order != tuple(range(parts)):
                    yield (
                        "arrangement: part order",
                        f"with its {word} in the order {order}",
                        partial(_chunks, parts=parts, order=order),
                        GATES,
                    )
    for parts in (2, 3) if weights else ():
        rest = size // parts
        for a in (a for a in range(2, rest) if size % parts == 0 and rest % a == 0):
            for shape, order in (
                ((parts, a, rest // a), (1, 0, 2)),
                ((a, parts, rest // a), (1, 0, 2)),
                ((a, rest // a, parts), (2, 0, 1)),
                ((parts, a, rest // a), (1, 2, 0)),
            ):
                yield (
                    "arrangement: part order",
                    f"read as {shape} with these axes in the order {order}",
                    partial(_split, shape=shape, order=order),
                    HEADS,
                )


def _at_axis(x: np.ndarray, along: Along, axis: int) -> np.ndarray:
    return along(x, axis % x.ndim)


def _swapped_flat(x: np.ndarray, i: int, j: int) -> np.ndarray:
    return np.swapaxes(x, i, j).reshape(x.shape)


def _read_swapped(x: np.ndarray, shape: tuple[int, ...], i: int, j: int) -> np.ndarray:
    return np.swapaxes(x.reshape(shape), i, j)


def _rolled(x: np.ndarray, axis: int, by: int) -> np.ndarray:
    return np.roll(x, by, axis)


def _split(x: np.ndarray, axis: int, shape: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    moved = np.moveaxis(x, axis, -1)
    parts = moved.reshape(*moved.shape[:-1], *shape)
    first = moved.ndim - 1
    parts = np.transpose(parts, (*range(first), *(first + i for i in order)))
    return np.moveaxis(parts.reshape(moved.shape), -1, axis)


def _chunks(x: np.ndarray, axis: int, parts: int, order: tuple[int, ...]) -> np.ndarray:
    chunks = np.split(x, parts, axis)
    return np.concatenate([chunks[i] for i in order], axis)


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield other orders: pairs of channels, outputs, inputs."""
    yield from pairings(bench)
    yield from _outputs(bench)
    yield from _inputs(bench)
    yield from _layouts(bench)


def steps(bench: Bench) -> Iterator[Claim]:
    """Yield other orders of results of steps, those first where the programs part."""
    groups = [
        (framework, group) for framework in ("torch", "jax") for group in grouped(bench.programs[framework].steps)
    ]
    parting = {name: where_they_part(bench, name) for name in bench.programs}
    groups.sort(key=lambda pair: not any(step.key in parting[pair[0]] for step in pair[1]))
    held = {name: holder(bench, other(name)) for name in bench.programs}
    for framework, group in groups:
        step = group[0]
        assert step.result is not None
        if not held[framework](step.result):
            continue  # the other side has these numbers in no order
        for one in rearrangements(step.result.shape, step.result.ndim <= 3 and framework == "torch"):
            if _is_opposite(step.result, one.of(step.result)):
                continue
            edits = dict.fromkeys([s.key for s in group], set_result(one.of))
            where = (
                f"the result of {step.name} (step {place(step)})"
                if len(group) == 1
                else f"{len(group)} results of {step.name}"
            )
            yield Claim(
                Change(framework, edits),
                one.cause,
                where,
                f"{'it' if len(group) == 1 else 'them'} {one.words}",
                _fix(one, bench),
            )


def _is_opposite(values: np.ndarray, moved: np.ndarray) -> bool:
    """Return whether a move only exchanges two numbers: an alternating mask, reversed, is its opposite.

    Example:
        >>> mask = np.array([0.0, 1.0, 0.0, 1.0])
        >>> _is_opposite(mask, mask[::-1]), _is_opposite(mask, mask)
        (True, False)
    """
    kinds = np.unique(values)
    return kinds.size == 2 and bool(np.all((moved == kinds[0]) == (values == kinds[1])))


def grouped(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Yield steps of one name and shape together, then each alone."""
    groups: dict[tuple[str, tuple[int, ...]], list[Step]] = {}
    for step in steps:
        if step.result is not None and step.result.size > 1 and step.result.dtype.kind in "fbi":
            groups.setdefault((step.name, step.result.shape), []).append(step)
    for group in groups.values():
        yield group
        if len(group) > 1:
            yield from ([step] for step in group)


def pairings(bench: Bench) -> Iterator[Claim]:
    """Yield the other pairing of channels: neighbours where a program takes halves apart and puts them together."""
    for framework in ("torch", "jax"):
        ran = bench.programs[framework].steps
        sizes = {
            s.result.shape[-1]
            for s in ran
            if s.name in ("cat", "concatenate") and s.result is not None and s.result.ndim
        }
        sizes |= {half.size for half in map(_half, ran) if half is not None}
        for size in sorted(sizes):
            apart = {
                s.key: set_result_from(half)
                for s, half in ((s, _half(s)) for s in ran)
                if half is not None and half.size == size
            }
            joined = {
                s.key: set_result(lambda a: _split(a, a.ndim - 1, (2, a.shape[-1] // 2), (1, 0)))
                for s in ran
                if s.name in ("cat", "concatenate")
                and s.result is not None
                and s.result.ndim
                and s.result.shape[-1] == size
                and size % 2 == 0
            }
            for edits in (apart | joined, apart, joined):
                if edits:
                    yield Claim(
                        Change(framework, edits),
                        "arrangement: interleaved",
                        f"channels paired as halves (0, {size // 2})",
                        "pairs of neighbours (0, 1)",
                        INTERLEAVE,
                    )


@dataclass(frozen=True)
class _Half:
    """A step that takes the first or second half of the last axis of its operand."""

    size: int
    second: bool
    operand: str | int


def _half(step: Step) -> _Half | None:
    operand = "self" if "self" in step.operands else 0
    values = step.operands.get(operand)
    if step.name not in ("slice", "split", "split_with_sizes") or not isinstance(values, np.ndarray) or not values.ndim:
        return None
    size, result = values.shape[-1], step.result
    if result is None or size % 2 or result.shape[-1] != size // 2 or result.shape[:-1] != values.shape[:-1]:
        return None
    if step.name != "slice":
        return _Half(size, False, operand)
    for second in (False, True):
        if np.array_equal(result, np.split(values, 2, -1)[second], equal_nan=True):
            return _Half(size, second, operand)
    return None


def set_result_from(half: _Half) -> Edit:
    """Return the edit that takes every other channel in the place of a half."""

    def edit(operation: Operation) -> Any:
        values = operation.numpy(operation.operands[half.operand])
        if operation.name == "slice":
            return operation.like(values[..., int(half.second) :: 2], operation.operands[half.operand])
        result = operation.compute(operation.operands)
        parts = [operation.like(values[..., i::2], one) for i, one in enumerate(result)]
        return type(result)(parts)

    return edit


def _outputs(bench: Bench) -> Iterator[Claim]:
    for name, values in bench.outputs["jax"][0].items():
        for one in rearrangements(values.shape, weights=True):

            def changed(
                outputs: dict[str, np.ndarray], name: str = name, one: Rearrangement = one
            ) -> dict[str, np.ndarray]:
                return {**outputs, name: one.of(outputs[name])}

            yield Claim(Change("jax", outputs=changed), one.cause, name, f"it {one.words}", _fix(one, bench))


def _fix(one: Rearrangement, bench: Bench) -> str:
    """Return what to do: kernels are flipped where there is a convolution."""
    names = {step.name for program in bench.programs.values() for step in program.steps}
    convolves = any("conv" in name and not name.startswith("convert") for name in names)
    return REVERSE if one.fix is FLIP and not convolves else one.fix


LAYOUTS = (
    (1, 2, "with axes 1 and 2 exchanged", "torch's attention takes (batch, heads, length, size), JAX's (batch, length, "
     "heads, size): exchange the two on the way in and out."),
    (0, 1, "with axes 0 and 1 exchanged", "One side has the batch first, the other the time: pass batch_first=, or "
     "exchange the two."),
    (1, -1, "with axis 1 last", "One side has channels first, the other last: move them on the way in and out."),
    (-1, 1, "with the last axis as axis 1", "One side has channels last, the other first: move them on the way in and "
     "out."),
)  # fmt: skip
"""Moves of an axis to another place, in words, and what to do."""


def _layouts(bench: Bench) -> Iterator[Claim]:
    """Yield all arrays of most axes with an axis at another place, inputs and outputs together."""
    most = max((np.ndim(leaf) for _, leaf in trees.leaves(bench.numbers[0].arguments)), default=0)
    for source, target, words, fix in LAYOUTS if most > 2 else ():
        if most == 3 and 0 not in (source, target) and target != -1:
            continue  # of the last two axes there is one other order
        move = partial(np.moveaxis, source=source, destination=target)
        back = partial(np.moveaxis, source=target, destination=source)
        numbers, outputs = partial(_moved, move=move, most=most), partial(_moved_back, move=back, most=most)
        has = f"what has {most} axes, inputs and outputs,"
        yield Claim(Change("torch", numbers=numbers, outputs=outputs), "arrangement: axes", has, f"it {words}", fix)


def _moved(numbers: Numbers, move: Callable[[np.ndarray], np.ndarray], most: int) -> Numbers:
    leaves = (move(leaf) if np.ndim(leaf) == most else leaf for _, leaf in trees.leaves(numbers.arguments))
    theta = tuple(move(leaf) if leaf.ndim == most else leaf for leaf in numbers.theta)
    return replace(numbers, arguments=trees.rebuild(numbers.arguments, leaves), theta=theta)


def _moved_back(
    outputs: dict[str, np.ndarray], move: Callable[[np.ndarray], np.ndarray], most: int
) -> dict[str, np.ndarray]:
    return {name: move(value) if value.ndim == most else value for name, value in outputs.items()}


def _inputs(bench: Bench) -> Iterator[Claim]:
    """Yield other orders of inputs: of those that share an axis (gates' weights and biases), and of each."""
    numbers = bench.numbers[0]
    leaves, names = numbers.theta, numbers.names
    seen: set[tuple[str, tuple[int, ...], bool]] = set()
    for number, leaf in enumerate(leaves):
        for one in rearrangements(leaf.shape, weights=True):
            if one.axis is not None and one.along is not None:
                for last in [one.axis > 0] if leaf.ndim > 1 else [False, True]:
                    if one.axis in (0, leaf.ndim - 1):
                        group = tuple(
                            i
                            for i, x in enumerate(leaves)
                            if x.ndim and x.shape[-1 if last else 0] == leaf.shape[one.axis]
                        )
                        if len(group) > 1 and (one.words, group, last) not in seen:
                            seen.add((one.words, group, last))
                            yield _claim_of_inputs(
                                one,
                                names,
                                group,
                                partial(_at_axis, along=one.along, axis=-1 if last else 0),
                                _fix(one, bench),
                            )
            yield _claim_of_inputs(one, names, (number,), one.of, _fix(one, bench))


def _claim_of_inputs(
    one: Rearrangement, names: tuple[str, ...], group: tuple[int, ...], of: Callable[[np.ndarray], np.ndarray], fix: str
) -> Claim:
    def changed(theta: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(of(x) if i in group else x for i, x in enumerate(theta))

    return Claim(
        Change("torch", inputs=changed),
        one.cause,
        ", ".join(names[i] for i in group),
        f"{'them' if len(group) > 1 else 'it'} {one.words}",
        fix,
    )
