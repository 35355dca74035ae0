"""Weights of order one, the same on both sides: they show what initial values hide.

With a norm whose scale is one, a bias of zeros, or a projection of size 0.02, a missing bias or a wrong base of rotary
positions changes almost nothing. Only weights that both models have are changed. A table of positions that one model
computes and the other stores is not such a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from parity.verdict.bounds import UNIT

GAIN = 1.2
"""Standard deviation of a projection's output, for inputs of order one."""

SPREAD = 0.3
"""Of scales around one, and of biases around zero."""

LOW = {"bfloat16", "float16"}
"""Types of weights in which a number that float32 has may be another."""

ROUNDED = 8.0
"""Units of the largest that a computed weight may be off by: more is another weight, and is left as it is."""


def perturbed(
    values: Mapping[str, np.ndarray], layers: Mapping[str, str], pairs: Sequence[Any], seed: int
) -> dict[str, np.ndarray]:
    """Return new values of the torch weights that are paired, by name.

    Args:
        values: Of the torch model's weights, by name.
        layers: The class of torch's own layer that owns each weight, or "".
        pairs: Of a `WeightMap`.
        seed: Of the random numbers.
    """
    paired = [name for pair in pairs if getattr(pair, "kind", "parameter") != "buffer" for name in pair.torch]
    return of_names(values, layers, paired, seed)


def of_names(
    values: Mapping[str, np.ndarray], layers: Mapping[str, str], names: Iterable[str], seed: int
) -> dict[str, np.ndarray]:
    """Return new values of torch's weights of some names."""
    changed = {}
    for name in dict.fromkeys(names):
        value = values[name]
        if value.dtype.kind == "f" and value.size:
            new = _value(name.rpartition(".")[2], value, layers.get(name, ""), _random(seed, name))
            changed[name] = new.astype(np.float32).astype(value.dtype)  # numbers that float32 has, whatever it runs in
    return changed


def perturbed_jax(values: Mapping[str, np.ndarray], paths: Iterable[str], seed: int) -> dict[str, np.ndarray]:
    """Return new values of JAX's weights at some paths, where torch's model is not there.

    Example:
        >>> made = perturbed_jax({"fc.kernel": np.zeros((400, 3)), "norm.scale": np.ones(5)}, ["fc.kernel"], 0)
        >>> list(made), bool(0.04 < made["fc.kernel"].std() < 0.08)
        (['fc.kernel'], True)
    """
    changed = {}
    for path in paths:
        value = values[path]
        if value.dtype.kind == "f" and value.size:
            name = re.split(r"[.\[\]']+", path.rstrip("]'"))[-1]
            new = _jax_value(name, value, _random(seed, path))
            changed[path] = new.astype(np.float32).astype(value.dtype)
    return changed


def _jax_value(name: str, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(value.shape)
    if name == "mean":
        return SPREAD * noise
    if name == "var":
        return rng.uniform(0.5, 1.5, value.shape)
    if name in ("bias", "b"):
        return SPREAD * noise
    if name == "embedding":
        return noise
    if name == "scale" or (name == "weight" and value.ndim == 1):
        return 1 + SPREAD * rng.uniform(-1, 1, value.shape)
    if name in ("kernel", "w", "weight") and value.ndim >= 2:
        into = value.shape[1:] if name == "weight" else value.shape[:-1]
        return noise * GAIN / math.sqrt(max(math.prod(into), 1))
    return value * (1 + SPREAD * rng.uniform(-1, 1, value.shape)) + SPREAD / 3 * noise


def shortened(array: np.ndarray) -> np.ndarray:
    """Return an array of the numbers next to zero that bfloat16 has.

    Example:
        >>> shortened(np.array([1.0, 1.0009765625, -2.7]))
        array([ 1.    ,  1.    , -2.6875])
    """
    if array.dtype.kind != "f":
        return array
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(array.dtype)


def _random(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, *name.encode()]))


def _value(name: str, value: np.ndarray, layer: str, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(value.shape)
    if name == "running_mean":
        return SPREAD * noise
    if name == "running_var":
        return rng.uniform(0.5, 1.5, value.shape)
    if "bias" in name:
        return SPREAD * noise
    if layer in ("Embedding", "EmbeddingBag"):
        return noise
    if layer == "Conv1D (transformers)":
        return noise * GAIN / math.sqrt(value.shape[0])
    if layer and value.ndim >= 2:
        return noise * GAIN / math.sqrt(max(math.prod(value.shape[1:]), 1))
    if value.ndim == 1 and ("weight" in name or "scale" in name or "norm" in layer.lower()):
        return 1 + SPREAD * rng.uniform(-1, 1, value.shape)
    if value.ndim >= 2 and "weight" in name:
        return noise * GAIN / math.sqrt(max(math.prod(value.shape[1:]), 1))
    # What it means is not known (a decay, a temperature, a token): near what it was.
    return value * (1 + SPREAD * rng.uniform(-1, 1, value.shape)) + SPREAD / 3 * noise


def into_jax(
    pairs: Sequence[Any], torch_values: Mapping[str, np.ndarray], jax_values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the JAX weights that pairs fill, with torch's values in them, by path."""
    made: dict[str, np.ndarray] = {}
    for pair in pairs:
        value = pair.transform.to_jax(pair.torch_parts(torch_values), pair.jax_shape)
        for view in pair.jax_views:
            if view.name not in made:
                made[view.name] = np.array(jax_values[view.name])
            view.put(made[view.name], value)
    return made


def settled(
    pairs: Iterable[Any], torch_values: Mapping[str, np.ndarray], jax_values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return torch's weights in float64, by name, where JAX's were computed of them: such as give JAX's exactly.

    A port holds the sum of two biases in float32, rounded. Models that run in float64 would differ by that.
    """
    made: dict[str, np.ndarray] = {}
    for pair in pairs:
        if not pair.transform.computes:
            continue
        parts = pair.torch_parts(torch_values)
        exact = pair.transform.exact(parts, pair.jax_part(jax_values))
        for view, part, value in zip(pair.torch_views, parts, exact, strict=True):
            unit = max(UNIT["float32"], UNIT.get(str(part.dtype), 0.0))
            if np.all(np.abs(value - part) <= ROUNDED * unit * np.abs(pair.jax_part(jax_values)).max(initial=0.0)):
                if view.name not in made:
                    made[view.name] = np.array(torch_values[view.name], np.float64)
                view.put(made[view.name], value)
    return made
