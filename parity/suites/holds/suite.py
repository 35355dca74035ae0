"""The command `holds`."""

from __future__ import annotations

import argparse
import importlib

from parity.cli.console import console, verdict
from parity.names import unknown
from parity.records import DEVICES

description = "held layers trained on a device, under many optimizers: no frozen bit moves, and the rest learns"
commands = {"holds": "held layers trained on a device, under many optimizers: no frozen bit moves"}

FRAMEWORKS = ("torch", "jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (cpu)")
    parser.add_argument("--framework", choices=FRAMEWORKS, help="only this one")


def run(asked: argparse.Namespace) -> int:
    """Run all cases, print those that fail, and return the exit code."""
    from parity.suites.gpu import devices
    from parity.suites.holds.cases import tried

    if asked.device not in DEVICES:
        asked.parser.error(unknown("--device", asked.device, DEVICES))
    out, failed = console(), False
    seen = devices.seen() if asked.device == "cuda" else {}
    for framework in (asked.framework,) if asked.framework else FRAMEWORKS:
        if asked.device == "cuda" and not seen[framework]:
            out.print(f"holds: no device: {framework} sees no GPU here")
            failed = True
            continue
        count = wrong = 0
        for name, case in importlib.import_module(f"parity.suites.holds.{framework}_cases").cases(asked.device):
            error = tried(case)
            count, wrong = count + 1, wrong + bool(error)
            if error:
                out.print(f"  {framework}, {name}: {error}", markup=False)
        out.print(f"holds: {framework} on {asked.device}: {count - wrong} of {count} right")
        failed |= bool(wrong)
    return verdict(failed, out)
