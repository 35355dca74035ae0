"""Zero times infinity: NaN in a dense product, where the other side leaves the zero out.

Some functions multiply by a matrix of many zeros: to resize an image, or to select a column. For finite numbers this
gives the same results as reading the window alone. Dropout multiplies by a mask, or selects by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.execution.calls import Numbers, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs
from parity.explanation.fills import agree, of_other
from parity.explanation.programs.program import Operation
from parity.explanation.trials import program_of
from parity.records import Cell

PRODUCTS = ("dot_general", "mm", "bmm", "mv", "dot", "conv_general_dilated")
"""Operators that are products of two arrays, summed."""


THROUGH_ZERO = "zero times what is no number, where the other leaves that out"
AT_NAN = "of relu and its like torch lets the gradient through at NaN, which is not below zero, and JAX does not"


def at_no_number(runs: Runs, cell: Cell) -> str:
    """Return in words which convention at NaN and infinities is all that differs in a cell, or nothing.

    Two are tried, by substitution: zero times what is no number is zero in the products of one side; and torch's
    gradient of relu at NaN is zero.

    Args:
        runs: Of the pair.
        cell: On a variant of data with NaN or infinities.
    """
    transform = runs.pair.transform(cell.transform)
    for framework in ("jax", "torch") if transform.order <= 1 else ():
        numbers = runs.numbers_of(cell, framework)
        program = program_of(runs, cell, framework, numbers, "float64") if isinstance(numbers, Numbers) else None
        if program is None or not isinstance(numbers, Numbers):
            continue
        as_it_is = runs.outputs(cell, world=EAGER[OTHER[framework]], dtype="float64")
        others = [one for one in (as_it_is, of_other(runs, cell, framework, numbers)) if isinstance(one, Outputs)]
        summed, each, gated = (
            {step.key: change for step in program.steps if step.name in names} for names, change in CHANGES
        )
        each = {} if transform.order else each  # a derivative by a branch that is not taken comes so, too
        tried: list[dict[Any, Any]] = []
        for edits, what in (
            (summed, THROUGH_ZERO), (summed | each, THROUGH_ZERO), (gated, AT_NAN),
            (summed | each | gated, f"{THROUGH_ZERO}, and {AT_NAN}" if gated else THROUGH_ZERO),
        ):  # fmt: skip
            if not edits or edits in tried:
                continue
            tried.append(edits)
            found = program.run(numbers, edits)
            if found is not None and any(agree(found, one.values, {}) for one in others):
                return what
    return ""


def _stopped(operation: Operation) -> object:
    """Compute a gradient that is zero where its function is NaN."""
    whole, at = operation.compute(operation.operands), operation.operands["self"]
    return operation.like(np.where(np.isnan(operation.numpy(at)), 0.0, operation.numpy(whole)), whole)


def _masked(operation: Operation) -> object:
    """Compute a product of each two elements, in which that of a mask's zero is zero.

    A mask has zeros and one other number: zeros that come of what it made are none.
    """
    whole, change = operation.compute(operation.operands), operation.numpy
    arrays = [change(one) for one in operation.operands.values() if getattr(one, "ndim", 0)]
    masks = [one for one in arrays if np.isfinite(one).all() and len(np.unique(one)) == 2 and (one == 0).any()]
    out = change(whole)
    for mask in masks:
        out = np.where(np.broadcast_to(mask == 0, out.shape), 0.0, out)
    return operation.like(out, whole)


def _sparse(operation: Operation) -> object:
    """Compute a product in which zero times what is no number is zero."""
    keys = [key for key, value in operation.operands.items() if getattr(value, "ndim", 0)][:2]
    if len(keys) < 2:
        return operation.compute(operation.operands)
    left, right = (operation.operands[key] for key in keys)
    a, b = operation.numpy(left), operation.numpy(right)

    def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        changed = {keys[0]: operation.like(one, left), keys[1]: operation.like(other, right)}
        return operation.numpy(operation.compute({**operation.operands, **changed}))

    whole = operation.compute(operation.operands)
    numbers = product(np.where(np.isfinite(a), a, 0.0), np.where(np.isfinite(b), b, 0.0))
    # Terms that are infinite, counted by their signs, and those that are NaN.
    signs = np.where(np.isnan(a), 0.0, np.sign(a)), np.where(np.isnan(b), 0.0, np.sign(b))
    infinite = 1.0 * np.isinf(a), 1.0 * np.isinf(b)
    surplus = product(signs[0] * infinite[0], signs[1]) + product(signs[0] * (1 - infinite[0]), signs[1] * infinite[1])
    sizes = np.abs(signs[0]), np.abs(signs[1])
    many = product(sizes[0] * infinite[0], sizes[1]) + product(sizes[0] * (1 - infinite[0]), sizes[1] * infinite[1])
    none = product(1.0 * np.isnan(a), 1.0 * (b != 0)) + product(1.0 * (a != 0), 1.0 * np.isnan(b)) > 0
    found = np.where(many > 0, np.copysign(np.inf, surplus), numbers)
    found = np.where(none | ((many > 0) & (np.abs(surplus) < many)), np.nan, found)
    return operation.like(found, whole)


CHANGES = ((PRODUCTS, _sparse), (("mul",), _masked), (("threshold_backward", "hardtanh_backward"), _stopped))
"""Operators, and what runs in their place."""
