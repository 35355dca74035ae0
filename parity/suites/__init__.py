"""What `python -m parity` can run. Adding a suite is adding a folder here, with a file `suite.py` in it.

`suite.py` defines

    description        one line, a literal string: it is read without importing the file
    commands           optional: a literal dict, by name of command, of what it does in a line. A suite without it has
                       one command, of the folder's name. The command "all" is what runs when none is named.
    add_arguments(parser)   adds the options; `parser.get_default("command")` is the command
    run(asked)         runs and returns the exit code; `asked.command` is the command, `asked.parser` the parser

A suite is imported when one of its commands is asked for, and not before.
"""

from __future__ import annotations

import argparse
import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

OF_A_CHECKOUT = ("all", "atlas", "digits", "golden", "gpu", "grid", "holds", "mutants", "precision")
"""Commands of the suites, which are in no wheel."""

MOVED = {name: "parity.suites.masked_linear" for name in ("plan", "run")}
"""What `parity` itself had once, and where it is."""

INTERFACE = ("description", "add_arguments", "run")


class Suite(Protocol):
    """What a file `suite.py` defines."""

    description: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of a command."""

    def run(self, asked: argparse.Namespace) -> int:
        """Run a command and return the exit code."""


@dataclass(frozen=True)
class Found:
    """A suite that was found, and not yet imported.

    Attributes:
        name: Name of its folder.
        description: What it is, in a line.
        commands: What each of its commands does, by name.
    """

    name: str
    description: str
    commands: Mapping[str, str]

    def load(self) -> Suite:
        """Import the suite.

        Raises:
            TypeError: It does not define what a suite must.
        """
        suite = importlib.import_module(f"{__name__}.{self.name}.suite")
        missing = [name for name in INTERFACE if not hasattr(suite, name)]
        if missing:
            raise TypeError(
                f"{suite.__file__}: expected a suite to define {', '.join(INTERFACE)}; it has no {missing[0]}"
            )
        return cast(Suite, suite)


def found() -> dict[str, Found]:
    """Return the suites that there are, by name, without importing any.

    Example:
        >>> "masked_linear" in found() and "atlas" in found()
        True
    """
    files = {file.parent.name: file for folder in __path__ for file in sorted(Path(folder).glob("*/suite.py"))}
    return {name: _read(name, file) for name, file in files.items()}


def _read(name: str, file: Path) -> Found:
    literals: dict[str, Any] = {}
    for node in ast.parse(file.read_text("utf-8"), str(file)).body:
        name_of = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(name_of, ast.Name) and name_of.id in ("description", "commands"):
            try:
                literals[name_of.id] = ast.literal_eval(node.value)
            except ValueError:
                raise ValueError(
                    f"{file}, line {node.lineno}: expected {name_of.id} to be a literal, as it is read without "
                    "importing the file"
                ) from None
    description = literals.get("description", "")
    return Found(name, description, literals.get("commands", {name: description}))
