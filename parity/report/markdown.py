"""A report as Markdown: the outcome, a table, every failure in full, what differs as listed, the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.report import content
from parity.report.content import AGREES, Content

SIGN = {
    "crashed": "† crashed", "timed out": "∞ timed out", "differs": "≠", "no device": "? no device", "unsupported": "∅",
    "edge": "⌃", "within bound": "≈", "identical": "=",
}  # fmt: skip
MOST = 40
"""Failures told in full; the JSON keeps all."""


def render(report: Content) -> str:
    """Return the Markdown text.

    Args:
        report: From `parity.report.content`.

    Example:
        >>> print(render(content.content("nothing", {}, [])).splitlines()[0])
        # nothing
    """
    parts = [f"# {escape(report['name'])}", "", escape(content.headline(report)), "", legend(), "", table(report)]
    failures = [cell for cell in report["cells"] if cell["failed"]]
    if failures:
        parts += ["", "## What failed", ""]
        for cell in failures[:MOST]:
            parts += [*failure(cell), ""]
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
        "`=` same bits, `≈` within the bound, `≠` differs, `∅` unsupported, `†` crashed, `∞` timed out, "
        "`?` no such device; a number counts the cells that have the sign, where others are better."
    )


def table(report: Content) -> str:
    """Return the matrix: pairs by transform, or, of one pair, transforms by world and dtype."""
    cells = report["cells"]
    pairs = list(dict.fromkeys(cell["pair"] for cell in cells))
    if len(pairs) > 1:
        rows, columns = [(cell["pair"],) for cell in cells], [cell["transform"] for cell in cells]
    else:
        rows, columns = (
            [(cell["transform"],) for cell in cells],
            [f"{cell['world']} {cell['dtype']}" for cell in cells],
        )
    heads = list(dict.fromkeys(columns))
    held: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell, (row,), column in zip(cells, rows, columns, strict=True):
        held.setdefault((row, column), []).append(cell)
    lines = [
        f"| {'pair' if len(pairs) > 1 else 'transform'} | {' | '.join(map(escape, heads))} |",
        f"|---|{'---|' * len(heads)}",
    ]
    group = None
    for (row,) in dict.fromkeys(rows):
        of = str(_about(report, row).get("group") or "") if len(pairs) > 1 else ""
        if of and of != group:
            lines.append(f"| **{escape(of)}** |{' |' * len(heads)}")
        group = of
        lines.append(f"| {escape(row)} | {' | '.join(_sign(held.get((row, head), ())) for head in heads)} |")
    return "\n".join(lines)


def failure(cell: Mapping[str, Any]) -> list[str]:
    """Return everything about a failed cell, line by line."""
    lines = [f"### {escape(cell['id'])}: {cell['verdict']}", ""]
    cause = cell.get("diagnosis")
    if cause:
        lines += [escape(cause["text"]), ""]
        if cause.get("fix"):
            lines += [f"**Fix:** {escape(cause['fix'])}", ""]
    if cell.get("reason") and (not cause or cell["reason"] != cause["text"]):
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
