"""Antialiasing of resizes, and numbers that one result is the other times."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np

from parity.explanation.evidence import Evidence
from parity.records import Diagnosis


def default_argument(e: Evidence) -> Diagnosis | None:
    """Return that antialiasing explains that two float64 results of a resize differ, or None."""
    if e.derivative or not e.numbers.theta:
        return None
    plain, smooth = "linear interpolation", "linear interpolation with antialiasing"
    for left, right in _resize(e.numbers.theta[0], e.want.shape):
        for got, want, mine, theirs in ((left, right, plain, smooth), (right, left, smooth, plain)):
            if explains(got, e.got) and explains(want, e.want) and not explains(left, right):
                return Diagnosis(
                    "default argument: antialias",
                    f"{e.output} is explained by the argument antialias: {mine} in {e.who}, {theirs} in the other.",
                    "Pass antialias= to both: torch.nn.functional.interpolate has False, jax.image.resize True.",
                )
    return None


def explains(values: np.ndarray, target: np.ndarray) -> bool:
    """Return whether numbers are those of a target to six digits, NaN for NaN."""
    if values.shape != target.shape:
        return False
    size = float(np.max(np.abs(target[np.isfinite(target)]), initial=0.0))
    with np.errstate(invalid="ignore"):
        return bool(
            np.all(
                (np.abs(values - target) <= 1e-6 * size) | (values == target) | (np.isnan(values) & np.isnan(target))
            )
        )


def _resize(x: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    changed = [axis for axis in range(x.ndim) if x.ndim == len(shape) and x.shape[axis] != shape[axis]]
    if not 1 <= len(changed) <= 3 or x.ndim != len(shape):
        return
    answers = []
    for antialias in (False, True):
        values = x
        for axis in changed:
            weights = _triangle(x.shape[axis], shape[axis], antialias)
            values = np.moveaxis(np.moveaxis(values, axis, -1) @ weights.T, -1, axis)
        answers.append(values)
    yield answers[0], answers[1]


def _triangle(source: int, target: int, antialias: bool) -> np.ndarray:
    """Return the weights of linear resampling with half pixel centres, edges normalised."""
    scale = source / target
    width = max(scale, 1.0) if antialias else 1.0
    centres = np.clip((np.arange(target) + 0.5) * scale - 0.5, *((-np.inf, np.inf) if antialias else (0, source - 1)))
    weights = np.maximum(0.0, 1 - np.abs(np.arange(source) - centres[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


DDOF_FIX = "Pass correction= to torch.std and torch.var, ddof= to jnp.std and jnp.var."


def factor_of(got: np.ndarray, want: np.ndarray) -> float | None:
    """Return the number that one result is the other times, or None.

    Example:
        >>> factor_of(np.array([1.0, 0.0, 3.0]), np.array([2.0, 0.0, 6.0]))
        0.5
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = got / want
    ratio = ratio[np.isfinite(ratio) & (want != 0)]
    if (
        not ratio.size
        or not np.allclose(ratio, ratio[0], rtol=1e-7, atol=0)
        or abs(ratio[0] - 1) < 1e-7
        or not ratio[0]
        or abs(ratio[0].imag) > 1e-7
    ):
        return None
    return float(ratio[0].real)


def factor(
    got: np.ndarray, want: np.ndarray, shapes: list[tuple[int, ...]], reduced: Collection[int], output: str, who: str,
    *, arguments: Collection[str] = ("ddof", "reduction", "norm", "base"),
) -> Diagnosis | None:  # fmt: skip
    """Return what a constant factor between two results tells, or None.

    Args:
        got: Results on several sets of numbers: one number alone always has a ratio to another.
        want: The other framework's.
        shapes: Of the inputs: lengths that a Fourier transform may have.
        reduced: Lengths along which a program adds up: those of a mean or a variance.
        output: What the results are called.
        who: Whose `got` is.
        arguments: Those that an operator of either program has: a loss over n - 1 of n labels has the factor of a
            variance, and a half that of a Fourier transform of length 4.
    """
    found = factor_of(got, want) if got.size > 1 else None
    if found is None:
        return None
    sizes = {n for shape in shapes for n in (*shape, math.prod(shape))} - {0, 1}
    named = {
        **{n / (n - 1): ("ddof", f"n/(n-1) with n = {n}") for n in reduced},
        **{math.sqrt(n / (n - 1)): ("ddof", f"the root of n/(n-1) with n = {n}") for n in reduced},
        **{float(n): ("reduction", f"{n}, a length: a sum on one side, a mean on the other") for n in reduced},
        **{math.sqrt(n): ("norm", f"the root of {n}, a length: norm='ortho' on one side") for n in sizes},
        math.log(2): ("base", "ln 2: another base of a logarithm"), math.log(10): ("base", "ln 10: another base"),
    }  # fmt: skip
    for value, (argument, words) in named.items():
        if argument not in arguments:
            continue
        if any(abs(found / candidate - 1) < 1e-7 for candidate in (value, 1 / value)):
            fix = f"Say {argument} on both sides." if argument != "ddof" else DDOF_FIX
            return Diagnosis(
                f"default argument: {argument}",
                f"{output} in {who} is {found:.6g} times torch's everywhere: {words}.",
                fix,
            )
    return Diagnosis("constant factor", f"{output} in {who} is {_digits(found)} times torch's everywhere, on other numbers as well.",
                     "Compare the scale, the reduction and the units of both.")  # fmt: skip


def _digits(factor: float) -> str:
    """Return a factor with as many digits as tell it from 1.

    Example:
        >>> _digits(0.5), _digits(1.0000001)
        ('0.5', '1.0000001')
    """
    return f"{factor:.6g}" if f"{factor:.6g}" != "1" else f"{factor:.10g}"
