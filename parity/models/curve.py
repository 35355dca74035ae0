"""Training steps as a small table and as a picture: how far apart the parameters of both models are after each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 70, 20, 40, 45
ROWS = 10
"""Lines of the table; of more steps some are shown."""

LEAST = 1e-17
"""What a distance of zero is drawn as: below one rounding of float64."""


def table(training: Any) -> list[str]:
    """Return the steps as lines: the losses before each, and the distance after it.

    Example:
        >>> from types import SimpleNamespace
        >>> for line in table(SimpleNamespace(distances=[1e-9, 2e-9], losses=[(3.0, 3.0), (2.5, 2.5)])):
        ...     print(line)
          step   torch's loss     JAX's loss   distance
             1              3              3      1e-09
             2            2.5            2.5      2e-09
    """
    count = len(training.distances)
    shown = sorted({round(at * (count - 1) / (min(count, ROWS) - 1 or 1)) for at in range(min(count, ROWS))})
    lines = ["{:>6} {:>14} {:>14} {:>10}".format("step", "torch's loss", "JAX's loss", "distance")]
    for at in shown:
        ours, theirs = training.losses[at]
        lines.append(f"{at + 1:>6} {ours:>14.6g} {theirs:>14.6g} {training.distances[at]:>10.2g}")
    return lines


def svg(training: Any, name: str) -> str:
    """Return the distances as a picture in SVG, on a logarithmic scale.

    Args:
        training: Has `distances` and `losses`, one a step.
        name: Of the models.
    """
    from html import escape

    values = [max(value, LEAST) if math.isfinite(value) else None for value in training.distances]
    finite = [value for value in values if value is not None] or [1.0]
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
    high = max(high, low + 1)
    across = (WIDTH - LEFT - RIGHT) / max(len(values) - 1, 1)

    def y(value: float) -> float:
        return TOP + (high - math.log10(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    points = [(LEFT + at * across, y(value)) for at, value in enumerate(values) if value is not None]
    font = 'font-family="sans-serif" font-size="12"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {font}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(name)}: distance of JAX\'s parameters from torch\'s</text>',
    ]
    for power in range(low, high + 1, max((high - low) // 6, 1)):
        at = y(10.0**power)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>')
    for at in _ticks(len(values)):
        x = LEFT + at * across
        lines.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{at + 1}</text>')
    path = " ".join(f"{x:.1f},{at:.1f}" for x, at in points)
    lines.append(f'<polyline points="{path}" fill="none" stroke="#1f77b4" stroke-width="2"/>')
    lines += [f'<circle cx="{x:.1f}" cy="{at:.1f}" r="3" fill="#1f77b4"/>' for x, at in points]
    middle = (LEFT + WIDTH - RIGHT) / 2
    said = "step; relative to how far torch's moved"
    lines.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{said}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _ticks(count: int) -> Sequence[int]:
    return sorted({round(at * (count - 1) / (min(count, 8) - 1 or 1)) for at in range(min(count, 8))})
