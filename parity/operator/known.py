"""Known differences and refusals: entries with patterns and a reason. One that no cell confirms is a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from parity.records import Cell, Diagnosis, Record

PATTERNS = ("transform", "world", "dtype", "data")


def matches(entry: Mapping[str, Any], cell: Cell) -> bool:
    """Return whether an entry of `known` speaks of a cell."""
    return all(fnmatch(getattr(cell, name), entry.get(name, "*")) for name in PATTERNS)


def settle(pair: Any, records: Sequence[Record]) -> list[Record]:
    """Return the records with every entry of `pair.known` that holds for none of its cells made a failure.

    The failure is that of its first cell: the entry is to be taken off the list.
    """
    settled = list(records)
    for entry in pair.known or ():
        mine = [i for i, record in enumerate(settled) if matches(entry, record.cell) and record.cell.pair == pair.name]
        if mine and not any(settled[i].known for i in mine):
            first = settled[mine[0]]
            if not first.failed:
                reason = f"listed as known ({entry['reason']}), but nothing differs: take it off the list"
                text = (
                    f"An entry of `known` says that this differs ({entry['reason']}), and it agrees in all such cells."
                )
                about = Diagnosis("stale entry", text, "Take the entry off the list.")
                settled[mine[0]] = replace(first, verdict="differs", reason=reason, diagnosis=about)
    return settled
