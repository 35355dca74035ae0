"""`python -m benchmarks`: the options, one process for each framework, what is kept."""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import growth, rows, targets, timing, view, worker
from benchmarks.rows import FRAMEWORKS
from benchmarks.timing import Ratio
from benchmarks.worker import SECTIONS, Job
from parity.report.content import write_text
from parity.report.environment import environment

WIDTH = 160  # of output that goes to a file
DEVICES = ("cpu", "cuda")


class Failed(RuntimeError):
    """A process did not do its job."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 0 measured, 1 not (or slower than --against), 2 not understood."""
    asked = _parse(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    jobs = _jobs(asked)
    if asked.list:
        for job in jobs:
            for row in job.rows:
                console.print(row.id, soft_wrap=True)
        return 0
    found = _before(asked)
    jobs = [_lacking(job, found) for job in jobs]
    try:
        run(jobs, found, console, asked.json)
    except Failed as failure:
        console.print(f"[bold red]FAILED[/] {failure}", markup=True)
        return 1
    view.show(found, console)
    if asked.plot:
        from benchmarks import plot

        plot.draw(found["growth"], asked.plot)
    if asked.markdown:
        from benchmarks import markdown

        asked.markdown.write_text(markdown.section(found), "utf-8")
    if not asked.against:
        return 0
    changes = compare(json.loads(asked.against.read_text("utf-8"))["rows"], found["rows"])
    for id, change, before, after in changes:
        console.print(f"[bold]{change}[/] {id}: {before.median:.3f} of dense before, {after.median:.3f} now")
    console.print(f"{len(changes)} rows differ from {asked.against}")
    return int(any(change == "slower" for _, change, _, _ in changes))


def run(jobs: Sequence[Job], found: dict[str, Any], console: Console, file: Path | None = None) -> None:
    """Run jobs one after another, each in a process of its own, and add what they find.

    Args:
        jobs: One for each framework.
        found: What is known already; records of the same id are replaced.
        console: For the progress.
        file: Where all is kept, after each part: a run that is cut off can go on from there.

    Raises:
        Failed: With what the process said.
    """
    total = sum(job.parts for job in jobs)
    bars = (
        TextColumn("bench"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*bars, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar, done = progress.add_task("", total=total), 0
        for job in (job for job in jobs if job.sections):
            for section, content in _messages(job):
                if section == "machine":
                    found["machines"][job.framework] = {"device": job.device, **content}
                    continue
                for one in [content] if section == "growth" else content:
                    _add(found[section], one)
                done += 1
                progress.update(bar, advance=1, description=f"{job.framework}: {section}")
                if not console.is_terminal and (done * 10) // total > ((done - 1) * 10) // total:
                    console.print(f"{done} of {total} parts")
                if file:
                    _keep(file, found)
    _judge(found)
    if file:
        _keep(file, found)


def compare(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[tuple[str, str, Ratio, Ratio]]:
    """Return the rows of two runs whose time over dense changed: id, "slower" or "faster", and both ratios.

    Example:
        >>> def rows(ratio): return [{"id": "a", "ratios": {"dense": [ratio, ratio - 0.01, ratio + 0.01]}}]
        >>> [change for _, change, _, _ in compare(rows(0.7), rows(0.8))]
        ['slower']
    """
    known = {record["id"]: Ratio(*record["ratios"]["dense"]) for record in before}
    found = []
    for record in after:
        ratio = Ratio(*record["ratios"]["dense"])
        if record["id"] in known and (change := timing.changed(known[record["id"]], ratio)):
            found.append((record["id"], change, known[record["id"]], ratio))
    return found


def _messages(job: Job, target: Callable[..., None] = worker.run) -> Iterator[tuple[str, Any]]:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr.txt"
        process = context.Process(target=target, args=(job, send, str(log)), daemon=True)
        process.start()
        send.close()
        try:
            while (message := receive.recv())[0] != "done":
                if message[0] == "error":
                    raise Failed(f"{job.framework}: {message[1]}")
                yield message
        except EOFError:
            process.join()
            said = log.read_text("utf-8") if log.exists() else ""
            raise Failed(f"{job.framework}: the process ended with {process.exitcode}\n{said}") from None
        finally:
            if process.is_alive():
                process.terminate()
            process.join()


def _jobs(asked: argparse.Namespace) -> list[Job]:
    jobs = []
    for framework in FRAMEWORKS if asked.framework == "all" else (asked.framework,):
        planned = rows.plan(framework, quick=asked.quick, everything=asked.all, shapes=asked.shapes)
        chosen = tuple(row for row in planned if fnmatch.fnmatch(row.id, asked.match))
        sections = tuple(asked.only) if asked.only else ("rows",) if asked.shapes else SECTIONS
        jobs.append(Job(framework, asked.device, chosen, asked.quick, sections))
    if not any(job.rows for job in jobs):
        asked.parser.error(f"--match: no row is like {asked.match!r}; --list shows what there is")
    return jobs


def _lacking(job: Job, found: dict[str, Any]) -> Job:
    # What was kept is not measured again: there is some only with --add.
    ids = {record["id"] for record in found["rows"]}
    lacking = tuple(row for row in job.rows if not all(f"{row.id}/{form}" in ids for form in worker.FORMS))
    curves = {curve["over"] for curve in found["growth"] if curve["framework"] == job.framework}
    done = {
        "rows": not lacking,
        "growth": curves >= {heat.over for heat in growth.heats(job.framework, job.quick)},
        "overhead": any(one["id"].startswith(f"{job.framework}/") for one in found["overhead"]),
    }
    sections = tuple(section for section in job.sections if not done[section])
    return replace(job, rows=lacking, sections=sections)


def _before(asked: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"environment": environment(), "machines": {}, "rows": [], "growth": [], "overhead": []}
    if not asked.add or not asked.json.exists():
        return found
    old = json.loads(asked.json.read_text("utf-8"))
    if old["environment"] != found["environment"]:
        asked.parser.error(f"--add: {asked.json} was measured elsewhere, or at another commit; measure all of it again")
    return old


def _add(records: list[dict[str, Any]], one: dict[str, Any]) -> None:
    def key(record: dict[str, Any]) -> Any:
        return record.get("id") or (record["framework"], record["over"])

    same = [at for at, record in enumerate(records) if key(record) == key(one)]
    if same:
        records[same[0]] = one
    else:
        records.append(one)


def _judge(found: dict[str, Any]) -> None:
    # Of four digits, as nothing was measured more exactly: what is judged and shown is what is kept.
    found.update(_rounded(found))
    verdicts = targets.judge(found["rows"], found["overhead"])
    found["summary"], found["line"] = _rounded(targets.summary(verdicts)), targets.line(verdicts)


def _keep(path: Path, found: dict[str, Any]) -> None:
    _judge(found)
    write_text(path, json.dumps(found, indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure both twins beside the dense layer, beside what people use instead, and beside the limit.",
        epilog="Exit code: 0 measured, 1 if a rival computes something else, a device is absent, or a row is slower "
        "than in --against; 2 for bad usage.",
    )
    parser.add_argument("--framework", default="all", choices=(*FRAMEWORKS, "all"), help="(all)")
    parser.add_argument("--device", default="cpu", choices=DEVICES, help="(cpu)")
    parser.add_argument(
        "--shapes", type=_shapes, default=(), metavar="BxOxI,...",
        help="every kind and share at these instead: batch (of one or more dimensions), out_features, in_features",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a few small rows, in under a minute")
    parser.add_argument("--all", action="store_true", help="the product of all factors: hours")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="only this section; may be repeated")
    parser.add_argument(
        "--match", default="*", metavar="PATTERN", help="only rows whose id is like this, e.g. '*/rows/*'"
    )
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every figure, with versions, machine, commit")
    parser.add_argument("--add", action="store_true", help="go on from the --json file: measure what it lacks")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw how time and memory grow (png, svg)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table of docs/evidence/speed.md")
    parser.add_argument("--against", type=Path, metavar="FILE", help="name the rows that differ from this --json file")
    asked = parser.parse_args(arguments)
    for option in ("json", "plot", "markdown"):
        file = getattr(asked, option)
        if file and not file.parent.is_dir():
            parser.error(f"--{option}: expected a file in a folder that exists, got {file}")
    if asked.plot and asked.plot.suffix not in (".png", ".svg"):
        parser.error(f"--plot: expected a .png or .svg file, got {asked.plot}")
    if asked.against and not asked.against.is_file():
        parser.error(f"--against: expected a file that --json wrote, got {asked.against}")
    if asked.add and not asked.json:
        parser.error("--add: expected --json FILE with it")
    asked.parser = parser
    return asked


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    try:
        shapes = tuple(tuple(int(part) for part in shape.split("x")) for shape in text.split(","))
    except ValueError:
        shapes = ()
    if not shapes or any(len(shape) < 3 or min(shape) < 1 for shape in shapes):
        raise argparse.ArgumentTypeError(f"expected shapes such as 32x1024x1024,2048x1024x1024, got {text!r}")
    return shapes
