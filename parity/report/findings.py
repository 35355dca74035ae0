"""What went wrong, each fault once: cells of one cause and one fix are one finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Cells = list[Mapping[str, Any]]

UNUSUAL = ("nan", "infinite")
"""Kinds of data on which a fault is told last."""


def findings(cells: Iterable[Mapping[str, Any]]) -> list[Cells]:
    """Return the cells of each fault, as plain data: of one pair, verdict, cause and fix, else of one reason.

    Each begins with the cell that tells most: of the forward, on usual numbers. What follows from it comes after.

    Example:
        >>> cell = {"pair": "f", "verdict": "differs", "transform": "vjp", "data": "random", "reason": "by x"}
        >>> [[one["transform"] for one in cells] for cells in findings([cell, {**cell, "transform": "forward"}])]
        [['forward', 'vjp']]
    """
    groups: dict[tuple[str, ...], Cells] = {}
    order = sorted(cells, key=lambda c: (c["transform"] != "forward", c["data"] != "random", c["data"] in UNUSUAL))
    for cell in order:
        why = cell.get("diagnosis")
        cause = (why["cause"], why["fix"]) if why else (cell["reason"],)
        groups.setdefault((cell["pair"], cell["verdict"], *cause), []).append(cell)
    return list(groups.values())


def places(cells: Cells) -> list[str]:
    """Return where a fault shows, a line for all transforms that look alike.

    Example:
        >>> places([{"transform": t, "world": "jax-jit", "dtype": "float32", "data": "random"} for t in ("vjp", "jvp")])
        ['vjp, jvp: in jax-jit; float32; random']
    """
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        seen.setdefault(cell["transform"], []).append(cell)
    alike: dict[str, list[str]] = {}
    for transform, held in seen.items():
        parts = (", ".join(dict.fromkeys(str(c[name]) for c in held if c[name])) for name in ("world", "dtype", "data"))
        alike.setdefault("; ".join(part for part in parts if part), []).append(transform)
    return [f"{', '.join(transforms)}: in {where}" for where, transforms in alike.items()]
