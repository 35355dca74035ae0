"""Dropout that is on, and statistics of the batch where the running ones are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Edits, Key, Operation, Program, Step, set_operand, set_result
from parity.explanation.substitution import Bench, Change, distance
from parity.models.causes.context import Context
from parity.records import Diagnosis

DRAWS = ("random_bits", "bernoulli", "_bernoulli", "threefry2x32", "random_gamma", "dropout", "native_dropout")
"""Steps that draw random numbers."""


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield dropout in JAX, proved where it can be taken out of the program."""
    at = context.bench
    if at is None:
        return
    drawing = [step for step in at.programs["jax"].steps if step.name in DRAWS]
    if not drawing or _without_effect(at, drawing):
        return
    fix = "Switch dropout off: model.eval() or deterministic=True (Flax), eqx.nn.inference_mode (Equinox)."
    for edits in _without(at.programs["jax"], at):
        if context.first([Claim(Change("jax", edits), "", "", "", "")]):
            yield Diagnosis(
                "dropout on",
                "JAX draws random numbers (dropout) where torch does not; with every unit kept the two agree.",
                fix,
            )
            return
    yield Diagnosis(
        "dropout on",
        "Likely: JAX draws random numbers where torch does not, as dropout in training does.",
        fix,
    )


def _without_effect(at: Bench, drawing: Sequence[Step]) -> bool:
    """Return whether JAX's results are the same with other random numbers: dropout with the rate 0 keeps all."""
    edits = {step.key: set_result(_others) for step in drawing if step.result is not None}
    found = at.changed(Change("jax", edits))
    return found is not None and distance(found, at.outputs["jax"][0]) == 0


def _others(array: np.ndarray) -> np.ndarray:
    return ~array if array.dtype.kind in "iu" else array.ravel()[::-1].reshape(array.shape)


def _without(program: Program, at: Bench) -> Iterator[Edits]:
    """Yield the edits that keep every unit: all masks true, and the division by the share kept by one."""
    masks = [
        step.key
        for step in program.steps
        if step.name in ("_bernoulli", "bernoulli")
        or (step.result is not None and step.result.dtype == bool and step.name in ("lt", "le", "gt", "ge"))
    ]
    ones: dict[Key, Any] = {key: set_result(np.ones_like) for key in masks}
    shares: dict[Key, Any] = {
        constant.step: set_operand((constant.operand, 1.0))
        for constant in program.constants
        if constant.name in ("div", "mul") and 0 < constant.value != 1
    }
    kept = {step.key: _all for step in program.steps if step.name == "select_n" and _random(step.operands.get(0))}
    small = {
        key: edit
        for key, edit in shares.items()
        if any(c.step == key and (0.3 < c.value < 1 or 1 < c.value < 3) for c in program.constants)
    }
    for edits in ({**ones, **small}, {**kept, **small}, {**ones, **shares}, {**kept, **shares}):
        if edits:
            yield edits
    for key, edit in small.items():
        yield {**ones, key: edit}
        yield {**kept, key: edit}


def _random(predicate: Any) -> bool:
    return isinstance(predicate, np.ndarray) and predicate.dtype == bool and predicate.size > 1


def _all(operation: Operation) -> Any:
    """Return the branch that is not all zeros."""
    zeros, kept = operation.operands[1], operation.operands[2]
    return kept if np.any(operation.numpy(kept)) else zeros
