"""What came of a cell, and how it becomes a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

from parity.records import Cell, Diagnosis, Finding, Judged, Record, Verdict
from parity.verdict.bias import Slope


@dataclass(frozen=True)
class Error:
    """Error over bound of a cell.

    Attributes:
        largest: The largest of all elements.
        rms: Root mean square of the error in inherent units, of what is finite, and of how many elements, by output.
        histogram: Histogram of error over bound, in the bins of records.BINS.
        slopes: Slopes of errors in one direction, by output (bias.py).
        tolerated: How many elements are right by the user's own tolerance only.
    """

    largest: float
    rms: dict[str, tuple[float, int]]
    histogram: tuple[int, ...]
    slopes: dict[str, Slope] = field(default_factory=dict)
    tolerated: int = 0


@dataclass(frozen=True)
class Outcome:
    """A verdict with what led to it.

    Attributes:
        verdict: The verdict.
        reason: In words, where there is one.
        judged: What the verdict was found by: bits, a bound, a ratio.
        finding: The worst element, where results differ.
        error: The error over its bound, where it has one.
        twin_ratio: RMS error of JAX over that of torch.
        diagnosis: Why two results differ.
        against_oracle: Whether it is the pair's oracle that the results do not agree with.
        alike: Whether the other framework refuses the cell as well.
        known: Whether the cell is listed among the known ones.
        clause: Clause of the contract, to which the cell holds its subject.
        inputs_sha256: A hash of the numbers that went in.
        variant: Variant of the kind of data, on which the cell was worst (`parity.operator.data.variants`).
    """

    verdict: Verdict
    reason: str = ""
    _: KW_ONLY
    judged: Judged | None = None
    finding: Finding | None = None
    error: Error | None = None
    twin_ratio: float | None = None
    diagnosis: Diagnosis | None = None
    against_oracle: bool = False
    alike: bool = False
    known: bool = False
    clause: str = "S11"
    inputs_sha256: str | None = None
    variant: str = ""


def together(errors: Sequence[Error]) -> Error | None:
    """Return the errors of several variants as one, or None of none."""
    if not errors:
        return None
    counts = tuple(sum(bins) for bins in zip(*(error.histogram for error in errors), strict=True))
    largest = max(error.largest for error in errors)
    return replace(errors[0], largest=largest, histogram=counts, tolerated=sum(error.tolerated for error in errors))


def record_of(cell: Cell, outcome: Outcome, *, seed: int, seconds: float, strict: bool = False) -> Record:
    """Return the record of a cell."""
    error = outcome.error
    return Record(
        cell=cell,
        clause=outcome.clause,
        verdict=outcome.verdict,
        known=outcome.known,
        reason=outcome.reason,
        finding=outcome.finding,
        ratio=None if error is None else error.largest,
        twin_ratio=outcome.twin_ratio,
        seed=seed,
        seconds=seconds,
        judged=outcome.judged,
        diagnosis=outcome.diagnosis,
        histogram=None if error is None else error.histogram,
        inputs_sha256=outcome.inputs_sha256,
        alike=outcome.alike,
        strict=strict,
    )
