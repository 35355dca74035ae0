"""The message for an unknown name: what was expected, what came, and which name is nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

SHOWN = 12
"""Names that a message lists before it counts the rest."""


def nearest(value: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest name, or nothing.

    Example:
        >>> nearest("vpj", ["jvp", "vjp"])
        "; did you mean 'vjp'?"
    """
    near = difflib.get_close_matches(str(value), list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(what: str, value: str, known: Sequence[str], *, shown: int | None = SHOWN) -> str:
    """Return the message about a name that is not known.

    Args:
        what: What it is a name of.
        value: What came.
        known: All names that there are.
        shown: How many of them to list; None for all.

    Example:
        >>> unknown("--dtype", "float23", ["float32", "float64"])
        "--dtype: expected one of float32, float64, got 'float23'; did you mean 'float32'?"
    """
    some = ", ".join(known[:shown])
    if shown is not None and len(known) > shown:
        some += f" and {len(known) - shown} more"
    return f"{what}: expected one of {some}, got {value!r}{nearest(value, known)}"
