"""The masked linear layer: its twins held to one oracle, case by case (the grid), and to golden hashes.

`plan` and `run` are the grid's (grid.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.suites.masked_linear.grid import plan as plan
    from parity.suites.masked_linear.grid import run as run

_OF_GRID = ("plan", "run")


def __getattr__(name: str) -> Any:
    # The cases import the layer: not before they are wanted.
    if name in _OF_GRID:
        from parity.suites.masked_linear import grid

        return getattr(grid, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
