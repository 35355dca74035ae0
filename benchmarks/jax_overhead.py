"""What ours costs to compile beyond the plain layer, in JAX. Twin of torch_overhead.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks import jax_steps, operands, timing
from benchmarks.rows import KINDS, Row

ROW = Row("jax", "forward+backward", "columns", 0.1, (32, 256, 256), "float32", "jit", "inner")
SECONDS, QUICK_SECONDS = 12.0, 2.0
ROUNDS, QUICK_ROUNDS = (7, 15), (6, 6)
TARGET = 1.3


def measure(device: str, quick: bool) -> list[dict[str, Any]]:
    """Return times to trace and compile forward and backward, over the plain layer's, for each kind and form.

    Args:
        device: "cpu" or "cuda".
        quick: Only two kinds.
    """
    programs = {}
    numbers = operands.draw(ROW)
    for kind in ("columns", "elements") if quick else KINDS:
        for form, step in jax_steps.curve_steps(replace(ROW, kind=kind), numbers, device).items():
            if form in ("masked", "packed"):
                programs[f"{kind}/{form}"] = step.compile
            elif form == "dense":
                programs["dense"] = step.compile
    samples = timing.interleave(
        programs, seconds=QUICK_SECONDS if quick else SECONDS, rounds=QUICK_ROUNDS if quick else ROUNDS, least=0.0
    )  # fmt: skip
    found = []
    for name, times in samples.items():
        if name != "dense":
            value = timing.ratio(times, samples["dense"])
            found.append({
                "id": f"jax/compile time/{name}", "target": "compile time",
                "value": [value.median, value.low, value.high], "at most": TARGET,
            })  # fmt: skip
    return found
