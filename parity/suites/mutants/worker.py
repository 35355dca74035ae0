"""A process that has a framework imported, and none of the twins: it forks a child for each change.

It reads requests from its input, a line of JSON each, and answers with a line of JSON. A child imports the twin from
the folder of the request, runs cells up to the first that fails, and ends.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from parity.suites.masked_linear import grid
from parity.suites.masked_linear.records import Cell

Send = Callable[[dict[str, Any]], None]


def main(framework: str) -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints is no answer
    importlib.import_module(framework)
    importlib.import_module(f"parity.execution.{framework}_backend")
    assert not [name for name in sys.modules if name.startswith(f"maskedlinear_{framework}")]
    for line in sys.stdin:
        request = json.loads(line)
        answer = _fork(framework, request, [Cell(**fields) for fields in request["cells"]])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _fork(framework: str, request: dict[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(framework, request, cells, writing)
    os.close(writing)
    try:
        return _wait(child, reading, cells, request["patience"])
    finally:
        os.close(reading)


def _wait(child: int, reading: int, cells: Sequence[Cell], patience: float) -> dict[str, Any]:
    """Read what a child says until it ends, or is silent for too long."""
    began, text, ran = time.monotonic(), b"", 0
    answer: dict[str, Any] = {}
    while True:
        ready, _, _ = select.select([reading], [], [], patience)
        if not ready:
            os.kill(child, signal.SIGKILL)
            answer = {"killed": cells[min(ran, len(cells) - 1)].id, "why": f"no result in {patience:.0f} s"}
            break
        part = os.read(reading, 1 << 20)
        if not part:
            break
        *lines, text = (text + part).split(b"\n")
        for line in lines:
            said = json.loads(line)
            ran += "ran" in said
            answer |= {name: value for name, value in said.items() if name != "ran"}
    _, status = os.waitpid(child, 0)
    if not answer:
        answer = {"killed": cells[min(ran, len(cells) - 1)].id, "why": f"the process ended with status {status}"}
    return answer | {"ran": ran, "seconds": round(time.monotonic() - began, 1)}


def _child(framework: str, request: dict[str, Any], cells: Sequence[Cell], writing: int) -> None:
    def send(said: dict[str, Any]) -> None:
        data = json.dumps(said).encode() + b"\n"
        while data:
            data = data[os.write(writing, data) :]

    try:
        (_cover if request["cover"] else _try)(framework, request, cells, send)
    except BaseException as error:
        traceback.print_exc()
        send({"killed": "import" if "ran" not in request else "", "why": f"{type(error).__name__}: {error}"[:200]})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _import(framework: str, request: dict[str, Any]) -> None:
    if framework == "torch":
        import torch

        torch.set_num_threads(1)
    else:
        import jax

        # Operations that a change leaves alone are compiled once for all changes.
        jax.config.update("jax_compilation_cache_dir", request["cache"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    sys.path.insert(0, request["folder"])
    twin = importlib.import_module(f"maskedlinear_{framework}")
    if not str(twin.__file__).startswith(request["folder"]):
        raise RuntimeError(f"expected the twin of {request['folder']}, got {twin.__file__}")


def _try(framework: str, request: dict[str, Any], cells: Sequence[Cell], send: Send) -> None:
    """Run cells up to the first that fails."""
    _import(framework, request)
    for record in grid.run(cells):
        send({"ran": record.cell.id})
        if record.failed:
            send({"killed": record.cell.id, "why": record.reason[:200]})
            return
    send({"survived": len(cells)})


def _cover(framework: str, request: dict[str, Any], cells: Sequence[Cell], send: Send) -> None:
    """Run cells and tell which lines of the twin each of them runs."""
    _import(framework, request)
    inside = os.path.join(request["folder"], f"maskedlinear_{framework}") + os.sep
    seen: set[tuple[str, int]] = set()

    def local(frame: Any, event: str, argument: Any) -> Any:
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def entered(frame: Any, event: str, argument: Any) -> Any:
        return local(frame, event, argument) if frame.f_code.co_filename.startswith(inside) else None

    found: dict[str, dict[str, list[int]]] = {}
    sys.settrace(entered)
    for record in grid.run(cells):
        lines: dict[str, list[int]] = {}
        for file, line in seen:
            lines.setdefault(file.removeprefix(inside), []).append(line)
        found[record.cell.id] = lines
        seen.clear()
        send({"ran": record.cell.id})
        if record.failed:
            send({"killed": record.cell.id, "why": record.reason[:200]})
            return
    sys.settrace(None)
    send({"cover": found})


if __name__ == "__main__":
    main(sys.argv[1])
