"""The report of a comparison: all cells, a table to read, files to keep."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from parity.records import VERDICTS, Record
from parity.report.environment import environment

RENDERERS = {".html": "parity.report.html", ".md": "parity.report.markdown"}
"""Modules whose `render(content)` returns the text of a file, by its suffix."""


@dataclass(frozen=True)
class Report:
    """What a comparison saw.

    Attributes:
        name: Name of the pair.
        cells: A record for each cell: `.transform`, `.world`, `.dtype`, `.device`, `.data`, `.verdict`,
            `.diagnosis`, `.reason`, and the worst element in `.finding`.
        environment: Versions, machine and commit.
    """

    name: str
    cells: Sequence[Record]
    environment: dict[str, Any] = field(default_factory=environment)

    @property
    def ok(self) -> bool:
        """Whether no cell failed."""
        return not any(record.failed for record in self.cells)

    @property
    def failed(self) -> list[Record]:
        """The cells that failed."""
        return [record for record in self.cells if record.failed]

    def content(self) -> dict[str, Any]:
        """Return plain data, as it is written to files."""
        return {
            "environment": self.environment,
            "name": self.name,
            "counts": {verdict: sum(r.verdict == verdict for r in self.cells) for verdict in VERDICTS},
            "cells": [record.as_dict() for record in self.cells],
        }

    def save(self, path: str | Path) -> None:
        """Write the report to a file, whole or not at all.

        Args:
            path: Ends in .json, .html or .md.

        Raises:
            ValueError: It ends otherwise.
            FileNotFoundError: Its folder is not there.
        """
        from parity.report import terminal  # rich, which parity itself does without

        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path: expected a file in a folder that exists, got {str(path)!r}")
        if path.suffix == ".json":
            terminal.write(path, self.content())
        elif path.suffix in RENDERERS:
            terminal.replace(path, importlib.import_module(RENDERERS[path.suffix]).render(self.content()))
        else:
            raise ValueError(f"path: expected a name that ends in .json, .html or .md, got {str(path)!r}")

    def raise_if_failed(self) -> None:
        """Raise ParityError, an AssertionError, with the report as its text if any cell failed."""
        if not self.ok:
            raise ParityError(self)

    def __str__(self) -> str:
        from parity.report import table  # rich, which parity itself does without

        return table.text(self)


class ParityError(AssertionError):
    """The two functions differ; `report` says where and why."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"{report.name}: torch and JAX differ\n{report}")
        self.report = report

    def __reduce__(self) -> tuple[type[Self], tuple[Report]]:
        """Be copied, and sent to another process: `args` holds the text, which `__init__` does not take."""
        return type(self), (self.report,)
