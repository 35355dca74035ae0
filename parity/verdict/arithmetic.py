"""The arithmetic that a function uses inside, read off both programs: a function is judged in no better one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parity.execution.outputs import Runs
from parity.execution.programs import Reading
from parity.explanation.called_names import spelt
from parity.records import WHO, Cell
from parity.verdict.bounds import UNIT

MOVES = {"lift_fresh", "detach", "contiguous", "_to_copy", "convert_element_type", "broadcast_in_dim", "iota"}
"""Operators that make or move numbers and compute nothing."""

SHOWN = 4
"""Operators that are named."""


@dataclass(frozen=True)
class Arithmetic:
    """What two programs compute in, beside the dtype that was asked for.

    Attributes:
        alike: Whether both use the same types with larger units.
        lowest: That with the largest unit, where both are alike.
        library: The type that one of them uses because a library does so of its own accord
            (jax.nn.dot_product_attention computes its softmax in float32), where no code of the user's does.
        text: Who uses less, in words; empty where both are alike or use no less than was asked for.
    """

    alike: bool = False
    lowest: str = ""
    library: str = ""
    text: str = ""


def of_cell(runs: Runs, cell: Cell, dtype: str) -> Arithmetic:
    """Return what the two programs of a cell compute in.

    Args:
        runs: Runs of the pair.
        cell: On its numbers; its world does not matter.
        dtype: What was asked for.
    """
    plain = replace(cell, transform="forward")
    torch, jax = (
        # A derivative that cannot be read computes in the types of its function.
        runs.reading(cell, framework, dtype) or runs.reading(plain, framework, dtype)
        for framework in ("torch", "jax")
    )
    if torch is None or jax is None:
        return Arithmetic()
    found = compared(torch, jax, dtype)
    found = replace(found, text=spelt(runs, found.text))
    if found.text and not found.library and dtype == "float64":
        # Nobody asked for float64 where a framework computes in it as that is its default: by itself it is float32.
        wider = "jax" if found.text.startswith("torch") else "torch"
        usual = runs.reading(cell, wider, "float32", x64=True)
        if usual is not None and set(usual.types.get("float64", ())) - MOVES:
            return Arithmetic(alike=True, lowest="float32")
    return found


def compared(torch: Reading, jax: Reading, dtype: str) -> Arithmetic:
    """Return what two programs compute in.

    Example:
        >>> torch, jax = Reading({"float64": ["exp"]}), Reading({"float32": ["exp", "div"], "float64": ["add"]})
        >>> compared(torch, jax, "float64").text
        'JAX computes exp, div in float32; torch in float64'
    """
    low = {"torch": torch.below(dtype), "jax": jax.below(dtype)}
    if not low["torch"] and not low["jax"]:
        return Arithmetic()
    if low["torch"].keys() == low["jax"].keys():
        return Arithmetic(alike=True, lowest=max(low["torch"], key=lambda name: UNIT[name]))
    less, more = ("jax", "torch") if _largest(low["jax"]) >= _largest(low["torch"]) else ("torch", "jax")
    extra = [name for name in low[less] if name not in low[more]] or list(low[less])
    lowest = max(extra, key=lambda name: UNIT[name])
    operators = low[less][lowest]
    shown = ", ".join(operators[:SHOWN]) + (" and more" if len(operators) > SHOWN else "")
    text = f"{WHO[less]} computes {shown} in {lowest}; {WHO[more]} in {dtype}"
    reading = jax if less == "jax" else torch
    whose = reading.casts.get(lowest, set())
    if whose and "" not in whose:
        return Arithmetic(library=lowest, text=f"{text} ({', '.join(sorted(whose))} does so of its own accord)")
    return Arithmetic(text=text)


def _largest(low: dict[str, list[str]]) -> float:
    return max((UNIT[name] for name in low), default=0.0)
