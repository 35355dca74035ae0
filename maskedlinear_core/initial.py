"""Initial values, drawn by NumPy so that both frameworks start from the same bits (contract S8)."""

from __future__ import annotations

import math

import numpy as np

LOCATION_BOUND = 0.1
"""Half-width of the uniform distribution from which `from_location` draws (contract S8)."""


def linear_bound(in_features: int) -> float:
    """Return 1 / sqrt(in_features), the half-width of torch's default initialisation of a linear layer.

    Example:
        >>> linear_bound(16)
        0.25
    """
    return 1.0 / math.sqrt(in_features) if in_features > 0 else 0.0


def parameters(
    out_features: int, in_features: int, bias: bool, *, bound: float, seed: int, dtype: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw weight (O, I) and bias (O,) from uniform(-bound, bound).

    Args:
        out_features: O.
        in_features: I.
        bias: Whether to draw a bias.
        bound: Half-width of the distribution.
        seed: Seed of NumPy's PCG64; weight and bias come from one stream, in this order.
        dtype: "float64" keeps all bits that were drawn. Every other dtype is drawn as float32: rounding a float32 to
            bfloat16 or float16 is one rounding, the same in both frameworks.

    Returns:
        Arrays of float64 or float32; the bias is None without bias.

    Example:
        >>> weight, _ = parameters(2, 3, False, bound=0.5, seed=0, dtype="float32")
        >>> weight.shape, weight.dtype.name
        ((2, 3), 'float32')
    """
    draw = np.random.Generator(np.random.PCG64(seed)).random
    stored = np.float64 if dtype == "float64" else np.float32
    weight = ((2.0 * draw((out_features, in_features)) - 1.0) * bound).astype(stored)
    return weight, ((2.0 * draw(out_features) - 1.0) * bound).astype(stored) if bias else None
