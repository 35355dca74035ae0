"""Compared with a float64 reference: where no oracle judges a cell, the float64 runs take its place.

*Meaning*: both functions run in float64, on the same numbers, and must agree there within a float64 bound.
*Precision*: a run in a lower dtype is compared with the float64 run of its own framework on the same numbers, whose
values that dtype holds exactly. *Ratio*: then the errors of the two are compared over many numbers (draws.py).
JAX is compared with torch, so a difference in meaning shows in the cells of JAX. If the user gives an oracle, results
of both are compared with it first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from parity.execution.calls import Failure, Numbers, Outputs, parts
from parity.execution.outputs import EAGER, OTHER, Runs, framework_of
from parity.operator import trees
from parity.operator.faults import ask, ask_tree
from parity.operator.oracle import Oracle
from parity.operator.tolerance import WITHIN
from parity.records import Cell, Judged
from parity.verdict import arithmetic, bits, compare, judge, sensitivity, zeros
from parity.verdict.bounds import UNIT
from parity.verdict.outcomes import Error, Outcome
from parity.verdict.refusals import lacks, refused

SCALARS = (
    "JAX rounds scalars that depend on no input to its own type, which torch has as Python's floats of 64 bits "
    "(1 - b**t of an optimizer), and that moves the result as far"
)
"""What is said where nothing else excuses a difference."""

SPECIAL = "{name} of JAX's library rounds more in {dtype} than torch's, and no port has a part in it"
"""What is said where the formula that a library has for a function loses digits, as log_ndtr above 3 does."""


class NotTheOracle(compare.Mismatch):
    """Results are not what the user's oracle says."""


@dataclass(frozen=True)
class Ran:
    """The runs that judge a cell.

    Attributes:
        own: The cell's own run.
        twin: The other framework's run, in the cell's dtype (`Runs.reference`).
        own64: The float64 run of the cell's framework: the cell's own, if it is of float64 itself.
        twin64: The other framework's float64 run.
        framework: Framework of the cell.
    """

    own: Outputs | Failure
    twin: Outputs | Failure
    own64: Outputs | Failure
    twin64: Outputs | Failure
    framework: str

    @classmethod
    def of(cls, runs: Runs, cell: Cell, *, in_parts: bool = False) -> Ran:
        """Run a cell and what it is held to.

        With `in_parts`, torch's fused operators are taken apart. An element that is no number by their formula, and
        is one by the operator, is taken from JAX: nothing says what it should be.
        """
        framework = framework_of(cell)
        if in_parts:
            plain = cls.of(runs, cell)
            torch, torch64 = (runs.in_parts(cell, dtype) for dtype in (cell.dtype, "float64"))
            if framework == "torch":
                return replace(plain, own=torch, own64=torch64)
            return replace(plain, twin=torch, twin64=_defined(torch64, plain.twin64, plain.own64))
        mine, other = runs.reference(framework, cell), runs.reference(OTHER[framework], cell)
        own, twin = runs.outputs(cell), runs.outputs(cell, world=other)
        own64 = own if cell.dtype == "float64" else runs.outputs(cell, world=mine, dtype="float64")
        return cls(own, twin, own64, runs.outputs(cell, world=other, dtype="float64"), framework)


def _defined(parts: Outputs | Failure, fused: Outputs | Failure, jax: Outputs | Failure) -> Outputs | Failure:
    """Return results of formulas, with those of JAX where the formula has none and the operator that it is of has."""
    if isinstance(parts, Failure) or isinstance(fused, Failure) or isinstance(jax, Failure):
        return parts
    values = dict(parts.values)
    for name, value in parts.values.items():
        own, other = fused.values.get(name), jax.values.get(name)
        if own is not None and other is not None and value.shape == own.shape == other.shape:
            values[name] = np.where((value != value) & (own == own), other, value)
    return replace(parts, values=values)


def held_to_float64(runs: Runs, cell: Cell, *, in_parts: bool = False) -> Outcome:
    """Hold a cell to the float64 runs of both frameworks.

    Args:
        runs: Runs of the pair.
        cell: On a variant of a kind of data.
        in_parts: Whether torch's fused operators are taken apart.
    """
    ran = Ran.of(runs, cell, in_parts=in_parts)
    own, own64, twin = ran.own, ran.own64, ran.twin
    if isinstance(own, Failure):
        return refused(runs, cell, own, twin, OTHER[ran.framework])
    if isinstance(own64, Failure):
        return Outcome("unsupported", f"in float64, {own64.text}")
    judged: Judged = "meaning"
    error, note = None, ""
    left_open: compare.Mismatch | None = None
    try:
        if _promises(runs, cell):
            bits.held_to_promises(own.values, runs.pair, cell.transform, _numbers(runs, cell))
            if not runs.pair.transform(cell.transform).values:
                return Outcome("identical", judged="bits")
        if _answers(runs, cell):
            error = _held_to_answer(runs, cell, own64)
        if ran.framework == "jax":
            if isinstance(ran.twin64, Failure) and lacks(runs, cell, ran.twin64):
                return Outcome("unsupported", f"torch raises {ran.twin64.text}: nothing to compare with", alike=True)
            if isinstance(ran.twin64, Failure):
                return Outcome("differs", f"torch raises {ran.twin64.text}; JAX does not", judged="meaning")
            try:
                error, note = _same_meaning(runs, cell, own64, twin, ran)
            except zeros.LeftOpen as mismatch:
                left_open = mismatch  # what was computed in the cell's own dtype is still to be judged
        if cell.dtype != "float64":
            judged = "precision"
            error, said = _same_precision(runs, cell, own, own64, ran)
            note = said or note
    except compare.Mismatch as mismatch:
        return Outcome(
            "differs", str(mismatch), judged=judged, finding=mismatch.finding, error=error,
            against_oracle=isinstance(mismatch, NotTheOracle),
        )  # fmt: skip
    if left_open is not None:
        reason = f"the sign of a zero, which torch's function does not keep there: {left_open}"
        return Outcome("edge", reason, judged="meaning", finding=left_open.finding, error=error)
    if error is not None and error.tolerated and runs.pair.tolerance is not None:
        note = f"{error.tolerated} elements are {WITHIN}{runs.pair.tolerance.reason}"
    if isinstance(twin, Outputs) and judge.same_bits(own, twin):
        return Outcome("identical", note, judged="bits", error=error)
    judged = "meaning" if cell.dtype == "float64" else "precision"
    return Outcome("within bound", note, judged=judged, error=error)


def _promises(runs: Runs, cell: Cell) -> bool:
    transform = runs.pair.transform(cell.transform)
    return runs.pair.frozen is not None or bool(transform.same) or not transform.values


def _numbers(runs: Runs, cell: Cell) -> Numbers:
    numbers = runs.numbers_of(cell)
    return numbers if isinstance(numbers, Numbers) else runs.plain(cell.data, cell.dtype)


def _order(runs: Runs, cell: Cell) -> int:
    return runs.pair.transform(cell.transform).order


def _same_meaning(
    runs: Runs, cell: Cell, own64: Outputs, twin: Outputs | Failure, ran: Ran
) -> tuple[Error, str]:  # fmt: skip
    """Hold JAX's float64 results to torch's."""
    assert isinstance(ran.twin64, Outputs)
    wide = _made_wide(runs, cell, own64, ran.twin64)
    judge.assert_same_outputs(_narrowed(own64, wide), _narrowed(ran.twin64, wide))
    if cell.dtype != "float64" and isinstance(ran.own, Outputs) and isinstance(twin, Outputs):
        judge.assert_same_outputs(ran.own, twin)
    if cell.data != "signed zeros" or cell.transform != "forward":
        return _close(runs, cell, own64, ran.twin64, "float64", single=wide)
    try:
        return _close(runs, cell, own64, ran.twin64, "float64", signs=True, single=wide)
    except compare.Mismatch as mismatch:
        _close(runs, cell, own64, ran.twin64, "float64", single=wide)  # raises where more than signs differs
        if zeros.signs_are_meant(runs, cell, own64, ran.twin64):
            raise
        raise zeros.LeftOpen(mismatch.finding) from None


def _made_wide(runs: Runs, cell: Cell, jax: Outputs, torch: Outputs) -> frozenset[str]:
    """Return the outputs that are float32 in one framework, and in the other float64 only as that is its default."""
    found = set()
    for name in ("jax", "torch"):
        wide, other = (jax, torch) if name == "jax" else (torch, jax)
        apart = {one for one, dtype in wide.dtypes.items() if dtype == "float64" and other.dtypes.get(one) == "float32"}
        found |= apart & runs.made_wide(cell, name) if apart else set()
    return frozenset(found)


def _narrowed(outputs: Outputs, names: frozenset[str]) -> Outputs:
    """Return outputs of which some are said to be float32."""
    return replace(outputs, dtypes=outputs.dtypes | dict.fromkeys(names, "float32")) if names else outputs


def _same_precision(runs: Runs, cell: Cell, own: Outputs, own64: Outputs, ran: Ran) -> tuple[Error, str]:
    """Hold a run in a lower dtype to the float64 run of its own framework."""
    judge.assert_same_outputs(Outputs(own.values), Outputs(own64.values), cell.dtype, "float64")
    both = isinstance(ran.twin, Outputs) and isinstance(ran.twin64, Outputs)
    twin = judge.Twin(ran.twin, ran.twin64) if both else None  # type: ignore[arg-type] # both are Outputs
    return _close(runs, cell, own, own64, cell.dtype, twin=twin)


def _close(
    runs: Runs, cell: Cell, got: Outputs, want: Outputs, dtype: str, *, signs: bool = False,
    twin: judge.Twin | None = None, single: frozenset[str] = frozenset(),
) -> tuple[Error, str]:  # fmt: skip
    """Hold results to others, measuring as much of what rounding does as it takes.

    Results that pass without are within every bound: what is measured only widens it. On the user's own numbers the
    other framework's errors excuse nothing there, as no cancellation is told from a fault yet.

    Returns:
        The error, and what is to be said of the arithmetic.
    """
    order, tolerance = _order(runs, cell), runs.pair.tolerance

    def held(moved: sensitivity.Moved, unit_of: str = dtype, beside: judge.Twin | None = twin) -> Error:
        return judge.assert_close(
            got, want, moved, unit_of, order=order, signs=signs, twin=beside, tolerance=tolerance, single=single
        )  # fmt: skip

    with contextlib.suppress(compare.Mismatch):
        return held(sensitivity.NOTHING, beside=None if cell.data == "random" else twin), ""
    rounded = sensitivity.of_cell(runs, cell, UNIT[dtype], lower=True).spread if single else {}
    for moved, is_all in sensitivity.growing(runs, cell, UNIT[dtype]):
        moved = replace(moved, spread=moved.spread | {name: rounded[name] for name in single & rounded.keys()})
        try:
            return held(moved, beside=twin if is_all else None), ""
        except compare.Mismatch as mismatch:
            first = mismatch
    if dtype == "float64":
        with contextlib.suppress(compare.Mismatch):
            return held(sensitivity.with_formula(runs, cell, moved)), ""
    if dtype == "float64" or order:
        # Nobody writes the derivative that is made of a formula: what it loses is no fault of the port. A function
        # itself may lose no more than torch's does.
        with contextlib.suppress(compare.Mismatch):
            return held(sensitivity.with_own(runs, cell, moved, UNIT[dtype])), ""
    elif framework_of(cell) == "jax":
        with contextlib.suppress(compare.Mismatch):
            return held(sensitivity.with_only(runs, cell, moved, UNIT[dtype], "scalars")), SCALARS
        if both := _special(runs, cell, dtype):
            with contextlib.suppress(compare.Mismatch):
                said = SPECIAL.format(name=" and ".join(both), dtype=dtype)
                wider = sensitivity.with_only(runs, cell, moved, UNIT[dtype], " ".join(["special", *both]))
                return held(wider), said
    inside = arithmetic.of_cell(runs, cell, dtype)
    if inside.alike:
        with contextlib.suppress(compare.Mismatch):
            return held(sensitivity.of_cell(runs, cell, UNIT[dtype], lower=True)), ""
    if inside.library:
        lowest = sensitivity.of_cell(runs, cell, UNIT[inside.library])
        try:
            return held(lowest, inside.library), inside.text
        except compare.Mismatch as mismatch:
            first = mismatch  # what that arithmetic leaves
    if inside.text:
        finding = first.finding
        raise compare.Mismatch(replace(finding, text=f"{finding.text}; {inside.text}"))
    raise first


def _special(runs: Runs, cell: Cell, dtype: str) -> list[str]:
    """Return the names of special functions that both sides call from their libraries."""
    torch, jax = (runs.reading(cell, framework, dtype) for framework in EAGER)
    both = torch.special & jax.special if torch is not None and jax is not None else set()
    return sorted(both)


def _answers(runs: Runs, cell: Cell) -> bool:
    oracle = runs.pair.oracle
    return (
        cell.transform in oracle.answers if isinstance(oracle, Oracle) else cell.transform == "forward" and bool(oracle)
    )


def _held_to_answer(runs: Runs, cell: Cell, own64: Outputs) -> Error:
    """Hold float64 results to an oracle that says nothing of rounding."""
    answers = _answer(runs, cell).items()
    want = Outputs(
        {part: _as_float64(leaf) for name, whole in answers for part, leaf in parts(name, np.asarray(whole))}
    )
    try:
        judge.assert_same_outputs(Outputs(own64.values), want, framework_of(cell), "the oracle")
        return _close(runs, cell, own64, want, "float64")[0]
    except compare.Mismatch as mismatch:
        finding = mismatch.finding
        raise NotTheOracle(replace(finding, text=f"against the oracle, {finding.text}")) from None


def _answer(runs: Runs, cell: Cell) -> Mapping[str, np.ndarray]:
    oracle = runs.pair.oracle
    with np.errstate(all="ignore"):
        if isinstance(oracle, Oracle):
            numbers = runs.numbers_of(cell)
            assert isinstance(numbers, Numbers)
            what = f"the oracle's answer for {cell.transform}"
            return dict(ask_tree(what, oracle.answers[cell.transform], numbers))
        assert oracle is not None
        return dict(trees.leaves(ask("the oracle", oracle, *runs.arguments(cell.data, cell.dtype)), "output"))


def _as_float64(leaf: np.ndarray) -> np.ndarray:
    found = np.asarray(leaf)
    return found.astype(np.float64) if found.dtype.kind == "f" else found
