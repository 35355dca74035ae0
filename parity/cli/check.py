"""`python -m parity check FILE.py`: run every pair that a file defines."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from parity import needs
from parity.cli import options, session
from parity.cli.console import console, verdict
from parity.isolation import inputs
from parity.isolation.sources import HOW, NotUnderstood
from parity.isolation.supervisor import Supervisor
from parity.records import Cell
from parity.report import content, table
from parity.report.content import visible
from parity.report.environment import environment
from parity.report.report import Report

description = (
    f"Compare the torch function of every pair in a file with its JAX twin. A pair: {HOW}. An entry of `known` "
    "that no cell confirms is a failure too, unless an option leaves cells out."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = description
    parser.add_argument("file", nargs="?", metavar="FILE.py", help="defines the pairs")
    parser.add_argument(
        "--replay", metavar="REPORT.json#CELL", help="run one cell of a report again, on the inputs that it kept"
    )
    parser.add_argument(
        "--run-source", action="store_true", help="with --replay: run the file that the report names, which is printed"
    )
    options.add_pairs(parser)


def run(asked: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    options.check(asked)
    needs.require("parity check", "torch", "jax")
    made: argparse.ArgumentParser = asked.parser
    out = console()
    try:
        if asked.replay:
            return _replay(asked, made, out)
        if asked.file is None:
            made.error(f"FILE.py: expected a file, got none; in it, {HOW}")
        return _check(asked, made, out)
    except NotUnderstood as error:
        made.error(str(error))


def _check(asked: argparse.Namespace, made: argparse.ArgumentParser, out: Console) -> int:
    with Supervisor(asked.file, asked.timeout) as here:
        cells = session.planned(here, asked, made, out)
        if asked.list:
            return session.list_cells(cells, out)
        seen = session.execute(here, cells, asked, out)
    again = f"parity check {shlex.quote(asked.file)}"
    kept = session.report(Path(asked.file).name, seen, asked.file, again)
    _show(seen, asked.file, out)
    session.keep(asked, kept, out)
    return verdict(content.failed(kept), out)


def _show(seen: session.Seen, file: str, out: Console) -> None:
    about = environment()
    for name, records in seen.records.items():
        for part in table.parts(Report(name, records, about), shlex.quote(file)):
            out.print(part)


def _replay(asked: argparse.Namespace, made: argparse.ArgumentParser, out: Console) -> int:
    report, cell = saved(asked.replay)
    file = asked.file or _source(asked, report)
    digest = cell["inputs_sha256"]
    packed = report["inputs"].get(digest)
    if packed is None:
        kept = sum(digest in report["inputs"] for digest in {one["inputs_sha256"] for one in report["cells"]})
        raise NotUnderstood(
            f"--replay: the report keeps no inputs of {cell['id']}: it keeps those of cells that failed ({kept} here). "
            f"Run it by its seed: {cell['rerun']}"
        )
    shapes = _shapes(packed)
    chosen = Cell(**{name: cell[name] for name in Cell.__dataclass_fields__})
    with Supervisor(file, asked.timeout) as here:
        names = [about.name for about in here.pairs()]
        if chosen.pair not in names:
            raise NotUnderstood(f"--replay: {file} has no pair {chosen.pair!r}; it has {', '.join(names)}")
        ((record, _),) = here.run(chosen.pair, [chosen], cell["seed"], packed)
    out.print(f"pairs: {visible(file)}", markup=False, soft_wrap=True)
    told = record.inputs_sha256 is not None  # by a process that is still there
    if told and record.inputs_sha256 != digest:
        raise NotUnderstood(
            f"--replay: the saved inputs are not those of the cell: their SHA-256 is {record.inputs_sha256}, "
            f"the report says {digest}: it was changed, or the pair takes other arguments now"
        )
    seen = f", SHA-256 {digest[:16]} as in the report" if told else ", kept in the report"
    out.print(f"inputs: {shapes}{seen}", soft_wrap=True)
    for part in table.parts(Report(chosen.pair, [record], environment()), shlex.quote(file)):
        out.print(part)
    was = cell["verdict"]
    out.print(f"then: {was}; now: {record.verdict}" + ("" if was == record.verdict else " (it has changed)"))
    return verdict(record.failed, out)


def _source(asked: argparse.Namespace, report: dict[str, Any]) -> str:
    """Return the file that a report names, which runs only where that is asked for."""
    source: str = report["source"]
    if not asked.run_source:
        raise NotUnderstood(
            f"--replay: the report names {visible(source)}, and a replay runs that file: pass the file yourself "
            "(parity check FILE.py --replay ...), or add --run-source to run what the report names"
        )
    return source


def saved(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the report and the cell that REPORT.json#CELL names.

    Raises:
        NotUnderstood: There is no such report, or no such cell in it.
    """
    path, mark, name = text.partition("#")
    if not mark or not name:
        raise NotUnderstood(f"--replay: expected REPORT.json#CELL, the id of a cell after the file, got {text!r}")
    try:
        report = json.loads(Path(path).read_text("utf-8"))
        cells = {cell["id"]: cell for cell in report["cells"]}
        for cell in cells.values():
            _assert_cell(cell)
        dict[str, str](report["inputs"])
        if not isinstance(report["source"], str):
            raise TypeError(f"source: expected text, got {report['source']!r}")
    except OSError as error:
        raise NotUnderstood(f"--replay: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotUnderstood(f"--replay: {path} is no report of `python -m parity check --json`: {error!r}") from error
    if name not in cells:
        failed = [cell["id"] for cell in cells.values() if cell["failed"]]
        some = ", ".join(failed[:5]) or "none"
        raise NotUnderstood(f"--replay: {path} has no cell {name!r}; failed ones in it: {some}")
    return report, cells[name]


def _assert_cell(cell: dict[str, Any]) -> None:
    """Raise TypeError or KeyError unless a cell has what a replay reads, of its kind."""
    for name in (*Cell.__dataclass_fields__, "id", "verdict", "rerun"):
        if not isinstance(cell[name], str):
            raise TypeError(f"{name}: expected text, got {cell[name]!r}")
    if not isinstance(cell["seed"], int) or not isinstance(cell["failed"], bool):
        raise TypeError(f"seed and failed: expected an integer and a bool, got {cell['seed']!r} and {cell['failed']!r}")
    if not isinstance(cell["inputs_sha256"], str | None):
        raise TypeError(f"inputs_sha256: expected text, got {cell['inputs_sha256']!r}")


def _shapes(packed: str) -> str:
    try:
        arrays = inputs.unpack(packed)
    except Exception as error:  # base64, zip and NumPy each have errors of their own
        raise NotUnderstood(f"--replay: the report's inputs cannot be read: {type(error).__name__}: {error}") from error
    return ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays)
