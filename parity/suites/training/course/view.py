"""The runs as a person sees them: one hash beside a distance that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from parity.suites.training.course.run import Seen
from parity.suites.training.digits.view import curve


def show(seen: Seen, console: Console) -> None:
    """Print the comparison."""
    steps = len(seen.task.batches)
    console.print(f"[bold]digits, reproducible[/]: {steps} steps with ReLU, squared error and momentum")
    table = Table(title=f"after {steps} steps", title_justify="left")
    for column in ("world", "SHA-256 of all weights", "loss"):
        table.add_column(column)
    rows = seen.same | {"oracle, by hand": seen.oracle}
    rows |= {f"{name}, native": course for name, course in seen.native.items()}
    for name, course in rows.items():
        losses = f"{course.losses[0]:.4f} {curve(course.losses, 24)} {course.losses[-1]:.9f}"
        table.add_row(name, course.digests[-1][:32], losses)
    console.print(table)
    course_table = Table(title="how the two native runs part", title_justify="left")
    for column in ("step", "weights with other bits", "largest difference", "reproducible"):
        course_table.add_column(column, justify="right")
    for at in np.unique(np.linspace(0, len(seen.task.snapshots) - 1, 9).round().astype(int)):
        same = len({course.digests[at] for course in seen.same.values()}) == 1
        course_table.add_row(
            str(seen.task.snapshots[at]), f"{seen.differing[at]:.1%}", f"{seen.distance[at]:.2g}",
            "same bits" if same else "[red]differ[/]",
        )  # fmt: skip
    console.print(course_table)
    for fault in seen.faults:
        console.print(f"[bold red]digits, reproducible, differs:[/] {fault}", highlight=False)
    if not seen.faults:
        worlds = f"{', '.join(seen.same)}, and in the oracle's integers"
        console.print(f"[green]digits, reproducible: one SHA-256 in {worlds}[/]", highlight=False)


def summary(seen: Seen) -> dict[str, Any]:
    """Return the figures of a run, for JSON."""
    return {
        "steps": len(seen.task.batches),
        "sha256": {name: course.digests[-1] for name, course in (seen.same | {"oracle": seen.oracle}).items()},
        "sha256 native": {name: course.digests[-1] for name, course in seen.native.items()},
        "last loss": {name: course.losses[-1] for name, course in (seen.same | seen.native).items()},
        "snapshots": list(seen.task.snapshots),
        "native weights with other bits": seen.differing.tolist(),
        "native largest difference": [float(value) for value in seen.distance],
        "faults": list(seen.faults),
    }


def plot(seen: Seen, file: Path) -> None:
    """Draw the share of differing weights against steps: native, and reproducible (which is zero)."""
    import matplotlib as mpl

    mpl.use("svg" if file.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    figure, (bits, size) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    first, *others = (course.weights for course in seen.same.values())
    apart = [
        max(float(np.mean(a[at][i] != b)) for a in others for i, b in enumerate(part)) for at, part in enumerate(first)
    ]
    bits.plot(seen.task.snapshots, 100 * seen.differing, "o-", label="native: torch and JAX")
    bits.plot(seen.task.snapshots, 100 * np.array(apart), "s-", label=f"reproducible: all {len(seen.same)} worlds")
    bits.set(xlabel="step", ylabel="weights whose bits differ, %", ylim=(-4, 104))
    bits.legend(frameon=False)
    size.semilogy(seen.task.snapshots[1:], seen.distance[1:], "o-")
    size.set(xlabel="step", ylabel="largest difference, native")
    for axes in (bits, size):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
