"""What the garbage collector of Python looks at while a comparison runs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_within = [False]
"""Whether this set something aside."""


@contextlib.contextmanager
def what_was_there_set_aside() -> Iterator[None]:
    """Let the garbage collector look at what is made within alone, not at the frameworks, which are a million objects.

    Where something is set aside already, that is left as it is. A comparison within this asks no more: to count what is
    set aside takes as long as a small comparison.
    """
    if _within[0] or gc.get_freeze_count():
        yield
        return
    gc.freeze()
    _within[0] = True
    try:
        yield
    finally:
        _within[0] = False
        gc.unfreeze()
