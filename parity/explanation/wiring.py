"""What a step takes: another result of the program, or an earlier one, as where steps in between are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from parity.explanation.claims import Claim, place
from parity.explanation.moving import NORMS
from parity.explanation.programs.program import (
    SUMS,
    Edit,
    Edits,
    Key,
    Operand,
    Operation,
    Program,
    Step,
    first_of,
    with_first,
)  # fmt: skip
from parity.explanation.substitution import Bench, Change, where_they_part

MOST = 1500
"""Rewirings that are tried."""

MOST_STREAMS = 400
"""Of those of sums and norms alone."""

FIX = "Follow what goes into that step on both sides: a name may be used again for what it was before."


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield other operands of steps, and parts that the other program lacks; those where the programs part first."""
    for framework in ("torch", "jax"):
        program = bench.programs[framework]
        parting = where_they_part(bench, framework)
        steps = [step for step in program.steps if bench.in_focus(framework, [step.key])]
        ordered = sorted(steps, key=lambda step: step.key not in parting)
        yield from islice(_skipped(program, ordered), MOST)
        yield from islice(_rewired(bench, program, ordered), MOST)


def streams(bench: Bench) -> Iterator[Claim]:
    """Yield other terms of sums and other inputs of norms: the stream of a residual network, taken at another place."""
    for framework in ("torch", "jax"):
        program = bench.programs[framework]
        wanted = [
            step for step in program.steps if step.name in (*SUMS, *NORMS) and bench.in_focus(framework, [step.key])
        ]
        yield from islice(_rewired(bench, program, wanted), MOST_STREAMS)


def _is_stream(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "fi" and values.size > 1


def _fits(values: np.ndarray | None, like: np.ndarray | None) -> bool:
    return values is not None and like is not None and _is_stream(values) and values.shape == like.shape


def _earlier(program: Program, step: Step) -> Iterator[Step]:
    for one in program.steps:
        if one.key == step.key or (
            isinstance(one.key, tuple) and isinstance(step.key, tuple) and _inside(one.key, step.key)
        ):
            return
        yield one


def _inside(outer: tuple[int, ...], key: tuple[int, ...]) -> bool:
    return key[: len(outer)] == outer


def _skipped(program: Program, steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield two steps or more that the other side does not take: what went into the first stands for them."""
    by_key = {step.key: step for step in program.steps}
    for step in steps:
        if not _is_stream(step.result):
            continue
        for back in _ancestors(by_key, step):
            if _fits(back.result, step.result) and not _same(back, step):
                names = [
                    one.name for one in program.steps[program.steps.index(back) + 1 : program.steps.index(step) + 1]
                ]
                said = ", ".join(names if len(names) < 7 else [*names[:3], "..", *names[-2:]])
                yield Claim(
                    Change(program.framework, _taken(back.key, step.key)),
                    "steps left out",
                    f"{len(names)} steps after {back.name} ({said})",
                    "none of them",
                    "Add the steps on the side that lacks them, or leave them out on both.",
                )


def _ancestors(by_key: dict[Key, Step], step: Step) -> Iterator[Step]:
    seen: set[Key] = set()
    reached = list(step.sources.values())
    while reached:
        reached = [key for key in dict.fromkeys(reached) if key not in seen]
        seen.update(reached)
        yield from (by_key[key] for key in reached if key in by_key)
        reached = [source for key in reached if key in by_key for source in by_key[key].sources.values()]


def _rewired(bench: Bench, program: Program, steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield operands that are other results, or inputs, of one shape."""
    inputs = list(zip(bench.numbers[0].names, bench.numbers[0].theta, strict=True))
    for step in steps:
        for operand, values in step.operands.items():
            if not _is_stream(values):
                continue
            source = step.sources.get(operand)
            beside = [leaf for place, leaf in step.operands.items() if place != operand] if step.name in SUMS else []
            has = next((name for name, leaf in inputs if np.array_equal(leaf, values)), "") or _of(program, source)
            for number, (name, leaf) in enumerate(inputs):
                if _is_among(leaf, beside):
                    continue
                if leaf.shape == values.shape and not np.array_equal(leaf, values):
                    edits_for = partial(_given, key=step.key, operand=operand, number=number)
                    change = Change(program.framework, {step.key: _keep}, edits_for=edits_for)
                    yield _claim(change, step, has, name or "the input")
            for one in _earlier(program, step):
                if _is_among(one.result, beside):
                    continue
                if one.key != source and _fits(one.result, values) and not np.array_equal(one.result, values):  # type: ignore[arg-type]
                    change = Change(program.framework, _taken(one.key, step.key, operand))
                    yield _claim(change, step, has, _of(program, one.key))


def _is_among(array: Any, operands: Sequence[Any]) -> bool:
    """Return whether an array is one of a sum's other operands: twice a term is a factor, which a norm hides."""
    return any(isinstance(one, np.ndarray) and np.array_equal(one, array) for one in operands)


def _of(program: Program, key: Key | None) -> str:
    step = next((one for one in program.steps if one.key == key), None)
    return "a constant" if step is None else f"what {step.name} returns (step {place(step)})"


def _claim(change: Change, step: Step, has: str, needs: str) -> Claim:
    return Claim(change, "another operand", f"{step.name} (step {place(step)}) of {has}", f"that of {needs}", FIX)


def _same(one: Step, other: Step) -> bool:
    return bool(np.array_equal(one.result, other.result, equal_nan=True))  # type: ignore[arg-type] # both are streams


def _keep(operation: Operation) -> Any:
    return operation.compute(operation.operands)


def _taken(source: Key, to: Key, operand: Operand | None = None) -> Edits:
    """Return the edits that give a step, or what takes its result, what another step returned."""
    held: dict[str, Any] = {}

    def keep(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        first = first_of(result)
        held["value"] = first.clone() if hasattr(first, "clone") else first
        return result

    def use(operation: Operation) -> Any:
        if operand is not None:
            return operation.compute({**operation.operands, operand: held["value"]})
        return with_first(operation.compute(operation.operands), held["value"])

    return {source: keep, to: use}


def _given(program: Program, numbers: Any, key: Key, operand: Operand, number: int) -> Edits:
    def edit(operation: Operation) -> Any:
        values = operation.like(numbers.theta[number], operation.operands[operand])
        return operation.compute({**operation.operands, operand: values})

    made: Edit = edit
    return {key: made}
