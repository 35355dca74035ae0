"""A report as one HTML page that needs nothing beside it: no network, no font, no library."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from parity.records import AGREES, BINS
from parity.report import content, markdown
from parity.report.content import Content
from parity.report.findings import Cells, findings, places
from parity.report.markdown import SIGN

FIELDS = ("pair", "transform", "world", "dtype", "device", "data")
"""What the page needs of every cell, by number in a table of strings."""

DETAILS = (
    "judged", "reason", "known_reason", "diagnosis", "output", "index", "got", "want", "twin_ratio", "inputs_sha256",
    "seed", "rerun",
)  # fmt: skip
"""What it needs of a cell that does not simply agree."""


def render(report: Content) -> str:
    """Return the page.

    Args:
        report: From `parity.report.content`.

    Example:
        >>> page = render(content.content("a < b", {}, []))
        >>> "<title>a &lt; b</title>" in page
        True
    """
    broken = content.failed(report)
    parts = {
        "title": _text(report["name"]),
        "headline": _text(content.headline(report)),
        "failed": str(broken).lower(),
        "style": _file("page.css"),
        "script": _file("page.js"),
        "why": _why(report),
        "hidden": "" if broken else " hidden",
        "environment": "".join(
            f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in content.flat(report["environment"])
        ),
        "fallback": _table(report),
        # Inside a script element only these could end it, or open a comment that hides the end.
        "data": _compact(_data(report)).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html"))


def write(path: Path, report: Content) -> None:
    """Write the page to a file, whole or not at all."""
    content.write_text(path, render(report))


def _why(report: Content) -> str:
    """Return the faults as the page has them without JavaScript, which shows them anew."""
    return "".join(map(_card, findings(cell for cell in report["cells"] if cell["failed"])))


def _table(report: Content) -> str:
    heads, rows = markdown.matrix(report)
    top = "".join(f'<th scope="col">{_text(head)}</th>' for head in heads)
    lines = (
        "".join(f"<td>{_text(one)}</td>" if at else f'<th scope="row">{_text(one)}</th>' for at, one in enumerate(row))
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    legend = _text(markdown.legend().replace("`", ""))
    return f'<p class="empty">{legend}</p><table class="matrix"><tr>{top}</tr>{body}</table>'


def _card(cells: Cells) -> str:
    first, why = cells[0], cells[0].get("diagnosis")
    said = [first["reason"]] if first.get("reason") and (why is None or first["reason"] not in why["text"]) else []
    said = [*([why["text"]] if why else []), *said] or [first["verdict"]]
    fix = f'<p class="fix">{_text(why["fix"])}</p>' if why else ""
    where = "".join(f'<p class="where">{_text(place)}</p>' for place in places(cells))
    return (
        f'<article class="card"><h3><span class="mark v-{_verdict(first)}" aria-hidden="true">'
        f"{SIGN[first['verdict']][0]}</span>{_text(first['pair'])}</h3>"
        f"{''.join(f'<p>{_text(text)}</p>' for text in said)}{fix}"
        f"<details><summary>{content.plural(len(cells), 'cell')}</summary>{where}</details></article>"
    )


def _text(text: str) -> str:
    return html.escape(content.visible(text))


def _data(report: Content) -> dict[str, Any]:
    strings: dict[str, int] = {}

    def number(text: str) -> int:
        return strings.setdefault(text, len(strings))

    cells, details = [], {}
    for at, cell in enumerate(report["cells"]):
        named = [number(str(cell.get(field) or "")) for field in FIELDS]
        cells.append([*named, number(_verdict(cell)), _short(cell.get("ratio")), _sparse(cell.get("histogram"))])
        if cell["verdict"] not in AGREES:
            details[at] = {field: cell[field] for field in DETAILS if cell.get(field) is not None}
    return {
        "pairs": report.get("pairs", {}),
        "environment": content.flat(report["environment"]),
        "histogram_log2": [None, *BINS],  # the lower end of each bin
        "strings": list(strings),
        "cells": cells,
        "details": details,
    }


def _verdict(cell: Mapping[str, Any]) -> str:
    if cell["verdict"] == "differs" and cell["known"]:
        return "known"
    return cell["verdict"].replace(" ", "-")


def _short(ratio: Any) -> Any:
    return float(f"{ratio:.4g}") if isinstance(ratio, float) else ratio


def _sparse(counts: Any) -> list[int] | None:
    return [part for at, number in enumerate(counts) if number for part in (at, number)] if counts else None


def _compact(value: Any) -> str:
    return json.dumps(content.finite(value), separators=(",", ":"), ensure_ascii=False)


def _file(name: str) -> str:
    return resources.files("parity.report").joinpath("page", name).read_text("utf-8")
