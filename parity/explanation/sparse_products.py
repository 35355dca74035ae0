"""Zero times infinity: NaN in a dense product, where the other side leaves the zero out.

Some functions multiply by a matrix of many zeros: to resize an image, or to select a column. For finite numbers this
gives the same results as reading the window alone.
"""

from __future__ import annotations

import numpy as np

from parity.execution.calls import Numbers, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs
from parity.explanation.fills import agree, of_other
from parity.explanation.programs.program import Operation
from parity.explanation.trials import program_of
from parity.records import Cell

PRODUCTS = ("dot_general", "mm", "bmm", "mv", "dot", "conv_general_dilated")
"""Operators that are products of two arrays, summed."""


def came_through_zero(runs: Runs, cell: Cell) -> bool:
    """Return whether two functions agree once zero times what is no number is zero in the products of one.

    Args:
        runs: Of the pair.
        cell: On a variant of data with NaN or infinities.
    """
    transform = runs.pair.transform(cell.transform)
    for framework in ("jax", "torch") if transform.order <= 1 else ():
        numbers = runs.numbers_of(cell, framework)
        program = program_of(runs, cell, framework, numbers, "float64") if isinstance(numbers, Numbers) else None
        edits = {step.key: _sparse for step in program.steps if step.name in PRODUCTS} if program is not None else {}
        if program is None or not isinstance(numbers, Numbers) or not edits:
            continue
        found = program.run(numbers, edits)
        as_it_is = runs.outputs(cell, world=EAGER[OTHER[framework]], dtype="float64")
        others = [one for one in (as_it_is, of_other(runs, cell, framework, numbers)) if isinstance(one, Outputs)]
        if found is not None and any(agree(found, one.values, {}) for one in others):
            return True
    return False


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
