"""The way of a cell: it is run (execution/outputs.py), judged in one of three ways, explained, and recorded.

If the pair has an oracle with a bound for rounding, the cell is compared with the oracle (oracle.py), otherwise with a
float64 reference (float64.py). If bits must be equal, both compare bits (bits.py).
"""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Collection, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from parity.execution.calls import Outputs
from parity.execution.outputs import EAGER, Runs, framework_of, world_of
from parity.execution.plan import plan as plan
from parity.explanation import causes
from parity.explanation.called_names import spelt
from parity.explanation.gathering import gather
from parity.operator import data
from parity.operator.faults import Fault
from parity.operator.known import matches
from parity.operator.known import settle as settle
from parity.operator.pair import Pair
from parity.records import AGREES, SETTLED, VERDICTS, Cell, Record
from parity.verdict import edge, nestings
from parity.verdict.draws import far_sweeps, held_over_draws, is_in_the_tail
from parity.verdict.float64 import held_to_float64
from parity.verdict.oracle import OfTorch, held_to_oracle
from parity.verdict.outcomes import Outcome, record_of, together
from parity.verdict.refusals import takes
from parity.verdict.shortened import is_alike, said, shortened


def run(
    pair: Pair, cells: Collection[Cell], seed: int = 0, *, jobs: int = 1, strict: bool = False
) -> Generator[Record, None, None]:  # fmt: skip
    """Run cells of a pair one by one, yielding a record of each; what they share runs once.

    An entry of `pair.known` that no cell confirms is found by `settle`, when all of them have run.

    Args:
        pair: The pair.
        cells: From `plan`.
        seed: Seed of the numbers.
        jobs: How many threads compile, beside what runs.
        strict: Whether a difference at the edge of the range is a failure.
    """
    return Judge(Runs(pair, seed), strict=strict).records(cells, jobs)


MOST_NAN = 0.5
"""A part of the results: of more that are NaN, whatever is compared there says little."""


class Judge:
    """Judges cells of one pair: whoever's pair it is, this is what gives the verdict.

    Args:
        runs: Runs the pair's functions.
        strict: Whether a difference at the edge of the range is a failure.
    """

    def __init__(self, runs: Runs, *, strict: bool = False) -> None:
        self.runs = runs
        self.strict = strict
        self._of_torch = OfTorch()
        self._shorter: list[Judge | None] = []

    def records(self, cells: Collection[Cell], jobs: int = 1) -> Generator[Record, None, None]:
        """Run cells one by one, yielding a record of each.

        Args:
            cells: From `plan`.
            jobs: How many threads compile, beside what runs.
        """
        if not cells:
            return
        first, *rest = cells
        yield self.record(first)
        if jobs == 1:
            yield from map(self.record, rest)
            return
        pool = ThreadPoolExecutor(jobs)
        try:
            with np.errstate(all="ignore"):
                own = [cell for cell in rest if self._in_two_precisions(cell) and self._short(cell) is None]
                self.runs.prepare(own, pool)
            yield from map(self.record, rest)
        finally:
            pool.shutdown(cancel_futures=True)

    def runs_of(self, cell: Cell) -> Runs:
        """Return what ran a cell that was judged: on shorter arrays, where its verdict was found there."""
        short = self._shorter_for(cell)
        return self.runs if short is None else short.runs

    def _shorter_for(self, cell: Cell) -> Judge | None:
        """Return what judges a cell on shorter arrays, if what it finds there holds for all."""
        short = self._short(cell)
        if short is None or self.runs.pair.listed(cell) is not None:
            return None

        def holds() -> bool:
            with contextlib.suppress(Fault):
                # What differs, or does not run there, is judged at full size.
                return short._held_to_float64(cell).verdict in SETTLED and is_alike(self.runs, cell)
            return False

        return short if self.runs.once(("holds for all", cell.id), holds) else None

    def _short(self, cell: Cell) -> Judge | None:
        """Return what judges a cell of special numbers on shorter arrays (shortened.py), if anything does."""
        if cell.data == "random":
            return None
        if not self._shorter:
            there = shortened(self.runs)
            self._shorter.append(None if there is None else Judge(there, strict=self.strict))
        return self._shorter[0]

    def _in_two_precisions(self, cell: Cell) -> bool:
        """Return whether a cell is held to float64, and no oracle or list alone judges it."""
        pair = self.runs.pair
        return not pair.in_theory(cell.transform, cell.data) and pair.listed(cell) is None

    def record(self, cell: Cell) -> Record:
        """Run one cell."""
        started = time.perf_counter()
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # Infinities, NaN and overflow are what is compared; what the user's functions warn of is not.
            warnings.simplefilter("ignore")
            outcome = _as_known(self.runs_of(cell), cell, self.outcome(cell))
        seconds = time.perf_counter() - started
        return record_of(cell, outcome, seed=self.runs.seed, seconds=seconds, strict=self.strict)

    def outcome(self, cell: Cell) -> Outcome:
        """Judge one cell, and say why if it differs."""
        try:
            return self.runs.once(("outcome", cell.id), lambda: self._outcome(cell))
        except Fault as fault:
            return Outcome("differs", str(fault))

    def _outcome(self, cell: Cell) -> Outcome:
        pair, framework = self.runs.pair, framework_of(cell)
        if cell.device not in world_of(framework).devices():
            return Outcome("no device", f"{framework} sees no {cell.device} here")
        listed = pair.listed(cell)
        if listed is not None:
            return _as_listed(self.runs, cell, listed)
        if pair.in_theory(cell.transform, cell.data):
            return held_to_oracle(self.runs, cell, self._of_torch)
        if (short := self._shorter_for(cell)) is not None:
            found = short.outcome(cell)
            where = said(self.runs, short.runs)
            return replace(found, reason=f"{found.reason}; {where}" if found.reason else where)
        found = self._held_to_float64(cell)
        if found.verdict == "identical":
            return found
        torchs = nestings.of_torch_alone(self.runs, cell, self._held_to_float64) if found.verdict == "differs" else None
        if torchs is not None:
            reason = f"{found.reason}; known: {torchs.text}"
            return replace(found, known=not self.strict, reason=reason, diagnosis=torchs)
        seen = replace(found, verdict="differs") if found.verdict == "edge" else found
        evidence = gather(self.runs, cell, seen, verdict=self._held_to_float64, outcome=self.outcome)
        why = causes.diagnose(evidence)
        return replace(found, diagnosis=why and replace(why, text=spelt(self.runs, why.text)))

    def _held_to_float64(self, cell: Cell) -> Outcome:
        return self.runs.once(("verdict", cell.id), lambda: self._on_all_variants(cell))

    def _says_little(self, cell: Cell) -> bool:
        """Return whether a function makes NaN of most of what goes in, or of every infinity: less says more."""
        if cell.transform != "forward":
            return False
        found = self.runs.outputs(cell, world=EAGER["torch"], dtype="float64")
        values = found.values.values() if isinstance(found, Outputs) else ()
        floats = [value for value in values if value.dtype.kind == "f" and value.size]
        # Infinities of both signs may meet wherever there is one, as over the channels of a convolution.
        cancelled = cell.data == "infinite" and not any(np.isinf(value).any() for value in floats)
        most = 0.0 if cancelled else MOST_NAN
        return any(np.mean(np.isnan(value)) > most for value in floats)

    def _on_all_variants(self, cell: Cell) -> Outcome:
        """Judge a cell on every variant of its kind of data; the worst is its verdict."""
        found: list[Outcome] = []
        usual = data.variants(self.runs.pair, cell.data)
        variants = [*usual, *(far_sweeps(self.runs, cell) if cell.data == "sweep" else ())]
        for variant in variants:
            if cell.data == "random" and variant != cell.data:
                break  # further draws, of which only means are judged
            there = replace(cell, data=variant)
            if cell.data == "indices" and variant != "indices#within" and not takes(self.runs, there):
                continue
            outcome = replace(held_to_float64(self.runs, there), variant=variant)
            if variant != cell.data and variant.startswith("sweep#near") and is_in_the_tail(outcome):
                continue
            if outcome.verdict == "differs":
                outcome = edge.apart(self.runs, there, outcome, self._held_to_float64)
            found.append(outcome)
            if variant == usual[-1] and cell.data in edge.NO_NUMBERS and self._says_little(cell):
                variants.append(data.few(cell.data))
            if outcome.verdict not in SETTLED and not outcome.alike:
                break
        worst = max(found, key=lambda outcome: VERDICTS.index(outcome.verdict))
        if cell.data == "random" and worst.verdict in AGREES:
            worst = held_over_draws(self.runs, cell, worst, lambda there: held_to_float64(self.runs, there))
        return replace(worst, error=together([one.error for one in found if one.error is not None]))


def _as_listed(runs: Runs, cell: Cell, listed: Mapping[str, Any]) -> Outcome:
    """Hold a cell to the error that it is listed with."""
    if listed.get("crashes"):
        return Outcome("unsupported", listed["reason"], known=True)
    own = runs.attempt(cell)
    if isinstance(own, Outputs):
        return Outcome("differs", "listed as known to be unsupported, but it works: take it off the list")
    if re.search(listed["error"], own.raised) is None:
        return Outcome("unsupported", own.text)
    return Outcome("unsupported", listed["reason"], known=True)


def _as_known(runs: Runs, cell: Cell, outcome: Outcome) -> Outcome:
    """Return an outcome with what the pair says of it, and a hash of what went in."""
    pair = runs.pair
    outcome = replace(outcome, clause=pair.transform(cell.transform).clause)
    try:
        outcome = replace(outcome, inputs_sha256=runs.sha256(cell))
    except Fault:  # there are no inputs, and the outcome says so
        return outcome
    known = next((entry for entry in pair.known or () if matches(entry, cell)), None)
    right = outcome.verdict in (*AGREES, "no device")
    if known is None or right or pair.listed(cell) is not None:
        return outcome
    return replace(outcome, known=True, reason=f"{outcome.reason}; known: {known['reason']}")
