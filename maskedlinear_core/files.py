"""Files that are written wholly or not at all, and what a file can be read from."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import Any, BinaryIO

Path = str | os.PathLike[str]


def check_target(path: Path | BinaryIO) -> None:
    """Check that a file can be written at a path, before the work whose result it is to hold. An open file can.

    Raises:
        TypeError: It is neither a path nor an open file.
        IsADirectoryError: There is a folder.
        FileNotFoundError: The folder that is to hold the file is missing.

    Example:
        >>> check_target(os.curdir)
        Traceback (most recent call last):
        ...
        IsADirectoryError: expected the path of a file, got the folder '.'; add a name
    """
    if not isinstance(path, str | os.PathLike):
        if not callable(getattr(path, "write", None)):
            raise TypeError(
                f"expected a path or a file that is open for writing bytes, got {type(path).__name__}; pass one"
            )
        return
    if os.path.isdir(path):
        raise IsADirectoryError(f"expected the path of a file, got the folder {os.fspath(path)!r}; add a name")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.exists(path) and not os.path.isdir(folder):
        raise FileNotFoundError(
            f"expected a path in a folder that exists, got {os.fspath(path)!r}; make the folder first"
        )


def write(path: Path | BinaryIO, data: bytes) -> None:
    """Write a file, wholly or not at all.

    A file that exists is replaced and keeps its mode; a new one gets the mode that the umask leaves. A link is written
    through. A pipe or a device is written to and never replaced.

    Args:
        path: Where to; or a file that is open for writing bytes.
        data: What to write.

    Raises:
        IsADirectoryError, FileNotFoundError: As `check_target`.
        OSError: It cannot be written; what was there is as it was, and nothing else is left behind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(os.path.join(folder, "file"), b"all of it")
        ...     os.listdir(folder), read(os.path.join(folder, "file"))
        (['file'], b'all of it')
    """
    if not isinstance(path, str | os.PathLike):
        path.write(data)
        return
    check_target(path)
    try:
        found: os.stat_result | None = os.stat(path)
    except FileNotFoundError:
        found = None
    if found is not None and not stat.S_ISREG(found.st_mode):
        with open(path, "r+b" if stat.S_ISBLK(found.st_mode) else "wb", buffering=0) as file:
            _write_all(file, data)
        return
    _replace(os.path.realpath(path), data, found)


def read(source: Path | bytes | BinaryIO) -> bytes:
    """Return the bytes of a file, of an open binary file from where it stands, or the bytes themselves.

    Raises:
        OSError: The file cannot be read.
        TypeError: It is none of these, or an open file gives text.

    Example:
        >>> import io
        >>> read(b"one"), read(io.BytesIO(b"two"))
        (b'one', b'two')
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if not isinstance(source, str | os.PathLike):
        if not callable(getattr(source, "read", None)):
            raise TypeError(
                f"expected a path, bytes, or a file that is open for reading, got {type(source).__name__}; pass one of "
                "these"
            )
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError(
                f"expected a file that is open in binary mode, got {type(data).__name__}; open it with 'rb'"
            )
        return data
    with open(source, "rb") as file:
        return file.read()


def _replace(target: str, data: bytes, found: os.stat_result | None) -> None:
    folder, name = os.path.split(target)
    # A name that nobody can have laid a link or a file at.
    partial = os.path.join(folder, f".{name[:64]}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(partial, flags, 0o666)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            if found is not None and hasattr(os, "fchmod"):
                with contextlib.suppress(OSError):  # only root gives files away
                    os.fchown(file.fileno(), found.st_uid, found.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            _write_all(file, data)
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    _sync_folder(folder)


def _write_all(file: Any, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _sync_folder(folder: str) -> None:
    # Not every file system or system can: the file itself is whole either way.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
