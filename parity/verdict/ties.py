"""Choices among equal numbers: where torch promises no order of them, the port may choose others.

That it does nothing else is proved by substitution: in torch's program the operator chooses the first or the last of
equal numbers, as JAX's do, and then all results are JAX's.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np

from parity.execution.calls import Numbers, Outputs
from parity.execution.outputs import EAGER, Runs
from parity.explanation.programs.program import Operation
from parity.explanation.trials import program_of
from parity.records import Cell

FREE = ("topk", "kthvalue", "median", "nanmedian", "mode", "sort")
"""Operators of torch that promise nothing of the order of equal numbers; `sort` if it is not asked to be stable."""

NEAR = 1e-6
"""Results that are nearer are the same."""


def chosen_freely(runs: Runs, cell: Cell) -> str:
    """Return the operator of torch that chose among equal numbers, if nothing else differs in a cell; else nothing."""
    numbers = runs.numbers_of(cell, "torch") if runs.pair.transform(cell.transform).order == 1 else None
    if runs.pair.transform(cell.transform).everything:
        numbers = runs.plain(cell.data, cell.dtype)
    program = program_of(runs, cell, "torch", numbers, "float64") if isinstance(numbers, Numbers) else None
    free = [step for step in program.steps if step.name in FREE and not step.operands.get("stable")] if program else []
    jax = runs.outputs(cell, world=EAGER["jax"], dtype="float64") if free else None
    if program is None or not isinstance(numbers, Numbers) or not isinstance(jax, Outputs):
        return ""
    for sign, signed in itertools.product((1.0, -1.0), (False, True)):
        edit = partial(_ordered, sign=sign, signed=signed)
        found = program.run(numbers, {step.key: edit for step in free})
        if found is not None and _same(found, jax.values):
            return str(free[0].name)
    return ""


def _ordered(operation: Operation, sign: float, signed: bool) -> Any:
    """Choose by ranks, those of equal numbers moved apart, the first up or down; with `signed` -0.0 is below 0.0."""
    usual, values = operation.compute(operation.operands), operation.operands["self"]
    if not isinstance(usual, tuple | list):
        return usual  # it gives no positions
    array = operation.numpy(values)
    ranks = np.unique(array, return_inverse=True)[1].reshape(array.shape).astype(np.float64)
    ranks += sign * np.arange(array.size, 0, -1).reshape(array.shape) / (4 * max(array.size, 1))
    if signed:
        ranks -= 0.5 * ((array == 0) & np.signbit(array))
    apart = operation.like(ranks, values)
    return type(usual)([usual[0], *operation.compute({**operation.operands, "self": apart})[1:]])


def _same(found: dict[str, np.ndarray], jax: dict[str, np.ndarray]) -> bool:
    return found.keys() == jax.keys() and all(
        value.shape == jax[name].shape and bool(np.allclose(value, jax[name], rtol=NEAR, atol=NEAR, equal_nan=True))
        for name, value in found.items()
    )
