"""Messages between two processes: each is whole, begins with a token, and is read before a deadline.

Others may write on the pipe: a function that writes to any file descriptor, or the child of one that forks. They do not
know the token, so what they write is not taken for an answer.
"""

from __future__ import annotations

import os
import pickle
import select
import time
from typing import Any

TOKEN = 16
"""Bytes of a token."""

LONGEST = 1 << 32
"""Bytes of a message: saved inputs are the longest of them."""


class Garbled(RuntimeError):
    """What came is no message."""


def send(descriptor: int, token: bytes, message: Any) -> None:
    """Write a message."""
    body = pickle.dumps(message)
    left = memoryview(token + len(body).to_bytes(8, "little") + body)
    while left:
        left = left[os.write(descriptor, left) :]


def receive(descriptor: int, token: bytes, seconds: float | None = None) -> Any:
    """Read a message.

    Args:
        descriptor: Descriptor of the pipe.
        token: What every message begins with.
        seconds: How long to wait for all of it; None for ever.

    Raises:
        TimeoutError: It has not come.
        EOFError: The other end is closed.
        Garbled: Something else came.

    Example:
        >>> here, there = os.pipe()
        >>> send(there, b"0123456789abcdef", ("done", None))
        >>> receive(here, b"0123456789abcdef", 1.0)
        ('done', None)
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    head = _read(descriptor, TOKEN + 8, deadline, token)
    length = int.from_bytes(head[TOKEN:], "little")
    if length > LONGEST:
        raise Garbled(f"a message of {length} bytes")
    try:
        return pickle.loads(_read(descriptor, length, deadline))
    except (EOFError, TimeoutError):
        raise
    except Exception as error:
        raise Garbled(f"{type(error).__name__}: {error}") from error


def _read(descriptor: int, count: int, deadline: float | None, beginning: bytes = b"") -> bytes:
    found, parts = b"", list[bytes]()
    while (missing := count - sum(len(part) for part in parts)) > 0:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and (left <= 0 or not select.select([descriptor], [], [], left)[0]):
            raise TimeoutError(f"{missing} bytes of a message are missing")
        part = os.read(descriptor, min(missing, 1 << 20))
        if not part:
            raise EOFError("the other end is closed")
        parts.append(part)
        if len(found) < len(beginning):
            # Seen at once: what begins otherwise may be shorter than a head, and nothing follows.
            found = b"".join(parts)
            if found[: len(beginning)] != beginning[: len(found)]:
                raise Garbled(f"{found[:40]!r}")
    return b"".join(parts)
