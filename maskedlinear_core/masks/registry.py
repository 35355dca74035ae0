"""The classes of mask that there are, for frameworks that must be told of each (as pytrees)."""

from __future__ import annotations

from collections.abc import Callable

from maskedlinear_core.masks.base import Mask

KINDS: list[type[Mask]] = []
_LISTENERS: list[Callable[[type[Mask]], None]] = []


def register(kind: type[Mask]) -> type[Mask]:
    """Make a class of mask known to the frameworks, which may have to be told of it (as pytrees)."""
    KINDS.append(kind)
    for listener in _LISTENERS:
        listener(kind)
    return kind


def on_register(listener: Callable[[type[Mask]], None]) -> None:
    """Tell a framework of every class of mask: those there are, and those to come."""
    _LISTENERS.append(listener)
    for kind in KINDS:
        listener(kind)
