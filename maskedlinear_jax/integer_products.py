"""Exact sums of products: what computes the reproducible answer (contract S9; see maskedlinear_core/precision.py).

An engine is handed two operands, whose contraction vectors lie along one of their axes, and a bilinear
function that contracts them: a product of a kind (kinds/). It turns each operand into integers, applies
the function to those, exactly, and rounds once to float64 and once to float32:

    integers(v)     X = round_half_even(v 2^(p - E)), cut into digits
    multiply        T from the digits' products, y = RN_float32(RN_float64(T) 2^(Ex + Ew - 2p))

That the function is bilinear is all that is known of it here. What its results are to be multiplied by, the units
2^(Ex - p) and 2^(Ew - p) in their places, is therefore handed over as a function as well.

Each operand's digits are made once for a product, however many pieces that is computed in. The products of a layer
share none: its forward contracts the rows of W and its backward the columns, whose exponents and p are others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core import precision

Bilinear = Callable[[Array, Array], Array]
Factors = Callable[[Array, Array], tuple[Array, ...]]
Reduce = Callable[[list[Array]], list[Array]]

TINY = 2.0**-126
"""The smallest normal float32: smaller numbers count as +0, going in and coming out."""


class Operand(NamedTuple):
    """Values, float32, and the largest magnitude of each contraction vector, of size 1 along the contracted axis."""

    values: Array
    vector_max: Array


def operand(values: Array, axis: int) -> Operand:
    """Return an operand whose contraction vectors lie along `axis`."""
    values = values.astype(jnp.float32)
    return Operand(values, largest(values, axis))


def largest(values: Array, axis: int) -> Array:
    """Return max |v| along an axis, kept with size 1; NaN where one is."""
    # By their bits: XLA's maximum of a long vector may lose a NaN, whose bits are beyond those of all numbers.
    bits = jax.lax.bitcast_convert_type(jnp.abs(values), jnp.int32)
    return jax.lax.bitcast_convert_type(bits.max(axis, keepdims=True, initial=0), jnp.float32)


def flush(values: Array) -> Array:
    """Return values with +0 for -0 and for what is smaller than `TINY`."""
    return jnp.where(jnp.abs(values) < TINY, 0, values)


PIECE = 2**20
"""Numbers that are widened at a time: 8 MiB of float64, whose memory the next piece is given again."""


def by_rows(compute: Callable[[Operand], Array], x: Operand, w: Operand) -> Array:
    """Return what is computed of some rows of x at a time, and nothing of the size of x is made but the result."""
    rows = max(512, PIECE // max(*w.values.shape, 1))
    count = x.values.shape[0]
    if not isinstance(count, int) or count < 2 * rows:  # exported for a batch of any size, it has no number
        return compute(x)
    starts = range(0, count, rows)
    return jnp.concatenate([compute(Operand(*(part[at : at + rows] for part in x))) for at in starts])


@dataclass(frozen=True)
class Float64:
    """Products of integers in float64: of two of them p + floor(p/2) + L bits, or of four up to 53."""

    name = "float64"

    def multiply(
        self,
        function: Bilinear,
        factors: Factors,
        x: Operand,
        w: Operand,
        *,
        terms: int,
        bits: int,
        is_by_rows: bool = False,
        reduce: Reduce,
    ) -> Array:
        """Return the reproducible answer, float32.

        Args:
            function: What contracts.
            factors: Puts numbers of the vectors, of size 1 along the contracted axis, in their places in the result:
                those of x and those of w, to be broadcast, or their products.
            x: Left operand.
            w: Right operand.
            terms: K, the number of terms of a sum.
            bits: p.
            is_by_rows: Whether each row of x has one of its own in the result, so that they may be computed apart.
            reduce: Sums partial results over the workers.
        """
        with jax.enable_x64(True):
            right = self._integers(w, bits)
            is_short = bits <= precision.default_bits(terms)
            is_left_cut = is_short and x.values.size < w.values.size
            half = (bits + 1) // 2 if is_short else bits // 2 + 1
            digits = [right] if is_left_cut else _cut(right, half)

            def piece(x: Operand) -> Array:
                left = self._integers(x, bits)
                # The smaller one is cut, or both.
                parts = [left] if is_short and not is_left_cut else _cut(left, half)
                total = self._total([[function(a, b) for b in digits] for a in parts], half, reduce)
                for factor in factors(self._unit(x, bits), self._unit(w, bits)):
                    total = total * factor
                return _rounded(total)

            return by_rows(piece, x, w) if is_by_rows else piece(x)

    def _total(self, products: list[list[Array]], half: int, reduce: Reduce) -> Array:
        """Return RN_float64(T) of the products of digits, the highest first."""
        found = [product for row in products for product in row]
        if len(found) == 2:
            high, low = reduce(found)
            # An integer is what it was after round(); without it a compiler may add inside of the product.
            return high * 2.0**half + jnp.round(low)
        high, middle, low = reduce([found[0], found[1] + found[2], found[3]])
        # Carries, so that the last addition alone rounds.
        carry, low = _cut(low, half)
        carry, middle = _cut(middle + carry, half)
        return (high + carry) * 2.0 ** (2 * half) + (middle * 2.0**half + low)

    def add_up(self, x: Operand, axis: int, *, terms: int, bits: int, reduce: Reduce) -> Array:
        """Return the sum over `axis`, its integers added exactly."""
        with jax.enable_x64(True):
            (total,) = reduce([self._integers(x, bits).sum(axis)])
            return _rounded(total * self._unit(x, bits).squeeze(axis))

    def _integers(self, x: Operand, bits: int) -> Array:
        return jnp.round(flush(x.values).astype(jnp.float64) * _power(bits - _exponent(x.vector_max), x.vector_max))

    def _unit(self, x: Operand, bits: int) -> Array:
        return _power(_exponent(x.vector_max) - bits, x.vector_max)


def _exponent(vector_max: Array) -> Array:
    """E with 2^(E-1) <= vector_max < 2^E, from the bits."""
    return (jax.lax.bitcast_convert_type(vector_max, jnp.int32) >> 23) - 126


def _power(exponent: Array, vector_max: Array) -> Array:
    """2^exponent in float64, from the bits; NaN where a vector holds inf or NaN."""
    power = jax.lax.bitcast_convert_type(exponent.astype(jnp.int64) + 1023 << 52, jnp.float64)
    return jnp.where(jnp.isfinite(vector_max), power, jnp.nan)


def _cut(integers: Array, bits: int) -> tuple[Array, Array]:
    """Return high and low, with high 2^bits + low the integers and |low| <= 2^(bits - 1)."""
    high = jnp.round(integers * 2.0**-bits)
    return high, integers - high * 2.0**bits


def _rounded(z: Array) -> Array:
    """RN_float32(z), |z| < 2^-126 and -0 as +0, and one NaN."""
    y = flush(z).astype(jnp.float32)
    return jnp.where(jnp.isnan(y), jnp.nan, y)


@dataclass(frozen=True)
class Digits:
    """Products of short digits in float32 or int8, added as integers: no float64 anywhere."""

    name: Literal["float32", "int8"]
    dtype: Any

    def multiply(
        self,
        function: Bilinear,
        factors: Factors,
        x: Operand,
        w: Operand,
        *,
        terms: int,
        bits: int,
        is_by_rows: bool = False,
        reduce: Reduce,
    ) -> Array:
        """Return the reproducible answer, float32; arguments as for `Float64.multiply`."""
        base = precision.digit_bits(terms, self.name)
        right = self._digits(w, bits, base)
        size = 2 * bits + precision.log2_terms(terms) + 1
        product = jax.jit(function)  # traced and lowered once, for all pairs of digits

        def piece(x: Operand) -> Array:
            left = self._digits(x, bits, base)
            sums: list[Array | None] = [None] * (len(left) + len(right) - 1)
            for i, a in enumerate(left):
                for j, b in enumerate(right):
                    term, so_far = product(a, b).astype(jnp.int32), sums[i + j]
                    sums[i + j] = term if so_far is None else so_far + term
            exponent = self._exponents(factors, x.vector_max, w.vector_max) - 2 * bits
            return _from_digits(reduce([term for term in sums if term is not None]), base, size, exponent)

        # Else a TPU rounds what it multiplies to 8 bits, and a GPU may round it to 11.
        with jax.default_matmul_precision("highest"):
            return by_rows(piece, x, w) if is_by_rows else piece(x)

    def add_up(self, x: Operand, axis: int, *, terms: int, bits: int, reduce: Reduce) -> Array:
        """Return the sum over `axis`, its integers added exactly."""
        base = precision.digit_bits(terms, self.name)
        sums = reduce([digit.astype(jnp.int32).sum(axis, dtype=jnp.int32) for digit in _digits(x, bits, base)])
        exponent = (_exponent_or_nan(x.vector_max) - bits).squeeze(axis)
        return _from_digits(sums, base, bits + precision.log2_terms(terms) + 1, exponent)

    def _digits(self, x: Operand, bits: int, base: int) -> list[Array]:
        return [digit.astype(self.dtype) for digit in _digits(x, bits, base)]

    def _exponents(self, factors: Factors, x: Array, w: Array) -> Array:
        # Ex + Ew in their places: small integers.
        x, w = _exponent_or_nan(x), _exponent_or_nan(w)
        found = factors(x, w)
        if len(found) == 2:
            return found[0] + found[1]
        return factors(x, jnp.ones_like(w))[0] + factors(jnp.ones_like(x), w)[0]


ENGINES: dict[str, Float64 | Digits] = {
    "float64": Float64(),
    "float32": Digits("float32", jnp.dtype(jnp.float32)),
    "int8": Digits("int8", jnp.dtype(jnp.int8)),
}


def _exponent_or_nan(vector_max: Array) -> Array:
    return jnp.where(jnp.isfinite(vector_max), _exponent(vector_max).astype(jnp.float32), jnp.nan)


def _digits(x: Operand, bits: int, base: int) -> list[Array]:
    """Digits of X, float32, the lowest first: X = sum_j d_j 2^(base j), |d_j| <= 2^(base - 1)."""
    count = -(-(bits + 1) // base)
    shift = bits - (count - 1) * base - _exponent(x.vector_max)
    first, second = shift // 2, shift - shift // 2  # one power of two alone could leave float32
    rest = flush(x.values) * _small_power(first) * _small_power(second)
    digits = []
    for _ in range(count):
        digit = jnp.round(rest)
        digits.append(digit)
        rest = (rest - digit) * 2.0**base
    return digits[::-1]


def _small_power(exponent: Array) -> Array:
    return jax.lax.bitcast_convert_type(exponent + 127 << 23, jnp.float32)


@functools.partial(jax.jit, static_argnames=("base", "size"))
def _from_digits(sums: Sequence[Array], base: int, size: int, exponent: Array) -> Array:
    """RN_float32(RN_float64(T) 2^exponent) of T = sum_j sums_j 2^(base j), |T| < 2^size, in integers alone."""
    positive, carry = _carried(sums, base, size)
    opposite, _ = _carried([-term for term in sums], base, size)
    negative = carry < 0
    limbs = _limbs([jnp.where(negative, b, a) for a, b in zip(positive, opposite, strict=True)], base)
    is_zero = jnp.stack(limbs).max(0) == 0
    # The highest bit of all goes to the vector_max of the highest limb; `place` is its place.
    place = jnp.full(limbs[0].shape, 32 * len(limbs) - 1, jnp.int32)
    for _ in range(len(limbs) - 1):
        is_low = limbs[-1] == 0
        moved = [jnp.zeros_like(limbs[0]), *limbs[:-1]]
        limbs = [jnp.where(is_low, b, a) for a, b in zip(limbs, moved, strict=True)]
        place = jnp.where(is_low, place - 32, place)
    for step in (16, 8, 4, 2, 1):
        is_low = limbs[-1] < jnp.uint32(1 << 32 - step)
        moved = [(limb << step) | below >> 32 - step
                 for limb, below in zip(limbs, [jnp.zeros_like(limbs[0]), *limbs[:-1]], strict=True)]  # fmt: skip
        limbs = [jnp.where(is_low, b, a) for a, b in zip(limbs, moved, strict=True)]
        place = jnp.where(is_low, place - step, place)
    # RN_float64: 53 bits are the highest limb and 21 of the next.
    high, next_limb = limbs[-1], limbs[-2]
    below = jnp.stack([jnp.zeros_like(high), *limbs[:-2]]).max(0)
    low = (next_limb >> 11) + _rounds_up(next_limb, 11, below != 0)
    carried = high + (low >> 21)
    low = low & 0x1FFFFF
    is_over = carried < high  # 2^32 wraps round to zero
    high, place = jnp.where(is_over, jnp.uint32(1 << 31), carried), jnp.where(is_over, place + 1, place)
    # RN_float32: 24 bits.
    scale = jnp.where(jnp.isnan(exponent), 0, exponent).astype(jnp.int32) + place
    is_tiny = is_zero | (scale < -126)
    significand = (high >> 8) + _rounds_up(high, 8, low != 0)
    is_over = significand >> 24 != 0
    significand, scale = jnp.where(is_over, jnp.uint32(1 << 23), significand), jnp.where(is_over, scale + 1, scale)
    found = (scale.clip(-126, 127) + 127 << 23) | (significand & 0x7FFFFF).astype(jnp.int32)
    y = jnp.where(scale > 127, jnp.inf, jax.lax.bitcast_convert_type(found, jnp.float32))
    y = jnp.where(is_tiny, 0, jnp.where(negative, -y, y))
    return jnp.where(jnp.isnan(exponent), jnp.nan, y)


def _carried(sums: Sequence[Array], base: int, size: int) -> tuple[list[Array], Array]:
    """Digits in [0, 2^base), the lowest first, and what is carried beyond: -1 for a negative sum."""
    carry = jnp.zeros_like(sums[0])
    digits = []
    for j in range(max(len(sums), -(-size // base))):
        total = sums[j] + carry if j < len(sums) else carry
        digits.append(total & (1 << base) - 1)
        carry = total >> base
    return digits, carry


def _limbs(digits: Sequence[Array], base: int) -> list[Array]:
    """The same number in limbs of 32 bits, the lowest first; two at least."""
    limbs = [jnp.zeros(digits[0].shape, jnp.uint32) for _ in range(max(2, -(-len(digits) * base // 32)))]
    for j, digit in enumerate(digits):
        index, offset = divmod(base * j, 32)
        wide = digit.astype(jnp.uint32)
        limbs[index] = limbs[index] | wide << offset
        if offset + base > 32 and index + 1 < len(limbs):
            limbs[index + 1] = limbs[index + 1] | wide >> 32 - offset
    return limbs


def _rounds_up(limb: Array, bits: int, sticky: Array) -> Array:
    """Whether the lowest bits round up, to even if they are half exactly; `sticky`: more is below."""
    rest, half = limb & (1 << bits) - 1, 1 << bits - 1
    is_odd = (limb >> bits & 1) != 0
    return ((rest > half) | ((rest == half) & (sticky | is_odd))).astype(jnp.uint32)
