"""A report to read: a matrix of verdicts, and every failure in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from parity.operator.tolerance import WITHIN
from parity.records import AGREES, VERDICTS, WORLDS, Record
from parity.report import terminal
from parity.report.content import visible
from parity.report.findings import findings, places
from parity.report.report import Report

WIDTH = 120


def text(report: Report) -> str:
    """Return the report as plain text."""
    console = Console(width=WIDTH, color_system=None, highlight=False)
    with console.capture() as captured:
        for part in parts(report):
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def parts(report: Report, file: str | None = None) -> list[Any]:
    """Return what a console prints: a matrix, then every failure, those of one cause together.

    Args:
        report: The report on one pair.
        file: Where the pair is defined, for the commands that run cells again; None where it is in no file, and a
            call runs them.
    """
    reasons = sorted({record.reason.split("known: ")[-1] for record in report.cells if record.known})
    counts: Counter[str] = Counter(record.verdict for record in report.cells)
    groups = _alike(report)
    return [
        Text(visible(summary(report))),
        *(
            Panel(Text(visible(_failure(alike, file))), title=Text(_title(alike)), title_align="left")
            for alike in groups
        ),
        _matrix(report),
        *(Text(visible(f"known: {reason}")) for reason in reasons),
        Text(visible(f"{report.name}: {terminal.cells(len(report.cells))}: {terminal.tally(counts)}")),
    ]


ORDINARY = ("random", "negative", "ties", "")
"""Kinds of numbers that people compute with; other kinds are edges."""


AT_KINKS = ("tie or kink", "nan in one")
"""Causes of what differs at single points, the second at ties and of a derivative: beside them the two are alike."""

NO_RESULT = ("unsupported", "crashed", "timed out", "no device")
"""Verdicts of cells in which nothing was compared: they tell no two functions apart."""


def summary(report: Report) -> str:
    """Return in a line each whether the functions are the same at ordinary numbers, and what differs, by cause."""
    failed = report.failed
    beside = [record for record in failed if _at_a_point(record)]
    at_ordinary = [record for record in failed if record.data in ORDINARY and record not in beside]
    refused = {record.world: record.verdict for record in at_ordinary if record.verdict in NO_RESULT}
    agree = {
        record.world.split("-")[0]
        for record in report.cells
        if record.transform == "forward" and record.data in ORDINARY and record.verdict in AGREES
    }
    first = "the same function at ordinary numbers"
    if at_ordinary and len(agree) == 2 and all(record.verdict in NO_RESULT for record in at_ordinary):
        first += "".join(f"; {verdict} in {world}" for world, verdict in refused.items())
    elif at_ordinary:
        first = f"not {first}"
    elif failed:
        kinds = dict.fromkeys("ties and kinks among them" if one.data == "random" else one.data for one in failed)
        first += f"; not at {', '.join(kinds)}"
    left = Counter(record.verdict for record in report.cells if not record.failed and record.verdict in NO_RESULT)
    first += "".join(f"; {terminal.cells(count)} {verdict}" for verdict, count in left.items())
    return "\n".join([f"{report.name}: {first}", *(f"  {_line(alike)}" for alike in _alike(report)), *_given(report)])


def _given(report: Report) -> list[str]:
    """Return in words which cells agree by the user's own tolerance only, and why it was given."""
    reasons = [record.reason for record in report.cells if not record.failed and WITHIN in record.reason]
    why = sorted({reason.partition(WITHIN)[2] for reason in reasons})
    return [f"  {terminal.cells(len(reasons))} {WITHIN}{'; '.join(why)}"] if reasons else []


def _at_a_point(record: Record) -> bool:
    """Return whether a cell differs at single points alone, as far as its cause tells."""
    cause = record.diagnosis.cause if record.diagnosis is not None else ""
    ties = record.data == "ties" and record.transform != "forward"
    return cause == AT_KINKS[0] or (ties and cause == AT_KINKS[1])


def _line(alike: Sequence[Record]) -> str:
    first = alike[0]
    if first.diagnosis is None:
        return f"{first.verdict}, {terminal.cells(len(alike))}: {first.reason}"
    return f"{first.diagnosis.cause}, {terminal.cells(len(alike))}: {first.diagnosis.text}"


def _alike(report: Report) -> list[list[Record]]:
    """Return the failures in groups: those of one cause and one remedy together, else those of one reason.

    A group begins with its forward, where that fails: its derivatives follow from it.
    """
    failed = {record.cell.id: record for record in report.failed}
    return [[failed[cell["id"]] for cell in alike] for alike in findings(one.as_dict() for one in failed.values())]


def _matrix(report: Report) -> Table:
    """Return the matrix: a heading for transforms that look alike in every row, then a row for each look of numbers."""
    worlds = [world for world in WORLDS if any(record.world == world for record in report.cells)]
    groups = _folded(report, worlds)
    there = {record.verdict for record in report.cells}
    legend = [f"{terminal.SYMBOL[verdict]} {verdict}" for verdict in VERDICTS if verdict in there]
    if any("-" in marks for _, rows in groups for *_, marks in rows):
        held_to = ", as of torch-eager in float64, which others are held to"
        legend.append("- no cell" + held_to * ("torch-eager" in worlds))
    table = Table(title=visible(f"{report.name}: {', '.join(legend)}"), title_justify="left")
    table.add_column("transforms\n  numbers")
    for name in ("dtype", *worlds):
        table.add_column(name.replace("-", "\n"), no_wrap=True)
    for transforms, rows in groups:
        table.add_row(Text(visible(", ".join(transforms)), "bold"))
        for data, dtype, marks in rows:
            numbers = Padding(Text(visible(data)), (0, 0, 0, 2))
            table.add_row(numbers, dtype, *(Text(mark, _style(mark)) for mark in marks))
        table.add_section()
    return table


Row = tuple[str, str, tuple[str, ...]]
"""Kinds of numbers, a dtype, and a mark for each world."""


def _folded(report: Report, worlds: Sequence[str]) -> list[tuple[list[str], list[Row]]]:
    """Return the rows of the matrix: kinds of numbers that look alike in one, transforms that look alike together."""
    seen: dict[str, dict[str, dict[str, dict[str, Record]]]] = {}
    for record in report.cells:
        kinds = seen.setdefault(record.transform, {}).setdefault(record.dtype, {})
        kinds.setdefault(record.data, {})[record.world] = record
    groups: dict[tuple[Row, ...], list[str]] = {}
    for transform, dtypes in seen.items():
        rows: list[Row] = []
        for dtype, kinds in dtypes.items():
            alike: dict[tuple[str, ...], list[str]] = {}
            for data, row in kinds.items():
                alike.setdefault(tuple(_mark(row.get(world)) for world in worlds), []).append(data)
            rows += [(_short(data, list(kinds)), dtype, marks) for marks, data in alike.items()]
        groups.setdefault(tuple(rows), []).append(transform)
    return [(transforms, list(rows)) for rows, transforms in groups.items()]


def _short(data: Sequence[str], among: Sequence[str]) -> str:
    """Return which kinds of numbers there are, by those that are not where most are.

    Example:
        >>> _short(["random", "ties", "large", "small"], ["random", "ties", "large", "small", "nan"])
        'all 5 kinds but nan'
    """
    rest = [kind for kind in among if kind not in data]
    if len(data) < 4 or len(rest) >= len(data):
        return ", ".join(data)
    return f"all {len(among)} kinds" + (f" but {', '.join(rest)}" if rest else "")


def _mark(record: Record | None) -> str:
    if record is None:
        return "-"
    return f"{terminal.SYMBOL[record.verdict]}{' known' if record.known else ''}"


def _style(mark: str) -> str:
    return next((terminal.STYLE[v] for v, symbol in terminal.SYMBOL.items() if mark.startswith(symbol)), "dim")


def _title(alike: Sequence[Record]) -> str:
    first = alike[0]
    cause = first.diagnosis.cause if first.diagnosis else first.transform
    return f"{first.verdict}: {cause}, {terminal.cells(len(alike))}"


def _failure(alike: Sequence[Record], file: str | None) -> str:
    first = alike[0]
    lines = []
    if first.diagnosis is not None:
        lines += [first.diagnosis.text, f"fix: {first.diagnosis.fix}"]
    lines += [f"where: {place}" for place in places([vars(one.cell) for one in alike])]
    if first.diagnosis is None or first.reason not in first.diagnosis.text:
        lines.append(f"first: {first.reason}")
    worst = first.finding
    if worst is not None and not (math.isnan(worst.got) and math.isnan(worst.want)):
        lines.append(f"worst: {worst.output}{list(worst.index) or ''}  got {worst.got!r}  want {worst.want!r}")
    again = _call(first) if file is None else first.rerun.replace(" FILE ", f" {file} ", 1)
    return "\n".join([*lines, f"rerun: {again}"])


def _call(record: Record) -> str:
    chosen = {f"{name}s": [getattr(record, name)] for name in ("transform", "world", "dtype")}
    chosen |= {"data": [record.data], "devices": [record.device]}
    return f"parity.compare(..., {', '.join(f'{name}={value}' for name, value in chosen.items())}, seed={record.seed})"
