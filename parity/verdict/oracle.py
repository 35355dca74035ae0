"""Compared with an oracle: a pair gives the right answer, and either a bound for rounding or the demand of equal bits.

Such a cell runs once. The float64 runs, which are the reference elsewhere (float64.py), are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from parity.execution.calls import Failure, Numbers
from parity.execution.outputs import EAGER, Runs
from parity.operator.faults import Fault, ask, ask_tree
from parity.operator.oracle import Oracle
from parity.operator.transforms import Transform
from parity.records import Cell, Finding
from parity.verdict import bits, bounds, compare, judge
from parity.verdict.outcomes import Error, Outcome


@dataclass
class OfTorch:
    """What the cells of torch gave so far, by all that a cell says but its world: those of JAX are held to it.

    Attributes:
        dtypes: Dtypes of their outputs.
        errors: Their errors over their bounds.
    """

    dtypes: dict[tuple[str, ...], Mapping[str, str]] = field(default_factory=dict)
    errors: dict[tuple[str, ...], Error] = field(default_factory=dict)


def held_to_oracle(runs: Runs, cell: Cell, of_torch: OfTorch) -> Outcome:
    """Hold a cell to what its pair says is right, and its error to that of torch, where torch's cell has run."""
    own = runs.attempt(cell)
    if isinstance(own, Failure):
        return Outcome("unsupported", own.text)
    numbers = runs.numbers_of(cell)
    if isinstance(numbers, Failure):
        return Outcome("unsupported", numbers.text)
    key = (cell.dtype, cell.transform, cell.device, cell.data)
    if cell.world == EAGER["torch"]:
        of_torch.dtypes[key] = own.dtypes
    try:
        outputs = bits.held_to_promises(own.values, runs.pair, cell.transform, numbers)
        judge.assert_same_dtypes(own.dtypes, of_torch.dtypes.get(key, {}), cell.world, EAGER["torch"])
        error = _assert_answered(outputs, runs, cell, numbers)
    except compare.Mismatch as mismatch:
        return Outcome("differs", str(mismatch), finding=mismatch.finding)
    if error is None:
        return Outcome("identical", judged="bits")
    found = Outcome("within bound", error=error)
    # Not in float64: there the oracle errs as much, and in the same way as the framework whose BLAS NumPy shares.
    return found if cell.dtype == "float64" else _held_to_torch(found, error, cell.world, key, of_torch)


def _held_to_torch(found: Outcome, error: Error, world: str, key: tuple[str, ...], of_torch: OfTorch) -> Outcome:
    if world == EAGER["torch"]:
        of_torch.errors[key] = error
    if world.startswith("torch") or key not in of_torch.errors:
        return found
    try:
        return replace(found, twin_ratio=compare.assert_error_ratios(of_torch.errors[key].rms, error.rms))
    except compare.Mismatch as mismatch:
        finding = mismatch.finding
        return Outcome("differs", str(mismatch), judged="ratio", finding=finding, error=error, twin_ratio=finding.ratio)


def _assert_answered(
    outputs: Mapping[str, np.ndarray], runs: Runs, cell: Cell, numbers: Numbers
) -> Error | None:  # fmt: skip
    """Raise unless outputs are what the oracle says: in their bits where the data is exact, else within its bound.

    Returns:
        None where bits were compared, else the error over its bound.
    """
    oracle, transform = runs.pair.oracle, runs.pair.transform(cell.transform)
    assert isinstance(oracle, Oracle)
    want = ask_tree(f"the oracle's answer for {transform.name}", oracle.answers[transform.name], numbers)
    if set(want) != set(outputs):
        text = f"{transform.name} returns {', '.join(outputs) or 'nothing'}; the oracle {', '.join(want) or 'nothing'}"
        raise compare.Mismatch(Finding("structure", (), np.nan, np.nan, np.inf, text))
    for name, got in outputs.items():
        compare.assert_same_shape(name, got, want[name])
    exact = (runs.pair.exact or {}).get(cell.data)
    if not transform.values:
        return None
    if exact is not None:
        bits.held_to_answers(outputs, want, exact)
        return None
    return _assert_within(outputs, want, oracle, transform, numbers, cell.dtype)


def _assert_within(
    outputs: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], oracle: Oracle, transform: Transform,
    numbers: Numbers, dtype: str,
) -> Error:  # fmt: skip
    majorants = ask_tree(f"the oracle's majorant for {transform.name}", oracle.majorants[transform.name], numbers)
    if set(majorants) != set(want):
        raise Fault(
            f"the oracle's majorant for {transform.name} is of {', '.join(majorants)}; its answer of {', '.join(want)}"
        )
    terms = numbers.terms if oracle.terms is None else ask("the oracle's terms", oracle.terms, numbers)
    stages = oracle.stages * (transform.order + 1)
    ratios = {}
    for name, got in outputs.items():
        _assert_majorant(name, majorants[name], want[name])
        bound = bounds.error_bound(majorants[name], dtype, terms=terms, stages=stages)
        compare.assert_within(name, got, want[name], bound)
        ratios[name] = compare.error_ratio(got, want[name], bound)
    rms = {
        name: (float(np.sqrt(np.mean(ratio**2))) if ratio.size else 0.0, ratio.size) for name, ratio in ratios.items()
    }
    flat = np.concatenate([ratio.ravel() for ratio in ratios.values()])
    return Error(float(flat.max(initial=0.0)), rms, judge.histogram(flat))


def _assert_majorant(name: str, majorant: np.ndarray, answer: np.ndarray) -> None:
    # One that is negative or infinite would let any error pass.
    finite = np.isfinite(answer)
    if majorant.shape != answer.shape or not (np.isfinite(majorant) | ~finite).all() or (majorant[finite] < 0).any():
        text = (
            f"{name}: expected a majorant of shape {answer.shape}, finite and not negative, got shape {majorant.shape} "
            f"from {np.min(majorant, initial=np.inf):.3g}; take absolute values of the numbers (n.changed(np.abs))"
        )
        raise Fault(text)
