"""The two precisions, and the constants of the reproducible one (contract S9).

*native*: the framework's own products. *reproducible*: the answer is a function of the inputs alone, given by
integer arithmetic. For a product of K terms per output, dot(x, w), float32 in and out:

    L = ceil(log2 K),  p = min(31, floor((107 - 2 L) / 3))
    E = the exponent of the largest magnitude of a vector: 2^(E-1) <= max |v| < 2^E
    X = round_half_even(v 2^(p - E))                    an integer, |X| <= 2^p; a subnormal v counts as +0
    T = sum_k X_k W_k                                   an exact integer
    z = RN_float64(T) 2^(Ex + Ew - 2p),  y = RN_float32(z)

|z| < 2^-126 gives +0, zero is always +0, and a vector that holds inf or NaN makes one canonical NaN of every
output it touches. 16-bit arguments are widened to float32 first, and the result is rounded to their dtype.
Every engine computes T exactly, so the choice of engine never shows in the bits (Ozaki et al. 2012; Rump, Ogita and
Oishi 2008). The rule for p holds for sums of any length. Sums by digits have at most `MOST_TERMS` terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from maskedlinear_core import arrays
from maskedlinear_core.checks import precision as checks

Engine = Literal["auto", "float64", "float32", "int8"]

LARGEST_BITS = 31
"""The p of short sums: 24 bits for a float32 as large as the largest of its row, and 7 more for smaller ones."""

MOST_TERMS = 2**24
"""The longest sum by digits. Sums by float64 products have no limit that fits into memory."""


@dataclass(frozen=True)
class Native:
    """The framework's own products."""


@dataclass(frozen=True)
class Reproducible:
    """The answer by exact integers; see `reproducible`."""

    bits: int | None = None
    engine: Engine = "auto"
    group: Any = None


Precision = Native | Reproducible


def reproducible(*, bits: int | None = None, engine: Engine = "auto", group: Any = None) -> Reproducible:
    """Return settings of the reproducible precision, for `precision=`. The string "reproducible" means the defaults.

    Args:
        bits: How many bits p to keep at least of each number, relative to the largest of its vector. None = as many
            as two products allow (29 at K = 1024). More take four products (at most 43 at K = 1024).
        engine: What computes the integers: "float64" products, or products of short digits in "float32" or
            "int8", for devices without float64. "auto" takes float64 on CPUs and on GPUs that have it at half of
            float32's rate, else float32. The choice never shows in the bits. In JAX it is made where a program is
            lowered, for the platforms that it is lowered for.
        group: Workers over which the batch is spread: a `torch.distributed.ProcessGroup`, or in JAX the name
            of a mesh axis inside `shard_map`. The gradients of weight and bias are then those of the whole batch, the
            same on every worker for any number of workers. Do not reduce them again, by DistributedDataParallel or
            psum.

    Raises:
        TypeError, ValueError: bits or engine is none of these.

    Example:
        >>> reproducible(bits=40)
        Reproducible(bits=40, engine='auto', group=None)
    """
    checks.settings(bits, engine)
    return Reproducible(None if bits is None else int(bits), engine, group)  # an integer of NumPy reads otherwise


def as_precision(precision: object) -> Precision:
    """Return the settings for what `precision=` may be: "native", "reproducible", or what `reproducible(...)` returns.

    Raises:
        TypeError, ValueError: It is none of these.

    Example:
        >>> as_precision("reproducible")
        Reproducible(bits=None, engine='auto', group=None)
    """
    if isinstance(precision, Native | Reproducible):
        return precision
    if precision not in ("native", "reproducible"):
        checks.refuse(precision)
    return Native() if precision == "native" else Reproducible()


def log2_terms(terms: int) -> int:
    """Return L = ceil(log2 max(K, 1)).

    Example:
        >>> [log2_terms(terms) for terms in (0, 1, 2, 1024, 1025)]
        [0, 0, 1, 10, 11]
    """
    return (max(terms, 1) - 1).bit_length()


def default_bits(terms: int) -> int:
    """Return p for K terms: then p + floor(p / 2) + L <= 53, and two float64 products are exact.

    Example:
        >>> [default_bits(terms) for terms in (128, 1024, 4096, 65536, 2**20)]
        [31, 29, 27, 25, 22]
    """
    return min(LARGEST_BITS, (107 - 2 * log2_terms(terms)) // 3)


def most_bits(terms: int) -> int:
    """Return the largest p for K terms, 2 b - 1 with 2 (b - 1) + L <= 52: then four float64 products are exact.

    Example:
        >>> [most_bits(terms) for terms in (64, 1024, 65536)]
        [47, 43, 37]
    """
    return 2 * min(24, (52 - log2_terms(terms)) // 2 + 1) - 1


def bits_for(precision: Reproducible, terms: int) -> int:
    """Return p for K terms: the default, or more if more was asked for.

    Raises:
        ValueError: More bits than four products hold.
    """
    p = max(default_bits(terms), precision.bits or 0)
    if p > max(default_bits(terms), most_bits(terms)):
        checks.refuse_bits(p, most_bits(terms), terms)
    return p


def digit_bits(terms: int, engine: Engine) -> int:
    """Return b: digits of b bits, at most 2^(b-1) each, whose products sum up exactly over K terms.

    Sums of products in float32 have at most 24 bits. Those of int8 are int32 numbers of at most 27 bits, because up to
    fifteen of them are added; and a digit 2^(b-1) must fit into an int8.

    Args:
        terms: K.
        engine: "float32" or "int8".

    Raises:
        ValueError: Too many terms, even for digits of one bit.

    Example:
        >>> [digit_bits(terms, "float32") for terms in (64, 1024, 65536)]
        [8, 8, 5]
        >>> [digit_bits(terms, "int8") for terms in (64, 32768, 65536)]
        [7, 7, 6]
    """
    if terms > MOST_TERMS:
        checks.refuse_terms(terms, MOST_TERMS, engine)
    most, significand = (7, 27) if engine == "int8" else (8, 24)
    return min(most, (significand - log2_terms(terms)) // 2 + 1)


def check_terms(precision: Reproducible, engine: Engine, terms: int) -> None:
    """Check that sums of K terms can be computed with these settings.

    Raises:
        ValueError: More bits than four products hold, or a sum too long for the engine.
    """
    bits_for(precision, terms)
    if engine != "float64":
        digit_bits(terms, engine)


def accuracy_bound(input: Any, weight: Any, *, bits: int | None = None) -> np.ndarray:
    """Return, for each output, the largest possible distance of the reproducible x W^T from the exact one.

    What is lost is relative to the largest magnitude of a row. An outlier in a row of x costs the small numbers of that
    row some bits, even where the outlier meets a zero. A larger `bits` helps if the bound falls with it.

    Args:
        input: x, shape (*batch, in_features): an array of NumPy or of a framework, or sequences of numbers.
        weight: W, shape (out_features, in_features).
        bits: As for `reproducible`.

    Returns:
        |y - exact| <= bound, shape (*batch, out_features), float64, for float32 outputs without bias;
        infinite where the row of x or of W holds inf or NaN.

    Raises:
        ValueError: The shapes do not fit, or more bits than there can be.
        TypeError: An array is traced: it has no values yet.

    Example:
        >>> float(accuracy_bound([[1.0, 1.0]], [[1.0, 1.0]])[0, 0]) < 2e-7
        True
    """
    x, w = (np.asarray(arrays.to_numpy(array), np.float64) for array in (input, weight))
    checks.product(x.shape, w.shape)
    p = bits_for(reproducible(bits=bits), x.shape[-1])
    with np.errstate(invalid="ignore", over="ignore"):
        x_step, w_step = (_step(rows, p) for rows in (x, w))
        # x w - X W = x (w - W) + (x - X) W, and |x - X| <= step / 2, or the flushed subnormal.
        sums = np.abs(x).sum(-1, keepdims=True), np.abs(w).sum(-1, keepdims=True)
        lost = sums[0] * w_step.T + x_step * (sums[1] + x.shape[-1] * w_step).T
        size = np.abs(x) @ np.abs(w).T + lost
        # RN_float64, RN_float32 and the flush, and what this computation itself rounds.
        bound = (lost + size * (2.0**-24 + 2.0**-52)) * (1 + 2.0**-40) + 2.0**-126
    return np.where(np.isfinite(bound) & (size < 2.0**128), bound, np.inf)


def _step(rows: np.ndarray, p: int) -> np.ndarray:
    # What a number of the row may be off: half a unit 2^(E - p), or a subnormal counted as zero.
    exponent = np.frexp(np.abs(rows).max(-1, keepdims=True, initial=0.0))[1]
    step = np.maximum(np.ldexp(0.5, exponent - p), 2.0**-126)
    return np.where(np.isfinite(rows).all(-1, keepdims=True), step, np.inf)


def described(precision: Precision) -> str:
    """Return what a layer's `repr` says of its precision: nothing if it is native.

    Example:
        >>> described(Reproducible(bits=40))
        ', precision=reproducible(bits=40)'
    """
    if isinstance(precision, Native):
        return ""
    said = {"bits": precision.bits, "engine": precision.engine, "group": precision.group}
    settings = ", ".join(f"{name}={value!r}" for name, value in said.items() if value not in (None, "auto"))
    return f", precision=reproducible({settings})"
