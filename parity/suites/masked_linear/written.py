"""What files keep of the grid and of the training runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parity.records import VERDICTS, WORLDS, Record
from parity.report.terminal import write
from parity.suites.masked_linear.records import PRECISIONS


def write_json(path: Path, environment: dict[str, Any], records: Sequence[Record], runs: dict[str, Any]) -> None:
    """Write a run to a file, whole or not at all.

    Args:
        path: The file.
        environment: From `parity.report.environment`.
        records: One for each cell.
        runs: What the training runs showed, as plain data, by name.
    """
    cells = [record.as_dict() for record in records]
    counts = Counter(record.verdict for record in records)
    content = {
        "environment": environment,
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "cells": cells,
        **runs,
    }
    write(path, content)


def write_summary(path: Path, environment: dict[str, Any], records: Sequence[Record], runs: dict[str, Any]) -> None:
    """Write what a run showed in one page: counts, extremes, and the end of the training run.

    Args:
        path: The file.
        environment: From `parity.report.environment`.
        records: One for each cell.
        runs: What the training runs showed, as plain data, by name.
    """
    digits = runs.get("digits")
    ratios = [record.ratio for record in records if record.ratio is not None]
    twins = [record.twin_ratio for record in records if record.twin_ratio is not None]
    content = {
        "environment": environment,
        "cells": len(records),
        "counts": {verdict: sum(r.verdict == verdict for r in records) for verdict in VERDICTS},
        "cells by precision": {
            precision: sum(getattr(record.cell, "precision", "native") == precision for record in records)
            for precision in PRECISIONS
        },
        "cells by world": {world: sum(record.cell.world == world for record in records) for world in WORLDS},
        "known gaps": sorted({f"{r.cell.transform} in {r.cell.world}: {r.reason}" for r in records if r.known}),
        "failed": [record.cell.id for record in records if record.failed],
        "largest error over bound": max(ratios, default=None),
        "RMS error of JAX over torch": [min(twins, default=None), max(twins, default=None)],
        "seconds": round(sum(record.seconds for record in records), 1),
        "digits": digits
        and {
            "steps": digits["steps"],
            "final loss": {name: losses[-1] for name, losses in digits["losses"].items()},
            "accuracy on images held back": digits["test_accuracy"],
            "largest difference of a weight": digits["largest_difference"][-1],
            "frozen weights and biases": digits["frozen"],
            "of them changed": digits["frozen_changed"],
            "faults": digits["faults"],
        },
        **{name: seen for name, seen in runs.items() if name != "digits"},
    }
    write(path, content)
