"""The training runs: digits, in both precisions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from parity.cli.console import console, verdict
from parity.names import unknown
from parity.records import DEVICES
from parity.report.environment import environment
from parity.suites.masked_linear import written
from parity.suites.masked_linear.records import PRECISIONS

description = "masked layers trained in both frameworks: within rounding, and to the same bits"
commands = {"digits": "masked layers trained on digits in both frameworks: within rounding, and to the same bits"}

FILES = ("json", "summary", "plot")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or all (cpu)")
    parser.add_argument("--precision", action="append", metavar="NAME", help="only this precision; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (0)")
    parser.add_argument("--quick", action="store_true", help="fewer steps, in under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep what the runs showed")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="keep extremes, on one page")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot how far native and reproducible runs drift apart (png, svg)"
    )


def run(asked: argparse.Namespace) -> int:
    """Run the trainings and return the exit code."""
    from parity.cli import options

    if asked.device not in (*DEVICES, "all"):
        asked.parser.error(unknown("--device", asked.device, (*DEVICES, "all")))
    if asked.precision is not None:
        asked.precision = [part for value in asked.precision for part in value.split(",")]
        for part in asked.precision:
            if part not in PRECISIONS:
                asked.parser.error(unknown("--precision", part, PRECISIONS))
    options.check(asked, FILES)
    out = console()
    summary, failed = trained(asked, out)
    if asked.json:
        written.write_json(asked.json, environment(), [], summary)
    if asked.summary:
        written.write_summary(asked.summary, environment(), [], summary)
    return verdict(failed, out)


def trained(asked: argparse.Namespace, out: Console) -> tuple[dict[str, Any], bool]:
    """Run the trainings that are asked for; return what they showed, by name, and whether one failed."""
    summary, failed = {}, False
    for name, precision, train in (("digits", "native", _digits), ("digits, reproducible", "reproducible", _course)):
        if asked.precision is None or precision in asked.precision:
            summary[name], wrong = train(asked, out)
            failed |= wrong
    return summary, failed


def _digits(asked: argparse.Namespace, out: Console) -> tuple[dict[str, Any], bool]:
    from parity.suites.training.digits import run, view

    steps = run.QUICK_STEPS if asked.quick else run.STEPS
    device = "cpu" if asked.device == "all" else asked.device
    if not _present(device):
        return _no_device(device, out)
    with Progress(console=out, disable=not out.is_terminal, transient=True) as progress:
        bar = progress.add_task("digits", total=2 * steps)
        task, seen = run.run(
            seed=asked.seed, steps=steps, device=device, progress=lambda: progress.update(bar, advance=1)
        )
    view.show(task, seen, out)
    return view.summary(task, seen), bool(seen.faults)


def _course(asked: argparse.Namespace, out: Console) -> tuple[dict[str, Any], bool]:
    from parity.suites.training.course import run, view

    steps, worlds = (run.QUICK_STEPS, run.QUICK_WORLDS) if asked.quick else (run.STEPS, tuple(run.WORLDS))
    device = "cpu" if asked.device == "all" else asked.device
    if not _present(device):
        return _no_device(device, out)
    with Progress(console=out, disable=not out.is_terminal, transient=True) as progress:
        bar = progress.add_task("digits, reproducible", total=(len(worlds) + 3) * steps)
        seen = run.run(
            seed=asked.seed, steps=steps, device=device, worlds=worlds,
            progress=lambda: progress.update(bar, advance=1),
        )  # fmt: skip
    view.show(seen, out)
    if asked.plot:
        view.plot(seen, asked.plot)
    return view.summary(seen), bool(seen.faults)


def _present(device: str) -> bool:
    from parity.execution.outputs import world_of

    return all(device in world_of(framework).devices() for framework in ("torch", "jax"))


def _no_device(device: str, out: Console) -> tuple[dict[str, Any], bool]:
    out.print(f"[red]no device[/]: {device} is not here; digits did not run")
    return {"faults": [f"no device: {device}"]}, True
