"""The command line: what can be asked for, and the exit code (0 as promised, 1 not, 2 not understood)."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import Progress

from parity.records import DEVICES, DTYPES, WORLDS, Record
from parity.report import content, html, markdown
from parity.report import terminal as report
from parity.report.environment import environment
from parity.suites.masked_linear import cases, grid, transforms
from parity.suites.masked_linear.records import PRECISIONS, TIERS

COMMANDS = ("all", "grid", "digits", "golden", "precision")
OWN: dict[str, str] = {
    "check": "parity.cli.check",
    "atlas": "parity.suites.atlas.command",
    "bench": "benchmarks.command",
}
"""Commands with options of their own: the module whose `main(arguments)` runs it, by name."""
PLAIN_WIDTH = 120  # of output that goes to a file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in OWN:
        return importlib.import_module(OWN[given[0]]).main(given[1:])
    asked = _parse(given)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    if asked.command == "golden":
        return _golden(asked, console)
    if asked.command == "precision":
        return _precision(asked, console)
    if asked.write:
        asked.parser.error("--write: expected the command golden")
    devices = DEVICES if asked.device == "all" else (asked.device,)
    cells = grid.plan(
        devices=devices, dtypes=asked.dtype, masks=asked.mask, transforms=asked.transform, cases=asked.case,
        worlds=asked.world, tiers=asked.tier, precisions=asked.precision, quick=asked.quick,
    )  # fmt: skip
    if asked.list:
        for cell in cells:
            console.print(cell.id)
        return 0
    if asked.command != "digits" and not cells:
        asked.parser.error("no cell is all of that at once: --list shows what there is")
    records: list[Record] = []
    failed = False
    if asked.command != "digits":
        absent = _absent(devices, asked.device)
        there = [cell for cell in cells if cell.device not in absent]
        for device in absent:
            console.print(
                f"[yellow]no device[/]: {device} is not here; its {len(cells) - len(there)} cells did not run"
            )
        records = list(report.follow(grid.run(there, seed=asked.seed), len(there), console))
        report.show_grid(records, console)
        failed = any(record.failed for record in records)
    summary: dict[str, Any] = {}
    for name, precision, run in (("digits", "native", _digits), ("digits, reproducible", "reproducible", _course)):
        if asked.command != "grid" and (asked.precision is None or precision in asked.precision):
            summary[name], course_failed = run(asked, console)
            failed |= course_failed
    if asked.json:
        report.write_json(asked.json, environment(), records, summary)
    if asked.html or asked.md:
        grid_report = content.content("The masked linear layer", environment(), (r.as_dict() for r in records))
        for file, renderer in ((asked.html, html), (asked.md, markdown)):
            if file:
                renderer.write(file, grid_report)
    if asked.summary:
        report.write_summary(asked.summary, environment(), records, summary)
    console.print("[bold red]FAILED[/]" if failed else "[bold green]as promised[/]")
    return int(failed)


def _digits(asked: argparse.Namespace, console: Console) -> tuple[dict[str, Any], bool]:
    from parity.suites.training.digits import run, view

    steps = run.QUICK_STEPS if asked.quick else run.STEPS
    device = "cpu" if asked.device == "all" else asked.device
    if device in _absent((device,), "all"):
        console.print(f"[red]no device[/]: {device} is not here; digits did not run")
        return {"faults": [f"no device: {device}"]}, True
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("digits", total=2 * steps)
        task, seen = run.run(
            seed=asked.seed, steps=steps, device=device, progress=lambda: progress.update(bar, advance=1)
        )
    view.show(task, seen, console)
    return view.summary(task, seen), bool(seen.faults)


def _course(asked: argparse.Namespace, console: Console) -> tuple[dict[str, Any], bool]:
    from parity.suites.training.course import run, view

    steps, worlds = (run.QUICK_STEPS, run.QUICK_WORLDS) if asked.quick else (run.STEPS, tuple(run.WORLDS))
    device = "cpu" if asked.device == "all" else asked.device
    if device in _absent((device,), "all"):
        console.print(f"[red]no device[/]: {device} is not here; digits did not run")
        return {"faults": [f"no device: {device}"]}, True
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("digits, reproducible", total=(len(worlds) + 3) * steps)
        seen = run.run(
            seed=asked.seed, steps=steps, device=device, worlds=worlds,
            progress=lambda: progress.update(bar, advance=1),
        )  # fmt: skip
    view.show(seen, console)
    if asked.plot:
        view.plot(seen, asked.plot)
    return view.summary(seen), bool(seen.faults)


def _golden(asked: argparse.Namespace, console: Console) -> int:
    from parity.suites.masked_linear import golden

    chosen = golden.frameworks()
    if asked.write:
        golden.write(asked.write, environment(), chosen[0])
        console.print(f"golden: {len(golden.names())} answers of {chosen[0]} on the CPU written to {asked.write}")
        return 0
    devices = DEVICES if asked.device == "all" else (asked.device,)
    failed = False
    for device in devices:
        for framework in chosen:
            if device not in grid.world_of(framework).devices():
                console.print(f"[yellow]no device[/]: {framework} sees no {device} here")
                failed |= asked.device != "all"
                continue
            total = len(golden.names())
            checks = []
            with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
                bar = progress.add_task(f"golden, {framework} on {device}", total=total)
                for found in golden.check(device, (framework,)):
                    checks.append(found)
                    progress.update(bar, advance=1)
            failed |= golden.show(checks, device, console)
    console.print("[bold red]FAILED[/]" if failed else "[bold green]as promised[/]")
    return int(failed)


def _precision(asked: argparse.Namespace, console: Console) -> int:
    from parity.suites.masked_linear import precision

    shape = precision.QUICK_SHAPE if asked.quick else precision.SHAPE
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("precision", total=2 * precision.ROUNDS)
        seen = {
            "shape": f"batch {shape[0]}, {shape[2]} to {shape[1]} features",
            "errors": precision.errors(asked.seed),
            "times": precision.times(shape, progress=lambda: progress.update(bar, advance=1)),
        }
    precision.show(seen, console)
    if asked.json:
        report.write_json(asked.json, environment(), [], {"precision": seen})
    return 0


def _absent(devices: Collection[str], asked: str) -> list[str]:
    # A device that was asked for by name is left in: its cells are recorded as "no device", and fail.
    if asked != "all":
        return []
    present = set(grid.world_of("torch").devices()) & set(grid.world_of("jax").devices())
    return [device for device in devices if device not in present]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="parity",
        description="Hold the torch and the JAX twin of masked_linear to one oracle, then train both on digits.",
        epilog="Exit code: 0 as promised, 1 if something differs or is unexpectedly unsupported, 2 for bad usage.",
    )
    every = (*COMMANDS, *OWN)
    parser.add_argument("command", nargs="?", default="all", metavar="COMMAND", help=f"{', '.join(every)} (all)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or all (cpu)")
    choices = {
        "dtype": DTYPES,
        "mask": tuple(dict.fromkeys(case.mask for case in cases.CASES + cases.HARD)),
        "transform": tuple(transforms.BY_NAME),
        "case": tuple(cases.BY_ID),
        "world": WORLDS,
        "tier": TIERS,
        "precision": PRECISIONS,
    }
    for name in choices:
        parser.add_argument(f"--{name}", action="append", metavar="NAME", help=f"only this {name}; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of all numbers (0)")
    parser.add_argument("--quick", action="store_true", help="a selection, in under a minute")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep every record, with versions, machine and commit"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the grid as a page to look at")
    parser.add_argument("--md", type=Path, metavar="FILE", help="write the grid as a table in Markdown")
    parser.add_argument("--write", type=Path, metavar="FILE", help="with golden: make the hashes, on the CPU")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw how native runs part and reproducible ones do not (png, svg)"
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="keep counts and extremes, on one page")
    asked = parser.parse_args(arguments)
    _known(parser, "command", [asked.command], every)
    _known(parser, "--device", [asked.device], (*DEVICES, "all"))
    for name, known in choices.items():
        given = getattr(asked, name)
        if given is not None:
            setattr(asked, name, [part for value in given for part in value.split(",")])
            _known(parser, f"--{name}", getattr(asked, name), known)
    if asked.seed < 0:
        parser.error(f"--seed: expected 0 or more, got {asked.seed}")
    for option in ("json", "html", "md", "summary", "plot", "write"):
        file = getattr(asked, option)
        if file and not file.parent.is_dir():
            parser.error(f"--{option}: expected a file in a folder that exists, got {file}")
    asked.parser = parser
    return asked


def _known(parser: argparse.ArgumentParser, option: str, given: Collection[str], known: Sequence[str]) -> None:
    for value in given:
        if value not in known:
            _unknown(parser, option, value, known)


def _unknown(parser: argparse.ArgumentParser, option: str, value: str, known: Sequence[str]) -> NoReturn:
    near = difflib.get_close_matches(value, known, 1)
    parser.error(
        f"{option}: expected one of {', '.join(known)}, got {value!r}"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )
