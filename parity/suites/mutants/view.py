"""What a mutation run found, as lines and as a page."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.report.content import write_text
from parity.report.markdown import code
from parity.suites.mutants.changes import OUTSIDE, Change

if TYPE_CHECKING:
    from parity.suites.mutants.trial import Found


def line(found: Found) -> str:
    """Return what became of a change, in a line."""
    by = f" by {found.killed}" if found.killed else ""
    return f"{found.verdict}{by} ({found.ran} cells, {found.seconds:.0f} s): {found.change.name}"


def summary(found: Sequence[Found]) -> str:
    """Return the counts."""
    counts = Counter(one.verdict for one in found)
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{len(found)} changes: {said or 'none'}"


def stale(picked: Sequence[Change], equivalent: Mapping[str, str]) -> list[str]:
    """Return the entries of the list of equivalent changes that name no change.

    Example:
        >>> stale([], {"torch/rule.py: masked: a -> b": "the same"})
        ['torch/rule.py: masked: a -> b']
    """
    return sorted(set(equivalent) - {change.name for change in picked})


def write(path: Path, found: Sequence[Found], planned: int, about: Mapping[str, Any], day: datetime.date) -> None:
    """Write a page in Markdown.

    Args:
        path: The file.
        found: What became of each change.
        planned: How many changes were to be tried.
        about: From `parity.report.environment`.
        day: Day of the run.
    """
    versions = ", ".join(f"{name} {about[name]}" for name in ("python", "numpy", "torch", "jax", "jaxlib"))
    from parity.suites.mutants.trial import MOST as most

    wrong, left = [one for one in found if one.failed], planned - len(found)
    lines = [
        "# Small changes to the sources, and what the grid says",
        "",
        f"`python -m parity mutants --markdown FILE`, {day.isoformat()}, commit {about['commit']}, {versions}, "
        f"{about['machine']}, {about['processor']}.",
        "",
        "Each change is made in a copy of its twin. The cells of the grid that run its lines are run, up to the first "
        f"that fails: all of real size, then up to {most} small ones, then some of the compiled world. The changes are "
        "those made by hand (`parity/suites/mutants/by_hand.py`) and a sample, of fixed seed, of all that the rules of "
        "`changes.py` make.",
        "",
        f"**{summary(found)}.**" + (f" The run ended before the last {left}." if left else ""),
        "",
    ]
    if wrong:
        lines += _table("Not as it should be", wrong, "what was found")
    lines += _table("Changes that change no answer", [one for one in found if one.verdict == "equivalent"], "why")
    lines += _table("Rejected", [one for one in found if one.verdict == "killed"], "by the cell")
    lines += [
        "## Where no change is made", "", "What the grid does not run, and why, or what tests it.", "",
        "| where | why |", "|---|---|",
        *(f"| `{file}`: `{name}` | {why} |" for file, names in OUTSIDE.items() for name, why in names.items()),
        "",
    ]  # fmt: skip
    write_text(path, "\n".join(lines))


def _table(title: str, found: Sequence[Found], last: str) -> list[str]:
    rows = [f"| {code(one.change.name).replace(chr(124), chr(92) + chr(124))} | {_cell(one)} |" for one in found]
    return [f"## {title}", "", f"{len(found)} changes.", "", f"| change | {last} |", "|---|---|", *rows, ""]


def _cell(one: Found) -> str:
    if one.verdict == "killed":
        return f"`{one.killed}`"
    return f"{one.verdict}: {one.why} ({one.killed})" if one.failed else one.why
