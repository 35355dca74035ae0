"""The process that runs cells: it loads the pairs, plans the cells, and runs each when the supervisor asks for it.

Only cells, records and texts are sent to the supervisor. The functions themselves stay here.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from parity.execution.outputs import Runs
from parity.isolation import inputs, pipe, sources
from parity.isolation.source_text import text_of
from parity.operator import trees
from parity.operator.pair import Pair
from parity.records import AGREES, Cell
from parity.verdict.runner import Judge, plan


@dataclass(frozen=True)
class About:
    """What is told of a pair outside of its process.

    Attributes:
        name: Name of the pair.
        group: What it is sorted by.
        note: What a reader should know.
        torch: The text of the function.
        jax: The text of the other.
        known: Its known differences.
    """

    name: str
    group: str
    note: str
    torch: str
    jax: str
    known: tuple[dict[str, str], ...] = field(default=())

    @classmethod
    def of(cls, pair: Pair) -> About:
        """Describe a pair."""
        known = tuple(dict(entry) for entry in pair.known or ())
        return cls(pair.name, pair.group, pair.note, text_of(pair.torch), text_of(pair.jax), known)


def serve(connection: Connection, log: str, token: bytes) -> None:
    """Answer requests until there are no more.

    An answer is (name, content); "record" may come many times, "done" and "error" are the last of a request.

    Args:
        connection: To the supervisor.
        log: The file that takes what the pairs print, and where the process was when it died.
        token: What every message begins with.
    """
    _redirect(log)
    # A group of its own, which ends with it: what the pairs' functions start does not outlive the run.
    os.setpgid(0, 0)
    # A function that forks: the child has no part in what is said here, and keeps no end of it open.
    os.register_at_fork(after_in_child=connection.close)
    mine, descriptor = os.getpid(), connection.fileno()
    pairs: dict[str, Pair] = {}
    requests: dict[str, Callable[..., Iterator[Any]]] = {
        "load": _load, "plan": _plan, "run": _run, "inputs": _inputs,
    }  # fmt: skip
    while True:
        try:
            name, arguments = pipe.receive(descriptor, token)
            try:
                for answer in requests[name](pairs, **arguments):
                    _answer(descriptor, token, answer, mine)
            except (sources.NotUnderstood, ValueError, TypeError) as error:
                _answer(descriptor, token, ("error", str(error)), mine)
        except (EOFError, BrokenPipeError):  # the supervisor is no more
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)
            return


def _answer(descriptor: int, token: bytes, answer: Any, mine: int) -> None:
    if os.getpid() != mine:
        os._exit(0)  # the child of a function that forked and came back: its parent answers
    pipe.send(descriptor, token, answer)


def _load(pairs: dict[str, Pair], source: str) -> Iterator[Any]:
    pairs.update({pair.name: pair for pair in sources.load(source)})
    yield "done", [About.of(pair) for pair in pairs.values()]


def _plan(
    pairs: dict[str, Pair], pair: str, choices: Mapping[str, Any], usual: Sequence[Mapping[str, Any]]
) -> Iterator[Any]:  # fmt: skip
    chosen, cells = pairs[pair], dict[Cell, None]()
    for selection in usual or [{}]:
        # What the pair says of itself narrows what is usual; what is asked for stands above both.
        narrowed = {
            name: [value for value in values if (own := _own(chosen, name)) is None or value in own]
            for name, values in selection.items()
        }
        if all(narrowed.values()):
            cells.update(dict.fromkeys(plan(chosen, **{**narrowed, **choices})))
    yield "done", list(cells)


def _own(pair: Pair, name: str) -> Sequence[str] | None:
    return pair.transform_names if name == "transforms" else getattr(pair, name)


def _run(
    pairs: dict[str, Pair], pair: str, cells: Sequence[Cell], seed: int, saved: str | None
) -> Iterator[Any]:  # fmt: skip
    runs = Runs(pairs[pair], seed) if saved is None else _Replay(pairs[pair], seed, inputs.unpack(saved))
    judge = Judge(runs)
    for record in judge.records(cells):
        kept = None if record.verdict in AGREES else _packed(judge.runs_of(record.cell), record.cell)
        yield "record", (record, kept)
    yield "done", None


def _inputs(pairs: dict[str, Pair], pair: str, cell: Cell, seed: int) -> Iterator[Any]:
    runs = Runs(pairs[pair], seed)
    yield "done", (runs.sha256(cell), _packed(runs, cell))


def _packed(runs: Runs, cell: Cell) -> str:
    return inputs.pack([leaf for _, leaf in trees.leaves(runs.arguments(cell.data, cell.dtype))])


class _Replay(Runs):
    """Runs the functions on saved numbers, whatever kind of data they are of."""

    shortens = False

    def __init__(self, pair: Pair, seed: int, saved: Sequence[np.ndarray]) -> None:
        super().__init__(pair, seed)
        shape = pair.make(seed)
        expected = sum(1 for _ in trees.leaves(shape))
        if len(saved) != expected:
            raise ValueError(f"saved inputs: expected the {expected} arrays that {pair.name} takes, got {len(saved)}")
        self._saved = trees.rebuild(shape, iter(saved))

    def arguments(self, kind: str, dtype: str) -> tuple[Any, ...]:
        return self._saved


def _redirect(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    faulthandler.enable(2)
    # The supervisor asks where a cell hangs before it ends it.
    faulthandler.register(signal.SIGUSR1, 2)
