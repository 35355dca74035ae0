"""What was found, kept in a file as it is found: a run that is cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from parity.suites.mutants.changes import Change
from parity.suites.mutants.equivalent import EQUIVALENT
from parity.suites.mutants.trial import Found


def read(path: Path, picked: Sequence[Change]) -> list[Found]:
    """Return what the file tells of changes: of the same change to the same text of a file.

    Args:
        path: The file; it need not be there.
        picked: The changes.

    Raises:
        ValueError: It is no such file.
    """
    if not path.exists():
        return []
    by_source = {_digest(change): change for change in picked}
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            kept = json.loads(line)
            change = by_source.get(kept["source"])
            if change is not None:
                why = kept["why"] if kept["killed"] else EQUIVALENT.get(change.name, "")
                found.append(Found(change, kept["killed"], why, kept["ran"], kept["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number} is no line that --record wrote: {error!r}") from error
    return found


def add(path: Path, found: Found) -> None:
    """Write what was found at the end of the file."""
    kept = {
        "name": found.change.name, "source": _digest(found.change), "killed": found.killed, "why": found.why,
        "ran": found.ran, "seconds": found.seconds,
    }  # fmt: skip
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(kept) + "\n")


def _digest(change: Change) -> str:
    return hashlib.sha256(f"{change.name}\n{change.source}".encode()).hexdigest()
