"""The known-answer test: a small product whose reproducible answer is computed with Python's integers (contract S9)."""

from __future__ import annotations

import functools
import operator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from maskedlinear_core.precision import default_bits

TERMS = 1024


class Problem(NamedTuple):
    """x (M, K), w (N, K) and y = the reproducible x w^T (M, N), float32."""

    x: np.ndarray
    w: np.ndarray
    y: np.ndarray


@functools.cache
def problem() -> Problem:
    """Return the problem. It is made once and takes a few milliseconds.

    It has numbers of one sign near the limit, where an inexact sum shows first; sums that cancel down to their lowest
    bits; and rows of subnormal numbers, of zeros, with an infinity and with a NaN.
    """
    near = 1 - np.arange(1, TERMS + 1) * 2.0**-24
    signs = np.where(np.arange(TERMS) % 2 == 0, 1.0, -1.0)
    steep = 2.0 ** -(np.arange(TERMS) % 29)
    with_inf, with_nan = near.copy(), near.copy()
    with_inf[7], with_nan[500] = np.inf, np.nan
    there = np.where(np.arange(TERMS // 2) % 2 == 0, near[: TERMS // 2], np.arange(TERMS // 2) * 2.0**-29)
    back = np.where(np.arange(TERMS // 2) % 7 == 0, there + 2.0**-29, there)
    x = np.stack(
        [near, near * signs, steep, np.concatenate([there, back]), near * 2.0**-130, -near * 0, with_inf, with_nan]
    )
    w = np.stack([near, near[::-1], near[::-1] * steep, steep * signs, np.concatenate([there, -back])])
    x, w = x.astype(np.float32), w.astype(np.float32)
    rows, columns = ([_integers(vector) for vector in matrix] for matrix in (x, w))
    return Problem(x, w, np.array([[_answer(a, b) for b in columns] for a in rows], np.float32))


def difference(y: np.ndarray) -> str:
    """Return how an answer differs from the right one, bit for bit, in words; "" if it does not."""
    want = problem().y
    wrong = y.view(np.uint32) != want.view(np.uint32)
    if not wrong.any():
        return ""
    row, column = (int(i) for i in np.argwhere(wrong)[0])
    return f"{int(wrong.sum())} of {wrong.size} differ, e.g. {y[row, column]!r} for {want[row, column]!r}"


class _Integers(NamedTuple):
    numbers: list[int]
    unit: float


def _answer(a: _Integers, b: _Integers) -> float:
    z = float(sum(map(operator.mul, a.numbers, b.numbers))) * (a.unit * b.unit)
    return 0.0 if abs(z) < 2.0**-126 else z


def _integers(vector: np.ndarray) -> _Integers:
    if not np.isfinite(vector).all():
        return _Integers([0] * len(vector), np.nan)
    numbers = [0.0 if abs(v) < 2.0**-126 else v for v in vector.tolist()]
    unit = int(np.frexp(max(map(abs, numbers)))[1]) - default_bits(TERMS)
    return _Integers([round(Fraction(v) / Fraction(2) ** unit) for v in numbers], 2.0**unit)
