"""Activations as formulas of float64: what stands in the place of one in a program, and the names that it goes by."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]

EXACT, TANH, QUICK = "the exact GELU (erf)", "its approximation by tanh", "the quick GELU, x * sigmoid(1.702 x)"
"""GELU, by the function that it is made of."""

erf = np.vectorize(math.erf, otypes=[float])
ROOT, CUBIC = math.sqrt(2 / math.pi), 0.044715


def gelu(x: np.ndarray) -> np.ndarray:
    """Return the exact GELU.

    Example:
        >>> gelu(np.array([0.0, 100.0]))
        array([  0., 100.])
    """
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Return its approximation by tanh."""
    return 0.5 * x * (1 + np.tanh(ROOT * (x + CUBIC * x**3)))


def _cubic_root(z: np.ndarray) -> np.ndarray:
    """Return x with sqrt(2/pi) (x + 0.044715 x^3) = z, by Newton's method."""
    x = z / ROOT
    x = np.sign(x) * np.minimum(np.abs(x), np.cbrt(np.abs(x) / CUBIC) + 1)
    for _ in range(60):
        x = x - (x + CUBIC * x**3 - z / ROOT) / (1 + 3 * CUBIC * x**2)
    return x


def logistic(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), without a warning where exp overflows."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


HALVES: dict[str, tuple[str, Function]] = {
    "tanh": (TANH, lambda z: _cubic_root(z)),
    "erf": (EXACT, lambda z: z * math.sqrt(2)),
    "erfc": (EXACT, lambda z: -z * math.sqrt(2)),
    "logistic": (QUICK, lambda z: z / 1.702),
    "sigmoid": (QUICK, lambda z: z / 1.702),
}
"""What the step at the heart of a GELU is the sign of, and x of its argument."""

AS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    EXACT: lambda x: erf(x / math.sqrt(2)),
    TANH: lambda x: np.tanh(ROOT * (x + CUBIC * x**3)),
    QUICK: lambda x: 2 * logistic(1.702 * x) - 1,
}
"""2 P - 1 for GELU's x P(x)."""


def softplus(x: np.ndarray) -> np.ndarray:
    """Return log(1 + exp(x))."""
    return np.logaddexp(x, 0.0)


ACTIVATIONS: dict[str, Function] = {
    "identity": lambda x: x,  # first: among positive numbers ReLU is no other
    "relu": lambda x: np.maximum(x, 0),
    "gelu": gelu,
    "gelu (tanh)": gelu_tanh,
    "silu": lambda x: x * logistic(x),
    "sigmoid": logistic,
    "tanh": np.tanh,
    "relu6": lambda x: np.clip(x, 0, 6),
    "softplus": softplus,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "relu squared": lambda x: np.maximum(x, 0) ** 2,
    "exp": np.exp,
    "log_sigmoid": lambda x: -softplus(-x),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "abs": np.abs,
    "hard sigmoid of Keras": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}
BENT = ("abs", "leaky_relu")
"""Activations that are straight on either side of zero, and zero on none."""

SPELT = {
    "logistic": "sigmoid",
    "log_sigmoid_forward": "log_sigmoid",
    "hard_tanh": "hardtanh",
    "swish": "silu",
    "hard_sigmoid": "hardsigmoid",
    "hard_swish": "hardswish",
    "hard_silu": "hardswish",
    "soft_sign": "softsign",
    "relu_": "relu",
    "silu_": "silu",
}
