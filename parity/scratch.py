"""Folders for temporary files. Each is removed when its process ends or, if that was killed, when the next is made."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import zlib
from pathlib import Path
from types import FrameType
from typing import NoReturn

NAME = re.compile(r"parity-(\d+)-([0-9a-f]{8})-")
"""Of a folder: the process that made it, and where that process' number means it."""


def make_folder() -> Path:
    """Make a folder for temporary files of this process, and remove those of processes that are dead.

    Whoever calls removes it. What this cannot do, because the process is killed, the next call of any process does.

    Example:
        >>> folder = make_folder()
        >>> folder.name.split("-")[1] == str(os.getpid())
        True
        >>> folder.rmdir()
    """
    remove_stale()
    return Path(tempfile.mkdtemp(prefix=f"parity-{os.getpid()}-{_place()}-"))


@functools.cache
def remove_stale() -> None:
    """Remove folders that dead processes of this user left behind here; once in a process."""
    if os.name != "posix":
        return  # elsewhere to ask whether a process is alive may end it
    for folder in Path(tempfile.gettempdir()).glob("parity-*"):
        found = NAME.match(folder.name)
        if found is None or found[2] != _place() or _is_alive(int(found[1])):
            continue
        with contextlib.suppress(OSError):
            about = folder.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():  # a link is not followed
                shutil.rmtree(folder, ignore_errors=True)


def end_by_sigterm() -> None:
    """Let SIGTERM end this process as `sys.exit` does, so that its folders are removed; for commands alone."""
    if os.name == "posix" and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)  # as shells say it


def _place() -> str:
    """Return what tells the machine, and the container on it, whose numbers of processes are meant."""
    spaces = Path("/proc/self/ns/pid")
    space = os.stat(spaces).st_ino if spaces.exists() else 0
    return f"{zlib.crc32(f'{os.uname().nodename} {space}'.encode()):08x}" if os.name == "posix" else "0" * 8


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True
