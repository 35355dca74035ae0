"""Steps that only one side may have: one of them, or all of one name; and a sign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any

import numpy as np

from parity.explanation.claims import ADD_STEP, Claim, change_all, place
from parity.explanation.programs.program import Edit, Key, Step, set_result
from parity.explanation.substitution import Bench, where_they_part


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield steps that only one side may have: these fit much, and come last."""
    for framework in ("torch", "jax"):
        yield from _left_out(framework, bench.programs[framework].steps, where_they_part(bench, framework))
    for framework in ("torch", "jax"):
        yield from _left_out_together(framework, bench.programs[framework].steps)


NEVER_LEFT_OUT = (
    "clone",
    "copy",
    "view",
    "_to_copy",
    "detach",
    "convert_element_type",
    "broadcast_in_dim",
    "expand",
    "reshape",
    "lift_fresh",
    "alias",
)


def _left_out(framework: str, steps: Sequence[Step], parting: Set[Key]) -> Iterator[Claim]:
    """Yield steps that the other side may lack: their operand stands in for them; and a sign."""
    for step in sorted(steps, key=lambda step: step.key not in parting):
        result = step.result
        if result is None or result.dtype.kind != "f" or step.name in NEVER_LEFT_OUT:
            continue
        for operand, values in step.operands.items():
            if (
                isinstance(values, np.ndarray)
                and values.shape == result.shape
                and values.dtype.kind == "f"
                and values.ndim
            ):
                yield Claim(
                    change_all(framework, [step], _only(operand)),
                    "another formula",
                    f"{step.name} (step {place(step)})",
                    "none",
                    ADD_STEP,
                )
        if result.ndim and any(isinstance(values, np.ndarray) for values in step.operands.values()):
            yield Claim(
                change_all(framework, [step], set_result(np.negative)),
                "another formula: sign",
                f"{step.name} (step {place(step)})",
                "its negative",
                "Compare signs.",
            )


def _left_out_together(framework: str, steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield several steps of one name that the other side may lack together: two vectors, each divided by its norm.

    Together are those whose other operands are results of the same operators.
    """
    names = {step.key: step.name for step in steps}
    groups: dict[tuple[Any, ...], list[Step]] = {}
    for step in steps:
        for operand, values in step.operands.items():
            if (
                isinstance(values, np.ndarray) and step.result is not None and step.result.ndim
                and values.shape == step.result.shape and values.dtype.kind == step.result.dtype.kind == "f"
                and step.name not in NEVER_LEFT_OUT
            ):  # fmt: skip
                by = tuple([names.get(step.sources.get(one)) for one in step.operands if one != operand])
                groups.setdefault((step.name, operand, *by), []).append(step)
    for (name, operand, *_), group in groups.items():
        if len(group) > 1:
            change = change_all(framework, group, _only(operand))
            yield Claim(change, "another formula", f"{name} ({len(group)} steps)", "none", ADD_STEP)


def _only(operand: Any) -> Edit:
    return lambda operation: operation.operands[operand]
