"""The command `gpu`."""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from pathlib import Path

from parity.cli import options
from parity.cli.console import console, verdict
from parity.names import unknown

description = "golden hashes, grid, training, precision and benchmark on a GPU, with one report to take along"
commands = {"gpu": "all checks and measurements for a GPU, with one report to take along"}

PRETEND = ("cpu",)
OUTPUT = Path("gpu-report.json")
LIMIT = 3600.0
"""Seconds for one step. The grid takes the longest: 6 minutes in 15 processes beside an H200, above an hour in one."""
MOST_JOBS = 15
"""Processes of the grid: on a GPU each holds 2 GB of it, and up to 4 GB of the machine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--json", type=Path, default=OUTPUT, metavar="FILE", help=f"the report ({OUTPUT})")
    parser.add_argument("--pretend", metavar="NAME", help="cpu: a quick rehearsal there; its report says so")
    parser.add_argument("--quick", action="store_true", help="a selection of each step")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (0)")
    jobs = max(min(MOST_JOBS, (os.cpu_count() or 1) - 1), 1)
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help=f"processes of the grid ({jobs} here)")
    parser.add_argument("--only", action="append", metavar="STEP", help="only this step; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the steps and stop")


def run(asked: argparse.Namespace) -> int:
    """Run the steps one after the other; the report is written after each, so that nothing is lost."""
    from parity.report import content
    from parity.report.environment import environment
    from parity.suites.gpu import devices, steps

    if asked.pretend is not None and asked.pretend not in PRETEND:
        asked.parser.error(unknown("--pretend", asked.pretend, PRETEND))
    device = asked.pretend or "cuda"
    planned = steps.steps(device, quick=asked.quick or asked.pretend is not None, seed=asked.seed, jobs=asked.jobs)
    names = [step.name for step in planned]
    for name in asked.only or ():
        if name not in names:
            asked.parser.error(unknown("--only", name, names))
    chosen = [step for step in planned if not asked.only or step.name in asked.only]
    out = console()
    if asked.list:
        for step in chosen:
            out.print(f"{step.name}: python -m {step.module} {' '.join(step.arguments)}")
        return 0
    options.check(asked, ("json",))
    seen = devices.seen()
    if device == "cuda" and not (seen["torch"] or seen["jax"]):
        out.print("no device: neither torch nor JAX sees a GPU here; --pretend cpu rehearses the command")
        return 1
    for name in ("torch", "jax"):
        if device == "cuda" and not seen[name]:
            hidden = f" (JAX_PLATFORMS={os.environ['JAX_PLATFORMS']})" if "JAX_PLATFORMS" in os.environ else ""
            out.print(f'{name} sees no GPU{hidden * (name == "jax")}: its cells will read "no device", a failure')
    report: dict[str, object] = {
        "about": "a rehearsal on the CPU: it says nothing of a GPU" if asked.pretend else "ran on a GPU",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "device": device,
        "devices": seen,
    }
    ran = []
    with tempfile.TemporaryDirectory() as folder:
        for step in chosen:
            ran.append(steps.run(step, Path(folder), limit=LIMIT, say=out.print))
            out.print(f"  {ran[-1]['result']}, {ran[-1]['seconds']} s")
            results = {step["step"]: f"{step['result']}, {step['seconds']} s" for step in ran}
            results |= {step.name: "did not run" for step in planned if step.name not in results}
            content.write_json(asked.json, report | {"results": results, "steps": ran})
    out.print(f"report: {asked.json}")
    return verdict(any(step["exit code"] != 0 for step in ran), out)
