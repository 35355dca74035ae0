"""A map of weights as a table: torch's name, JAX's path, the rule, the evidence; equal layers in one line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parity.models.weights.weight_map import WeightMap

Row = tuple[str, str, str, str]
HEAD: Row = ("torch", "JAX", "rule", "evidence")
LISTED = 20
"""Unequal or unpaired weights that are listed before the rest is counted."""


def table(found: WeightMap) -> str:
    """Return the table, then what is not paired, not equal or not clear."""
    rows = [HEAD, *_folded(found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in (*widths, len(HEAD[3]))))
    for title, entries in (
        ("Unpaired", found.unpaired.lines()),
        ("Ambiguous", [str(one) for one in found.ambiguous]),
        ("Unequal", [str(one) for one in found.unequal]),
        ("Notes", list(found.notes)),
    ):
        if entries:
            lines += ["", f"{title}:", *(f"  {entry}" for entry in entries[:LISTED])]
            if len(entries) > LISTED:
                lines.append(f"  and {len(entries) - LISTED} more")
    lines += ["", f"{len(found.pairs)} pairs, {found.summary()}."]
    return "\n".join(line.rstrip() for line in lines)


def _folded(found: WeightMap) -> list[Row]:
    """Return a row a pair, with equal rows of several layers as one: layers.{0..11}.fc1.weight."""
    groups: dict[Row, list[tuple[str, str]]] = {}
    for pair in found.pairs:
        torch = " + ".join(map(str, pair.torch_views))
        jax = ", ".join(map(str, pair.jax_views))
        key = (LAYER.sub("{}", torch, count=1), LAYER.sub("{}", jax, count=1), pair.rule, pair.evidence)
        groups.setdefault(key, []).append((torch, jax))
    rows: list[Row] = []
    for (_, _, rule, evidence), names in groups.items():
        if len(names) < 3:
            rows += [(torch, jax, rule, evidence) for torch, jax in names]
        else:
            rows.append((_span([n[0] for n in names]), _span([n[1] for n in names]), rule, evidence))
    return rows


LAYER = re.compile(r"(?<![^._\[])\d+(?![^._\]])")


def _span(names: list[str]) -> str:
    numbers = [LAYER.search(name) for name in names]
    if not all(numbers):
        return names[0] + ", ..."
    found = [int(number[0]) for number in numbers if number]
    whole = found == list(range(found[0], found[-1] + 1))
    span = f"{found[0]}..{found[-1]}" if whole else ",".join(map(str, found))
    return LAYER.sub("{" + span + "}", names[0], count=1)
