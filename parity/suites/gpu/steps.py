"""The steps of the command: each in a process of its own, so that one that dies takes no other with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ABOUT = {
    0: "as promised",
    1: "something differs, or no device",
    2: "was not understood",
}
"""What the exit codes of the commands mean."""


SETTINGS = {"XLA_PYTHON_CLIENT_PREALLOCATE": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")}
"""JAX would take three quarters of a GPU's memory at once: torch and the other workers of a step need it too."""


@dataclass(frozen=True)
class Step:
    """A command to run.

    Attributes:
        name: For the report.
        module: What `python -m` runs.
        arguments: Its arguments.
        record: Whether it writes a record with `--json`.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    record: bool = False


def steps(device: str, *, quick: bool, seed: int = 0, jobs: int = 1) -> list[Step]:
    """Return what runs on a device, the quickest first.

    Args:
        device: "cpu" or "cuda".
        quick: Whether a selection of each is enough.
        seed: Seed of all numbers.
        jobs: Processes in which the grid runs. What is timed runs alone.

    Example:
        >>> [step.name for step in steps("cuda", quick=False)]
        ['golden hashes', 'holds', 'grid', 'training', 'precision', 'benchmark', 'whole models']
    """
    on, drawn, short = ("--device", device), ("--seed", str(seed)), ("--quick",) if quick else ()
    beside = ("--jobs", str(jobs))
    return [
        Step("golden hashes", "parity", ("golden", *on)),
        Step("holds", "parity", ("holds", *on)),
        Step("grid", "parity", ("grid", *on, *drawn, *beside, *short), record=True),
        Step("training", "parity", ("digits", *on, *drawn, *short), record=True),
        # It measures on the device that the frameworks choose, which on a machine with a GPU is the GPU.
        Step("precision", "parity", ("precision", *drawn, *short), record=True),
        Step("benchmark", "benchmarks", (*on, *short), record=True),
        Step("whole models", "benchmarks", ("models", *on, *short), record=True),
    ]


def run(step: Step, folder: Path, *, limit: float, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run a step and return what came of it.

    Args:
        step: The step.
        folder: Where it leaves its record.
        limit: Seconds after which it is stopped.
        say: What prints a line.

    Returns:
        The command, its exit code, seconds, the last lines that it printed, and its record.
    """
    record = folder / f"{step.name.replace(' ', '-')}.json"
    command = [sys.executable, "-m", step.module, *step.arguments, *(["--json", str(record)] if step.record else [])]
    say(f"{step.name}: python -m {step.module} {' '.join(step.arguments)}")
    started = time.perf_counter()
    code, printed = _run(command, limit)
    return {
        "step": step.name,
        "command": f"python -m {step.module} {' '.join(step.arguments)}",
        "exit code": code,
        "result": outcome(code),
        "seconds": round(time.perf_counter() - started, 1),
        "printed": printed.splitlines()[-60:],
        "record": json.loads(record.read_text("utf-8")) if record.exists() else None,
    }


def outcome(code: int | None) -> str:
    """Say what an exit code means.

    Example:
        >>> outcome(0), outcome(None), outcome(-11)
        ('as promised', 'stopped: out of time', 'died with exit code -11')
    """
    return "stopped: out of time" if code is None else ABOUT.get(code, f"died with exit code {code}")


def _run(command: list[str], limit: float) -> tuple[int | None, str]:
    # What is printed goes to a file: of a pipe nothing is left where the process is ended. It has a group of its own,
    # so that it ends with its workers, which hold the GPU's memory.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        process = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, env=os.environ | SETTINGS, start_new_session=True
        )
        code: int | None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # on a Mac the latter, where all ended
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        printed.seek(0)
        return code, printed.read()
