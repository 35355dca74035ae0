"""The process that stays alive: it asks a worker for one cell after the other, and replaces one that dies or hangs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sysconfig
import time
import weakref
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from parity.isolation import pipe, worker
from parity.isolation.sources import NotUnderstood
from parity.isolation.worker import About
from parity.records import Cell, Record, Verdict
from parity.scratch import make_folder
from parity.verdict.outcomes import Outcome, record_of

START_SECONDS = 300.0
"""What importing both frameworks and the pairs may take; some 4 seconds are usual."""

IN_A_ROW = 3
"""Cells of a pair that may end the process one after the other; the rest of the pair is then not tried.

Every one costs a restart, which imports both frameworks, and a hang its whole time limit.
"""

OTHERS = (sysconfig.get_paths()["stdlib"], str(Path(__file__).parent.parent))
"""Where code lies that is not the user's."""


class _Ended(Exception):
    """The worker is no more."""

    def __init__(self, verdict: Verdict, text: str) -> None:
        super().__init__(text)
        self.verdict = verdict


class Supervisor:
    """A worker process, started when it is first needed.

    Args:
        source: Where the pairs are (`parity.isolation.sources`).
        timeout: Seconds that a cell may take.

    Example:
        >>> with Supervisor("no_such_file.py") as here:
        ...     here.pairs()
        Traceback (most recent call last):
        parity.isolation.sources.NotUnderstood: no such file: no_such_file.py
    """

    def __init__(self, source: str, timeout: float = 60.0) -> None:
        self.source, self.timeout = source, timeout
        self.starts = 0
        self._process: Any = None
        self._connection: Any = None
        self._token = b""
        self._pairs: list[About] = []
        self._folder = make_folder()
        self._gone = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._log = self._folder / "log"

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            # The end of the connection ends an idle worker by itself: killed, it would leave semaphores behind.
            self._connection.close()
            self._process.join(5)
        self._stop()
        self._gone()

    def pairs(self) -> list[About]:
        """Return what is to be told of each pair.

        Raises:
            NotUnderstood: The source gives no pairs, or importing it ends the process.
        """
        self._start()
        return self._pairs

    def plan(
        self, pair: str, choices: Mapping[str, Any], usual: Sequence[Mapping[str, Any]] = ()
    ) -> list[Cell]:  # fmt: skip
        """Return the cells of a pair.

        Args:
            pair: Its name.
            choices: Arguments of `parity.verdict.runner.plan` that were asked for.
            usual: Others, several times, which the pair's own choices narrow and those asked for replace.

        Raises:
            NotUnderstood: A choice names what there is not.
        """
        self._start()
        return self._ask("plan", pair=pair, choices=dict(choices), usual=list(usual))

    def run(
        self, pair: str, cells: Sequence[Cell], seed: int, saved: str | None = None
    ) -> Generator[tuple[Record, str | None], None, None]:
        """Run cells of a pair, yielding a record of each, in order, and its packed inputs unless it agrees.

        Args:
            pair: Its name.
            cells: From `plan`.
            seed: Seed of the numbers.
            saved: Packed inputs to take in the place of the pair's own.

        Raises:
            NotUnderstood: The saved inputs are not those of this pair.
        """
        waiting, ended = list(cells), 0
        while waiting:
            if ended == IN_A_ROW:
                reason = f"not run: the {IN_A_ROW} cells before it each ended the process; run it alone to see"
                yield from ((_record(cell, "crashed", reason, seed, 0.0), None) for cell in waiting)
                return
            self._start()
            began = time.perf_counter()
            try:
                self._send("run", {"pair": pair, "cells": waiting, "seed": seed, "saved": saved})
                while waiting:
                    name, content = self._receive(self.timeout)
                    if name == "error":
                        raise NotUnderstood(content)
                    if name != "record" or content[0].cell != waiting[0]:
                        self._stop()
                        raise _Ended("crashed", f"the process answered {name!r}, and no record of this cell")
                    waiting.pop(0)
                    ended, began = 0, time.perf_counter()
                    yield content
                self._receive(self.timeout)  # "done"
            except _Ended as end:
                cell, ended = waiting.pop(0), ended + 1
                record = _record(cell, end.verdict, str(end), seed, time.perf_counter() - began)
                self._start()
                digest, kept = (record.inputs_sha256, saved) if saved else self._ask(
                    "inputs", pair=pair, cell=cell, seed=seed
                )  # fmt: skip
                yield replace(record, inputs_sha256=digest), kept

    def _start(self) -> None:
        if self._process is not None:
            return
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        self._token = os.urandom(pipe.TOKEN)
        arguments = (there, str(self._log), self._token)
        self._process = context.Process(target=worker.serve, args=arguments, daemon=True)
        self._process.start()
        self.starts += 1
        there.close()  # so that the end of the worker is the end of the connection
        self._connection = here
        self._pairs = self._ask("load", source=self.source)

    def _send(self, request: str, arguments: Mapping[str, Any]) -> None:
        try:
            pipe.send(self._connection.fileno(), self._token, (request, dict(arguments)))
        except OSError:
            self._ended()

    def _ask(self, request: str, **arguments: Any) -> Any:
        try:
            self._send(request, arguments)
            name, content = self._receive(START_SECONDS)
        except _Ended as end:
            raise NotUnderstood(f"{self.source} fails to import: {end}") from end
        if name == "error":
            raise NotUnderstood(content)
        return content

    def _receive(self, seconds: float) -> Any:
        try:
            return pipe.receive(self._connection.fileno(), self._token, seconds)
        except TimeoutError:
            os.kill(self._process.pid, signal.SIGUSR1)
            time.sleep(0.2)  # for the worker to write where it is
            where = self._where()
            self._stop()
            raise _Ended("timed out", f"no result after {seconds:g} s{where}") from None
        except pipe.Garbled as error:
            self._stop()
            text = f"something else than a record came through the pipe of the process: {error}"
            raise _Ended("crashed", text) from None
        except (EOFError, ConnectionResetError):
            self._ended()

    def _ended(self) -> NoReturn:
        self._process.join(10)
        code, where = self._process.exitcode, self._where()
        self._stop()
        raise _Ended("crashed", f"the process ended by {how(code)}{where}") from None

    def _where(self) -> str:
        # The innermost line that is the user's, in what faulthandler wrote last.
        try:
            text = self._log.read_text("utf-8", errors="replace")
        except OSError:
            return ""
        stack = text.rpartition("Current thread")[2].partition("\nThread ")[0]
        for file, line, name in re.findall(r'  File "([^"]+)", line (\d+) in (\S+)', stack):
            if not file.startswith(("<", *OTHERS)) and "site-packages" not in file:
                return f", in {name} ({Path(file).name}, line {line})"
        return ""

    def _stop(self) -> None:
        if self._process is not None:
            self._connection.close()
            # With all that the functions of the pairs started; the group has the worker's number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join(10)
            self._process = None


def how(code: int | None) -> str:
    """Return in words how a process ended.

    Example:
        >>> how(-6), how(3)
        ('SIGABRT', 'exit code 3')
    """
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _record(cell: Cell, verdict: Verdict, reason: str, seed: int, seconds: float) -> Record:
    return record_of(cell, Outcome(verdict, reason), seed=seed, seconds=seconds)
