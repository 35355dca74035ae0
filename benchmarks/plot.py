"""The curves as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LABELS = {"p": "share p that learns", "width": "features", "batch": "batch"}
COLORS = {("torch", "masked"): "C0", ("torch", "packed"): "C1", ("jax", "masked"): "C2", ("jax", "packed"): "C3"}


def draw(growth: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw time over p, width and batch, and bytes kept over p.

    Args:
        growth: As `growth.measure` finds it, of each framework.
        file: A png or svg.
    """
    import matplotlib as mpl

    mpl.use("svg" if file.suffix == ".svg" else "agg")
    mpl.rcParams["svg.hashsalt"] = "parity"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    panels = dict(zip(("p", "width", "batch", "kept"), axes, strict=True))
    shares = np.linspace(0, 1, 50)
    panels["p"].plot(shares, (2 + shares) / 3, "k:", label="limit (2 + p) / 3")
    for curve in growth:
        points, over, framework = curve["points"], curve["over"], curve["framework"]
        if over == "p":
            at = [point["p"] for point in points]
            panels["p"].plot(
                0, curve["frozen"][0], "x", color=COLORS[framework, "masked"], label=f"{framework}, frozen"
            )
        else:
            at = [point["shape"][0 if over == "batch" else -1] for point in points]
            seconds = [1e3 * point["dense seconds"] for point in points]
            line = "--" if framework == "torch" else ":"
            panels[over].loglog(at, seconds, line, color="gray", label=f"{framework}, dense")
        for form in ("masked", "packed"):
            color, label = COLORS[framework, form], f"{framework}, {form}"
            if over == "p":
                values = np.array([point[form] for point in points])
                errors = np.abs(values[:, 1:] - values[:, :1]).T
                panels["p"].errorbar(at, values[:, 0], errors, fmt="o", markersize=4, color=color, label=label)
                fit = curve["fits"][form]
                panels["p"].plot(shares, fit["intercept"] + fit["slope"] * shares, "-", color=color, linewidth=0.8)
                kept = [point[f"{form} kept"] / 1e6 for point in points]
                panels["kept"].loglog(at, kept, "o-", markersize=4, color=color, label=label)
            else:
                seconds = [1e3 * point[f"{form} seconds"] for point in points]
                panels[over].loglog(at, seconds, "o-", markersize=4, color=color, label=label)
    panels["p"].set(xlabel=LABELS["p"], ylabel="time over dense")
    panels["width"].set(xlabel=LABELS["width"], ylabel="ms, a tenth learns")
    panels["batch"].set(xlabel=LABELS["batch"], ylabel="ms, a tenth learns")
    panels["kept"].set(xlabel=LABELS["p"], ylabel="MB kept for the backward")
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(frameon=False, fontsize=7)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
