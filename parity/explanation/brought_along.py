"""Arrays that a function brings along: numbers of one side's in which the other side's are others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Key, Operand, Step, set_operand
from parity.explanation.substitution import Bench, Change

NEAR = 1e-6
"""Two arrays are one if they differ by less, relative: one of them may have been rounded to float32."""

Places = list[tuple[Key, Operand]]


def claims(bench: Bench, names: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Claim]:
    """Yield one array of JAX's with the numbers of one of torch's.

    Args:
        bench: Both programs.
        names: By framework and path, the arrays that a function brings along and that have no partner.
    """
    mine, theirs = (_arrays(bench, name) for name in ("jax", "torch"))
    for array, places in mine:
        for other, _ in theirs:
            if sorted(array.shape) != sorted(other.shape) or array.ndim > 4:
                continue
            turned = {o.tobytes(): o for axes in itertools.permutations(range(other.ndim))
                      if (o := other.transpose(axes)).shape == array.shape}  # fmt: skip
            for values in turned.values():
                apart = np.argwhere(~np.isclose(array, values, rtol=NEAR, atol=0, equal_nan=True))
                if not len(apart) or any(_same(values, one) for one, _ in mine):
                    continue
                index = tuple(apart[0].tolist())
                more = f", the first of {len(apart)} numbers that differ," if len(apart) > 1 else ""
                edits: dict[Key, list[tuple[Operand, Any]]] = {}
                for key, operand in places:
                    edits.setdefault(key, []).append((operand, values))
                name, own = (
                    _named(names[side], one) or f"an array of shape {one.shape} that the function brings along"
                    for side, one in (("jax", array), ("torch", other))
                )
                yield Claim(
                    Change("jax", {key: set_operand(*one) for key, one in edits.items()}),
                    "other weights",
                    f"{name} has {array[index]:.6g} at {list(index)}{more}",
                    f"{values[index]:.6g} ({own})",
                    "Load the same numbers into both, or hand the weights over as inputs.",
                )


def _arrays(bench: Bench, framework: str) -> list[tuple[np.ndarray, Places]]:
    """Return what goes into steps and is neither made by one nor an input, each array once."""
    found: list[tuple[np.ndarray, Places]] = []
    inputs = bench.numbers[0].theta
    steps = bench.programs[framework].steps
    for step, operand, value in ((s, o, v) for s in steps for o, v in s.operands.items() if _stands(s, o, v)):
        if any(_same(value, leaf) for leaf in inputs):
            continue
        places = next((places for one, places in found if np.array_equal(one, value)), None)
        if places is None:
            found.append((value, places := []))
        places.append((step.key, operand))
    return found


def _stands(step: Step, operand: Operand, value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0 and value.dtype.kind == "f" and operand not in step.sources


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=NEAR, atol=0, equal_nan=True))


def _named(arrays: Mapping[str, np.ndarray], value: np.ndarray) -> str:
    return next((path for path, one in arrays.items() if _same(one, value)), "")


def names_of(function: Callable[..., Any]) -> Mapping[str, np.ndarray]:
    """Return the arrays of a function that are cast and not lifted (operator/brought.py), by path."""
    return getattr(function, "own", {})
