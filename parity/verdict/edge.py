"""Differences at the edge of the range: an intermediate overflows, a subnormal is flushed.

They show how two programs are built, and say nothing of the function at ordinary numbers. A difference is at the edge
only if the two agree on the user's own numbers, and a program leaves the range on the numbers of the cell. A sweep that
leaves the range is drawn again below smaller powers of two, so that it does not. What differs there is no matter of the
range (softplus is x beyond a threshold of 20, and exp(-4096) is zero).

For inputs of NaN or infinity the results count, as what a function makes of them is part of it. Four differences are at
the edge all the same:

- in a derivative by an input that reaches only outputs that are NaN or infinite,
- between infinity and NaN in a derivative, if each output that the input reaches holds some of them,
- where a kernel differs from its formula, or from itself in float64 (torch's gelu of infinity is NaN in float32),
- where a large number stands for infinity beside true infinities.

Numbers that torch's own checks refuse, as they are outside of the domain of a distribution or no index, are at the edge
whatever their kind, as nothing is compared there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parity.execution.calls import Failure, Numbers, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs, framework_of
from parity.explanation import fills
from parity.explanation.called_names import spelt
from parity.explanation.sparse_products import at_no_number
from parity.explanation.trials import program_of
from parity.operator import data
from parity.records import AGREES, SETTLED, WHO, Cell
from parity.verdict import arithmetic, ties
from parity.verdict.bounds import FLUSHED, UNIT
from parity.verdict.draws import is_in_the_tail
from parity.verdict.float64 import held_to_float64
from parity.verdict.outcomes import Outcome

KINDS = ("large", "small", "subnormal", "sweep")
"""Kinds of data that reach it."""

NO_NUMBERS = ("nan", "infinite")
"""Kinds of data with what is no number."""

REFUSED = (
    r"^torch raises ValueError: Expected (parameter|value argument) .*(constraint|support)",
    r"^torch raises IndexError: index -?922337203685477580\d ",
)
"""What torch's own checks say of numbers outside of a domain: a distribution's, or an index that is made of NaN.

JAX's functions, which cannot raise once they are compiled, have no such checks.
"""

MOST = 32
"""Elements of which it is seen what they reach; of more, as many are taken from all parts."""

NEAR, NEAR_UNITS = 1e-6, 2.0**10
"""Derivatives that are nearer, relative or in units, are the same: another derivative is off by more."""

OTHER_NUMBER = 1.625
"""A number that data hardly have, and every dtype holds."""


def apart(runs: Runs, cell: Cell, found: Outcome, judged: Callable[[Cell], Outcome]) -> Outcome:
    """Return the outcome of a cell that differs, as one at the edge of the range if it is that.

    Args:
        runs: Runs of the pair.
        cell: On a variant of a kind of data.
        found: It differs.
        judged: Judges another cell.
    """
    if operator := ties.chosen_freely(runs, cell):
        reason = f"among equal numbers, whose order torch's {operator} leaves open; with JAX's order the two agree"
        return replace(found, verdict="edge", reason=f"{reason}: {found.reason}")
    if by := _by_labels(runs, cell, found, judged):
        reason = f"a derivative by {by}, which is 0 or 1 everywhere, as labels and masks are: {found.reason}"
        return replace(found, verdict="edge", reason=reason)
    eager = replace(cell, world=EAGER[framework_of(cell)])
    if cell.data == "signed zeros" and eager.world != cell.world and _is_of_signs_alone(runs, cell, eager, judged):
        reason = (
            f"the sign of a zero, as {cell.world} compiles it, where {eager.world} has no difference: {found.reason}"
        )
        return replace(found, verdict="edge", reason=reason)
    if _is_refused(cell, found) and judged(replace(cell, data="random")).verdict in AGREES:
        reason = f"numbers outside of what torch's function takes, where nothing is to compare: {found.reason}"
        return replace(found, verdict="edge", reason=reason)
    if (
        cell.data.split("#")[0] not in (*KINDS, *NO_NUMBERS)
        or found.finding is None
        or found.finding.output == "structure"
    ):
        return found
    if judged(replace(cell, data="random")).verdict not in AGREES:
        return found
    if _is_a_kernel(runs, cell):
        reason = f"torch's fused kernel does otherwise there than its formula, which JAX agrees with: {found.reason}"
        return replace(found, verdict="edge", reason=reason)
    if eager.world != cell.world:
        uncompiled = judged(eager)
        if uncompiled.verdict in AGREES:
            # The functions agree there; a compiler that rounds otherwise makes infinity of a difference that is none.
            reason = f"as {cell.world} compiles it, where {eager.world} has no difference: {found.reason}"
            return replace(found, verdict="edge", reason=reason)
        if uncompiled.verdict == "edge":
            return replace(found, verdict="edge", reason=uncompiled.reason)
    if _is_nowhere(runs, cell, found, judged):
        return replace(found, verdict="edge", reason=f"a derivative where the function is no number: {found.reason}")
    if cell.data.split("#")[0] in NO_NUMBERS and (convention := at_no_number(runs, cell)):
        return replace(found, verdict="edge", reason=f"{convention}: {found.reason}")
    if "~" in cell.data:
        return found  # it was drawn so as not to leave the range
    if cell.data.split("#")[0] in NO_NUMBERS:
        if found.judged != "precision":
            fill = fills.stand_in(runs, cell, _zeros(runs, cell)) if cell.data.startswith("infinite") else ""
            return replace(found, verdict="edge", reason=f"{fill}; at infinities {found.reason}") if fill else found
        # In float64 the functions agree on what they make of them: a kernel of this dtype does otherwise.
        reason = f"at infinities and NaN, in {cell.dtype} alone: {found.reason}"
        return replace(found, verdict="edge", reason=reason)
    dtype = "float64" if found.judged == "meaning" else cell.dtype
    if found.judged == "meaning" and (fill := fills.stand_in(runs, cell, _zeros(runs, cell))):
        return replace(found, verdict="edge", reason=f"{fill}; among numbers as large {found.reason}")
    why = _why(runs, cell, dtype) or _is_singular(runs, cell, dtype)
    if not why:
        return found
    for power in data.TAME if cell.data.startswith("sweep") else ():
        there = replace(cell, data=data.tamed(cell.data, power))
        if _why(runs, there, dtype):
            continue
        tame = judged(there)
        if tame.verdict == "differs" and tame.judged != "meaning" and _why(runs, there, cell.dtype):
            continue  # float64 holds what the cell's own dtype loses
        if tame.verdict == "differs" and not is_in_the_tail(tame):
            return tame
    return replace(found, verdict="edge", reason=f"at the edge of the range: {why}; there {found.reason}")


def _is_refused(cell: Cell, found: Outcome) -> bool:
    """Return whether torch's own checks refuse numbers that are none of the user's: a pair may have its own kinds."""
    kind = cell.data.split("#")[0].split("~")[0]
    return kind != "random" and kind in data.KINDS and any(re.search(one, found.reason) for one in REFUSED)


def _by_labels(runs: Runs, cell: Cell, found: Outcome, judged: Callable[[Cell], Outcome]) -> str:
    """Return the inputs of zeros and ones (labels, a mask), if derivatives differ by these alone; else nothing.

    Functions that agree on all labels may be two elsewhere, and no one asks for a derivative by a label.
    """
    transform, numbers = runs.pair.transform(cell.transform), runs.numbers_of(cell)
    if (
        not transform.order
        or found.judged != "meaning"
        or isinstance(numbers, Failure)
        or runs.pair.brings(cell.transform)
    ):
        return ""
    kept = data.labels(list(runs.plain("random", cell.dtype).theta))
    if not kept or judged(replace(cell, transform="forward")).verdict not in SETTLED:
        return ""
    still = tuple(
        tuple(np.zeros_like(leaf) if at in kept else leaf for at, leaf in enumerate(each))
        for each in numbers.directions
    )
    held = replace(numbers, directions=still)
    one, other = (runs.rerun(replace(cell, world=world), "float64", held) for world in EAGER.values())
    if isinstance(one, Failure) or isinstance(other, Failure) or one.values.keys() != other.values.keys():
        return ""
    names = {numbers.names[at] for at in kept}
    alike = all(
        value.shape == other.values[name].shape
        and np.allclose(value, other.values[name], rtol=NEAR, atol=NEAR, equal_nan=True)
        for name, value in one.values.items() if names.isdisjoint(f" {name}".split(" by ")[1:])
    )  # fmt: skip
    return " and ".join(sorted(names)) if alike else ""


def _is_of_signs_alone(runs: Runs, cell: Cell, eager: Cell, judged: Callable[[Cell], Outcome]) -> bool:
    """Return whether a compiled program differs in signs of zeros alone from an eager one that has no difference."""
    own, plain = runs.outputs(cell), runs.outputs(eager)
    if isinstance(own, Failure) or isinstance(plain, Failure) or own.values.keys() != plain.values.keys():
        return False
    alike = all(np.array_equal(value, plain.values[name], equal_nan=True) for name, value in own.values.items())
    return alike and judged(eager).verdict in AGREES


def _is_a_kernel(runs: Runs, cell: Cell) -> bool:
    """Return whether nothing differs once torch's fused operators are taken apart.

    The kernel of attention takes a row of scores that are all NaN for one that is masked, and gives zeros; what its
    backward loses on large numbers the formula does not.
    """
    if cell.world == "torch-compiled":
        return False  # it has kernels of its own
    found = held_to_float64(runs, cell, in_parts=True)
    # At infinities and NaN only what the functions mean by them is compared, as of a cell in one piece (`apart`).
    lower = found.judged == "precision" and cell.data.split("#")[0] in NO_NUMBERS
    return found.verdict in AGREES or (found.verdict == "differs" and lower)


def _is_nowhere(runs: Runs, cell: Cell, found: Outcome, judged: Callable[[Cell], Outcome]) -> bool:
    """Return whether derivatives on NaN or infinities differ only where the function is no number itself, in both.

    Functions that differ themselves are not excused. Where they agree, each element that differs is: by an input on
    which no output depends that is a number; or that is zero on usual numbers (a masked key) and NaN in one framework,
    which multiplies by that zero; or infinity in one and NaN in the other, by an input that reaches no array of
    outputs that are all numbers; or a number in one and NaN in the other, by an input that reaches numbers alone, in a
    program that masks: that NaN is of outputs which the input does not reach, and came through the mask.
    """
    transform, finding = runs.pair.transform(cell.transform), found.finding
    if cell.data.split("#")[0] not in NO_NUMBERS or not transform.order or runs.pair.brings(cell.transform):
        return False
    plain = replace(cell, transform="forward")
    if finding is None or judged(plain).verdict not in SETTLED:
        return False
    numbers = runs.numbers_of(cell)
    apart = _derivatives_apart(runs, cell, found)
    if isinstance(numbers, Failure) or finding.output not in apart or not apart[finding.output][finding.index]:
        return False
    # Infinity or NaN that is differentiated on: which of the two comes out says nothing.
    none = _no_number_in_either(runs, cell)
    if set(apart) <= (masked := _zeros(runs, cell)).keys():
        apart = {name: mask & ~(masked[name] & _is_zero_or_none(runs, cell, name)) for name, mask in apart.items()}
    places = {f"by {name}": at for at, name in enumerate(numbers.names)}
    wrong = [
        (places.get(name, -1), mask.shape, index, name in none and bool(none[name][tuple(index)]))
        for name, mask in apart.items() for index in np.argwhere(mask)
    ]  # fmt: skip
    if any(at < 0 or shape != numbers.theta[at].shape for at, shape, *_ in wrong):
        return False
    if len(wrong) > MOST:
        wrong = [wrong[at] for at in np.linspace(0, len(wrong) - 1, MOST, dtype=int)]
    through = _number_in_one(runs, cell) if fills.masks(runs, cell) else {}

    def came_through_a_mask(at: int, index: tuple[int, ...]) -> bool:
        name = f"by {numbers.names[at]}"
        return name in through and bool(through[name][index]) and _reaches_numbers_alone(runs, plain, at, index)

    return all(
        _reaches_no_number(runs, plain, at, tuple(index), some=some) or came_through_a_mask(at, tuple(index))
        for at, _, index, some in wrong
    )


def _no_number_in_either(runs: Runs, cell: Cell) -> dict[str, np.ndarray]:
    """Return by output which elements are infinity or NaN in all runs of a cell."""
    found = [runs.outputs(cell), *(runs.outputs(cell, world=world, dtype="float64") for world in EAGER.values())]
    values = [one.values for one in found if isinstance(one, Outputs)]
    return {
        name: np.all([~np.isfinite(one[name]) for one in values], axis=0)
        for name in values[0] if all(name in one and one[name].shape == values[0][name].shape for one in values)
    }  # fmt: skip


def _zeros(runs: Runs, cell: Cell) -> dict[str, np.ndarray]:
    """Return by output which elements are zero on usual numbers, in both frameworks."""
    usual = replace(cell, data="random")
    torch, jax = (runs.outputs(usual, world=world, dtype="float64") for world in EAGER.values())
    if isinstance(torch, Failure) or isinstance(jax, Failure):
        return {}
    return {name: (value == 0) & (jax.values[name] == 0) for name, value in torch.values.items() if name in jax.values}


def _is_zero_or_none(runs: Runs, cell: Cell, name: str) -> np.ndarray:
    """Return which elements are zero or no number, in all runs of a cell."""
    runs_of = [runs.outputs(cell), *(runs.outputs(cell, world=world, dtype="float64") for world in EAGER.values())]
    values = [one.values[name] for one in runs_of if isinstance(one, Outputs)]
    return np.all([(value == 0) | ~np.isfinite(value) for value in values], axis=0)


def _derivatives_apart(runs: Runs, cell: Cell, found: Outcome) -> dict[str, np.ndarray]:
    """Return by output where the two results that were held to each other differ; nothing where they have no places."""
    own = framework_of(cell)
    one = runs.outputs(cell)
    exact = one if cell.dtype == "float64" else runs.outputs(cell, world=EAGER[own], dtype="float64")
    if found.judged == "meaning":
        one, other = exact, runs.outputs(cell, world=EAGER[OTHER[own]], dtype="float64")
    else:
        other = exact
    if isinstance(one, Failure) or isinstance(other, Failure) or one.values.keys() != other.values.keys():
        return {}
    dtype = (
        (arithmetic.of_cell(runs, cell, "float64").library or "float64") if found.judged == "meaning" else cell.dtype
    )
    near = max(NEAR, NEAR_UNITS * UNIT[dtype])
    masks = {}
    for name, left in one.values.items():
        right = other.values[name]
        if left.shape != right.shape or left.dtype.kind != "f" or right.dtype.kind != "f":
            return {}
        masks[name] = ~np.isclose(left, right, rtol=near, atol=0, equal_nan=True)
    return masks


def _number_in_one(runs: Runs, cell: Cell) -> dict[str, np.ndarray]:
    """Return by output which elements are a number in one framework and NaN in the other, in float64."""
    torch, jax = (runs.outputs(cell, world=world, dtype="float64") for world in EAGER.values())
    if isinstance(torch, Failure) or isinstance(jax, Failure):
        return {}
    values = {name: (torch.values[name], jax.values[name]) for name in torch.values if name in jax.values}
    return {
        name: (np.isnan(one) & np.isfinite(other)) | (np.isfinite(one) & np.isnan(other))
        for name, (one, other) in values.items() if one.shape == other.shape
    }  # fmt: skip


def _reaches_no_number(runs: Runs, plain: Cell, at: int, index: tuple[int, ...], *, some: bool) -> bool:
    """Return whether an element of an input reaches some output, and none that is a number in a framework.

    With `some` each array of outputs that it reaches may have numbers as well, but not numbers alone.
    """
    reached = _reached(runs, plain, at, index, np.nan)
    if reached is None:
        return False
    inside = [numbers[moved] for moved, numbers in reached if np.any(moved)]
    return bool(inside) and not any(bool(np.all(one) if some else np.any(one)) for one in inside)


def _reaches_numbers_alone(runs: Runs, plain: Cell, at: int, index: tuple[int, ...]) -> bool:
    """Return whether an element of an input reaches outputs that are numbers alone, where others are none.

    A number is tried: NaN would reach what it is multiplied by zero for.
    """
    reached = _reached(runs, plain, at, index, OTHER_NUMBER)
    if reached is None or all(bool(np.all(numbers)) for _, numbers in reached):
        return False
    inside = [numbers[moved] for moved, numbers in reached if np.any(moved)]
    return bool(inside) and all(bool(np.all(one)) for one in inside)


def _reached(
    runs: Runs, plain: Cell, at: int, index: tuple[int, ...], tried: float
) -> list[tuple[np.ndarray, np.ndarray]] | None:  # fmt: skip
    """Return which outputs an element of an input reaches, and which are numbers, of each framework and output.

    What it reaches is seen on the user's own numbers, where it is given another value. None where that does not run.
    """
    usual = replace(plain, data="random")
    numbers = runs.plain(usual.data, usual.dtype)
    probe = numbers.theta[at].copy()
    probe[index] = tried
    probed = replace(numbers, theta=(*numbers.theta[:at], probe, *numbers.theta[at + 1 :]))
    found = []
    for world in EAGER.values():
        there = replace(usual, world=world)
        seen = [
            runs.outputs(plain, world=world, dtype="float64"),
            runs.outputs(usual, world=world, dtype="float64"),
            runs.rerun(there, "float64", probed),
        ]
        if any(isinstance(one, Failure) for one in seen):
            return None
        here, before, after = (one.values for one in seen if isinstance(one, Outputs))
        for name, value in here.items():
            if name not in before or not value.shape == before[name].shape == after[name].shape:
                return None
            moved = (before[name] != after[name]) & ~((before[name] != before[name]) & (after[name] != after[name]))
            found.append((moved, np.isfinite(value) if value.dtype.kind == "f" else np.ones(value.shape, bool)))
    return found


SOLVES = ("det", "slogdet", "solve", "inv", "cholesky", "lu_", "svd", "eig", "qr", "pinv", "lstsq", "triangular")
"""Parts of the names of operators whose error grows with the condition number of a matrix."""


def _is_singular(runs: Runs, cell: Cell, dtype: str) -> str:
    """Return in words that torch factors a matrix that is singular to within a unit of the dtype; else nothing."""
    numbers = runs.plain(cell.data, cell.dtype)
    program = program_of(runs, replace(cell, transform="forward"), "torch", numbers, "float64")
    for step in program.steps if program is not None else ():
        grows = step.name == "linalg_matrix_exp"
        if not grows and not any(part in step.name for part in SOLVES):
            continue
        for leaf in step.operands.values():
            if isinstance(leaf, np.ndarray) and leaf.ndim > 1 and leaf.dtype.kind == "f" and np.isfinite(leaf).all():
                norm = float(np.max(np.linalg.norm(leaf, 1, (-2, -1)), initial=0.0))
                if grows and not np.exp(norm) * UNIT[dtype] < 1:
                    return f"the exponential of a matrix of norm {norm:.2g}, which magnifies what is rounded"
                if not grows and not float(np.max(np.linalg.cond(leaf), initial=0.0)) * UNIT[dtype] < 1:
                    return spelt(runs, f"a matrix is singular as far as {dtype} tells ({step.name} in torch)")
    return ""


def _why(runs: Runs, cell: Cell, dtype: str) -> str:
    large, small = [], []
    for framework in ("torch", "jax"):
        reading = runs.reading(cell, framework, dtype, ranges=True)
        if reading is None:
            continue
        if reading.large:
            large.append(f"{', '.join(sorted(reading.large)[:3])} in {WHO[framework]}")
        if reading.small:
            small.append(f"{', '.join(sorted(reading.small)[:3])} in {WHO[framework]}")
    if large:
        return spelt(runs, f"an intermediate result overflows ({'; '.join(large)})")
    if small:
        return spelt(runs, f"subnormal numbers, which XLA flushes to zero ({'; '.join(small)})")
    numbers = runs.numbers_in(cell)
    if isinstance(numbers, Numbers):
        for leaf in numbers.theta:
            if bool(np.any((leaf != 0) & (np.abs(leaf) < FLUSHED[dtype]))):
                return "subnormal numbers go in, which XLA flushes to zero"
    return ""
