"""How time and memory grow: with the share that learns, with the width, with the batch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks import operands, rows, timing
from benchmarks.rows import HOWS, Row

SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0)
SHAPE, QUICK_SHAPE = (2048, 1024, 1024), (512, 1024, 1024)
WIDTHS = ((1024, 256, 256), (1024, 512, 512), (1024, 1024, 1024), (1024, 2048, 2048))
BATCHES = ((128, 1024, 1024), (512, 1024, 1024), (2048, 1024, 1024), (4096, 1024, 1024))
SECONDS = 6.0
ROUNDS, QUICK_ROUNDS = (7, 13), (6, 6)


@dataclass(frozen=True)
class Heat:
    """Rows that are timed together, as points of one curve.

    Attributes:
        over: "p", "width" or "batch".
        rows: A point each.
        rounds: At least and at most.
    """

    over: str
    rows: tuple[Row, ...]
    rounds: tuple[int, int] = ROUNDS


@dataclass(frozen=True)
class Line:
    """A straight line through points.

    Attributes:
        intercept: At 0.
        slope: For each unit.
        worst: The largest distance of a point from it.
    """

    intercept: float
    slope: float
    worst: float


def heats(framework: str, quick: bool = False) -> list[Heat]:
    """Return what is measured, with `columns` in forward and backward."""
    usual = Row(framework, "forward+backward", "columns", 0.1, SHAPE, "float32", HOWS[framework][0], "inner")
    if quick:
        usual = replace(usual, shape=QUICK_SHAPE)
        return [Heat("p", tuple(replace(usual, p=p) for p in (0.01, 0.1, 0.5, 1.0)), QUICK_ROUNDS)]
    return [
        Heat("p", tuple(replace(usual, p=p) for p in SHARES)),
        Heat("width", tuple(replace(usual, shape=shape) for shape in WIDTHS)),
        Heat("batch", tuple(replace(usual, shape=shape) for shape in BATCHES)),
    ]


def measure(heat: Heat, device: str) -> dict[str, Any]:
    """Return a curve's points, timed side by side, and what they fit.

    Over p all times are ratios to the dense layer's at the same shape, and a layer whose weight is frozen
    is timed with them. Over width and batch each point has its own dense layer.
    """
    framework = heat.rows[0].framework
    steps = importlib.import_module(f"benchmarks.{framework}_steps")
    same_shape = heat.over == "p"
    programs: dict[tuple[str, int], Any] = {}
    for at, row in enumerate(heat.rows):
        for name, step in steps.curve_steps(row, operands.draw(row), device).items():
            if name in ("masked", "packed") or not same_shape or at == 0:
                programs[name, at] = step
    samples = timing.interleave(
        {f"{name} {at}": step for (name, at), step in programs.items()}, seconds=SECONDS, rounds=heat.rounds
    )  # fmt: skip
    found: dict[str, Any] = {"framework": framework, "over": heat.over, "points": [], "row": heat.rows[0].id}
    for at, row in enumerate(heat.rows):
        point: dict[str, Any] = {"shape": row.shape, "p": rows.mask_of(row).density(row.weight_shape)}
        dense = samples[f"dense {0 if same_shape else at}"]
        point["dense seconds"] = timing.median(dense).median
        for form in ("masked", "packed"):
            value = timing.ratio(samples[f"{form} {at}"], dense)
            point[form] = [value.median, value.low, value.high]
            point[f"{form} seconds"] = timing.median(samples[f"{form} {at}"]).median
            point[f"{form} kept"] = programs[form, at].kept()
        found["points"].append(point)
    if same_shape:
        value = timing.ratio(samples["frozen 0"], samples["dense 0"])
        found["frozen"] = [value.median, value.low, value.high]
        found["frozen kept"] = programs["frozen", 0].kept()
    return found | {"fits": fits(found)}


def fits(found: dict[str, Any]) -> dict[str, Any]:
    """Return a line for each form over p, exponents over width and batch; of time and of bytes kept.

    Args:
        found: What `measure` found: its points.
    """
    points = found["points"]
    seen: dict[str, Any] = {}
    for form in ("masked", "packed"):
        if found["over"] == "p":
            shares = [point["p"] for point in points]
            time = line(shares, [point[form][0] for point in points])
            kept = line(shares, [point[f"{form} kept"] for point in points])
            seen[form] = {
                "intercept": time.intercept, "slope": time.slope, "worst": time.worst,
                "intercept over frozen": time.intercept / found["frozen"][0],
                "kept: intercept over slope": kept.intercept / kept.slope,
                "kept: worst over slope": kept.worst / kept.slope,
            }  # fmt: skip
        else:
            batch = found["over"] == "batch"
            sizes = [point["shape"][0] if batch else point["shape"][-1] for point in points]
            seen[form] = {
                "exponent": exponent(sizes, [point[f"{form} seconds"] for point in points]),
                "exponent of dense": exponent(sizes, [point["dense seconds"] for point in points]),
                "kept: exponent": exponent(sizes, [point[f"{form} kept"] for point in points]),
            }
    return seen


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Return the least squares line.

    Example:
        >>> line([0, 1, 2], [1, 3, 5])
        Line(intercept=1.0, slope=2.0, worst=0.0)
    """
    slope, intercept = np.polyfit(x, y, 1)
    worst = np.abs(np.polyval((slope, intercept), x) - y).max()
    return Line(round(float(intercept), 12), round(float(slope), 12), round(float(worst), 12))


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the e of y ~ x^e.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
