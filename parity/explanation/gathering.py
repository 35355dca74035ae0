"""Gathers the runs of a cell that is not identical, for the diagnoses (evidence.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parity.execution.calls import Failure, Numbers, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs, framework_of
from parity.explanation import origins, trials
from parity.explanation.evidence import Evidence
from parity.explanation.proof import prove, selected
from parity.explanation.substitution import with_theta
from parity.operator.tolerance import TOLERATED, WITHIN
from parity.records import Cell, Diagnosis
from parity.verdict import judge, sensitivity
from parity.verdict.bounds import UNIT
from parity.verdict.outcomes import Outcome

Judging = Callable[[Cell], Outcome]


def gather(runs: Runs, cell: Cell, found: Outcome, *, verdict: Judging, outcome: Judging) -> Evidence:
    """Return the evidence of a cell.

    Args:
        runs: Of the pair.
        cell: The cell.
        found: What it was judged to be.
        verdict: Judges another cell.
        outcome: Judges another cell and explains it.
    """
    named, cell = cell, replace(cell, data=found.variant or cell.data)
    framework = framework_of(cell)
    own, twin = runs.outputs(cell), runs.outputs(cell, world=runs.reference(OTHER[framework], cell))
    got, want, whose = _compared(runs, cell, found, own, twin)
    output = found.finding.output if found.finding is not None else ""
    if output == "error ratio":
        output = found.reason.split(": the RMS")[0]
    none = np.zeros(0)
    left, right = ((one.values.get(output, none) if isinstance(one, Outputs) else none) for one in (got, want))
    unit = UNIT["float64" if found.judged == "meaning" else cell.dtype]
    spread = sensitivity.of_cell(runs, cell, unit).spread if output else {}
    numbers = runs.numbers_in(cell, whose)
    own, twin = _where_dtypes_part(runs, cell, own, twin)

    def recompute(numbers: Numbers) -> Outputs | Failure:
        return runs.rerun(replace(cell, world=runs.reference(whose, cell)), "float64", numbers)

    differs, derivative = found.verdict == "differs", cell.transform != "forward"
    random = replace(cell, data="random")
    at_random = differs and named.data != "random" and verdict(random).verdict == "differs"

    def proved(kind: str = "random" if at_random else cell.data) -> Diagnosis | None:
        pair = runs.pair
        usual = [runs.plain("random", "float64")] if kind != "random" else []
        return runs.once(("proof", kind), lambda: prove(pair.torch, pair.jax, runs.plain(kind, "float64"), also=usual))

    def near_zero() -> Diagnosis | None:
        return runs.once(("proof", "near zero"), lambda: _near_zero(runs))

    return Evidence(
        cell=named,
        verdict=found.verdict,
        judged=found.judged,
        reason=found.reason,
        output=output,
        got=left,
        want=right,
        spread=spread.get(output, none),
        own=own,
        other=twin,
        numbers=numbers if isinstance(numbers, Numbers) else runs.plain(cell.data, cell.dtype),
        framework=whose,
        at_random=at_random,
        at_ordinary=lambda: outcome(replace(named, data="random")).diagnosis,
        forward=_forward(named, outcome, proved) if derivative and found.verdict in EXPLAINED else None,
        recompute=recompute,
        proved=proved,
        alike_nearby=lambda distance=trials.BESIDE: trials.alike_nearby(runs, cell, distance),
        wrong_derivative=lambda: trials.wrong_derivative(runs, cell),
        widened=lambda: trials.widened(runs, cell, whose),
        made_by=lambda framework, nan: origins.made_by(runs, cell, framework, nan),
        stopped_by=lambda framework, nan: origins.stopped_by(runs, cell, framework, nan),
        inexact=lambda: origins.inexact(runs, cell),
        near_zero=near_zero,
        against_oracle=found.against_oracle,
        unsteady=_unsteady(runs, cell.device) if differs else (),
    )


EXPLAINED = ("differs", "unsupported")
"""Verdicts of a derivative that may follow from its function's."""

TINY = 1e-25
"""Numbers of this size are beside any eps nothing, and their squares are numbers."""


def _near_zero(runs: Runs) -> Diagnosis | None:
    """Return an eps, or a threshold, that explains how two functions differ on tiny numbers, or None."""
    pair, usual = runs.pair, runs.plain("random", "float64")
    tiny = usual.changed(lambda values: values * TINY)
    tiny = with_theta(tiny, tiny.theta)
    found = prove(pair.torch, pair.jax, tiny)
    if found is not None and found.cause == "default argument: eps":
        return found
    return found and prove(pair.torch, pair.jax, tiny, also=[usual], stages=[selected])


def _compared(
    runs: Runs, cell: Cell, found: Outcome, own: Outputs | Failure, twin: Outputs | Failure
) -> tuple[Outputs | Failure, Outputs | Failure, str]:
    """Return the two results that were compared, and whose the first is."""
    framework = framework_of(cell)
    other = OTHER[framework]
    own64 = runs.outputs(cell, world=runs.reference(framework, cell), dtype="float64")
    if found.judged == "meaning":
        twin64 = runs.outputs(cell, world=runs.reference(other, cell), dtype="float64")
        ran = isinstance(own, Outputs) and isinstance(twin, Outputs)
        if ran and _shapes(own) != _shapes(twin) and _shapes(own64) == _shapes(twin64):
            return own, twin, framework  # how many there are depends on what the dtype makes of the numbers
        return (own if cell.dtype == "float64" else own64), twin64, framework
    if found.judged == "ratio" and found.finding is not None and found.finding.want > found.finding.got:
        return twin, runs.outputs(cell, world=runs.reference(other, cell), dtype="float64"), other
    return own, own64, framework


def _shapes(outputs: Outputs | Failure) -> dict[str, tuple[int, ...]]:
    return {} if isinstance(outputs, Failure) else {name: value.shape for name, value in outputs.values.items()}


def _where_dtypes_part(
    runs: Runs, cell: Cell, own: Outputs | Failure, twin: Outputs | Failure
) -> tuple[Outputs | Failure, Outputs | Failure]:
    """Return the two runs where their dtypes part: what is promoted in float64 only is seen there."""
    if _same_dtypes(own, twin):
        framework = framework_of(cell)
        own64, twin64 = (
            runs.outputs(cell, world=runs.reference(name, cell), dtype="float64")
            for name in (framework, OTHER[framework])
        )
        if not _same_dtypes(own64, twin64):
            return own64, twin64
    return own, twin


def _same_dtypes(own: Outputs | Failure, twin: Outputs | Failure) -> bool:
    """Return whether results came in the same dtypes, as far as both came."""
    if isinstance(own, Failure) or isinstance(twin, Failure):
        return True
    return all(twin.dtypes.get(name, dtype) == dtype for name, dtype in own.dtypes.items())


def _forward(cell: Cell, outcome: Judging, proved: Callable[[str], Diagnosis | None]) -> Diagnosis | None:
    # A derivative can differ where the function does not: then it follows from what differs elsewhere.
    for kind in (cell.data, "random"):
        found = outcome(replace(cell, transform="forward", data=kind))
        if found.verdict == "differs" and found.judged == "meaning":
            return found.diagnosis
        if WITHIN in found.reason:
            why = proved(kind)
            if why is not None:
                return replace(why, text=f"{TOLERATED} {why.text}")
            text = f"{TOLERATED} No cause of what is tolerated is proved."
            fix = "Compare the two without a tolerance, then give one that fits the derivative."
            return Diagnosis("another formula", text, fix)
    return None


def _unsteady(runs: Runs, device: str) -> tuple[str, ...]:
    """Return the frameworks whose function, run twice on the user's numbers, gives two results."""
    return runs.once(("unsteady", device), lambda: tuple(name for name in EAGER if _changes(runs, name, device)))


def _changes(runs: Runs, framework: str, device: str) -> bool:
    """Return whether a function gives other results again than at first, in any dtype, or than a moment ago."""
    pair = runs.pair
    for dtype in dict.fromkeys(("float64", *(pair.dtypes or ("float32", "bfloat16")))):
        cell = pair.cell(pair.name, pair.group, dtype, "forward", EAGER[framework], device, "random")
        several = [runs.outputs(cell), *(runs.rerun(cell, dtype) for _ in range(2 if dtype == "float64" else 1))]
        ran = [one for one in several if isinstance(one, Outputs)]
        if any(not judge.same_bits(ran[0], one) for one in ran[1:]):
            return True
    return False
