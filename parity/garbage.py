"""What the garbage collector of Python looks at while a comparison runs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def what_was_there_set_aside() -> Iterator[None]:
    """Let the garbage collector look at what is made within alone, not at the frameworks, which are a million objects.

    Where something is set aside already, that is left as it is.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
