"""Fills: a finite number that stands for infinity, as in a masked score, and is none where infinities go in.

`jax.nn.dot_product_attention` writes -0.7 times the largest float where a key is masked, torch writes -inf. The two
are one function at all finite scores. Where every other score of a row is -inf, JAX attends to what is masked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from parity.execution.calls import Failure, Numbers, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs, world_of
from parity.explanation.constants import Replacement, written
from parity.explanation.programs.program import Key, Program
from parity.explanation.substitution import with_theta
from parity.explanation.trials import program_of
from parity.records import Cell

FILL = 1e30
"""Numbers at least as large are written for infinity."""

NEAR = 1e-5
"""Results of a program that passes through float32 agree."""

NAMES = {"torch": "torch", "jax": "JAX"}


def stand_in(runs: Runs, cell: Cell, masked: Mapping[str, np.ndarray]) -> str:
    """Return in words which number stands for infinity, if the two agree once it is infinity; else nothing.

    Where they do not, they must once masked inputs have their usual numbers again: torch adds -inf to their scores,
    which gives NaN where those are infinite.

    Args:
        runs: Of the pair.
        cell: On a variant of data with infinities.
        masked: By output, elements that are zero on usual numbers: there zero may stand beside NaN, which is zero times
            NaN.
    """
    transform = runs.pair.transform(cell.transform)
    for framework in ("jax", "torch") if transform.order <= 1 else ():
        numbers, usual = (runs.numbers_of(one, framework) for one in (cell, replace(cell, data="random")))
        if not isinstance(numbers, Numbers) or not isinstance(usual, Numbers):
            continue
        program = program_of(runs, cell, framework, numbers, "float64")
        shown = _shown(program_of(runs, cell, framework, usual, "float64"))
        constants = () if program is None else program.constants
        fills = tuple(one for one in constants if FILL <= abs(one.value) < np.inf and one.step in shown)
        if program is None or not fills:
            continue
        infinite = tuple(float(np.copysign(np.inf, one.value)) for one in fills)
        edits = Replacement(framework, fills, infinite, False).change.edits
        for at in (numbers, _unmasked(runs, cell, numbers, usual)):
            found, other = program.run(at, edits), _of_other(runs, cell, framework, at)
            if found is not None and isinstance(other, Outputs) and _agree(found, other.values, masked):
                number, where = written(fills[0].value), NAMES[framework]
                return f"{number} stands for infinity in {where}; with infinity there the two agree"
    return ""


def _of_other(runs: Runs, cell: Cell, framework: str, numbers: Numbers) -> Outputs | Failure:
    there = replace(cell, world=EAGER[OTHER[framework]])
    with world_of("torch").in_parts() if framework == "jax" else contextlib.nullcontext():
        return runs.rerun(there, "float64", numbers)


def _unmasked(runs: Runs, cell: Cell, numbers: Numbers, usual: Numbers) -> Numbers:
    """Return numbers with those of masked inputs as usual: those by which all derivatives are zero on usual numbers."""
    there = replace(cell, data="random", transform="vjp")
    by = [runs.outputs(there, world=world, dtype="float64") for world in EAGER.values()]
    theta = []
    for name, value, other in zip(numbers.names, numbers.theta, usual.theta, strict=True):
        zeros = [one.values.get(f"by {name}") for one in by if isinstance(one, Outputs)]
        if len(zeros) < 2 or any(zero is None or zero.shape != value.shape for zero in zeros):
            return numbers
        theta.append(np.where(np.all([zero == 0 for zero in zeros], axis=0), other, value))
    return with_theta(numbers, tuple(theta))


def _shown(program: Program | None) -> set[Key]:
    """Return the steps that have such a number in their results: what stands for an infinite input has none here."""
    results = {} if program is None else {step.key: step.result for step in program.steps}
    return {
        key for key, result in results.items()
        if result is not None and result.dtype.kind == "f" and bool(np.any(np.abs(result) >= FILL))
    }  # fmt: skip


def _agree(found: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], masked: Mapping[str, np.ndarray]) -> bool:
    if found.keys() != other.keys():
        return False
    for name, value in found.items():
        want = other[name]
        if value.shape != want.shape:
            return False
        zero = masked[name] if name in masked and masked[name].shape == value.shape else np.zeros(value.shape, bool)
        none = ((value == 0) & np.isnan(want)) | (np.isnan(value) & (want == 0))
        if not np.all(np.isclose(value, want, rtol=NEAR, atol=NEAR, equal_nan=True) | (zero & none)):
            return False
    return True
