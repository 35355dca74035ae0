"""`python -m parity compare-records A B`: in which cells two records, that --json wrote, differ."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.cli.console import console

SHOWN = 20

FIELDS = ("verdict", "reason", "ratio", "known", "judged", "clause", "diagnosis", "twin_ratio", "inputs_sha256")
"""What of a cell is compared: the verdict, why, the error over its bound, and what was compared with what."""

description = (
    "Compare two records, cell by cell. Exit code: 0 if every cell is in both with the same verdict, reason and error "
    "over its bound, 1 if one is not, 2 for bad usage."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description, parser.epilog = description, None
    parser.add_argument("before", type=Path, metavar="A.json", help="a record that --json wrote")
    parser.add_argument("after", type=Path, metavar="B.json", help="another")
    parser.add_argument("--part", action="store_true", help="compare only the cells that B has")
    parser.add_argument("--all", action="store_true", help=f"print every difference, not {SHOWN} only")
    parser.add_argument(
        "--field", action="append", metavar="NAME", choices=FIELDS,
        help=f"compare this alone; may be repeated ({', '.join(FIELDS)})",
    )  # fmt: skip


def run(asked: argparse.Namespace) -> int:
    """Compare and return the exit code."""
    try:
        before, after = cells(asked.before), cells(asked.after)
    except ValueError as error:
        asked.parser.error(str(error))
    if not before.keys() & after.keys():
        asked.parser.error(
            f"expected records of the same cells, got none that is in both ({len(before)}, {len(after)})"
        )
    found = differences(before, after, fields=asked.field or FIELDS, part=asked.part)
    out = console()
    for line in found if asked.all else found[:SHOWN]:
        out.print(line, markup=False, soft_wrap=True)
    if len(found) > SHOWN and not asked.all:
        out.print(f"... and {len(found) - SHOWN} more (--all prints them)")
    out.print(f"{len(before.keys() & after.keys())} cells compared: {len(found)} differences")
    return int(bool(found))


def cells(path: Path) -> dict[str, dict[str, Any]]:
    """Return the cells of a record, by id.

    Raises:
        ValueError: The file cannot be read, or is no record.
    """
    try:
        found = json.loads(path.read_text("utf-8"))["cells"]
        return {cell["id"]: cell for cell in found}
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record that --json wrote: {error!r}") from error


def differences(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], *,
    fields: tuple[str, ...] | list[str] = FIELDS, part: bool = False,
) -> list[str]:  # fmt: skip
    """Return a line for every difference.

    Args:
        before: Cells by id.
        after: Others.
        fields: What of a cell is compared.
        part: Whether cells that are in `before` only do not count.

    Example:
        >>> differences({"a": {"verdict": "identical"}}, {"a": {"verdict": "differs"}})
        ["a: verdict: 'identical' before, 'differs' after"]
    """
    found = [] if part else [f"{name}: is missing after" for name in before if name not in after]
    found += [f"{name}: is new" for name in after if name not in before]
    for name in before.keys() & after.keys():
        one, other = before[name], after[name]
        found += [
            f"{name}: {field}: {one.get(field)!r} before, {other.get(field)!r} after"
            for field in fields
            if one.get(field) != other.get(field)
        ]
    return sorted(found)
