"""What a run prints, and what is written to files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from parity.records import VERDICTS, WORLDS, Record
from parity.report.content import visible, write_text

STYLE = {
    "identical": "green", "within bound": "cyan", "edge": "magenta", "unsupported": "yellow", "no device": "red",
    "timed out": "red", "crashed": "red", "differs": "bold red",
}  # fmt: skip
SYMBOL = {
    "identical": "=", "within bound": "~", "edge": "^", "unsupported": "o", "no device": "?", "timed out": "T",
    "crashed": "!", "differs": "X",
}  # fmt: skip
MOST_FAILURES = 20


def follow(records: Iterable[Record], total: int, console: Console) -> Iterator[Record]:
    """Pass records on, showing how many there were of each verdict: as a bar, or as a line now and then in a file."""
    counts: Counter[str] = Counter()
    columns = (
        TextColumn("parity"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=total)
        for record in records:
            counts[record.verdict] += 1
            progress.update(bar, advance=1, description=tally(counts))
            done = sum(counts.values())
            if not console.is_terminal and done % max(1, total // 10) == 0:
                console.print(f"{done} of {total} cells: {tally(counts)}")
            yield record


def tally(counts: Counter[str]) -> str:
    """Return counts per verdict, best first.

    Example:
        >>> tally(Counter({"differs": 1, "identical": 3}))
        '3 identical, 1 differs'
    """
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def cells(number: int) -> str:
    """Return a number of cells in words.

    Example:
        >>> cells(1), cells(2)
        ('1 cell', '2 cells')
    """
    return "1 cell" if number == 1 else f"{number} cells"


def show_grid(records: Sequence[Record], console: Console) -> None:
    """Print the matrix of transforms and worlds, the known gaps, and every failure in full."""
    console.print(_matrix(records))
    known = {(r.cell.transform, r.cell.world, r.reason) for r in records if r.verdict == "unsupported" and r.known}
    for transform, world, reason in sorted(known):
        console.print(f"[yellow]known gap[/] {transform} in {world}: {reason}", highlight=False)
    failures = [record for record in records if record.failed]
    for record in failures[:MOST_FAILURES]:
        console.print(
            Panel(
                Text(visible(failure(record))),
                title=Text(visible(f"{record.verdict}: {record.cell.id}")),
                border_style="red",
            )
        )
    if len(failures) > MOST_FAILURES:
        console.print(f"... and {len(failures) - MOST_FAILURES} failures more (--json FILE keeps them all)")
    console.print(f"[bold]{cells(len(records))}:[/] {tally(Counter(r.verdict for r in records))}", highlight=False)


def failure(record: Record) -> str:
    """Return everything about a failed cell, and how to run it again."""
    lines = [f"case {record.cell.pair}, clause {record.clause}", record.reason]
    finding = record.finding
    if finding is not None and not math.isnan(finding.want):
        where = f"{finding.output}{list(finding.index)}" if finding.index else finding.output
        lines.append(f"worst: {where}  got {finding.got!r}  want {finding.want!r}  error/bound {finding.ratio:.3g}")
    return "\n".join([*lines, f"rerun: {record.rerun}"])


def write(path: Path, content: dict[str, Any]) -> None:
    """Write plain data to a file as JSON, whole or not at all."""
    replace(path, json.dumps(_finite(content), indent=1) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a text to a file, whole or not at all. Links are written through, pipes and devices written to."""
    write_text(path, text)


def _finite(value: Any) -> Any:
    # JSON has no inf and no NaN: they are written as their names.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def _matrix(records: Sequence[Record]) -> Table:
    worlds = [world for world in WORLDS if any(record.cell.world == world for record in records)]
    legend = ", ".join(f"[{STYLE[verdict]}]{SYMBOL[verdict]}[/] {verdict}" for verdict in VERDICTS)
    table = Table(title=f"cells by transform and world: {legend}", title_justify="left")
    table.add_column("transform", no_wrap=True)
    table.add_column("clause")
    for world in worlds:
        table.add_column(world, justify="right", no_wrap=True)
    for transform in dict.fromkeys(record.cell.transform for record in records):
        row = [record for record in records if record.cell.transform == transform]
        table.add_row(transform, row[0].clause, *(_summary([r for r in row if r.cell.world == w]) for w in worlds))
    return table


def _summary(records: Sequence[Record]) -> Text:
    counts = Counter(record.verdict for record in records)
    parts = [Text(f"{SYMBOL[v]}{counts[v]}", style=STYLE[v]) for v in VERDICTS if counts[v]]
    return Text(" ").join(parts) if parts else Text("-", style="dim")
