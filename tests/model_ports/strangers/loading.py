"""What the ports by strangers share: inputs of a seed, and a port that holds torch's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parity import map_weights


def floats(*shape: int) -> Callable[[int], tuple[np.ndarray]]:
    """Return what makes one array of floats of a seed."""
    return lambda seed: (np.random.default_rng(seed).standard_normal(shape).astype(np.float32),)


def words(*size: int) -> Callable[[int], tuple[np.ndarray]]:
    """Return what makes one array of word ids: the last number is how many words there are."""
    return lambda seed: (np.random.default_rng(seed).integers(0, size[-1], size[:-1]).astype(np.int32),)


def loaded(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes a port and loads torch's weights into it."""

    def port(model: Any, **options: Any) -> Any:
        made = make(**options)
        return map_weights(model, made).load_into_jax(model, made, partial=True)

    return port
