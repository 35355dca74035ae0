"""Tries changes: each in a copy of its twin, by the cells that run its lines, in processes that have all else ready."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.suites.masked_linear import real_size
from parity.suites.masked_linear.records import Cell
from parity.suites.mutants.changes import Change
from parity.suites.mutants.equivalent import EQUIVALENT

ROOT = Path(__file__).parents[3]
"""The checkout."""

PATIENCE = 600.0
"""Seconds that a cell may take; the longest takes about ten, and far more where other programs have the machine."""


MOST = 60
"""How many small cells a change must pass, of those that run its lines: taken evenly from all of them."""


@dataclass(frozen=True)
class Found:
    """What became of a change.

    Attributes:
        change: The change.
        killed: The cell that rejected it, or None.
        why: What the cell said, or why the change changes no answer.
        ran: How many cells ran.
        seconds: How long they took.
    """

    change: Change
    killed: str | None
    why: str
    ran: int
    seconds: float

    @property
    def verdict(self) -> str:
        """`killed`, `equivalent`, or what is wrong: `survived`, `not equivalent`."""
        listed = self.change.name in EQUIVALENT
        if self.killed is None:
            return "equivalent" if listed else "survived"
        return "not equivalent" if listed else "killed"

    @property
    def failed(self) -> bool:
        """Whether the grid, or the list of equivalent changes, is wrong."""
        return self.verdict in ("survived", "not equivalent")


class Worker:
    """A process of worker.py."""

    def __init__(self, framework: str) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "parity.suites.mutants.worker", framework], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | threads | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Trials:
    """Tries the changes of one twin.

    Args:
        framework: "torch" or "jax".
        cells: What a change must pass, in order.
        compiled: What it must pass besides, if it passes those.
        jobs: How many processes.
    """

    def __init__(
        self, framework: str, cells: Sequence[Cell], compiled: Sequence[Cell] = (), *, jobs: int = 1
    ) -> None:  # fmt: skip
        self.framework, self.jobs = framework, jobs
        self.package = ROOT / f"maskedlinear_{framework}"
        self.cells = {cell.id: cell for cell in (*cells, *compiled)}
        self.compiled = [cell.id for cell in compiled]
        self._groups = {cell.id: (cell.pair, cell.precision) for cell in cells}
        self._covered: dict[str, dict[str, set[int]]] = {}

    def run(self, changes: Sequence[Change], note: Callable[[str], None] = lambda line: None) -> Iterator[Found]:
        """Try changes and yield what became of each, in the order in which they end.

        Args:
            changes: Changes of the twin.
            note: Is told what goes on.
        """
        work: queue.Queue[Change] = queue.Queue()
        for change in changes:
            work.put(change)
        ended: queue.Queue[Found | BaseException] = queue.Queue()
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            workers = [Worker(self.framework) for _ in range(min(self.jobs, len(changes)))]
            try:
                if len(changes) > self.jobs:
                    note(f"{self.framework}: which of {len(self._groups)} cells run which lines")
                    self._cover(workers, Path(folder))
                threads = [
                    threading.Thread(target=self._work, args=(one, Path(folder), work, ended), daemon=True)
                    for one in workers
                ]
                for thread in threads:
                    thread.start()
                for _ in changes:
                    found = ended.get()
                    if isinstance(found, BaseException):
                        raise found
                    yield found
            finally:
                for one in workers:
                    one.close()

    def _work(self, one: Worker, folder: Path, work: queue.Queue[Change], ended: queue.Queue[Any]) -> None:
        try:
            while True:
                try:
                    change = work.get_nowait()
                except queue.Empty:
                    return
                ended.put(self._try(one, folder, change))
        except BaseException as error:  # raised where the results are waited for
            ended.put(error)

    def _try(self, one: Worker, folder: Path, change: Change) -> Found:
        with tempfile.TemporaryDirectory(dir=folder) as copy:
            package = Path(copy) / self.package.name
            shutil.copytree(self.package, package)
            (package / change.file).write_text(change.source, "utf-8")
            total = Found(change, None, EQUIVALENT.get(change.name, ""), 0, 0.0)
            for cells in (self._that_run(change), self.compiled):
                if not cells:
                    continue
                answer = one.ask(self._request(folder, Path(copy), cells))
                total = replace(total, ran=total.ran + answer["ran"], seconds=total.seconds + answer["seconds"])
                if "killed" in answer:
                    return replace(total, killed=answer["killed"], why=answer["why"])
            return total

    def _that_run(self, change: Change) -> list[str]:
        """Return the cells that run a line of the change, or all where it is not known; of small ones, `MOST` at most.

        A function that JAX compiled for one cell does not run again for the next: what one cell of a case runs, all do.
        """
        lines = set(range(change.lines[0], change.lines[1] + 1))
        in_jax = self.framework == "jax"
        groups = {
            self._groups[name] if in_jax else name
            for name, seen in self._covered.items()
            if lines & seen.get(change.file, set())
        }
        # What no cell runs is of a class or the module: it ran when the twin was imported, and may concern any cell.
        names = [name for name, group in self._groups.items() if not groups or (group if in_jax else name) in groups]
        large = [name for name in names if self.cells[name].data == real_size.TIER]
        small = [name for name in names if self.cells[name].data != real_size.TIER]
        return [*large, *small[:: -(-len(small) // MOST) or 1]]

    def _cover(self, workers: Sequence[Worker], folder: Path) -> None:
        copy = folder / "unchanged"
        shutil.copytree(self.package, copy / self.package.name)
        groups = [*dict.fromkeys(self._groups.values())]
        answers: list[dict[str, Any]] = []

        def ask(one: Worker, number: int) -> None:
            mine = set(groups[number :: len(workers)])
            names = [name for name, group in self._groups.items() if group in mine]
            answers.append(one.ask(self._request(folder, copy, names, cover=True)))

        threads = [threading.Thread(target=ask, args=(one, number)) for number, one in enumerate(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers:
            if "cover" not in answer:
                raise RuntimeError(f"the twin fails unchanged: {answer.get('killed')}: {answer.get('why')}")
            for name, files in answer["cover"].items():
                self._covered[name] = {file: set(lines) for file, lines in files.items()}
        if len(self._covered) < len(self._groups):
            raise RuntimeError(f"expected {len(self._groups)} cells to have run, got {len(self._covered)}")

    def _request(self, folder: Path, copy: Path, names: Sequence[str], *, cover: bool = False) -> dict[str, Any]:
        cells = [dataclasses.asdict(self.cells[name]) for name in names]
        return {
            "folder": str(copy), "cells": cells, "cover": cover, "patience": PATIENCE, "cache": str(folder / "jax")
        }  # fmt: skip
