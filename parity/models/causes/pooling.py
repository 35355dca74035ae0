"""Pooling of another kind: the first word for the mean of all, the mean for the maximum of a window."""

from __future__ import annotations

from collections.abc import Iterator

from parity.explanation.pooling import along, by_places, windows
from parity.models.causes.context import Context
from parity.records import Diagnosis


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield another proved pooling."""
    at = context.bench
    if at is None:
        return
    steps = at.programs["torch"].steps
    places = (by_places(name, at.programs[name].steps) for name in ("torch", "jax"))
    for claims in (along(steps), *places, windows(steps)):
        found = context.first(claims)
        if found is not None:
            yield found
