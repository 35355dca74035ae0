"""The command line: one parser, with a subcommand for each command of parity itself and of the suites found."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from parity import needs, suites
from parity.names import unknown

OWN = {
    "check": "compare the torch function of every pair in a file with its JAX twin",
    "model": "compare the JAX model in a file with its torch model, module by module",
    "compare-records": "say in which cells two records that --json wrote differ",
}
"""Commands of parity itself: the modules parity.cli.NAME, with `add_arguments` and `run` as a suite has them."""

MOVED = {"bench": "python -m benchmarks"}
"""Commands that went elsewhere."""

MEANT = {
    "compare": "`check FILE` compares the operators of a file, `model FILE` two models",
    "models": "`model FILE` compares two models",
    "test": "`check FILE` compares the operators of a file",
}
"""Commands that people look for, and what they are called."""

DEFAULT = "all"
EPILOG = "Exit code: 0 as promised, 1 if something differs or is unexpectedly unsupported, 2 for bad usage."


@dataclass(frozen=True)
class _Command:
    about: str
    load: Callable[[], suites.Suite]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = _commands()
    default = f"Without a command, `{DEFAULT}` runs. " if DEFAULT in commands else ""  # an installed parity has none
    top = argparse.ArgumentParser(
        prog="parity",
        description="Compare torch functions with their JAX twins: those of a file, or of a suite of parity.",
        epilog=f"{default}{EPILOG} `parity COMMAND --help` lists a command's options.",
    )
    top.add_argument("--version", action="store_true", help="print the versions that a bug report needs, and stop")
    below = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    parsers = {
        name: below.add_parser(
            name, help=command.about, description=_sentence(command.about), epilog=EPILOG, allow_abbrev=False
        )
        for name, command in commands.items()
    }
    if given[:1] in (["-h"], ["--help"]) or (not given and DEFAULT not in commands):
        top.parse_args(["--help"])  # installed without suites, there is nothing to run by default
    if given[:1] == ["--version"]:
        return _print_versions()
    if not given or given[0].startswith("-"):
        given = [DEFAULT, *given]
    name = given[0]
    if name in MOVED:
        top.error(f"{name}: it is `{' '.join([MOVED[name], *given[1:]])}` now")
    if name in suites.OF_A_CHECKOUT and name not in commands:
        top.error(
            f"{name}: it runs from a checkout or the sdist, with `python -m parity`; what is installed has no suites"
        )
    if name not in commands:
        if name in MEANT:
            top.error(f"{name}: no command; {MEANT[name]}")
        top.error(unknown("command", name, [*commands], shown=None))
    try:
        with needs.named(f"parity {name}"):
            suite = commands[name].load()
            parsers[name].set_defaults(command=name, parser=parsers[name])
            suite.add_arguments(parsers[name])
            return suite.run(top.parse_args(given))
    except ModuleNotFoundError as error:
        if error.name not in needs.EXTRAS:
            raise
        parsers[name].error(str(error))


def _print_versions() -> int:
    from parity.report.environment import environment

    for name, value in environment().items():
        if name != "switches":
            print(f"{name}: {value}")
    return 0


def _commands() -> dict[str, _Command]:
    found = {
        name: _Command(about, suite.load) for suite in suites.found().values() for name, about in suite.commands.items()
    }
    return found | {name: _Command(about, functools.partial(_own, name)) for name, about in OWN.items()}


def _own(name: str) -> suites.Suite:
    return cast(suites.Suite, importlib.import_module(f"parity.cli.{name.replace('-', '_')}"))


def _sentence(about: str) -> str:
    return about[:1].upper() + about[1:] + ("" if about.endswith(".") else ".")
