"""Weights that a module of JAX really ran with: those of another module, though its own are loaded right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parity.models.causes.weights import ENOUGH, same
from parity.records import Diagnosis

SHARED, ORDER = "modules shared", "layer order"


def diagnose(judgement: Any, others: Sequence[Any], values: Mapping[str, np.ndarray]) -> Diagnosis | None:
    """Return that a module ran with the weights of another one, or None.

    Args:
        judgement: Of the module: `.pair`, with the calls and the pairs of weights, and `.call`.
        others: The judgements of all modules.
        values: Torch's weights by name, as they were in this run.
    """
    ran = _ran(judgement)
    for held in judgement.pair.weights:
        if not ran or _is_in(_wanted(held, values), ran):
            continue
        for other, one in _alike(held, others):
            if _is_in(_wanted(one, values), ran):
                return _told(held.torch[0], one.torch[0], own=_is_in(_wanted(one, values), _ran(other)))
    return None


def _ran(judgement: Any) -> list[np.ndarray]:
    """Return the arrays that a JAX module held while it ran."""
    found = []
    for array in judgement.pair.jax_calls[judgement.call].state:
        try:
            found.append(np.asarray(array, np.float64))
        except TypeError:  # keys of random numbers
            continue
    return found


def _alike(held: Any, others: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield other modules with their weights of one shape."""
    for other in others:
        if not other.children:
            yield from (
                (other, one) for one in other.pair.weights if one.jax_shape == held.jax_shape and one is not held
            )


def _wanted(held: Any, values: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(held.transform.to_jax(held.torch_parts(values), held.jax_shape), np.float64)


def _is_in(wanted: np.ndarray, ran: Sequence[np.ndarray]) -> bool:
    return wanted.size >= ENOUGH and any(same(one, wanted) for one in ran)


def _told(mine: str, theirs: str, *, own: bool) -> Diagnosis:
    where = f"JAX runs with torch's {theirs} where torch runs with {mine}, though {mine} is loaded"
    if own:
        text = f"{where}; it is used in its own place as well."
        return Diagnosis(SHARED, text, "Give each layer its own weights: take those of its number from the stack.")
    return Diagnosis(ORDER, f"{where}.", "Run the layers of the stack from the first to the last.")
