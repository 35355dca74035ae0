"""What came of a cell, and how it becomes a record: all that is run, ours and others', runs through `Runner`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from parity.records import Diagnosis, Finding, Judged, Record, Verdict


@dataclass(frozen=True)
class Error:
    """Error over bound of a cell.

    Attributes:
        largest: Of any element.
        rms: Root mean square of the error in inherent units, of what is finite, and of how many elements, by output.
        histogram: Of error over bound, in the bins of records.BINS.
    """

    largest: float
    rms: dict[str, tuple[float, int]]
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """A verdict with what led to it.

    Attributes:
        verdict: The verdict.
        reason: In words, where there is one.
        judged: By what.
        finding: The worst element, where results differ.
        error: Over its bound, where it has one.
        twin_ratio: RMS error of JAX over that of torch.
        diagnosis: Why two results differ.
        alike: Whether the other framework refuses the cell as well.
        known: Whether the cell is listed among the known ones.
        clause: Of the SPEC, that the cell holds its subject to.
        inputs_sha256: A hash of the numbers that went in.
    """

    verdict: Verdict
    reason: str = ""
    judged: Judged | None = None
    finding: Finding | None = None
    error: Error | None = None
    twin_ratio: float | None = None
    diagnosis: Diagnosis | None = None
    alike: bool = False
    known: bool = False
    clause: str = "S11"
    inputs_sha256: str | None = None


class Runner(ABC):
    """Runs cells of one subject; what several of them need, it keeps.

    Args:
        seed: Of the numbers.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def outcome(self, cell: Any) -> Outcome:
        """Run a cell and judge what it gave."""

    def settled(self, cell: Any, outcome: Outcome) -> Outcome:
        """Return the outcome with what is known of the cell besides."""
        return outcome

    def record(self, cell: Any) -> Record:
        """Run one cell."""
        started = time.perf_counter()
        seen = self.settled(cell, self.outcome(cell))
        error = seen.error
        return Record(
            cell, seen.clause, seen.verdict, seen.known, seen.reason, seen.finding,
            None if error is None else error.largest, seen.twin_ratio, self.seed, time.perf_counter() - started,
            seen.judged, seen.diagnosis, None if error is None else error.histogram, seen.inputs_sha256, seen.alike,
        )  # fmt: skip

    def records(self, cells: Iterable[Any]) -> Iterator[Record]:
        """Run cells one by one, yielding a record of each."""
        return (self.record(cell) for cell in cells)
