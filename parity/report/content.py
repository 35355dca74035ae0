"""What a report says, as plain data: made once, and rendered as HTML, Markdown and JSON."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from parity.records import AGREES

ORDER = ("crashed", "timed out", "differs", "no device", "unsupported", "edge", "within bound", "identical")
"""Verdicts from worst to best."""

Content = dict[str, Any]
"""`name`, `environment`, `counts`, `pairs` (what is known of each), `cells`, and `inputs` of cells that failed."""


def content(
    name: str,
    environment: Mapping[str, Any],
    cells: Iterable[Mapping[str, Any]],
    pairs: Mapping[str, Mapping[str, Any]] | None = None,
    inputs: Mapping[str, str] | None = None,
    **more: Any,
) -> Content:
    """Return a report.

    Args:
        name: Its title.
        environment: From `parity.report.environment`.
        cells: Records as plain data.
        pairs: By name: `group`, `note`, and the text of `torch` and `jax`.
        inputs: By SHA-256: the inputs of cells that failed, packed (`parity.isolation.inputs`).
        **more: Anything else that the file shall keep.

    Example:
        >>> content("none", {}, [])["counts"]
        {}
    """
    rows = [dict(cell) for cell in cells]
    counts = Counter(row["verdict"] for row in rows)
    return {
        "name": name,
        "environment": dict(environment),
        "counts": {verdict: counts[verdict] for verdict in ORDER if counts[verdict]},
        "pairs": {pair: dict(about) for pair, about in (pairs or {}).items()},
        "cells": rows,
        "inputs": dict(inputs or {}),
        **more,
    }


def failed(report: Content) -> bool:
    """Return whether any cell breaks the promise.

    Example:
        >>> failed(content("none", {}, [{"verdict": "crashed", "failed": True}]))
        True
    """
    return any(cell["failed"] for cell in report["cells"])


def headline(report: Content) -> str:
    """Return the outcome in a sentence or two.

    Example:
        >>> headline(content("one", {}, [{"pair": "f", "verdict": "identical", "failed": False, "known": False}]))
        '1 cell of 1 pair: 1 identical.'
    """
    cells = report["cells"]
    pairs = list(dict.fromkeys(cell["pair"] for cell in cells))
    counts = Counter(cell["verdict"] for cell in cells)
    tally = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in reversed(ORDER) if counts[verdict])
    text = f"{plural(len(cells), 'cell')} of {plural(len(pairs), 'pair')}: {tally}."
    listed = {cell["pair"] for cell in cells if cell["known"] and cell["verdict"] not in AGREES}
    wrong = list(dict.fromkeys(cell["pair"] for cell in cells if cell["failed"]))
    if listed:
        text += f" {plural(len(listed), 'pair')} differ{'s' * (len(listed) == 1)} somewhere as listed."
    if wrong:
        text += f" Failed: {'; '.join(wrong[:8])}{f' and {len(wrong) - 8} more' if len(wrong) > 8 else ''}."
    return text


def visible(text: str) -> str:
    """Return text with control characters written out: none moves a terminal's cursor, or turns text around.

    Example:
        >>> visible("a" + chr(27) + "[31mb") == "a" + chr(92) + "x1b[31mb"
        True
    """
    return "".join(
        part if part in "\n\t" or unicodedata.category(part) not in ("Cc", "Cf", "Cs") else ascii(part)[1:-1]
        for part in str(text)
    )


def plural(number: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> plural(1200, "cell")
        '1,200 cells'
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def flat(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return an environment as names and texts.

    Example:
        >>> flat({"cpus": 2, "switches": {"x64": "off"}})
        [('cpus', '2'), ('switches', 'x64: off')]
    """
    return [
        (name, ", ".join(f"{key}: {part}" for key, part in value.items()) if isinstance(value, dict) else str(value))
        for name, value in environment.items()
    ]


def worst(cells: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the cell with the worst verdict: one that fails before one that is listed, then the largest error."""

    def badness(cell: Mapping[str, Any]) -> tuple[bool, int, float]:
        ratio = cell.get("ratio")
        return cell["failed"], -ORDER.index(cell["verdict"]), float(ratio) if ratio is not None else 0.0

    return max(cells, key=badness)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write plain data to a file, whole or not at all."""
    write_text(path, json.dumps(finite(report), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text to a file, whole or not at all. Links are written through, pipes and devices written to."""
    from maskedlinear_core import files  # not on import: parity knows no layer

    files.write(path, text.encode())


def finite(value: Any) -> Any:
    """Return plain data that JSON can hold: inf and NaN as their names.

    Example:
        >>> finite({"ratio": float("inf")})
        {'ratio': 'inf'}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value
