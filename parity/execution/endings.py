"""A function that ends the process: what it asks for is raised, so that whoever compares lives on."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TypeVar
from unittest import mock

RAISED = (Exception, SystemExit)
"""What a function of the user's may raise: `sys.exit` is no Exception."""

T = TypeVar("T")

_inside = threading.local()
_lock = threading.Lock()
_waiting: list[int] = []
"""The threads that are inside: the first of them puts another `os._exit` there, and the last takes it away."""

_patches: list[Any] = []


def kept_alive(steps: Iterable[T]) -> Iterator[T]:
    """Yield the same; what is run to make each of them raises SystemExit where it asks for the end of the process."""
    ahead = iter(steps)
    while True:
        with _no_end():
            try:
                step = next(ahead)
            except StopIteration:
                return
        yield step


@contextlib.contextmanager
def _no_end() -> Iterator[None]:
    with _lock:
        if not _waiting:
            _patches.append(mock.patch.object(os, "_exit", _instead_of(os._exit)))
            _patches[0].start()
        _waiting.append(threading.get_ident())
    depth = getattr(_inside, "depth", 0)
    _inside.depth = depth + 1
    try:
        yield
    finally:
        _inside.depth = depth
        with _lock:
            _waiting.pop()
            if not _waiting:
                _patches.pop().stop()


def _instead_of(usual: Any) -> Any:
    here = os.getpid()

    def ends(status: int) -> NoReturn:
        # A child that was forked ends as it asks to, and so does a thread that compares nothing.
        if os.getpid() != here or not getattr(_inside, "depth", 0):
            usual(status)
        raise SystemExit(f"os._exit({status})")

    return ends
