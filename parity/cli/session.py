"""Running the pairs of a source in a process of their own: progress, verdicts, and what is kept of them."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from parity.cli import options
from parity.isolation.supervisor import Supervisor
from parity.isolation.worker import About
from parity.operator.known import matches, settle
from parity.records import BINS, Cell, Record
from parity.report import content, html, markdown, terminal
from parity.report.environment import environment

PLAIN_WIDTH = 120  # of output that goes to a file


@dataclass
class Seen:
    """What a run saw.

    Attributes:
        pairs: What is told of each pair.
        records: Of each pair, by name.
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


def console() -> Console:
    """Return where to print."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


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
    if not any(cells.values()):
        made.error("no cell is all of that at once: --list shows what there is")
    return cells


def execute(
    here: Supervisor, cells: dict[str, list[Cell]], seed: int, out: Console, *, whole: bool, jobs: int = 1
) -> Seen:  # fmt: skip
    """Run cells and return what was seen.

    Args:
        here: The process that runs them.
        cells: By pair.
        seed: Of the numbers.
        out: Shows the progress.
        whole: Whether these are all cells of each pair: only then can it be seen that a listed difference is none.
        jobs: How many processes run pairs side by side.
    """
    seen = Seen({about.name: about for about in here.pairs() if about.name in cells}, {name: [] for name in cells})
    total, counts, started = sum(map(len, cells.values())), Counter[str](), time.perf_counter()
    waiting, lock = deque(cells), threading.Lock()
    columns = (
        TextColumn("{task.fields[pair]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=total, pair="")

        def note(record: Record, kept: str | None) -> None:
            with lock:
                seen.records[record.cell.pair].append(record)
                counts[record.verdict] += 1
                if record.failed and kept and record.inputs_sha256:
                    seen.inputs[record.inputs_sha256] = kept
                progress.update(bar, advance=1, pair=record.cell.pair, description=terminal.tally(counts))
                done = sum(counts.values())
                if not out.is_terminal and done % max(1, total // 10) == 0:
                    out.print(f"{done} of {total} cells: {terminal.tally(counts)}")

        def work(worker: Supervisor) -> None:
            while waiting:
                try:
                    name = waiting.popleft()
                except IndexError:
                    return  # another has taken the last
                for record, kept in worker.run(name, cells[name], seed):
                    note(record, kept)

        _in_parallel(here, work, min(jobs, len(cells)))
    if whole:
        for name, records in seen.records.items():
            seen.records[name] = settle(cast(Any, seen.pairs[name]), records)
    seen.seconds = time.perf_counter() - started
    return seen


def _in_parallel(here: Supervisor, work: Callable[[Supervisor], None], jobs: int) -> None:
    # Each in a thread that waits for a process of its own; the first one has the process that made the plan.
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(Supervisor(here.source, here.timeout)) for _ in range(jobs - 1)]
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(work, worker) for worker in (here, *others)]:
                done.result()


def report(title: str, seen: Seen, source: str, file: str | None) -> content.Content:
    """Return what files keep.

    Args:
        title: Of the report.
        seen: From `execute`.
        source: Where the pairs are.
        file: What the commands that run cells again name in the place of FILE.
    """
    cells = []
    for record in seen.all:
        cell = record.as_dict()
        cell["rerun"] = again(cell["rerun"], file)
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


def again(command: str, file: str | None) -> str:
    """Return the command that runs a cell again, with the file, or of the atlas.

    Example:
        >>> again("python -m parity check FILE --pair gelu", None)
        'python -m parity atlas --pair gelu'
    """
    return command.replace("parity check FILE", f"parity check {file}" if file else "parity atlas", 1)


def keep(asked: argparse.Namespace, made: content.Content, out: Console) -> None:
    """Write the files that were asked for."""
    for name, write in (("html", html.write), ("md", markdown.write), ("json", content.write_json)):
        path = getattr(asked, name)
        if path:
            write(path, made)
            out.print(f"written: {path} ({path.stat().st_size / 1000:,.0f} kB)", soft_wrap=True)
