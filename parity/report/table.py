"""A report to read: a matrix of verdicts, and every failure in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from parity.operator.tolerance import WITHIN
from parity.records import VERDICTS, WORLDS, Record
from parity.report import content, terminal
from parity.report.content import visible
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
        report: Of one pair.
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
        if record.transform == "forward" and record.data in ORDINARY and record.verdict in content.AGREES
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
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in sorted(report.failed, key=lambda record: (record.transform != "forward", record.data != "random")):
        why = record.diagnosis
        cause = (why.cause, why.fix) if why else (record.transform, record.data, record.reason)
        groups.setdefault((record.verdict, *cause), []).append(record)
    return list(groups.values())


def _matrix(report: Report) -> Table:
    worlds = [world for world in WORLDS if any(record.world == world for record in report.cells)]
    there = {record.verdict for record in report.cells}
    legend = ", ".join(f"{terminal.SYMBOL[verdict]} {verdict}" for verdict in VERDICTS if verdict in there)
    table = Table(title=visible(f"{report.name}: {legend}"), title_justify="left", show_lines=True)
    for name in ("transform", "data", "dtype", *worlds):
        table.add_column(name.replace("-", "\n"), no_wrap=True)
    for transforms, rows in _folded(report, worlds):
        data, dtypes, marks = zip(*rows, strict=True)
        columns = [Text("\n").join(Text(mark, _style(mark)) for mark in column) for column in zip(*marks, strict=True)]
        table.add_row("\n".join(transforms), "\n".join(data), "\n".join(dtypes), *columns)
    return table


Row = tuple[str, str, tuple[str, ...]]
"""Kinds of data, a dtype, and a mark for each world."""


def _folded(report: Report, worlds: Sequence[str]) -> list[tuple[list[str], list[Row]]]:
    """Return the rows of the matrix: kinds of data that look alike in one, transforms that look alike together."""
    seen: dict[str, dict[tuple[str, str], dict[str, Record]]] = {}
    for record in report.cells:
        seen.setdefault(record.transform, {}).setdefault((record.dtype, record.data), {})[record.world] = record
    groups: dict[tuple[Row, ...], list[str]] = {}
    for transform, cells in seen.items():
        alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (dtype, data), row in cells.items():
            alike.setdefault((dtype, tuple(_mark(row.get(world)) for world in worlds)), []).append(data)
        rows = tuple((_short(data), dtype, marks) for (dtype, marks), data in alike.items())
        groups.setdefault(rows, []).append(transform)
    return [(transforms, list(rows)) for rows, transforms in groups.items()]


def _short(data: Sequence[str]) -> str:
    return ", ".join(data) if len(data) <= 2 else f"{data[0]}, {data[1]}, {len(data) - 2} more"


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
    lines.append(f"where: {'; '.join(_listed(alike, name) for name in ('transform', 'data', 'world', 'dtype'))}")
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


def _listed(alike: Sequence[Record], name: str) -> str:
    return ", ".join(dict.fromkeys(getattr(record, name) for record in alike))
