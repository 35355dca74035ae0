"""The commands of the masked linear layer's suite."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from parity.cli import options
from parity.cli.console import console, verdict
from parity.names import unknown
from parity.records import DEVICES, DTYPES, WORLDS, Record
from parity.report import content, html, markdown, terminal
from parity.report.environment import environment
from parity.suites.masked_linear import written
from parity.suites.masked_linear.records import PRECISIONS, TIERS, Cell

description = "the torch and the JAX twin of masked_linear, compared with one oracle"
commands = {
    "all": "the grid of the masked linear layer, then both training runs",
    "grid": "every case of the masked linear layer under every transform, held to one oracle",
    "golden": "answers of the reproducible precision, held to stored hashes",
    "precision": "what the reproducible precision changes in errors, and what it costs in time",
}

MANY, MOST_JOBS = 500, 2
"""Cells beyond which as many processes run them as there are cores, up to so many: each takes up to 4 GB."""

FILES = ("json", "html", "md", "summary", "plot", "write")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or all (cpu)")
    for name in ("dtype", "mask", "transform", "case", "world", "tier", "precision"):
        parser.add_argument(f"--{name}", action="append", metavar="NAME", help=f"only this {name}; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a selection, in under a minute")
    options.add_run(parser)
    parser.set_defaults(jobs=None)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep every record, with versions, machine and commit"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the grid as a page to look at")
    parser.add_argument("--md", type=Path, metavar="FILE", help="write the grid as a table in Markdown")
    parser.add_argument("--write", type=Path, metavar="FILE", help="with golden: make the hashes, on the CPU")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot how far native and reproducible runs drift apart (png, svg)"
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="keep counts and extremes, on one page")


def run(asked: argparse.Namespace) -> int:
    """Run a command and return the exit code."""
    _check(asked)
    out = console()
    if asked.command == "golden":
        return _golden(asked, out)
    if asked.command == "precision":
        return _precision(asked, out)
    return _grid(asked, out)


def _grid(asked: argparse.Namespace, out: Console) -> int:
    from parity.suites.masked_linear import grid

    devices = DEVICES if asked.device == "all" else (asked.device,)
    cells = grid.plan(
        devices=devices, dtypes=asked.dtype, masks=asked.mask, transforms=asked.transform, cases=asked.case,
        worlds=asked.world, tiers=asked.tier, precisions=asked.precision, quick=asked.quick,
    )  # fmt: skip
    if asked.list:
        for cell in cells:
            out.print(cell.id)
        return 0
    if not cells:
        asked.parser.error("no cell is all of that at once: --list shows what there is")
    absent = _absent(devices, asked.device)
    there = [cell for cell in cells if cell.device not in absent]
    for device in absent:
        out.print(f"[yellow]no device[/]: {device} is not here; its {len(cells) - len(there)} cells did not run")
    records = _run(asked, there, out)
    terminal.show_grid(records, out)
    failed = any(record.failed for record in records)
    summary: dict[str, Any] = {}
    if len(records) < len(there):
        out.print(f"stopped at the first failure: {len(records)} of {len(there)} cells ran")
    elif asked.command == "all":
        from parity.suites.training import suite as training

        summary, untrained = training.trained(asked, out)
        failed |= untrained
    _keep(asked, records, summary)
    return verdict(failed, out)


def _run(asked: argparse.Namespace, cells: Sequence[Cell], out: Console) -> list[Record]:
    """Run cells up to the first that fails, or all of them."""
    from parity.suites.masked_linear import grid

    jobs = asked.jobs or (min(MOST_JOBS, os.cpu_count() or 1) if len(cells) > MANY else 1)
    ran: Iterator[Record] = (
        grid.run_beside(cells, seed=asked.seed, jobs=jobs) if jobs > 1 else grid.run(cells, seed=asked.seed)
    )
    records = []
    for record in terminal.follow(ran, len(cells), out):
        records.append(record)
        if record.failed and asked.fail_fast:
            break
    return records


def _keep(asked: argparse.Namespace, records: Sequence[Record], summary: dict[str, Any]) -> None:
    if asked.json:
        written.write_json(asked.json, environment(), records, summary)
    if asked.html or asked.md:
        grid_report = content.content("The masked linear layer", environment(), (r.as_dict() for r in records))
        for file, renderer in ((asked.html, html), (asked.md, markdown)):
            if file:
                renderer.write(file, grid_report)
    if asked.summary:
        written.write_summary(asked.summary, environment(), records, summary)


def _golden(asked: argparse.Namespace, out: Console) -> int:
    from parity.suites.masked_linear import golden, grid

    chosen = golden.frameworks()
    if asked.write:
        golden.write(asked.write, environment(), chosen[0])
        out.print(f"golden: {len(golden.names())} answers of {chosen[0]} on the CPU written to {asked.write}")
        return 0
    devices = DEVICES if asked.device == "all" else (asked.device,)
    failed = False
    for device in devices:
        for framework in chosen:
            if device not in grid.world_of(framework).devices():
                out.print(f"[yellow]no device[/]: {framework} sees no {device} here")
                failed |= asked.device != "all"
                continue
            checks = []
            with Progress(console=out, disable=not out.is_terminal, transient=True) as progress:
                bar = progress.add_task(f"golden, {framework} on {device}", total=len(golden.names()))
                for found in golden.check(device, (framework,)):
                    checks.append(found)
                    progress.update(bar, advance=1)
            failed |= golden.show(checks, device, out)
    return verdict(failed, out)


def _precision(asked: argparse.Namespace, out: Console) -> int:
    from parity.suites.masked_linear import precision

    shape = precision.QUICK_SHAPE if asked.quick else precision.SHAPE
    with Progress(console=out, disable=not out.is_terminal, transient=True) as progress:
        bar = progress.add_task("precision", total=2 * precision.ROUNDS)
        seen = {
            "shape": f"batch {shape[0]}, {shape[2]} to {shape[1]} features",
            "errors": precision.errors(asked.seed),
            "times": precision.times(shape, progress=lambda: progress.update(bar, advance=1)),
        }
    precision.show(seen, out)
    if asked.json:
        written.write_json(asked.json, environment(), [], {"precision": seen})
    return 0


def _absent(devices: Collection[str], asked: str) -> list[str]:
    # A device that was asked for by name is left in: its cells are recorded as "no device", and fail.
    if asked != "all":
        return []
    from parity.suites.masked_linear import grid

    present = set(grid.world_of("torch").devices()) & set(grid.world_of("jax").devices())
    return [device for device in devices if device not in present]


def _check(asked: argparse.Namespace) -> None:
    """Check what can be checked before anything runs; leave with exit code 2 where something is wrong."""
    from parity.suites.masked_linear import cases, transforms

    choices = {
        "dtype": DTYPES,
        "mask": tuple(dict.fromkeys(case.mask for case in cases.CASES + cases.HARD)),
        "transform": tuple(transforms.BY_NAME),
        "case": tuple(cases.BY_ID),
        "world": WORLDS,
        "tier": TIERS,
        "precision": PRECISIONS,
    }
    if asked.device not in (*DEVICES, "all"):
        asked.parser.error(unknown("--device", asked.device, (*DEVICES, "all")))
    for name, known in choices.items():
        given = getattr(asked, name)
        if given is not None:
            parts = [part for value in given for part in value.split(",")]
            for part in parts:
                if part not in known:
                    asked.parser.error(unknown(f"--{name}", part, known))
            setattr(asked, name, parts)
    if asked.write and asked.command != "golden":
        asked.parser.error("--write: expected the command golden")
    options.check(asked, FILES)
