"""Held to a float64 reference: where no oracle judges a cell, the float64 runs stand in for what is right.

*Meaning*: both functions run in float64, on the same numbers, and must agree there to a float64 bound.
*Precision*: a run in a lower dtype is held against the float64 run of its own framework on the same numbers, whose
values that dtype holds exactly. *Ratio*: then the RMS errors of the two frameworks are compared, on both sides.
What JAX does is held against torch, so that a difference in meaning is in the cells of JAX; where the user says what
is right (an oracle), results of both are held against that first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from parity.execution.calls import Failure, Numbers, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs, framework_of
from parity.operator import trees
from parity.operator.faults import ask, ask_tree
from parity.operator.oracle import Oracle
from parity.records import Cell, Judged
from parity.verdict import bits, compare, judge, sensitivity
from parity.verdict.bounds import UNIT
from parity.verdict.outcomes import Error, Outcome


class NotTheOracle(compare.Mismatch):
    """Results are not what the user's oracle says."""


@dataclass(frozen=True)
class Ran:
    """The runs that judge a cell.

    Attributes:
        own: The cell's own run.
        twin: The other framework's eager run, in the cell's dtype.
        own64: The float64 run of the cell's framework: eager, unless the cell is of float64 itself.
        twin64: The other framework's eager float64 run.
        framework: Of the cell.
    """

    own: Outputs | Failure
    twin: Outputs | Failure
    own64: Outputs | Failure
    twin64: Outputs | Failure
    framework: str

    @classmethod
    def of(cls, runs: Runs, cell: Cell) -> Ran:
        """Run a cell and what it is held to."""
        framework = framework_of(cell)
        other = EAGER[OTHER[framework]]
        own, twin = runs.outputs(cell), runs.outputs(cell, world=other)
        own64 = own if cell.dtype == "float64" else runs.outputs(cell, world=EAGER[framework], dtype="float64")
        return cls(own, twin, own64, runs.outputs(cell, world=other, dtype="float64"), framework)


def held_to_float64(runs: Runs, cell: Cell) -> Outcome:
    """Hold a cell to the float64 runs of both frameworks."""
    ran = Ran.of(runs, cell)
    own, own64, twin = ran.own, ran.own64, ran.twin
    if isinstance(own, Failure):
        # A transform of the pair's own is meant to run: raised in both worlds, its program is wrong.
        alike = isinstance(twin, Failure) and not runs.pair.brings(cell.transform)
        text = f"{own.text} ({OTHER[ran.framework]} raises as well)" if alike else own.text
        return Outcome("unsupported", text, alike=alike)
    if isinstance(own64, Failure):
        return Outcome("unsupported", f"in float64, {own64.text}")
    judged: Judged = "meaning"
    error, twin_ratio = None, None
    try:
        if _promises(runs, cell):
            bits.held_to_promises(own.values, runs.pair, cell.transform, _numbers(runs, cell))
            if not runs.pair.transform(cell.transform).values:
                return Outcome("identical", judged="bits")
        if _answers(runs, cell):
            error = _held_to_answer(runs, cell, own64)
        if ran.framework == "jax":
            if isinstance(ran.twin64, Failure):
                return Outcome("differs", f"torch raises {ran.twin64.text}; JAX does not", judged="meaning")
            error = _same_meaning(runs, cell, own, own64, twin, ran.twin64)
        if cell.dtype != "float64":
            judged = "precision"
            error = _same_precision(runs, cell, own, own64, ran)
            judged = "ratio"
            twin_ratio = _ratio(runs, cell, error, ran)
    except compare.Mismatch as mismatch:
        if mismatch.finding.output == "error ratio":
            judged = "ratio"
        return Outcome(
            "differs", str(mismatch), judged=judged, finding=mismatch.finding, error=error,
            against_oracle=isinstance(mismatch, NotTheOracle),
        )  # fmt: skip
    if isinstance(twin, Outputs) and judge.same_bits(own, twin):
        return Outcome("identical", judged="bits", error=error, twin_ratio=twin_ratio)
    judged = "meaning" if cell.dtype == "float64" else "precision"
    return Outcome("within bound", judged=judged, error=error, twin_ratio=twin_ratio)


def _promises(runs: Runs, cell: Cell) -> bool:
    transform = runs.pair.transform(cell.transform)
    return runs.pair.frozen is not None or bool(transform.same) or not transform.values


def _numbers(runs: Runs, cell: Cell) -> Numbers:
    numbers = runs.numbers_of(cell)
    return numbers if isinstance(numbers, Numbers) else runs.plain(cell.data, cell.dtype)


def _order(runs: Runs, cell: Cell) -> int:
    return runs.pair.transform(cell.transform).order


def _terms(runs: Runs, cell: Cell) -> int:
    return runs.plain(cell.data, cell.dtype).terms


def _same_meaning(
    runs: Runs, cell: Cell, own: Outputs, own64: Outputs, twin: Outputs | Failure, twin64: Outputs
) -> Error:  # fmt: skip
    """Hold JAX's float64 results to torch's."""
    judge.assert_same_outputs(own64, twin64)
    if isinstance(twin, Outputs):
        judge.assert_same_outputs(own, twin)
    double = sensitivity.of_cell(runs, cell, UNIT["float64"])
    signs = cell.data == "signed zeros" and cell.transform == "forward"
    terms, order = _terms(runs, cell), _order(runs, cell)
    try:
        return judge.assert_close(own64, twin64, double, "float64", terms=terms, order=order, signs=signs)
    except compare.Mismatch:
        double = sensitivity.with_formula(runs, cell, double)
        return judge.assert_close(own64, twin64, double, "float64", terms=terms, order=order, signs=signs)


def _same_precision(runs: Runs, cell: Cell, own: Outputs, own64: Outputs, ran: Ran) -> Error:
    """Hold a run in a lower dtype to the float64 run of its own framework."""
    judge.assert_same_outputs(Outputs(own.values), Outputs(own64.values), cell.dtype, "float64")
    spread = sensitivity.of_cell(runs, cell, UNIT[cell.dtype])
    both = (ran.twin, ran.twin64) if isinstance(ran.twin, Outputs) and isinstance(ran.twin64, Outputs) else None
    terms, order = _terms(runs, cell), _order(runs, cell)
    return judge.assert_close(own, own64, spread, cell.dtype, terms=terms, order=order, twin=both)


def _ratio(runs: Runs, cell: Cell, error: Error, ran: Ran) -> float | None:
    """Hold JAX's error to torch's."""
    # Of the user's own numbers: the others are too few, and chosen.
    if ran.framework != "jax" or cell.data != "random":
        return None
    if isinstance(ran.twin, Failure) or isinstance(ran.twin64, Failure):
        return None
    spread = sensitivity.of_cell(runs, cell, UNIT[cell.dtype])
    terms, order = _terms(runs, cell), _order(runs, cell)
    try:
        torch = judge.assert_close(ran.twin, ran.twin64, spread, cell.dtype, terms=terms, order=order)
    except compare.Mismatch:
        return None  # a cell of torch's own
    return judge.assert_error_ratios(torch, error)


def _answers(runs: Runs, cell: Cell) -> bool:
    oracle = runs.pair.oracle
    return (
        cell.transform in oracle.answers if isinstance(oracle, Oracle) else cell.transform == "forward" and bool(oracle)
    )


def _held_to_answer(runs: Runs, cell: Cell, own64: Outputs) -> Error:
    """Hold float64 results to an oracle that says nothing of rounding."""
    want = Outputs({name: _as_float64(leaf) for name, leaf in _answer(runs, cell).items()})
    double = sensitivity.of_cell(runs, cell, UNIT["float64"])
    try:
        judge.assert_same_outputs(Outputs(own64.values), want, framework_of(cell), "the oracle")
        return judge.assert_close(
            own64, want, double, "float64", terms=_terms(runs, cell), order=_order(runs, cell)
        )  # fmt: skip
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
