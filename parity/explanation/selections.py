"""Choices by a threshold, and sums that begin at another end, on one side only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from parity.explanation.claims import ADD_STEP, Claim, change_all, grouped
from parity.explanation.programs.program import Operand, Operation, Step
from parity.explanation.substitution import CHOICES, Bench, Change

COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}

THRESHOLD = "another formula: threshold"


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield choices by a threshold that only one side may make: either of what is chosen stands in for them."""
    for framework in ("torch", "jax"):
        program = bench.programs[framework]
        bounds = {c.step: c.value for c in program.constants}
        by_key = {step.key: step for step in program.steps}
        for step in program.steps:
            mask = CHOICES.get(step.name, "")
            test = (
                by_key.get(step.sources.get(mask))
                if step.result is not None and step.result.dtype.kind == "f"
                else None
            )
            if test is None or test.name not in COMPARISONS or test.key not in bounds:
                continue
            for chosen in (True, False):
                yield Claim(
                    Change(framework, {step.key: partial(_always, mask=mask, chosen=chosen)}), THRESHOLD,
                    f"a choice by {COMPARISONS[test.name]} {bounds[test.key]:g} ({step.name})", "none", ADD_STEP,
                )  # fmt: skip


def _always(operation: Operation, mask: Operand, chosen: bool) -> Any:
    given = operation.operands[mask]
    all_of_it = operation.like(np.full(operation.numpy(given).shape, chosen), given)
    return operation.compute({**operation.operands, mask: all_of_it})


def scans(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield sums along an axis that begin at its other end."""
    for group in grouped(steps, lambda step: step.name in ("cumsum", "cumprod", "logcumsumexp")):
        yield Claim(
            change_all("torch", group, _from_behind), "another formula: scan", f"{group[0].name} from the first on",
            "one from the last", "Begin at one end: flip before and after in torch, reverse= in jax.lax.",
        )  # fmt: skip


def _from_behind(operation: Operation) -> Any:
    o = operation.operands
    return operation.compute({**o, "self": o["self"].flip(o["dim"])}).flip(o["dim"])
