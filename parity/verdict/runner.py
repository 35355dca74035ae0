"""Judging the cells of a pair: the one engine, for anyone's operator and for our own layer (SPEC S11).

*Theory*: where the pair's oracle says what is right and how far off rounding may be (or that bits are equal), a cell is
held to that alone (theory.py). Elsewhere float64 stands in for it:
*Meaning*: both functions run in float64, on the same numbers, and must agree there to a float64 bound.
*Precision*: a run in a lower dtype is held against the float64 run of its own framework on the same numbers, whose
values that dtype holds exactly. *Ratio*: then the RMS errors of the two frameworks are compared, on both sides.
What JAX does is held against torch, so that a difference in meaning is in the cells of JAX; where the user says what
is right (an oracle), results of both are held against that first.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from parity.execution.calls import Failure, Numbers, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs
from parity.execution.outputs import world_of as world_of
from parity.execution.plan import plan as plan
from parity.explanation import causes as diagnosis
from parity.explanation.evidence import Evidence
from parity.operator import trees
from parity.operator.faults import Fault, ask, ask_tree
from parity.operator.known import matches
from parity.operator.known import settle as settle
from parity.operator.oracle import Oracle
from parity.operator.pair import Pair
from parity.records import Cell, Diagnosis, Judged, Record
from parity.verdict import compare, judge, outcomes, theory
from parity.verdict.bounds import UNIT
from parity.verdict.outcomes import Error, Outcome


def run(pair: Pair, cells: Collection[Cell], seed: int = 0) -> Iterator[Record]:
    """Run cells of a pair one by one, yielding a record of each; what they share runs once.

    An entry of `pair.known` that no cell confirms is found by `settle`, when all of them have run.

    Args:
        pair: The pair.
        cells: From `plan`.
        seed: Of the numbers.
    """
    return Runner(pair, seed).records(cells)


class Runner(Runs, outcomes.Runner):
    """Runs cells of one pair and judges them: whoever's pair it is, this is what gives the verdict."""

    def __init__(self, pair: Pair, seed: int = 0) -> None:
        super().__init__(pair, seed)
        self._against_oracle: set[str] = set()
        self._errors: dict[tuple[str, ...], Error] = {}
        self._dtypes: dict[tuple[str, ...], Mapping[str, str]] = {}

    def record(self, cell: Cell) -> Record:
        """Run one cell."""
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # Infinities, NaN and overflow are what is compared; what the user's functions warn of is not.
            warnings.simplefilter("ignore")
            return super().record(cell)

    def settled(self, cell: Cell, outcome: Outcome) -> Outcome:
        """Return the outcome with what the pair says of it, and a hash of what went in."""
        known = next((entry for entry in self.pair.known or () if matches(entry, cell)), None)
        clause = self.pair.transform(cell.transform).clause
        try:
            outcome = replace(outcome, inputs_sha256=self.sha256(cell), clause=clause)
        except Fault:  # there are no inputs, and the outcome says so
            return replace(outcome, clause=clause)
        if (
            known is None
            or self.pair.listed(cell) is not None
            or outcome.verdict in ("identical", "within bound", "no device")
        ):
            return outcome
        return replace(outcome, known=True, reason=f"{outcome.reason}; known: {known['reason']}")

    def outcome(self, cell: Cell) -> Outcome:
        """Judge one cell, and say why if it differs."""
        try:
            return self._once(("outcome", cell.id), lambda: self._outcome(cell))
        except Fault as fault:
            return Outcome("differs", str(fault))

    def _outcome(self, cell: Cell) -> Outcome:
        framework = cell.world.split("-")[0]
        if cell.device not in world_of(framework).devices():
            return Outcome("no device", f"{framework} sees no {cell.device} here")
        listed = self.pair.listed(cell)
        if listed is not None:
            return self._as_listed(cell, listed)
        if self.pair.in_theory(cell.transform, cell.data):
            return self._in_theory(cell)
        found = self._verdict(cell)
        if found.verdict == "identical":
            return found
        return replace(found, diagnosis=diagnosis.diagnose(self._evidence(cell, found, framework)))

    def _as_listed(self, cell: Cell, listed: Mapping[str, Any]) -> Outcome:
        if listed.get("crashes"):
            return Outcome("unsupported", listed["reason"], known=True)
        own = self.attempt(cell)
        if isinstance(own, Outputs):
            return Outcome("differs", "listed as known to be unsupported, but it works: take it off the list")
        if re.search(listed["error"], own.raised) is None:
            return Outcome("unsupported", own.text)
        return Outcome("unsupported", listed["reason"], known=True)

    def _in_theory(self, cell: Cell) -> Outcome:
        """Hold a cell against what the pair says is right, and its error against torch's, where that cell has run."""
        own = self.attempt(cell)
        if isinstance(own, Failure):
            return Outcome("unsupported", own.text)
        numbers = self.numbers(cell.data, cell.dtype, cell.world.split("-")[0], cell.device)
        if isinstance(numbers, Failure):
            return Outcome("unsupported", numbers.text)
        assert isinstance(self.pair.oracle, Oracle)
        transform, exact = self.pair.transform(cell.transform), (self.pair.exact or {}).get(cell.data)
        key = (cell.dtype, cell.transform, cell.device, cell.data)
        if cell.world == EAGER["torch"]:
            self._dtypes[key] = own.dtypes
        try:
            outputs = self._promised(own, cell.transform, numbers)
            judge.assert_same_dtypes(own.dtypes, self._dtypes.get(key, {}), cell.world, EAGER["torch"])
            error = theory.assert_answered(outputs, self.pair.oracle, transform, numbers, cell.dtype, exact)
        except compare.Mismatch as mismatch:
            return Outcome("differs", str(mismatch), finding=mismatch.finding)
        if error is None:
            return Outcome("identical", judged="bits")
        found = Outcome("within bound", error=error)
        # Not in float64: there the oracle errs as much, and in the same way as the framework whose BLAS NumPy shares.
        if cell.dtype == "float64":
            return found
        if cell.world == EAGER["torch"]:
            self._errors[key] = error
        if cell.world.startswith("torch") or key not in self._errors:
            return found
        try:
            return replace(found, twin_ratio=compare.assert_error_ratios(self._errors[key].rms, error.rms))
        except compare.Mismatch as mismatch:
            finding = mismatch.finding
            return Outcome("differs", str(mismatch), "ratio", finding, error, finding.ratio)

    def _promised(self, own: Outputs, transform: str, numbers: Numbers) -> dict[str, np.ndarray]:
        return theory.assert_promised(
            own.values, self.pair.transform(transform), lambda output: self.pair.frozen_in(transform, output, numbers)
        )

    def _verdict(self, cell: Cell) -> Outcome:
        return self._once(("verdict", cell.id), lambda: self._judged(cell, cell.world.split("-")[0]))

    def _evidence(self, cell: Cell, found: Outcome, framework: str) -> Evidence:
        def ran(world: str, dtype: str) -> Outputs | Failure:
            return self.outputs(world, cell.device, dtype, cell.data, cell.dtype, cell.transform)

        own, twin = ran(cell.world, cell.dtype), ran(EAGER[OTHER[framework]], cell.dtype)
        got, want = own, ran(EAGER[framework], "float64")
        whose = framework
        output = found.finding.output if found.finding is not None else ""
        if found.judged == "meaning":
            got, want = (own if cell.dtype == "float64" else want), ran(EAGER[OTHER[framework]], "float64")
        elif found.judged == "ratio" and found.finding is not None and found.finding.want > found.finding.got:
            got, want, whose = twin, ran(EAGER[OTHER[framework]], "float64"), OTHER[framework]
        if _same_dtypes(own, twin):
            # What is promoted in float64 only is seen there.
            own64, twin64 = ran(EAGER[framework], "float64"), ran(EAGER[OTHER[framework]], "float64")
            if not _same_dtypes(own64, twin64):
                own, twin = own64, twin64
        if output == "error ratio":
            output = found.reason.split(": the RMS")[0]
        none = np.zeros(0)
        left, right = ((one.values.get(output, none) if isinstance(one, Outputs) else none) for one in (got, want))
        unit = UNIT["float64" if found.judged == "meaning" else cell.dtype]
        spread = self.spread(cell.device, cell.data, cell.dtype, cell.transform, unit) if output else {}
        numbers = self.numbers(cell.data, cell.dtype, whose, cell.device)

        def recompute(numbers: Numbers) -> Outputs | Failure:
            return self._outputs(EAGER[whose], cell.device, "float64", cell.data, cell.dtype, cell.transform, numbers)

        differs, derivative = found.verdict == "differs", cell.transform != "forward"
        random = replace(cell, data="random")
        return Evidence(
            cell, found.verdict, found.judged, found.reason, output, left, right, spread.get(output, none), own, twin,
            numbers if isinstance(numbers, Numbers) else self.plain(cell.data, cell.dtype), whose,
            differs and cell.data != "random" and self._verdict(random).verdict == "differs",
            self._forward(cell) if derivative and found.verdict in ("differs", "unsupported") else None,
            recompute, cell.id in self._against_oracle, self._unsteady(cell.device) if differs else (),
        )  # fmt: skip

    def _unsteady(self, device: str) -> tuple[str, ...]:
        """Return the frameworks whose function, run twice on the user's numbers, gives two results."""
        return self._once(("unsteady", device), lambda: tuple(name for name in EAGER if self._changes(name, device)))

    def _changes(self, framework: str, device: str) -> bool:
        plain = self.plain("random", "float64")
        runs = [
            self._outputs(EAGER[framework], device, "float64", "random", "float64", "forward", plain) for _ in range(2)
        ]
        one, two = (run if isinstance(run, Outputs) else None for run in runs)
        return one is not None and two is not None and not judge.same_bits(one, two)

    def _forward(self, cell: Cell) -> Diagnosis | None:
        # A derivative can differ where the function does not: then it follows from what differs elsewhere.
        for kind in (cell.data, "random"):
            found = self.outcome(replace(cell, transform="forward", data=kind))
            if found.verdict == "differs" and found.judged == "meaning":
                return found.diagnosis
        return None

    def _judged(self, cell: Cell, framework: str) -> Outcome:
        other = OTHER[framework]

        def ran(world: str, dtype: str) -> Outputs | Failure:
            return self.outputs(world, cell.device, dtype, cell.data, cell.dtype, cell.transform)

        own, twin = ran(cell.world, cell.dtype), ran(EAGER[other], cell.dtype)
        own64 = own if cell.dtype == "float64" else ran(EAGER[framework], "float64")
        twin64 = ran(EAGER[other], "float64")
        if isinstance(own, Failure):
            # A transform of the pair's own is meant to run: raised in both worlds, its program is wrong.
            alike = isinstance(twin, Failure) and not self.pair.brings(cell.transform)
            return Outcome("unsupported", f"{own.text} ({other} raises as well)" if alike else own.text, alike=alike)
        if isinstance(own64, Failure):
            return Outcome("unsupported", f"in float64, {own64.text}")
        order = self.pair.transform(cell.transform).order
        terms = self.plain(cell.data, cell.dtype).terms
        signs = cell.data == "signed zeros" and cell.transform == "forward"
        judged: Judged = "meaning"
        error = None
        try:
            promises = self.pair.transform(cell.transform)
            if self.pair.frozen is not None or promises.same or not promises.values:
                numbers = self.numbers(cell.data, cell.dtype, framework, cell.device)
                held = numbers if isinstance(numbers, Numbers) else self.plain(cell.data, cell.dtype)
                self._promised(own, cell.transform, held)
                if not promises.values:
                    return Outcome("identical", judged="bits")
            if self._answers(cell.transform):
                error = self._held_to_oracle(cell, own64, terms, framework)
            if framework == "jax":
                if isinstance(twin64, Failure):
                    return Outcome("differs", f"torch raises {twin64.text}; JAX does not", "meaning")
                judge.assert_same_outputs(own64, twin64)
                if isinstance(twin, Outputs):
                    judge.assert_same_outputs(own, twin)
                double = self.spread(cell.device, cell.data, cell.dtype, cell.transform, UNIT["float64"])
                got = own if cell.dtype == "float64" else own64
                try:
                    error = judge.assert_close(got, twin64, double, "float64", terms=terms, order=order, signs=signs)
                except compare.Mismatch:
                    double = self._with_formula(cell, double)
                    error = judge.assert_close(got, twin64, double, "float64", terms=terms, order=order, signs=signs)
            judged = "precision"
            if cell.dtype != "float64":
                error = self._precision(cell, own, own64, twin, twin64, terms, order)
                judged = "ratio"
                twin_ratio = self._ratio(cell, framework, error, twin, twin64, terms, order)
            else:
                twin_ratio = None
        except compare.Mismatch as mismatch:
            if mismatch.finding.output == "error ratio":
                judged = "ratio"
            return Outcome("differs", str(mismatch), judged, mismatch.finding, error)
        if isinstance(twin, Outputs) and judge.same_bits(own, twin):
            return Outcome("identical", "", "bits", error=error, twin_ratio=twin_ratio)
        return Outcome(
            "within bound", "", "meaning" if cell.dtype == "float64" else "precision", None, error, twin_ratio
        )

    def _with_formula(self, cell: Cell, double: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the sensitivity with what the two formulas lose by themselves, as their float32 runs show.

        A formula that cancels (log(1 + x) for log1p) is off in float64 as well: by its float32 error, times the ratio
        of the units, times 16 for luck. Beyond that the meaning differs. Of the user's own numbers only.
        """
        if cell.data != "random":
            return double
        wider = dict(double)
        for world in EAGER.values():
            single, exact = (
                self.outputs(world, cell.device, dtype, cell.data, cell.dtype, cell.transform)
                for dtype in ("float32", "float64")
            )
            if not isinstance(single, Outputs) or not isinstance(exact, Outputs):
                continue
            for name, value in exact.values.items():
                if name in wider and value.dtype.kind == "f" and value.shape == single.values[name].shape:
                    with np.errstate(invalid="ignore"):
                        error = np.abs(single.values[name] - value)
                    largest = float(np.max(error[np.isfinite(error)], initial=0.0))
                    wider[name] = wider[name] + 16 * UNIT["float64"] / UNIT["float32"] * largest
        return wider

    def _precision(
        self, cell: Cell, own: Outputs, own64: Outputs, twin: Any, twin64: Any, terms: int, order: int
    ) -> Error:  # fmt: skip
        judge.assert_same_outputs(_kinds_only(own), _kinds_only(own64), cell.dtype, "float64")
        spread = self.spread(cell.device, cell.data, cell.dtype, cell.transform, UNIT[cell.dtype])
        both = (twin, twin64) if isinstance(twin, Outputs) and isinstance(twin64, Outputs) else None
        return judge.assert_close(own, own64, spread, cell.dtype, terms=terms, order=order, twin=both)

    def _ratio(
        self, cell: Cell, framework: str, error: Error, twin: Any, twin64: Any, terms: int, order: int
    ) -> float | None:
        # Of the user's own numbers: the others are too few, and chosen.
        if framework != "jax" or cell.data != "random" or isinstance(twin, Failure) or isinstance(twin64, Failure):
            return None
        spread = self.spread(cell.device, cell.data, cell.dtype, cell.transform, UNIT[cell.dtype])
        try:
            torch = judge.assert_close(twin, twin64, spread, cell.dtype, terms=terms, order=order)
        except compare.Mismatch:
            return None  # a cell of torch's own
        return judge.assert_error_ratios(torch, error)

    def _answers(self, transform: str) -> bool:
        oracle = self.pair.oracle
        return transform in oracle.answers if isinstance(oracle, Oracle) else transform == "forward" and bool(oracle)

    def _held_to_oracle(self, cell: Cell, own64: Outputs, terms: int, framework: str) -> Error:
        oracle, order = self.pair.oracle, self.pair.transform(cell.transform).order
        with np.errstate(all="ignore"):
            if isinstance(oracle, Oracle):
                numbers = self.numbers(cell.data, cell.dtype, framework, cell.device)
                assert isinstance(numbers, Numbers)
                what = f"the oracle's answer for {cell.transform}"
                right = dict(ask_tree(what, oracle.answers[cell.transform], numbers))
            else:
                assert oracle is not None
                found = ask("the oracle", oracle, *self.arguments(cell.data, cell.dtype))
                right = dict(trees.leaves(found, "output"))
        values = {
            name: np.asarray(leaf, np.float64) if np.asarray(leaf).dtype.kind == "f" else np.asarray(leaf)
            for name, leaf in right.items()
        }
        want = Outputs(values)
        double = self.spread(cell.device, cell.data, cell.dtype, cell.transform, UNIT["float64"])
        try:
            judge.assert_same_outputs(Outputs(own64.values), want, framework, "the oracle")
            return judge.assert_close(own64, want, double, "float64", terms=terms, order=order)
        except compare.Mismatch as mismatch:
            self._against_oracle.add(cell.id)
            finding = mismatch.finding
            raise compare.Mismatch(replace(finding, text=f"against the oracle, {finding.text}")) from None


def _same_dtypes(own: Outputs | Failure, twin: Outputs | Failure) -> bool:
    """Return whether results came in the same dtypes, as far as both came."""
    if isinstance(own, Failure) or isinstance(twin, Failure):
        return True
    return all(twin.dtypes.get(name, dtype) == dtype for name, dtype in own.dtypes.items())


def _kinds_only(outputs: Outputs) -> Outputs:
    return Outputs(outputs.values)
