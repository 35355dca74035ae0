"""`python -m parity mutants`: change the twins' sources in small ways, and see whether the grid notices."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from parity.cli.console import console, verdict
from parity.report.environment import environment
from parity.suites.masked_linear.records import TIERS
from parity.suites.mutants import by_hand, changes, view
from parity.suites.mutants.changes import Change
from parity.suites.mutants.equivalent import EQUIVALENT

if TYPE_CHECKING:
    from parity.suites.mutants.trial import Found

description = "small changes to the twins' sources, each of which the grid must reject"

FRAMEWORKS = ("torch", "jax")
COUNT = 42
"""Changes made by rule, for each twin."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Make small changes to the sources of the twins, each in a copy, and run the cells of the grid on it up to the "
        "first that fails. Exit code: 0 if every change is rejected, or is listed as one that changes no answer."
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that run side by side (1)")
    parser.add_argument("--list", action="store_true", help="print the changes and stop")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only changes whose name contains the text")
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"by rule, for each twin ({COUNT})")
    parser.add_argument("--seed", type=int, default=0, help="which of the changes by rule (0)")
    parser.add_argument("--tier", action="append", choices=TIERS, help="only cells of this tier; may be repeated")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="keep what is found, and do not try again what the file tells of"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what was found")


def planned(count: int = COUNT, seed: int = 0, only: Sequence[str] | None = None) -> list[Change]:
    """Return the changes: those by hand, then so many by rule for each twin.

    Args:
        count: By rule, for each twin.
        seed: Which of them.
        only: Parts of names; None = all.
    """
    from parity.suites.mutants.trial import ROOT

    found = [one.change(ROOT / f"maskedlinear_{one.framework}") for one in by_hand.BY_HAND]
    for framework in FRAMEWORKS:
        by_rule = changes.every(framework, ROOT / f"maskedlinear_{framework}")
        # What is asked for by name need not be one of the chosen.
        found += by_rule if only else changes.chosen(by_rule, count, seed)
    return [change for change in found if only is None or any(text in change.name for text in only)]


def run(asked: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    if asked.jobs < 1 or asked.count < 0:
        asked.parser.error("--jobs, --count: expected 1 or more, and 0 or more")
    for name in ("record", "markdown"):
        file = getattr(asked, name)
        if file and not file.parent.is_dir():
            asked.parser.error(f"--{name}: expected a file in a folder that exists, got {file}")
    out = console()
    picked = planned(asked.count, asked.seed, asked.only)
    if not picked:
        asked.parser.error("--only: no change has that in its name; --list shows what there is")
    if asked.list:
        for change in picked:
            out.print(change.name, markup=False, soft_wrap=True)
        return 0
    return verdict(_failed(asked, picked, out), out)


def _failed(asked: argparse.Namespace, picked: Sequence[Change], out: Console) -> bool:
    from parity.suites.mutants import record

    try:
        found = [] if asked.record is None else record.read(asked.record, picked)
    except ValueError as error:
        asked.parser.error(str(error))
    if found:
        out.print(f"{asked.record} tells of {len(found)} of {len(picked)} changes", markup=False, soft_wrap=True)
    known = {one.change.name for one in found}
    left = [change for change in picked if change.name not in known]
    for one in _tried(asked, left, out):
        found.append(one)
        out.print(f"{len(found)}/{len(picked)} {view.line(one)}", markup=False, soft_wrap=True, highlight=False)
        if asked.record:
            record.add(asked.record, one)
        if asked.markdown:  # as it goes, so that a run that is cut off leaves what it found
            _write(asked, found, picked)
    if asked.markdown:
        _write(asked, found, picked)
    stale = [] if asked.only else view.stale(planned(only=[""]), EQUIVALENT)
    for name in stale:
        out.print(f"listed as equivalent, and no change: {name}", markup=False, soft_wrap=True)
    out.print(view.summary(found), markup=False)
    return bool(stale) or any(one.failed for one in found)


def _tried(asked: argparse.Namespace, left: Sequence[Change], out: Console) -> Iterator[Found]:
    from parity.suites.mutants.cells import cells_of
    from parity.suites.mutants.trial import Trials

    for framework in FRAMEWORKS:
        mine = [change for change in left if change.framework == framework]
        if mine:
            first = [cell for cell in cells_of(framework) if not asked.tier or cell.data in asked.tier]
            then = [
                cell
                for cell in cells_of(framework, compiled=True)
                if cell not in first and (not asked.tier or cell.data in asked.tier)
            ]
            trials = Trials(framework, first, then, jobs=asked.jobs)
            yield from trials.run(mine, lambda line: out.print(line, markup=False))


def _write(asked: argparse.Namespace, found: Sequence[Found], picked: Sequence[Change]) -> None:
    order = {change.name: number for number, change in enumerate(picked)}
    ordered = sorted(found, key=lambda one: order[one.change.name])
    view.write(asked.markdown, ordered, len(picked), environment(), datetime.date.today())
