"""The training run as a person sees it: two curves side by side, and what must not have moved."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from parity.suites.training.digits.compare import Comparison
from parity.suites.training.digits.network import Task

BARS = "▁▂▃▄▅▆▇█"


def curve(values: np.ndarray, width: int = 64) -> str:
    """Return a curve as one line of bars.

    Example:
        >>> curve(np.array([0.0, 1.0]), 2)
        '▁█'
    """
    at = np.linspace(0, len(values) - 1, width).round().astype(int)
    low, high = float(np.min(values)), float(np.max(values))
    heights = (values[at] - low) / (high - low or 1.0) * (len(BARS) - 1)
    return "".join(BARS[round(float(height))] for height in heights)


def show(task: Task, seen: Comparison, console: Console) -> None:
    """Print the comparison of a training run."""
    steps = len(task.batches)
    console.print(f"[bold]digits[/]: {len(task.images)} images, {steps} steps, layers:", highlight=False)
    for spec in task.layers:
        share = spec.grad_mask.density((spec.out_features, spec.in_features))
        console.print(
            f"  {spec.in_features:>2} -> {spec.out_features:<2}  {share:>5.1%} of the weight trains: {spec.grad_mask}",
            highlight=False,
        )
    for run in seen.histories:
        console.print(
            f"loss {run.name:<6}{run.losses[0]:.4f} {curve(run.losses)} {run.losses[-1]:.4f}", highlight=False
        )
    console.print(_course(task, seen))
    table = Table(title="at the end", title_justify="left")
    for column in ("", "training", "held back", "frozen bits changed", "trainable moved"):
        table.add_column(column, justify="left" if not column else "right")
    for run in seen.histories:
        changed = f"{seen.changed[run.name]} of {seen.frozen}"
        table.add_row(
            run.name, f"{run.train_accuracy:.2%}", f"{run.test_accuracy:.2%}", changed, f"{seen.moved[run.name]:.1%}"
        )
    console.print(table)
    for fault in seen.faults:
        console.print(f"[bold red]digits differs:[/] {fault}", highlight=False)
    if not seen.faults:
        console.print("[green]digits: one course within rounding, every frozen weight has its initial bits[/]")


def summary(task: Task, seen: Comparison) -> dict[str, Any]:
    """Return the comparison as plain data."""
    return {
        "steps": len(task.batches),
        "losses": {run.name: run.losses.tolist() for run in seen.histories},
        "train_accuracy": {run.name: run.train_accuracy for run in seen.histories},
        "test_accuracy": {run.name: run.test_accuracy for run in seen.histories},
        "snapshots": list(task.snapshots),
        "largest_difference": seen.apart.tolist(),
        "distance_to_float64": {name: values.tolist() for name, values in seen.distance.items()},
        "frozen": seen.frozen,
        "frozen_changed": seen.changed,
        "trainable_moved": seen.moved,
        "faults": list(seen.faults),
    }


def _course(task: Task, seen: Comparison) -> Table:
    table = Table(title="course (distances: RMS over all weights, from the float64 run)", title_justify="left")
    for column in (
        "step",
        "loss torch",
        "loss jax",
        "largest difference",
        "torch strays",
        "jax strays",
        "float32 strays",
    ):
        table.add_column(column, justify="right")
    chosen = sorted({*range(0, len(task.snapshots), 4), len(task.snapshots) - 1})
    for at in chosen:
        step = task.snapshots[at]
        before = min(step, len(task.batches) - 1)
        torch, jax = seen.histories
        distances = [f"{seen.distance[name][at]:.2e}" for name in ("torch", "jax", seen.yardstick.name)]
        losses = [f"{run.losses[before]:.7f}" for run in (torch, jax)]
        table.add_row(str(step), *losses, f"{seen.apart[at]:.2e}", *distances)
    return table
