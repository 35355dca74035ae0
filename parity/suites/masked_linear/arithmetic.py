"""How the oracle multiplies and adds: exactly, up to float64, or by the reproducible arithmetic (contract S9).

`Float64` is the plain oracle, `Rounded` the same for sums that float64 holds, rounded once to the dtype.
`Reproducible` is the answer of the reproducible precision, step by step as its definition numbers them, in NumPy
and Python's integers; it shares no code with the twins and adds no two floating-point numbers except where the
definition says one rounding. Every function takes and returns float64 arrays whose values the dtype holds exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY = 2.0**-126


class Float64:
    """Float64, as NumPy does it."""

    def linear(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        """Return x W^T + b."""
        return x @ w.T if b is None else x @ w.T + b

    def dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the products of each row of a with each row of b."""
        return a @ b.T

    def total(self, g: np.ndarray) -> np.ndarray:
        """Return the sum over the rows."""
        return g.sum(0)

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a + b."""
        return a + b


@dataclass(frozen=True)
class Rounded:
    """Float64, each result rounded once to the dtype: of integers whose sums float64 holds.

    Attributes:
        dtype: Dtype of the layer.
    """

    dtype: str

    def linear(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        """Return x W^T + b."""
        return _narrow(FLOAT64.linear(x, w, b), self.dtype)

    def dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the products of each row of a with each row of b."""
        return _narrow(FLOAT64.dot(a, b), self.dtype)

    def total(self, g: np.ndarray) -> np.ndarray:
        """Return the sum over the rows."""
        return _narrow(FLOAT64.total(g), self.dtype)

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a + b."""
        return _narrow(FLOAT64.add(a, b), self.dtype)


@dataclass(frozen=True)
class Reproducible:
    """The answer as a function of the inputs.

    Attributes:
        dtype: Dtype of the layer: "float32", "bfloat16" or "float16".
        bits: At least this many bits p.
    """

    dtype: str = "float32"
    bits: int = 0

    def linear(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        """Return x W^T + b: y + b rounded once to float32, the same flush, then the dtype."""
        y = self._dot(x, w)
        return _narrow(y if b is None else _sum(y, b), self.dtype)

    def dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the products of each row of a (*B, K) with each row of b (N, K)."""
        return _narrow(self._dot(a, b), self.dtype)

    def total(self, g: np.ndarray) -> np.ndarray:
        """Return the exact sum of the quantised rows: step 4 with Ew = p = 0 for the ones that it is a product with."""
        p = self.p(len(g))
        exponents, integers, bad = _quantise(g.T, p)
        sums = integers.astype(object).sum(-1) if len(g) else np.zeros(g.shape[1], object)
        return _narrow(_round(sums, exponents - p, bad), self.dtype)

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a + b, rounded once in the dtype."""
        return _narrow(_sum(a, b), self.dtype)

    def p(self, terms: int) -> int:
        """L = ceil(log2 max(K, 1)); p = min(31, floor((107 - 2L) / 3))."""
        length = 0
        while 2**length < terms:
            length += 1
        return max(min(31, (107 - 2 * length) // 3), self.bits)

    def _dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        p = self.p(a.shape[-1])
        left, x, bad_left = _quantise(a, p)
        right, w, bad_right = _quantise(b, p)
        total = _products(x, w)
        exponents = np.add.outer(left, right) - 2 * p
        return _round(total, exponents, np.logical_or.outer(bad_left, bad_right))


Arithmetic = Float64 | Rounded | Reproducible
FLOAT64 = Float64()


def _quantise(vectors: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps 1 and 2: E, X, and which vectors hold inf or NaN (step 5), of vectors along the last axis."""
    bad = ~np.isfinite(vectors).all(-1)
    clean = np.where(bad[..., None] | (np.abs(vectors) < TINY), 0.0, vectors)
    _, exponents = np.frexp(np.abs(clean).max(-1, initial=0.0))  # 2^(E-1) <= max < 2^E
    integers = np.rint(np.ldexp(clean, (p - exponents)[..., None])).astype(np.int64)
    return exponents, integers, bad


def _products(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Step 3: T = sum_k X_k W_k, by halves of 24 bits in 64-bit integers, put together in Python's own."""
    total = np.zeros(x.shape[:-1] + w.shape[:-1], object)
    for i, left in enumerate((x & 0xFFFFFF, x >> 24)):
        for j, right in enumerate((w & 0xFFFFFF, w >> 24)):
            for start in range(0, x.shape[-1], 1 << 14):  # 48 bits and 14 more: no sum overflows
                part = slice(start, start + (1 << 14))
                total += np.tensordot(left[..., part], right[..., part], (-1, -1)).astype(object) << 24 * (i + j)
    return total


def _round(total: np.ndarray, exponents: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Steps 4 and 5: RN_float64(T), scaled exactly, to float32; below 2^-126 to +0, beyond to inf; NaN."""
    z = np.ldexp(total.astype(np.float64), exponents)  # float() of an int rounds half to even
    with np.errstate(over="ignore"):
        y = np.where(np.abs(z) < TINY, 0.0, z).astype(np.float32).astype(np.float64)
    return np.where(bad, np.nan, y)


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add(a.astype(np.float32), b.astype(np.float32), dtype=np.float32).astype(np.float64)
    return np.where(np.abs(total) < TINY, 0.0, total)


def _narrow(y: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to the dtype, half to even."""
    if dtype == "bfloat16":
        bits = y.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(y), np.nan, rounded.astype(np.uint32).view(np.float32).astype(np.float64))
    with np.errstate(over="ignore"):
        return y.astype(dtype).astype(np.float64)
