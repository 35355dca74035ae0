"""What the ports by strangers share: inputs of a seed, and a port that holds torch's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from parity import map_weights
from parity.models import Inputs


def floats(*shape: int) -> Callable[[int], tuple[np.ndarray]]:
    """Return what makes one array of floats of a seed."""
    return lambda seed: (np.random.default_rng(seed).standard_normal(shape).astype(np.float32),)


def words(*size: int) -> Callable[[int], tuple[np.ndarray]]:
    """Return what makes one array of word ids: the last number is how many words there are."""
    return lambda seed: (np.random.default_rng(seed).integers(0, size[-1], size[:-1]).astype(np.int32),)


def images(channels: int = 3, size: int = 16) -> Callable[[int], Inputs]:
    """Return what makes two images of a seed, with channels first in torch and last in JAX."""

    def made(seed: int) -> Inputs:
        (x,) = floats(2, channels, size, size)(seed)
        return Inputs(torch=(x,), jax=(x.transpose(0, 2, 3, 1),))

    return made


def seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Return what makes a torch model of a seed, in evaluation."""

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make().eval()

    return made


def loaded(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes a port and loads torch's weights into it."""

    def port(model: Any, **options: Any) -> Any:
        made = make(**options)
        return map_weights(model, made).load_into_jax(model, made, partial=True)

    return port
