"""Fills: a large finite number in place of infinity, as in a masked score. It differs where infinities go in.

`jax.nn.dot_product_attention` writes -0.7 times the largest float where a key is masked, torch writes -inf. The two
are one function at all finite scores. Where every other score of a row is -inf, JAX attends to masked keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from parity.execution.calls import Failure, Numbers, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs, world_of
from parity.explanation.constants import Replacement, written
from parity.explanation.programs.program import Constant, Key, Program
from parity.explanation.substitution import with_theta
from parity.explanation.trials import program_of
from parity.records import WHO, Cell

FILL = 1e30
"""Numbers at least as large are written for infinity."""

NEAR = 1e-5
"""Results of a program that passes through float32 agree."""

SCALES = (1.0, 10.0, 100.0)
"""Sizes of the numbers that are tried where an input is said to move nothing."""


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
        fills = () if program is None else _fills(program, program_of(runs, cell, framework, usual, "float64"))
        if program is None or not fills:
            continue
        infinite = tuple(float(np.copysign(np.inf, one.value)) for one in fills)
        edits = Replacement(framework, fills, infinite, False).change.edits
        for at in (numbers, _unmasked(runs, cell, numbers, usual)):
            found, other = program.run(at, edits), of_other(runs, cell, framework, at)
            if found is not None and isinstance(other, Outputs) and agree(found, other.values, masked):
                number, where = written(fills[0].value), WHO[framework]
                return f"{number} stands for infinity in {where}; with infinity there the two agree"
    return ""


def masks(runs: Runs, cell: Cell) -> bool:
    """Return whether a program of either framework has a number that stands for infinity, where it masks."""
    for framework in EAGER:
        usual = runs.numbers_of(replace(cell, data="random", transform="forward"), framework)
        if isinstance(usual, Numbers):
            program = program_of(runs, replace(cell, transform="forward"), framework, usual, "float64")
            if program is not None and _fills(program, program):
                return True
    return False


def _fills(program: Program, on_usual: Program | None) -> tuple[Constant, ...]:
    shown = _shown(on_usual)
    return tuple(one for one in program.constants if FILL <= abs(one.value) < np.inf and one.step in shown)


def of_other(runs: Runs, cell: Cell, framework: str, numbers: Numbers) -> Outputs | Failure:
    """Return the other framework's float64 results on numbers; torch's with its fused operators taken apart."""
    there = replace(cell, world=EAGER[OTHER[framework]])
    with world_of("torch").in_parts() if framework == "jax" else contextlib.nullcontext():
        return runs.rerun(there, "float64", numbers)


def _unmasked(runs: Runs, cell: Cell, numbers: Numbers, usual: Numbers) -> Numbers:
    """Return numbers with those of masked inputs as usual: those by which all derivatives are zero on usual numbers."""
    there = replace(cell, data="random", transform="vjp")
    by = [runs.outputs(there, world=world, dtype="float64") for world in EAGER.values()]
    theta: list[np.ndarray] = []
    for name, value in zip(numbers.names, numbers.theta, strict=True):
        zeros = [one.values.get(f"by {name}") for one in by if isinstance(one, Outputs)]
        if len(zeros) < 2 or any(zero is None or zero.shape != value.shape for zero in zeros):
            return numbers
        theta.append(np.all([zero == 0 for zero in zeros], axis=0))
    return (
        with_theta(numbers, _chosen(theta, usual.theta, numbers.theta))
        if _is_idle(runs, cell, usual, theta)
        else numbers
    )


def _is_idle(runs: Runs, cell: Cell, usual: Numbers, places: list[np.ndarray]) -> bool:
    """Return whether inputs in some places move no output, whatever number they have: floor moves, and has no slope."""
    rng = np.random.default_rng(0)
    plain = replace(cell, data="random", transform="forward")
    for world in EAGER.values():
        before = runs.outputs(plain, world=world, dtype="float64")
        for scale in SCALES:
            drawn = tuple(rng.standard_normal(leaf.shape) * scale for leaf in usual.theta)
            there = with_theta(usual, _chosen(places, drawn, usual.theta))
            after = runs.rerun(replace(plain, world=world), "float64", there)
            if not isinstance(before, Outputs) or not isinstance(after, Outputs):
                return False
            if any(
                not np.array_equal(before.values[name], value, equal_nan=True) for name, value in after.values.items()
            ):
                return False
    return True


def _chosen(
    places: list[np.ndarray], one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, ...]:  # fmt: skip
    return tuple(np.where(*each) for each in zip(places, one, other, strict=True))


def _shown(program: Program | None) -> set[Key]:
    """Return the steps whose results have such a number, in a program that masks on usual numbers.

    A program masks where a result has such numbers beside others. What stands for an infinite input, or is a limit, is
    beside none there.
    """
    results = {} if program is None else {step.key: step.result for step in program.steps}
    large = {
        key: np.abs(result) >= FILL
        for key, result in results.items() if result is not None and result.dtype.kind == "f" and result.size
    }  # fmt: skip
    masks = any(bool(at.any()) and not bool(at.all()) for at in large.values())
    return {key for key, at in large.items() if bool(at.any())} if masks else set()


def agree(found: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], masked: Mapping[str, np.ndarray]) -> bool:
    """Return whether results are the same; where `masked` says so, zero may stand beside NaN."""
    if found.keys() != other.keys():
        return False
    for name, value in found.items():
        want = other[name]
        if value.shape != want.shape:
            return False
        zero = masked[name] if name in masked and masked[name].shape == value.shape else np.zeros(value.shape, bool)
        none = ((value == 0) & np.isnan(want)) | (np.isnan(value) & (want == 0))
        largest = float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0))
        if not np.all(
            np.isclose(value, want, rtol=NEAR, atol=NEAR * min(1.0, largest), equal_nan=True) | (zero & none)
        ):
            return False
    return True
