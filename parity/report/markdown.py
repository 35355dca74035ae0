"""A report as Markdown: the outcome, a table, every failure in full, what differs as listed, the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.records import AGREES
from parity.report import content
from parity.report.content import Content
from parity.report.findings import Cells, findings, places

SIGN = {
    "crashed": "† crashed", "timed out": "∞ timed out", "differs": "≠", "no device": "? no device", "unsupported": "∅",
    "edge": "⌃", "within bound": "≈", "identical": "=",
}  # fmt: skip
MOST = 40
"""Faults told in full; the JSON keeps all."""


def render(report: Content) -> str:
    """Return the Markdown text.

    Args:
        report: From `parity.report.content`.

    Example:
        >>> print(render(content.content("nothing", {}, [])).splitlines()[0])
        # nothing
    """
    parts = [f"# {escape(report['name'])}", "", escape(content.headline(report)), "", legend(), "", table(report)]
    failures = findings(cell for cell in report["cells"] if cell["failed"])
    if failures:
        parts += ["", "## What failed", ""]
        for cells in failures[:MOST]:
            parts += [*_fault(cells), ""]
        if len(failures) > MOST:
            parts += [f"... and {len(failures) - MOST} more.", ""]
    differing = list(dict.fromkeys(cell["pair"] for cell in report["cells"] if cell["verdict"] not in AGREES))
    told = [pair for pair in differing if _about(report, pair).get("note")]
    if told:
        parts += ["", "## What differs, and why", ""]
        for pair in told:
            parts += [*_why(report, pair), ""]
    parts += ["", "## Environment", ""]
    parts += [f"- {name}: {escape(value)}" for name, value in content.flat(report["environment"])]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


def write(path: Path, report: Content) -> None:
    """Write the text to a file, whole or not at all."""
    content.write_text(path, render(report))


def legend() -> str:
    """Return what the signs of the table mean."""
    return (
        "`=` same bits, `≈` within the bound, `≠` differs, `⌃` at the edge of the range, `∅` unsupported, `†` crashed, "
        "`∞` timed out, `?` no such device; a number counts the cells that have the sign, where others are better."
    )


def table(report: Content) -> str:
    """Return the matrix: pairs by transform, or, of one pair, transforms by world and dtype."""
    heads, rows = matrix(report)
    lines = [f"| {' | '.join(map(escape, heads))} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        group = f"| **{escape(row[0])}** |{' |' * (len(heads) - 1)}"
        lines.append(f"| {' | '.join(map(escape, row))} |" if len(row) > 1 else group)
    return "\n".join(lines)


def matrix(report: Content) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the matrix, and its rows; a row of one text is the name of the group that follows."""
    cells = report["cells"]
    many = len({cell["pair"] for cell in cells}) > 1
    held: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for cell in cells:
        row, column = "pair" if many else "transform", cell["transform"] if many else f"{cell['world']} {cell['dtype']}"
        held.setdefault(cell[row], {}).setdefault(column, []).append(cell)
    heads = list(dict.fromkeys(column for columns in held.values() for column in columns))
    rows, group = [], None
    for row, columns in held.items():
        of = str(_about(report, row).get("group") or "") if many else ""
        if of and of != group:
            rows.append([of])
        group = of
        rows.append([row, *(_sign(columns.get(head, ())) for head in heads)])
    return ["pair" if many else "transform", *heads], rows


def _fault(cells: Cells) -> list[str]:
    """Return a fault line by line: its cause and fix, the cell that tells most, and folded all others."""
    first, cause = cells[0], (cells[0].get("diagnosis") or {}).get("cause", "")
    what = f"{first['verdict']}: {cause}" if cause not in ("", first["verdict"]) else first["verdict"]
    many = content.plural(len(cells), "cell")
    lines = [f"### {escape(first['pair'])}: {escape(what)}, {many}", "", *told(first)]
    folded = [f"- {escape(line)}" for line in places(cells)]
    return [*lines, "", f"<details><summary>{many}</summary>", "", *folded, "", "</details>"]


def failure(cell: Mapping[str, Any]) -> list[str]:
    """Return everything about a failed cell, line by line."""
    return [f"### {escape(cell['id'])}: {cell['verdict']}", "", *told(cell)]


def told(cell: Mapping[str, Any]) -> list[str]:
    """Return why a cell failed, and its worst element, line by line."""
    lines = []
    cause = cell.get("diagnosis")
    if cause:
        lines += [escape(cause["text"]), ""]
        if cause.get("fix"):
            lines += [f"**Fix:** {escape(cause['fix'])}", ""]
    if cell.get("reason") and (not cause or cell["reason"] not in cause["text"]):
        lines += [escape(cell["reason"]), ""]
    if cell.get("output") is not None and cell.get("got") is not None:
        where = f"{cell['output']}{list(cell['index'])}" if cell.get("index") else cell["output"]
        ratio = cell.get("ratio")
        lines.append(
            f"Worst element: {code(where)}, got {code(repr(cell['got']))}, want {code(repr(cell['want']))}"
            + ("" if ratio is None else f", error over bound {float(ratio):.3g}")
        )
    if cell.get("rerun"):
        lines += ["", f"    {' '.join(cell['rerun'].split())}"]
    return lines


def escape(text: str) -> str:
    """Return text that means itself, in a table too.

    Example:
        >>> print(escape("a <i>"))
        a &lt;i>
    """
    return content.visible(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _about(report: Content, pair: str) -> Mapping[str, Any]:
    return report.get("pairs", {}).get(pair, {})


def code(text: str) -> str:
    """Return text as code, whatever it holds.

    Example:
        >>> print(code("x[0]"), code("a`b"))
        `x[0]` ``a`b``
    """
    marks = "``" if "`" in text else "`"
    return f"{marks}{content.visible(' '.join(text.split()))}{marks}"


def _sign(cells: Sequence[Mapping[str, Any]]) -> str:
    if not cells:
        return " "
    verdict = content.worst(cells)["verdict"]
    same = sum(cell["verdict"] == verdict for cell in cells)
    return SIGN[verdict] + (f" {same}" if same < len(cells) and verdict not in AGREES else "")


def _why(report: Content, pair: str) -> list[str]:
    about = _about(report, pair)
    cells = [cell for cell in report["cells"] if cell["pair"] == pair and cell["verdict"] not in AGREES]
    lines = [f"### {escape(pair)}", ""]
    if about.get("torch"):
        lines += [f"{code(about['torch'])} against {code(about['jax'])}", ""]
    lines.append(escape(about["note"]))
    places: dict[str, list[str]] = {}
    for cell in cells:
        places.setdefault(cell["transform"], []).append(cell["data"] or cell["world"])
    where = ", ".join(f"{transform} ({', '.join(dict.fromkeys(seen))})" for transform, seen in places.items())
    lines += ["", f"Seen in: {escape(where)}."]
    return lines
