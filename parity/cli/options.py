"""Options that commands share, and how a wrong one is answered (exit code 2)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from parity import names
from parity.api import QUICK

CHOICES = {
    "transform": "transforms", "dtype": "dtypes", "world": "worlds", "data": "data", "device": "devices",
}  # fmt: skip
"""Options that choose cells, and the arguments of `parity.verdict.runner.plan` that they are."""

FILES = ("html", "md", "json")


def add_pairs(made: argparse.ArgumentParser) -> None:
    """Add the options of commands that run pairs."""
    made.add_argument("--pair", action="append", metavar="NAME", help="only this pair; may be repeated")
    for name in CHOICES:
        made.add_argument(f"--{name}", action="append", metavar="NAME", help=f"only this {name}; may be repeated")
    made.add_argument("--quick", action="store_true", help=f"only the transforms {' and '.join(QUICK)}")
    made.add_argument("--strict", action="store_true", help="a difference at the edge of the range is a failure, too")
    made.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="time limit of a cell (60)")
    add_run(made)
    made.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page, in one file")
    made.add_argument("--md", type=Path, metavar="FILE", help="write a table in Markdown")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every record, and the inputs of cells that fail")


def add_run(made: argparse.ArgumentParser) -> None:
    """Add the options of commands that run cells."""
    made.add_argument("--seed", type=int, default=0, help="seed of all random numbers (0)")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="how many processes run cells (1)")
    made.add_argument("--fail-fast", action="store_true", help="stop at the first cell that fails")
    made.add_argument("--list", action="store_true", help="print the cells and stop")


def check(asked: argparse.Namespace, files: Sequence[str] = FILES) -> None:
    """Check what can be checked before anything runs; leave with exit code 2 where something is wrong."""
    made = asked.parser
    for name in CHOICES:
        given = getattr(asked, name, None)
        if isinstance(given, list):
            setattr(asked, name, [part for value in given for part in value.split(",")])
    if asked.seed < 0:
        made.error(f"--seed: expected 0 or more, got {asked.seed}")
    jobs = getattr(asked, "jobs", None)
    if jobs is not None and jobs < 1:
        made.error(f"--jobs: expected 1 or more, got {asked.jobs}")
    timeout = getattr(asked, "timeout", 1.0)
    if not (timeout > 0 and math.isfinite(timeout)):
        made.error(f"--timeout: expected a positive number of seconds, got {timeout:g}")
    for name in files:
        file = getattr(asked, name)
        if file and not file.parent.is_dir():
            made.error(f"--{name}: expected a file in a folder that exists, got {file}")
        if file and file.is_dir():
            made.error(f"--{name}: expected a file, got the folder {file}")


def choices(asked: argparse.Namespace) -> dict[str, list[str]]:
    """Return the arguments of `plan` that were asked for."""
    return {plan: getattr(asked, name) for name, plan in CHOICES.items() if getattr(asked, name) is not None}


def unknown(made: argparse.ArgumentParser, option: str, value: str, known: Sequence[str]) -> NoReturn:
    """Leave with exit code 2, saying what there is, and what is nearest."""
    made.error(names.unknown(option, value, known))
