"""Terms and counts of losses: one of two terms alone, a mean over what a mask keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import SUMS, Operand, Operation, Program, Step, is_number, set_result
from parity.explanation.substitution import Bench, Change

COUNTS = ("sum", "reduce_sum", "mean", "mm", "dot_general", "cumsum")
"""Operators that count what a mask keeps."""


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield one term in the place of two, and masks that count nothing."""
    for framework in ("torch", "jax"):
        yield from _terms(bench.programs[framework])
    for framework in ("torch", "jax"):
        yield from _counted(bench.programs[framework])


def _terms(program: Program) -> Iterator[Claim]:
    halved = {source for step in program.steps if _halves(step) for source in step.sources.values()}
    for step in program.steps:
        arrays = [o for o, v in step.operands.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
        if step.name not in SUMS or len(arrays) != 2 or step.operands.get("alpha", 1) != 1 or step.result is None:
            continue
        for times in (2, 1) if step.key in halved else () if step.result.ndim else (1,):
            for operand, which in zip(arrays, ("first", "second"), strict=True):
                if np.shape(step.operands[operand]) == step.result.shape:
                    yield Claim(
                        Change(program.framework, {step.key: _only(operand, times)}),
                        "term left out",
                        f"the {'mean' if times == 2 else 'sum'} of two terms ({step.name})",
                        f"the {which} alone",
                        "Add both terms on both sides: a contrastive loss is the mean over rows and over columns.",
                    )


def _halves(step: Step) -> bool:
    return (step.name in ("div", "true_divide") and 2.0 in _numbers(step)) or (
        step.name == "mul" and 0.5 in _numbers(step)
    )


def _numbers(step: Step) -> list[float]:
    return [float(v) for v in step.operands.values() if is_number(v)]


def _only(operand: Operand, times: int) -> Any:
    return lambda operation: operation.operands[operand] * times


def _counted(program: Program) -> Iterator[Claim]:
    for step in program.steps:
        if _is_mask(step.result) and step.result is not None and step.result.dtype.kind == "f":
            yield Claim(
                Change(program.framework, {step.key: set_result(np.ones_like)}),
                "mask: left out",
                f"a mask of ones and zeros ({step.name})",
                "ones alone",
                "Mask on both sides: sum(x * mask) / sum(mask).",
            )
    for step in program.steps:
        for operand, values in step.operands.items():
            if step.name in COUNTS and _is_mask(values):

                def every(operation: Operation, operand: Operand = operand) -> Any:
                    mask = operation.operands[operand]
                    ones = operation.like(np.ones_like(operation.numpy(mask)), mask)
                    return operation.compute({**operation.operands, operand: ones})

                yield Claim(
                    Change(program.framework, {step.key: every}),
                    "mask: left out",
                    f"a mask in {step.name}, which counts what is kept",
                    "a count of all",
                    "Divide by the number of what is kept: sum(x * mask) / sum(mask).",
                )


def _is_mask(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.size > 1 and set(np.unique(values).tolist()) == {0, 1}
