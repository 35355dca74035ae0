"""Order: of the parts of a concatenation, of the operands of a difference or a quotient; positions, and gates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Edit, Operand, Operation, Step, set_result
from parity.explanation.substitution import Bench, Change

TURNS = ("transpose", "permute")
JOINS = ("cat", "concatenate", "stack")
SPLITS = ("split", "unsafe_split", "split_with_sizes", "chunk", "unsafe_chunk")
MOST_PARTS, MANY_PARTS = 4, 12
"""Of a concatenation, or of what is taken apart: up to so many are put in every order, up to so many in some."""

OFFSETS = (1, -1, 2, -2)
COUNTS = ("arange", "iota")
GATES = ("sigmoid", "sigmoid_", "logistic")
DIFFERENCES, QUOTIENTS = ("sub", "rsub", "sub_"), ("div", "true_divide", "div_")


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield other orders of operands."""
    for framework in ("torch", "jax"):
        steps = bench.programs[framework].steps
        yield from _joined(framework, steps)
        yield from _split(framework, steps)
        yield from _read(framework, steps)
        yield from _positions(framework, steps)
        for names, cause, has, needs, other, fix in (
            (GATES, "another formula: gate", "a gate z", "1 - z", partial(np.subtract, 1.0),
             "Use the gate alike: torch's GRU has (1 - z) * n + z * h."),
            (DIFFERENCES, "another formula: sign", "a - b", "b - a", np.negative, "Subtract in one order."),
            (QUOTIENTS, "another formula: quotient", "a / b", "b / a", np.reciprocal, "Divide in one order."),
        ):  # fmt: skip
            yield from _turned(framework, steps, names, cause, has, needs, other, fix)


def groups(steps: Sequence[Step], names: Sequence[str]) -> Iterator[list[Step]]:
    """Yield all steps of some names together, then each alone."""
    found = [step for step in steps if step.name in names]
    if len(found) > 1:
        yield found
    yield from ([step] for step in found)


def _parts(step: Step) -> int:
    tensors = step.operands.get("tensors")
    return len(tensors) if tensors is not None else sum(isinstance(one, int) for one in step.operands)


def _orders(count: int) -> Iterator[tuple[int, ...]]:
    """Yield every other order of a few parts, and some of many.

    These are two parts exchanged, all turned round, all of a period alike, and pairs taken apart, as sines and cosines.

    Example:
        >>> len(list(_orders(3))), len(list(_orders(6)))
        (5, 24)
    """
    usual = tuple(range(count))
    found = itertools.permutations(usual) if count <= MOST_PARTS else itertools.chain(
        (tuple(b if at == a else a if at == b else at for at in usual) for a, b in itertools.combinations(usual, 2)),
        (tuple(at - at % n + order[at % n] for at in usual)
         for n in (2, 3) if count % n == 0 for order in itertools.permutations(range(n))),
        (usual[::-1],), _pairs_apart(usual),
    )  # fmt: skip
    yield from (order for order in dict.fromkeys(found) if order != usual)


def _pairs_apart(usual: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield (0, 2, 4, 1, 3, 5) and the way back, with or without a first part that stays."""
    first = len(usual) % 2
    apart = (*usual[:first], *usual[first::2], *usual[first + 1 :: 2])
    yield apart
    yield tuple(apart.index(at) for at in usual)


def _joined(framework: str, steps: Sequence[Step]) -> Iterator[Claim]:
    for group in groups(steps, JOINS):
        count = _parts(group[0])
        if not 1 < count <= MANY_PARTS or any(_parts(step) != count for step in group):
            continue
        for order in _orders(count):
            yield Claim(
                Change(framework, {step.key: _permuted(order) for step in group}),
                "concat order",
                f"{count} parts put together in their order ({group[0].name}"
                f"{f', {len(group)} times' if len(group) > 1 else ''})",
                f"them in the order {', '.join(str(one + 1) for one in order)}",
                "Put the parts together in one order: weights that follow are laid out for it.",
            )  # fmt: skip


def _permuted(order: Sequence[int]) -> Edit:
    def edit(operation: Operation) -> Any:
        given = operation.operands
        if "tensors" in given:
            return operation.compute({**given, "tensors": [given["tensors"][at] for at in order]})
        return operation.compute({at: given[place] for at, place in enumerate(order)})

    return edit


def _split(framework: str, steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield parts of what is taken apart in another order: gates, or queries, keys and values."""
    for group in groups(steps, SPLITS):
        times = f", {len(group)} times" if len(group) > 1 else ""
        for count in range(2, MANY_PARTS + 1):
            for order in _orders(count):
                yield Claim(
                    Change(framework, {step.key: partial(_reordered, order=order) for step in group}),
                    "split order",
                    f"{count} parts in their order ({group[0].name}{times})",
                    f"them in the order {', '.join(str(one + 1) for one in order)}",
                    "Take the parts in one order: an LSTM of torch has its gates as i, f, g, o, a GRU as r, z, n.",
                )


def _reordered(operation: Operation, order: Sequence[int]) -> Any:
    parts = operation.compute(operation.operands)
    if not isinstance(parts, tuple | list) or len(parts) != len(order):
        raise ValueError(f"expected {len(order)} parts")  # the change does not run, and so explains nothing
    return type(parts)([parts[at] for at in order])


def _read(framework: str, steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield arrays that are read in another shape where the other side exchanges axes: heads put together wrongly."""
    operand = "self" if framework == "torch" else 0
    for group in groups([step for step in steps if np.ndim(step.operands.get(operand)) > 2], TURNS):  # type: ignore[arg-type]
        shape = np.shape(group[0].operands[operand])
        reshaped = Claim(
            Change(framework, {step.key: partial(_reshaped, operand=operand) for step in group}),
            "arrangement: reshaped",
            f"axes exchanged ({group[0].name}, of shape {list(shape)})",
            "a reshape alone, which reads the numbers in their old order",
            "Exchange the axes before the reshape on both sides: (batch, heads, length, size) to (batch, length, ...).",
        )
        if np.shape(group[0].result) == shape:  # type: ignore[arg-type] # reading it in its own shape is nothing
            order = "Transpose one of them: check dim, axis and the order of einsum's letters."
            reshaped = replace(reshaped, cause="transposed", needs="them in their order", fix=order)
        yield reshaped


def _reshaped(operation: Operation, operand: Operand) -> Any:
    return operation.operands[operand].reshape(operation.compute(operation.operands).shape)


def _positions(framework: str, steps: Sequence[Step]) -> Iterator[Claim]:
    for group in groups([step for step in steps if step.result is not None and step.result.size > 1], COUNTS):
        first = np.ravel(group[0].result)[0]  # type: ignore[arg-type] # filtered above
        for by in OFFSETS:
            yield Claim(
                Change(framework, {step.key: set_result(partial(_shifted, by=by)) for step in group}),
                "position offset",
                f"positions from {first:g} on ({group[0].name})",
                f"them from {first + by:g} on",
                "Count positions from one number on both sides.",
            )


def _shifted(values: np.ndarray, by: int) -> np.ndarray:
    return values + by


def _turned(
    framework: str, steps: Sequence[Step], names: Sequence[str], cause: str, has: str, needs: str,
    other: Callable[[np.ndarray], np.ndarray], fix: str,
) -> Iterator[Claim]:  # fmt: skip
    floats = [step for step in steps if step.result is not None and step.result.dtype.kind == "f" and step.result.ndim]
    for group in groups(floats, names):
        edits = {step.key: set_result(other) for step in group}
        yield Claim(Change(framework, edits), cause, f"{has} ({group[0].name})", needs, fix)
