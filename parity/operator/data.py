"""Kinds of data: the user's own numbers, and the points where frameworks part from each other.

Special values go into the first floating argument, and into all of its shape: where two operands meet, both
must be special. The others keep the user's numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from parity.operator import trees
from parity.operator.faults import Fault
from parity.operator.pair import Pair, is_float

KINKS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 6.0, -6.0)
"""Where functions change their branch, or their domain ends."""

SUBNORMAL = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}
"""The smallest normal number of a dtype."""

HUGE = {"float64": 2.0**800, "float32": 2.0**100, "bfloat16": 2.0**100, "float16": 2.0**12}
"""So large that a product of two overflows."""

Draw = Callable[[np.random.Generator, np.ndarray, str], np.ndarray]


def _some(values: np.ndarray, every: int, special: tuple[float, ...]) -> np.ndarray:
    changed = values.copy()
    places = changed.reshape(-1)[::every].size
    changed.reshape(-1)[::every] = np.resize(special, places)
    return changed


KINDS: dict[str, Draw] = {
    "random": lambda rng, values, dtype: values,
    "zeros": lambda rng, values, dtype: np.zeros_like(values),
    "signed zeros": lambda rng, values, dtype: _some(np.zeros_like(values), 2, (-0.0,)),
    "ties": lambda rng, values, dtype: rng.integers(1, 3, values.shape).astype(np.float64),
    "kinks": lambda rng, values, dtype: rng.permutation(np.resize(KINKS, values.size)).reshape(values.shape),
    "infinite": lambda rng, values, dtype: _some(values, 5, (np.inf, -np.inf)),
    "nan": lambda rng, values, dtype: _some(values, 7, (np.nan,)),
    "subnormal": lambda rng, values, dtype: rng.uniform(-1, 1, values.shape) * SUBNORMAL[dtype],
    "large": lambda rng, values, dtype: (
        rng.choice((-1.0, 1.0), values.shape) * rng.uniform(1, 2, values.shape) * HUGE[dtype]
    ),
    "small": lambda rng, values, dtype: rng.uniform(-1, 1, values.shape) / HUGE[dtype],
    "negative": lambda rng, values, dtype: -np.abs(values),
}
"""What each makes of an array."""


def kinds(pair: Pair) -> tuple[str, ...]:
    """Return the kinds that say something of a pair: negative numbers only where its own are not."""
    floats = [np.asarray(leaf, np.float64) for _, leaf in trees.leaves(pair.make(0)) if is_float(leaf)]
    if not floats:
        return ("random",)  # whatever the pair's own integers are
    first = floats[0]
    positive = bool(first.size) and bool(np.min(first) >= 0)
    return tuple(kind for kind in KINDS if kind != "negative" or positive)


def make(pair: Pair, kind: str, dtype: str, seed: int) -> tuple[Any, ...]:
    """Return the arguments of a pair: floats as float64 of values that the dtype holds, the others as they are."""
    if kind not in KINDS:
        raise Fault(f"numbers: expected Numbers for the pair's own kind of data {kind!r}, got None")
    arguments = pair.make(seed)
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(f"{pair.name}/{kind}".encode()), seed]))
    first = next((leaf.shape for _, leaf in trees.leaves(arguments) if is_float(leaf)), None)
    number = 0

    def changed(leaf: Any) -> Any:
        nonlocal number
        if not is_float(leaf):
            return leaf
        values = np.array(leaf, np.float64)
        number += 1
        if number == 1 or leaf.shape == first:
            values = KINDS[kind](rng, values, dtype)
        return rounded(values, dtype)

    return trees.rebuild(arguments, iter([changed(leaf) for _, leaf in trees.leaves(arguments)]))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the nearest values of a dtype, as float64.

    Example:
        >>> rounded(np.array([1 + 2.0**-9]), "bfloat16")
        array([1.])
    """
    values = np.asarray(values, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            bits = values.astype(np.float32).view(np.uint32)
            nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
            return np.where(np.isfinite(values), nearest.astype(np.uint32).view(np.float32), values).astype(np.float64)
        return values.astype(dtype).astype(np.float64)
