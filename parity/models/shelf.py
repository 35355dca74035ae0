"""Large arrays that wait on disk, and memory that goes back to the system: in float64 a model has twice its size."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import shutil
import sys
import tempfile
import weakref
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from parity.scratch import make_folder

LARGE = 2**20
"""Bytes of an array that waits on disk."""


class Shelf(Mapping[str, Any]):
    """Arrays by name. Large ones lie in a folder for temporary files, and are read each time that they are asked for.

    Args:
        arrays: Names and arrays; what is no array is kept as it is.

    Example:
        >>> shelf = Shelf([("a", np.arange(3)), ("b", None)])
        >>> shelf["c"] = np.zeros(2**18)
        >>> list(shelf), shelf["c"].shape, shelf["b"]
        (['a', 'b', 'c'], (262144,), None)
    """

    def __init__(self, arrays: Iterable[tuple[str, Any]] = ()) -> None:
        self._held: dict[str, Any] = {}
        self._folder: Path | None = None
        for name, array in arrays:
            self[name] = array

    def __setitem__(self, name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray) or array.nbytes < LARGE:
            self._held[name] = array
            return
        if self._folder is None:
            self._folder = make_folder()
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{len(self._held)}.npy"
        before = self._held.get(name)
        path = before if isinstance(before, Path) else path
        np.save(path, array, allow_pickle=False)
        self._held[name] = path

    def __getitem__(self, name: str) -> Any:
        found = self._held[name]
        return np.load(found, allow_pickle=False) if isinstance(found, Path) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class Mapped:
    """Large tensors of a torch model as files in memory: the system reads of them what is in use, and no more."""

    def __init__(self) -> None:
        self._files: list[mmap.mmap] = []

    def take(self, model: Any) -> None:
        """Move a model's large tensors into files; each stays the same tensor. Without room on disk it stays there."""
        import torch

        for tensor in {id(one): one for one in (*model.parameters(), *model.buffers())}.values():
            plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
            if tensor.nbytes < max(LARGE, 1) or tensor.device.type != "cpu" or not plain:
                continue
            with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
                file.write(tensor.detach().contiguous().view(torch.uint8).numpy().data)
                file.flush()
                held = mmap.mmap(file.fileno(), tensor.nbytes)
                tensor.data = torch.frombuffer(held, dtype=tensor.dtype).view(tensor.shape)
                self._files.append(held)
        self.rest()

    def rest(self) -> None:
        """Let go of what was read; what was written is in the files."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for file in self._files:
                file.madvise(mmap.MADV_DONTNEED)


def layered(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return arrays by name, the first ones in the place of the second; none is read before it is asked for."""
    made: Any = ChainMap(cast("Any", first), cast("Any", second))
    return cast("Mapping[str, np.ndarray]", made)


MMAP_THRESHOLD = -3
"""What the C library of Linux calls the size from which on memory is the system's again once it is free."""


def give_back_large() -> None:
    """Let large arrays go back to the system as soon as they are free, from now on: for models that nearly fill it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE)


WORTHWHILE = 32 * 2**20
"""Bytes by which the process must have grown before memory is looked for: that takes as long as a small model's run."""

_before = [0]
"""Bytes of the process when memory was last given back."""


def give_back() -> None:
    """Give free memory back to the system where the process grew: the C library of Linux keeps it otherwise."""
    if sys.platform != "linux":
        gc.collect()  # a model and its hooks hold each other
    elif _resident() - _before[0] >= WORTHWHILE:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        _before[0] = _resident()
    else:
        _before[0] = min(_before[0], _resident())


def _resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
