"""The vocabulary of comparison. Every function raises `Mismatch` or returns None: there is no verdict to lose."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NoReturn

import numpy as np

from parity.records import Finding

TWIN_RATIO = 10.0
"""Two computations in one precision differ in their RMS error by less than this.

What the order of additions alone can do: the error of a sum of K terms grows as sqrt(K) added one by one,
and as sqrt(log2 K) added pairwise; at the longest sums of the grid (K = 768) that is a factor of 9. Seen
over all cells: 0.57 to 3.6. Inputs rounded to TF32 are a factor of about 1000, a bfloat16 accumulator 65000.
"""

ENOUGH = 256
"""Elements below which an RMS says too little to be compared."""


class Mismatch(AssertionError):
    """Two results differ; `finding` is the worst element."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


def assert_same_shape(output: str, got: np.ndarray, want: np.ndarray) -> None:
    """Raise if the shapes differ."""
    if got.shape != want.shape:
        _fail(output, (), math.nan, math.nan, math.inf, f"{output}: shape {got.shape}, expected {want.shape}")


def assert_same_bits(
    output: str, got: np.ndarray, want: np.ndarray, why: str = "every sum is exact", *, zeros: bool = False
) -> None:
    """Raise unless every element has the same bits; `why` says what makes that a fair demand.

    A zero of either sign counts as zero: where trainable products cancel or underflow, the sign of the
    zero is the order of additions again. Frozen entries are held to +0.0 by `assert_frozen_zero`. With `zeros`
    the signs of zeros count as well.
    """
    assert_same_shape(output, got, want)
    wrong = ~((got == want) | (np.isnan(got) & np.isnan(want)))
    if zeros:
        wrong |= (got == 0) & (np.signbit(got) != np.signbit(want))
    if wrong.any():
        error = np.where(wrong, np.abs(got - want), -1.0)
        index = _worst(np.where(np.isnan(error), np.inf, error))
        text = f"{output}{list(index)}: {int(wrong.sum())} of {wrong.size} elements differ, and {why}"
        _fail(output, index, got[index], want[index], math.inf, text)


def assert_frozen_zero(output: str, got: np.ndarray, frozen: np.ndarray) -> None:
    """Raise unless every frozen element is +0.0, bit for bit (S3)."""
    leaked = np.broadcast_to(frozen, got.shape) & ((got != 0) | np.signbit(got))
    if leaked.any():
        size = np.where(leaked, np.where(np.isfinite(got), np.abs(got), np.inf), -1.0)
        index = _worst(size)
        kind = "are -0.0" if not (got[leaked] != 0).any() else "are not zero"
        text = f"{output}{list(index)}: {int(leaked.sum())} frozen entries {kind}, expected +0.0 bit for bit"
        _fail(output, index, got[index], 0.0, math.inf, text)


def assert_within(output: str, got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> None:
    """Raise unless every element is within its bound of the oracle."""
    assert_same_shape(output, got, want)
    ratio = error_ratio(got, want, bound)
    if ratio.size and not np.max(ratio) <= 1.0:
        index = _worst(ratio)
        text = f"{output}{list(index)}: error is {ratio[index]:.3g} times the bound {float(bound[index]):.3g}"
        _fail(output, index, got[index], want[index], float(ratio[index]), text)


def error_ratio(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Return error over bound, elementwise; infinite where one is finite and the other is not."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(got - want)
        ratio = np.where(error == 0, 0.0, error / bound)
    return np.where(np.isnan(ratio), np.inf, ratio)


def assert_error_ratio(rms: dict[str, float], elements: int) -> float | None:
    """Raise unless the two frameworks err alike; return the RMS error of JAX over that of torch.

    Args:
        rms: Root mean square of error over bound, by framework ("torch", "jax").
        elements: How many elements it was taken over.

    Returns:
        The ratio, or None where there are too few elements or no error at all.
    """
    torch, jax = rms["torch"], rms["jax"]
    if elements < ENOUGH or max(torch, jax) < 1e-3:
        return None
    ratio = jax / torch if torch > 0 else math.inf
    if not 1 / TWIN_RATIO <= ratio <= TWIN_RATIO:
        worse = "jax" if ratio > 1 else "torch"
        text = (
            f"the RMS error of {worse} is {max(ratio, 1 / ratio if ratio else math.inf):.3g} times the other's: "
            f"not the same precision"
        )
        _fail("error ratio", (), jax, torch, ratio, text)
    return ratio


def assert_error_ratios(torch: dict[str, tuple[float, int]], jax: dict[str, tuple[float, int]]) -> float | None:
    """Raise unless the two frameworks err alike in every output: one that is good must not hide one that is not.

    Args:
        torch: RMS of error over bound and number of elements, by output.
        jax: The same of JAX.

    Returns:
        The ratio that is farthest from one, or None where no output has enough elements or error.
    """
    ratios = []
    for name, (rms, elements) in jax.items():
        try:
            ratio = assert_error_ratio({"torch": torch[name][0], "jax": rms}, elements)
        except Mismatch as mismatch:
            raise Mismatch(dataclasses.replace(mismatch.finding, text=f"{name}: {mismatch.finding.text}")) from None
        ratios += [] if ratio is None else [ratio]
    return max(ratios, key=lambda ratio: abs(math.log(ratio)), default=None)


def _worst(size: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(size)), size.shape))


def _fail(output: str, index: tuple[int, ...], got: Any, want: Any, ratio: float, text: str) -> NoReturn:
    raise Mismatch(Finding(output, index, float(got), float(want), ratio, text))
