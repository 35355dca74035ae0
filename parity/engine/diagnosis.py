"""Why two results differ, in words, with what to do about it."""

from __future__ import annotations

from typing import Any

from parity.engine.records import Cell, Diagnosis


def diagnose(runner: Any, cell: Cell, outcome: Any) -> Diagnosis | None:
    """Return the first cause that explains a cell's outcome, or None."""
    return None
