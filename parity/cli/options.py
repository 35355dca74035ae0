"""What the commands that run pairs can be asked, and how a wrong question is answered (exit code 2)."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

CHOICES = {
    "transform": "transforms", "dtype": "dtypes", "world": "worlds", "data": "data", "device": "devices",
}  # fmt: skip
"""Options that choose cells, and the arguments of `parity.verdict.runner.plan` that they are."""

FILES = ("html", "md", "json")


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all such commands have."""
    made = argparse.ArgumentParser(
        prog=f"parity {command}",
        description=description,
        epilog="Exit code: 0 if all agrees or differs as listed, 1 if a cell fails, 2 for bad usage.",
    )
    made.add_argument("--pair", action="append", metavar="NAME", help="only this pair; may be repeated")
    for name in CHOICES:
        made.add_argument(f"--{name}", action="append", metavar="NAME", help=f"only this {name}; may be repeated")
    made.add_argument("--seed", type=int, default=0, help="of all numbers (0)")
    made.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="what a cell may take (60)")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that run pairs side by side (1)")
    made.add_argument("--list", action="store_true", help="print the cells and stop")
    made.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at, with everything in it")
    made.add_argument("--md", type=Path, metavar="FILE", help="write a table in Markdown")
    made.add_argument("--json", type=Path, metavar="FILE", help="keep every record, and the inputs of those that fail")
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse and check what can be checked before anything runs."""
    asked = made.parse_args(list(arguments))
    for name in ("pair", *CHOICES):
        given = getattr(asked, name)
        if given is not None and name != "pair":
            setattr(asked, name, [part for value in given for part in value.split(",")])
    if asked.seed < 0:
        made.error(f"--seed: expected 0 or more, got {asked.seed}")
    if asked.jobs < 1:
        made.error(f"--jobs: expected 1 or more, got {asked.jobs}")
    if not asked.timeout > 0:
        made.error(f"--timeout: expected a positive number of seconds, got {asked.timeout:g}")
    for name in FILES:
        file = getattr(asked, name)
        if file and not file.parent.is_dir():
            made.error(f"--{name}: expected a file in a folder that exists, got {file}")
    return asked


def choices(asked: argparse.Namespace) -> dict[str, list[str]]:
    """Return the arguments of `plan` that were asked for."""
    return {plan: getattr(asked, name) for name, plan in CHOICES.items() if getattr(asked, name) is not None}


def unknown(made: argparse.ArgumentParser, option: str, value: str, known: Sequence[str]) -> NoReturn:
    """Leave with exit code 2, saying what there is, and what is nearest."""
    near = difflib.get_close_matches(value, known, 1)
    some = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    made.error(f"{option}: expected one of {some}, got {value!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
