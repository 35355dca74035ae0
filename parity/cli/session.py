"""Running the pairs of a source in a process of their own: progress, verdicts, and what is kept of them."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from parity.api import QUICK
from parity.cli import options
from parity.isolation.supervisor import Supervisor
from parity.isolation.worker import About
from parity.operator.known import matches, settle
from parity.records import BINS, Cell, Record
from parity.report import content, html, markdown, terminal
from parity.report.environment import environment


@dataclass
class Seen:
    """What a run saw.

    Attributes:
        pairs: What is told of each pair.
        records: Records of each pair, by name.
        inputs: Packed, of the cells that fail, by SHA-256.
        seconds: What all took.
    """

    pairs: dict[str, About]
    records: dict[str, list[Record]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def all(self) -> list[Record]:
        """All records."""
        return [record for records in self.records.values() for record in records]


def list_cells(cells: Mapping[str, Sequence[Cell]], out: Console) -> int:
    """Print the cells and return the exit code."""
    for mine in cells.values():
        for cell in mine:
            out.print(cell.id, soft_wrap=True)
    return 0


def planned(
    here: Supervisor, asked: argparse.Namespace, made: argparse.ArgumentParser, out: Console,
    usual: Sequence[Mapping[str, Any]] = (),
) -> dict[str, list[Cell]]:  # fmt: skip
    """Return the cells that are asked for, by pair; leaves with exit code 2 if there is none."""
    with out.status("importing torch, JAX and the pairs"):
        names = [about.name for about in here.pairs()]
    for name in asked.pair or ():
        if name not in names:
            options.unknown(made, "--pair", name, names)
    wanted = [name for name in names if asked.pair is None or name in asked.pair]
    cells = {name: here.plan(name, options.choices(asked), usual) for name in wanted}
    if asked.quick:
        cells = {name: [cell for cell in mine if cell.transform in QUICK] for name, mine in cells.items()}
    if not any(cells.values()):
        made.error("no cell is all of that at once: --list shows what there is")
    return cells


class _Notes:
    """What workers note side by side: records, counts, progress, and whether to stop.

    Args:
        seen: Gets the records.
        asked: Options, of which `strict` and `fail_fast` are read.
        total: How many cells there are.
        out: Shows the progress where it is no terminal.
        advance: Shows the progress where it is one: of a record's pair, with the counts in words.
    """

    def __init__(
        self, seen: Seen, asked: argparse.Namespace, total: int, out: Console, advance: Callable[[str, str], None]
    ) -> None:
        self.stop = threading.Event()
        self._seen, self._asked, self._total, self._out, self._advance = seen, asked, total, out, advance
        self._lock, self._counts = threading.Lock(), Counter[str]()

    def add(self, record: Record, kept: str | None) -> None:
        """Note a record, and the inputs that are kept of it."""
        record = replace(record, strict=self._asked.strict)
        with self._lock:
            self._seen.records[record.cell.pair].append(record)
            self._counts[record.verdict] += 1
            if record.failed and kept and record.inputs_sha256:
                self._seen.inputs[record.inputs_sha256] = kept
            if record.failed and self._asked.fail_fast:
                self.stop.set()
            self._advance(record.cell.pair, terminal.tally(self._counts))
            done = sum(self._counts.values())
            if not self._out.is_terminal and done % max(1, self._total // 10) == 0:
                self._out.print(f"{done} of {self._total} cells: {terminal.tally(self._counts)}")


def execute(here: Supervisor, cells: dict[str, list[Cell]], asked: argparse.Namespace, out: Console) -> Seen:
    """Run cells and return what was seen.

    Args:
        here: The process that runs them.
        cells: By pair.
        asked: The options: the seed, how many processes run pairs side by side, and whether to stop at a failure.
        out: Shows the progress.
    """
    # Only where all cells of a pair run can it be seen that a listed difference is none.
    whole = not options.choices(asked) and not asked.quick
    seen = Seen({about.name: about for about in here.pairs() if about.name in cells}, {name: [] for name in cells})
    total, started = sum(map(len, cells.values())), time.perf_counter()
    columns = (
        TextColumn("{task.fields[pair]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=total, pair="")
        notes = _Notes(
            seen, asked, total, out, lambda pair, words: progress.update(bar, advance=1, pair=pair, description=words)
        )

        work = partial(_work, cells=cells, waiting=deque(cells), notes=notes, seed=asked.seed)
        _in_parallel(here, work, min(asked.jobs, len(cells)))
    if notes.stop.is_set():
        out.print(f"stopped at the first failure: {len(seen.all)} of {total} cells ran")
    elif whole:
        for name, records in seen.records.items():
            seen.records[name] = settle(cast(Any, seen.pairs[name]), records)
    seen.seconds = time.perf_counter() - started
    return seen


def _work(
    worker: Supervisor, cells: Mapping[str, Sequence[Cell]], waiting: deque[str], notes: _Notes, seed: int
) -> None:
    # Takes one pair after another off those that wait: other threads do, too.
    while not notes.stop.is_set():
        try:
            name = waiting.popleft()
        except IndexError:
            return
        with contextlib.closing(worker.run(name, cells[name], seed)) as records:
            for record, kept in records:
                notes.add(record, kept)
                if notes.stop.is_set():
                    return


def _in_parallel(here: Supervisor, work: Callable[[Supervisor], None], jobs: int) -> None:
    # Each in a thread that waits for a process of its own; the first one has the process that made the plan.
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(Supervisor(here.source, here.timeout)) for _ in range(jobs - 1)]
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(work, worker) for worker in (here, *others)]:
                done.result()


def report(title: str, seen: Seen, source: str, command: str) -> content.Content:
    """Return what files keep.

    Args:
        title: Title of the report.
        seen: From `execute`.
        source: Where the pairs are.
        command: What runs cells again, in place of `parity check FILE`.
    """
    cells = []
    for record in seen.all:
        cell = record.as_dict()
        cell["rerun"] = cell["rerun"].replace("parity check FILE", command, 1)
        known = next((entry for entry in seen.pairs[record.cell.pair].known if matches(entry, record.cell)), None)
        if record.known and known is not None:
            cell["known_reason"] = known["reason"]
        cells.append(cell)
    pairs = {
        about.name: {"group": about.group, "note": about.note, "torch": about.torch, "jax": about.jax}
        for about in seen.pairs.values()
    }
    about = environment() | {"seconds": round(seen.seconds, 1)}
    return content.content(
        title, about, cells, pairs, seen.inputs, source=source, histogram_edges_log2=list(BINS)
    )  # fmt: skip


def keep(asked: argparse.Namespace, made: content.Content, out: Console) -> None:
    """Write the files that were asked for."""
    for name, write in (("html", html.write), ("md", markdown.write), ("json", content.write_json)):
        path = getattr(asked, name)
        if path:
            write(path, made)
            out.print(f"written: {path} ({path.stat().st_size / 1000:,.0f} kB)", soft_wrap=True)
