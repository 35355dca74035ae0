"""The kinds of data that the reproducible precision is held to: what is common, and what breaks sums.

Each makes float64 numbers that float32 holds after one rounding. Rows are the last axis.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

NEAR = 1 - 2.0**-24
"""The largest float32 below one: its integers are the largest there are, 2^p - 2^(p - 24)."""


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def _exponents(spread: int) -> Draw:
    return lambda rng, shape: rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread + 1, shape)


def _scaled(power: int) -> Draw:
    return lambda rng, shape: rng.standard_normal(shape) * 2.0**power


def _outliers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    return np.where(rng.random(shape) < 0.03, values * 2.0**14, values)


def _features(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) * np.where(rng.random(shape[-1:]) < 0.05, 1000.0, 1.0)


def _near_limit(signed: bool) -> Draw:
    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        # Odd significands just below a power of two: sums of their products grow fastest of all.
        values = 1 - (2 * rng.integers(0, 1 << 10, shape) + 1) * 2.0**-24
        return values * rng.choice([-1.0, 1.0], shape) if signed else values

    return draw


def _limit_and_back(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    # Near the limit, with small odd numbers between: partial sums need all the bits they can have. Then the same
    # again, with the other sign in half of the rows: what is left of the sum are the lowest bits, which nothing hides.
    half = -(-shape[-1] // 2)
    small = (2 * rng.integers(0, 1 << 20, shape) + 1) * 2.0**-31
    values = np.where(rng.random(shape) < 0.5, small, _near_limit(signed=False)(rng, shape))
    back = rng.choice([-1.0, 1.0], (*shape[:-1], 1)) * values[..., : shape[-1] - half]
    back[..., ::7] += 2.0**-30
    return np.concatenate([values[..., :half], back], -1)


def _cancelling(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    # Pairs that nearly cancel: the sum is what is left of the lowest bits.
    values = rng.standard_normal(shape)
    half = shape[-1] // 2
    values[..., half : 2 * half] = -values[..., :half] * (1 + 2.0**-22 * rng.integers(-2, 3, values[..., :half].shape))
    return values


def _ties(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    # Sums of small integers with 24 and 25 bits: many lie half between two float32.
    return rng.choice([1.0, 3.0, 2.0**12 + 1, 2.0**12 + 3], shape) * rng.choice([-1.0, 1.0], shape)


def _half_units(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    # Beside a one, numbers that the quantisation meets half between two integers, for any p.
    values = (2 * rng.integers(0, 8, shape) + 1) * 2.0 ** -rng.integers(20, 34, shape)
    values[..., :1] = 1.0
    return values


def _sparse(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.9, 0.0, rng.standard_normal(shape))


def _zero_vectors(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    values[..., ::3] = 0.0
    return np.where(rng.random((*shape[:-1], 1)) < 0.5, -0.0, values) if shape else values


def _mixed_with(rare: float, special: tuple[float, ...]) -> Draw:
    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape)
        return np.where(rng.random(shape) < rare, rng.choice(special, shape), values)

    return draw


KINDS: dict[str, Draw] = {
    "normal": _normal,
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "same sign": lambda rng, shape: np.abs(rng.standard_normal(shape)) + 0.5,
    "exponents 6": _exponents(6),
    "exponents 20": _exponents(20),
    "exponents 60": _exponents(60),
    "heavy tails": lambda rng, shape: rng.standard_t(1.5, shape),
    "outliers": _outliers,
    "large features": _features,
    "near the limit": _near_limit(signed=False),
    "near the limit, signed": _near_limit(signed=True),
    "near the limit and back": _limit_and_back,
    "all ones": lambda rng, shape: np.full(shape, NEAR),
    "powers of two": lambda rng, shape: 2.0 ** rng.integers(-12, 13, shape) * rng.choice([-1.0, 1.0], shape),
    "integers": lambda rng, shape: rng.integers(-9, 10, shape).astype(np.float64),
    "cancelling": _cancelling,
    "ties": _ties,
    "half units": _half_units,
    "sparse": _sparse,
    "zero vectors": _zero_vectors,
    "subnormal": _mixed_with(0.5, (2.0**-130, -(2.0**-127), 2.0**-149, -0.0)),
    "tiny": _scaled(-63),
    "flushed": _scaled(-66),
    "huge": _scaled(61),
    "overflowing": _scaled(64),
    "infinite": _mixed_with(0.02, (np.inf, -np.inf)),
    "not a number": _mixed_with(0.02, (np.nan,)),
}
"""By name. "tiny": sums lie around the smallest normal float32; "huge": just below the largest."""

NON_FINITE = ("infinite", "not a number")
"""What is held to first derivatives only: whether a zero tangent is multiplied by NaN is the framework's choice."""
