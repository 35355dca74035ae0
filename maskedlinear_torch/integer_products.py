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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskedlinear_core import precision
from maskedlinear_torch import _compat

Bilinear = Callable[[Tensor, Tensor], Tensor]
Factors = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
Reduce = Callable[[list[Tensor]], list[Tensor]]

TINY = 2.0**-126
"""The smallest normal float32: smaller numbers count as +0, going in and coming out."""

_SUBNORMAL = TINY - 2.0**-149
"""The largest number below it."""


class Operand(NamedTuple):
    """Values, float32, and the largest magnitude of each contraction vector, of size 1 along the contracted axis."""

    values: Tensor
    vector_max: Tensor


def operand(values: Tensor, dim: int) -> Operand:
    """Return an operand whose contraction vectors lie along `dim`."""
    values = values.to(torch.float32)
    return Operand(values, largest(values, dim))


def largest(values: Tensor, dim: int) -> Tensor:
    """Return max |v| along an axis, kept with size 1; NaN where one is."""
    if values.shape[dim] == 0:
        return values.sum(dim, keepdim=True)
    return values.abs().amax(dim, keepdim=True)


def flush(values: Tensor) -> Tensor:
    """Return float32 values with +0 for -0 and for what is smaller than `TINY`."""
    return F.hardshrink(values, _SUBNORMAL)


PIECE = 2**20
"""Numbers that are widened at a time: 8 MiB of float64, whose memory the next piece is given again."""


def by_rows(compute: Callable[[Operand], Tensor], x: Operand, w: Operand) -> Tensor:
    """Return what is computed of some rows of x at a time, and nothing of the size of x is made but the result."""
    rows = max(512, PIECE // max(*w.values.shape, 1))
    # A compiler plans memory itself, and how many pieces there are would hold for one size of batch only.
    if torch.compiler.is_compiling() or x.values.shape[0] < 2 * rows:
        return compute(x)
    pieces = zip(x.values.split(rows), x.vector_max.split(rows), strict=True)
    return torch.cat([compute(Operand(values, vector_max)) for values, vector_max in pieces])


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
    ) -> Tensor:
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
        right = self._integers(w, bits)
        is_short = bits <= precision.default_bits(terms)
        is_left_cut = is_short and x.values.numel() < w.values.numel()
        half = (bits + 1) // 2 if is_short else bits // 2 + 1
        digits = [right] if is_left_cut else _cut(right, half)

        def piece(x: Operand) -> Tensor:
            left = self._integers(x, bits)
            # The smaller one is cut, or both.
            parts = [left] if is_short and not is_left_cut else _cut(left, half)
            total = self._total([[function(a, b) for b in digits] for a in parts], half, reduce)
            for factor in factors(self._unit(x, bits), self._unit(w, bits)):
                total.mul_(factor)
            return _rounded(total)

        return by_rows(piece, x, w) if is_by_rows else piece(x)

    def _total(self, products: list[list[Tensor]], half: int, reduce: Reduce) -> Tensor:
        """Return RN_float64(T) of the products of digits, the highest first; it may be written into one of them."""
        found = [product for row in products for product in row]
        if len(found) == 2:
            high, low = reduce(found)
            # An integer is what it was after round(); without it a compiler adds inside of the product, which rounds.
            return high.mul_(2.0**half).add_(low.round_())
        high, middle, low = reduce([found[0], found[1] + found[2], found[3]])
        # Carries, so that the last addition alone rounds.
        carry, low = _cut(low, half)
        carry, middle = _cut(middle + carry, half)
        return (high + carry) * 2.0 ** (2 * half) + (middle * 2.0**half + low)

    def add_up(self, x: Operand, dim: int, *, terms: int, bits: int, reduce: Reduce) -> Tensor:
        """Return the sum over `dim`, its integers added exactly."""
        (total,) = reduce([self._integers(x, bits).sum(dim)])
        return _rounded(total * self._unit(x, bits).squeeze(dim))

    def _integers(self, x: Operand, bits: int) -> Tensor:
        return _flushed(x.values.double()).mul_(_power(bits - _exponent(x.vector_max), x.vector_max)).round_()

    def _unit(self, x: Operand, bits: int) -> Tensor:
        return _power(_exponent(x.vector_max) - bits, x.vector_max)


def _exponent(vector_max: Tensor) -> Tensor:
    """E with 2^(E-1) <= vector_max < 2^E, from the bits."""
    return (_compat.view_bits(vector_max, torch.int32) >> 23).long() - 126


def _power(exponent: Tensor, vector_max: Tensor) -> Tensor:
    """2^exponent in float64, from the bits; NaN where a vector holds inf or NaN."""
    power = _compat.view_bits(exponent + 1023 << 52, torch.float64)
    return torch.where(torch.isfinite(vector_max), power, torch.nan)


def _cut(integers: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return high and low, with high 2^bits + low the integers and |low| <= 2^(bits - 1); low in their place."""
    high = (integers * 2.0**-bits).round_()
    return high, integers.sub_(high, alpha=2.0**bits)


def _rounded(z: Tensor) -> Tensor:
    """RN_float32(z), |z| < 2^-126 and -0 as +0, and one NaN."""
    return _flushed(z).to(torch.float32).nan_to_num_(torch.nan, torch.inf, -torch.inf)


def _flushed(values: Tensor) -> Tensor:
    """Return float64 values with +0 for -0 and for what is smaller than `TINY`, in place where that can be."""
    return _compat.hardshrink_(values, math.nextafter(TINY, 0.0))


@dataclass(frozen=True)
class Digits:
    """Products of short digits in float32 or int8, added as integers: no float64 anywhere."""

    name: Literal["float32", "int8"]
    dtype: torch.dtype

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
    ) -> Tensor:
        """Return the reproducible answer, float32; arguments as for `Float64.multiply`."""
        base = precision.digit_bits(terms, self.name)
        right = self._digits(w, bits, base)
        size = 2 * bits + precision.log2_terms(terms) + 1

        def piece(x: Operand) -> Tensor:
            left = self._digits(x, bits, base)
            sums: list[Tensor | None] = [None] * (len(left) + len(right) - 1)
            for i, a in enumerate(left):
                for j, b in enumerate(right):
                    term, so_far = function(a, b).to(torch.int32), sums[i + j]
                    sums[i + j] = term if so_far is None else so_far + term
            exponent = self._exponents(factors, x.vector_max, w.vector_max) - 2 * bits
            return _from_digits(reduce([term for term in sums if term is not None]), base, size, exponent)

        return by_rows(piece, x, w) if is_by_rows else piece(x)

    def add_up(self, x: Operand, dim: int, *, terms: int, bits: int, reduce: Reduce) -> Tensor:
        """Return the sum over `dim`, its integers added exactly."""
        base = precision.digit_bits(terms, self.name)
        sums = reduce([digit.to(torch.int32).sum(dim, dtype=torch.int32) for digit in _digits(x, bits, base)])
        exponent = (_exponent_or_nan(x.vector_max) - bits).squeeze(dim)
        return _from_digits(sums, base, bits + precision.log2_terms(terms) + 1, exponent)

    def _digits(self, x: Operand, bits: int, base: int) -> list[Tensor]:
        return [digit.to(self.dtype) for digit in _digits(x, bits, base)]

    def _exponents(self, factors: Factors, x: Tensor, w: Tensor) -> Tensor:
        # Ex + Ew in their places: small integers.
        x, w = _exponent_or_nan(x), _exponent_or_nan(w)
        found = factors(x, w)
        if len(found) == 2:
            return found[0] + found[1]
        return factors(x, torch.ones_like(w))[0] + factors(torch.ones_like(x), w)[0]


ENGINES: dict[str, Float64 | Digits] = {
    "float64": Float64(),
    "float32": Digits("float32", torch.float32),
    "int8": Digits("int8", torch.int8),
}


def _exponent_or_nan(vector_max: Tensor) -> Tensor:
    return torch.where(torch.isfinite(vector_max), _exponent(vector_max).float(), torch.nan)


def _digits(x: Operand, bits: int, base: int) -> list[Tensor]:
    """Digits of X, float32, the lowest first: X = sum_j d_j 2^(base j), |d_j| <= 2^(base - 1)."""
    count = -(-(bits + 1) // base)
    shift = bits - (count - 1) * base - _exponent(x.vector_max).to(torch.int32)
    first, second = shift // 2, shift - shift // 2  # one power of two alone could leave float32
    rest = flush(x.values) * _small_power(first) * _small_power(second)
    digits = []
    for _ in range(count):
        digit = rest.round()
        digits.append(digit)
        rest = (rest - digit) * 2.0**base
    return digits[::-1]


def _small_power(exponent: Tensor) -> Tensor:
    return _compat.view_bits(exponent + 127 << 23, torch.float32)


def _from_digits(sums: Sequence[Tensor], base: int, size: int, exponent: Tensor) -> Tensor:
    """RN_float32(RN_float64(T) 2^exponent) of T = sum_j sums_j 2^(base j), |T| < 2^size, in integers alone."""
    positive, carry = _carried(sums, base, size)
    opposite, _ = _carried([-term for term in sums], base, size)
    negative = carry < 0
    limbs = _limbs([torch.where(negative, b, a) for a, b in zip(positive, opposite, strict=True)], base)
    is_zero = torch.stack(limbs).amax(0) == 0
    # The highest bit of all goes to the vector_max of the highest limb; `place` is its place.
    place = torch.full_like(limbs[0], 32 * len(limbs) - 1)
    for _ in range(len(limbs) - 1):
        is_low = limbs[-1] == 0
        moved = [torch.zeros_like(limbs[0]), *limbs[:-1]]
        limbs = [torch.where(is_low, b, a) for a, b in zip(limbs, moved, strict=True)]
        place = torch.where(is_low, place - 32, place)
    for step in (16, 8, 4, 2, 1):
        is_low = limbs[-1] < 1 << 32 - step
        moved = [(limb << step & 0xFFFFFFFF) | below >> 32 - step
                 for limb, below in zip(limbs, [torch.zeros_like(limbs[0]), *limbs[:-1]], strict=True)]  # fmt: skip
        limbs = [torch.where(is_low, b, a) for a, b in zip(limbs, moved, strict=True)]
        place = torch.where(is_low, place - step, place)
    # RN_float64: 53 bits are the highest limb and 21 of the next.
    high, next_limb = limbs[-1], limbs[-2]
    below = torch.stack([torch.zeros_like(high), *limbs[:-2]]).amax(0)
    low = (next_limb >> 11) + _rounds_up(next_limb, 11, below != 0)
    high = high + (low >> 21)
    low = low & 0x1FFFFF
    is_over = high >> 32 != 0
    high, place = torch.where(is_over, 1 << 31, high), torch.where(is_over, place + 1, place)
    # RN_float32: 24 bits.
    scale = torch.where(torch.isnan(exponent), 0.0, exponent).long() + place
    is_tiny = is_zero | (scale < -126)
    significand = (high >> 8) + _rounds_up(high, 8, low != 0)
    is_over = significand >> 24 != 0
    significand, scale = torch.where(is_over, 1 << 23, significand), torch.where(is_over, scale + 1, scale)
    found = (scale.clamp(-126, 127) + 127 << 23) | (significand & 0x7FFFFF)
    y = torch.where(scale > 127, torch.inf, _compat.view_bits(found.to(torch.int32), torch.float32))
    y = torch.where(is_tiny, 0.0, torch.where(negative, -y, y))
    return torch.where(torch.isnan(exponent), torch.nan, y)


def _carried(sums: Sequence[Tensor], base: int, size: int) -> tuple[list[Tensor], Tensor]:
    """Digits in [0, 2^base), the lowest first, and what is carried beyond: -1 for a negative sum."""
    carry = torch.zeros_like(sums[0])
    digits = []
    for j in range(max(len(sums), -(-size // base))):
        total = sums[j] + carry if j < len(sums) else carry
        digits.append(total & (1 << base) - 1)
        carry = total >> base
    return digits, carry


def _limbs(digits: Sequence[Tensor], base: int) -> list[Tensor]:
    """The same number in limbs of 32 bits, the lowest first; two at least."""
    limbs = [torch.zeros_like(digits[0], dtype=torch.int64) for _ in range(max(2, -(-len(digits) * base // 32)))]
    for j, digit in enumerate(digits):
        index, offset = divmod(base * j, 32)
        wide = digit.long() << offset
        limbs[index] = limbs[index] | wide & 0xFFFFFFFF
        if offset + base > 32 and index + 1 < len(limbs):
            limbs[index + 1] = limbs[index + 1] | wide >> 32
    return limbs


def _rounds_up(limb: Tensor, bits: int, sticky: Tensor) -> Tensor:
    """Whether the lowest bits round up, to even if they are half exactly; `sticky`: more is below."""
    rest, half = limb & (1 << bits) - 1, 1 << bits - 1
    is_odd = (limb >> bits & 1) != 0
    return ((rest > half) | ((rest == half) & (sticky | is_odd))).long()
