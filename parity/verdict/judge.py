"""The verdict on results: first what kind of number each element is, then its size (compare.py for exact demands)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity.execution.calls import Outputs
from parity.records import BINS, Finding
from parity.verdict import compare, sensitivity
from parity.verdict.compare import TWIN_RATIO, Mismatch
from parity.verdict.outcomes import Error

LARGEST = {"float64": np.finfo(np.float64).max, "float32": float(np.finfo(np.float32).max), "bfloat16": 2.0**128,
           "float16": 65504.0}  # fmt: skip
"""Beyond it a dtype has infinity (bfloat16: to within its rounding)."""

ROUNDED = 0.25
"""The RMS error, in inherent units, of results that are as good as their dtype: less does not count as better."""


def assert_same_outputs(got: Outputs, want: Outputs, left: str = "jax", right: str = "torch") -> None:
    """Raise unless both have the same outputs, in the same shapes and dtypes."""
    if set(got.values) != set(want.values):
        text = f"{left} returns {', '.join(got.values) or 'nothing'}; {right} {', '.join(want.values) or 'nothing'}"
        raise Mismatch(Finding("structure", (), np.nan, np.nan, np.inf, text))
    for name, value in got.values.items():
        compare.assert_same_shape(name, value, want.values[name])
    assert_same_dtypes(got.dtypes, want.dtypes, left, right)


def assert_same_dtypes(got: Mapping[str, str], want: Mapping[str, str], left: str, right: str) -> None:
    """Raise unless outputs that both have are of the same dtype."""
    for name, dtype in got.items():
        if _kind(dtype) != _kind(want.get(name, dtype)):
            text = f"{name}: {left} returns {dtype}, {right} {want[name]}"
            raise Mismatch(Finding(name, (), np.nan, np.nan, np.inf, text))


def assert_close(
    got: Outputs, want: Outputs, spread: dict[str, np.ndarray], dtype: str, *, terms: int, order: int,
    signs: bool = False, twin: tuple[Outputs, Outputs] | None = None,
) -> Error:  # fmt: skip
    """Raise unless every element is of the right kind and within its bound.

    Args:
        got: What came.
        want: In float64, what should have come.
        spread: From `sensitivity.spread`.
        dtype: What `got` was computed in.
        terms: How many numbers a result depends on.
        order: Of derivative.
        signs: Whether the sign of a zero counts.
        twin: The other framework's run in this dtype and in float64: what it loses as well is no difference
            between the two. Its largest error over bound, times TWIN_RATIO, is then the bound; and an element that
            overflows in both, in the same way, is right.
    """
    excused = _loss_of(twin, spread, dtype, terms=terms, order=order) if twin else 0.0
    ratios, rms = [], {}
    for name, value in got.values.items():
        if value.dtype.kind != "f" or want.values[name].dtype.kind != "f":
            compare.assert_same_bits(name, np.asarray(value, np.float64), np.asarray(want.values[name], np.float64),
                                     "it is no floating result")  # fmt: skip
            continue
        target = want.values[name]
        other = twin[0].values.get(name) if twin else None
        other = other if other is not None and other.shape == value.shape else None
        _assert_same_kind(name, value, target, dtype, signs, other)
        allowed = sensitivity.bound(target, spread[name], dtype, terms=terms, order=order)
        ratio = _ratio(value, target, allowed)
        if ratio.size and np.max(ratio) > max(1.0, TWIN_RATIO * excused):
            index = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
            text = (
                f"{name}{list(index)}: error is {ratio[index]:.3g} times the bound {float(allowed[index]):.3g}; "
                f"{int(np.sum(ratio > 1))} of {ratio.size} elements are beyond it"
            )
            raise Mismatch(Finding(name, index, float(value[index]), float(target[index]), float(ratio[index]), text))
        if excused > 0.1:
            ratio = ratio / max(1.0, TWIN_RATIO * excused)
        ratios.append(ratio.ravel())
        units = _ratio(value, target, sensitivity.inherent(target, spread[name], dtype))
        rms[name] = (sensitivity.rms(units), units.size)
    flat = np.concatenate(ratios) if ratios else np.zeros(0)
    return Error(float(flat.max(initial=0.0)), rms, histogram(flat))


def assert_error_ratios(torch: Error, jax: Error) -> float | None:
    """Raise unless the two frameworks err alike; as compare.assert_error_ratios, of errors in inherent units.

    What is as good as the dtype allows (RMS error ROUNDED) counts as that: eager 16-bit code stores after every
    operation and has two or three units where a fused kernel has a third of one. That is no other precision.
    """
    clamped = ({name: (max(rms, ROUNDED), n) for name, (rms, n) in one.rms.items()} for one in (torch, jax))
    return compare.assert_error_ratios(*clamped)


def same_bits(got: Outputs, want: Outputs) -> bool:
    """Return whether all results are the same, zeros by sign and NaN as NaN."""
    return set(got.values) == set(want.values) and all(
        value.shape == want.values[name].shape
        and bool(np.all((value == want.values[name]) & (np.signbit(value) == np.signbit(want.values[name]))
                        | (value != value) & (want.values[name] != want.values[name])))
        if value.dtype.kind == "f" and want.values[name].dtype.kind == "f"
        else value.shape == want.values[name].shape and bool(np.all(value == want.values[name]))
        for name, value in got.values.items()
    )  # fmt: skip


def histogram(ratios: np.ndarray) -> tuple[int, ...]:
    """Return how many elements lie between the powers of two of BINS, below the first and beyond the last.

    Example:
        >>> histogram(np.array([0.0, 0.3, 2.0**20]))
        (1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1)
    """
    edges = np.array([2.0**power for power in BINS])
    counts = np.bincount(np.searchsorted(edges, ratios, side="right"), minlength=len(BINS) + 1)
    return tuple(int(count) for count in counts)


def _assert_same_kind(
    name: str, got: np.ndarray, want: np.ndarray, dtype: str, signs: bool, twin: np.ndarray | None
) -> None:
    wrong = (np.isnan(got) != np.isnan(want)) | (np.isposinf(got) != np.isposinf(want)) | (
        np.isneginf(got) != np.isneginf(want)
    )  # fmt: skip
    if dtype != "float64":
        # Too large for the dtype: infinity is right.
        over = np.isinf(got) & (np.abs(want) >= LARGEST[dtype] * (1 - 2.0**-8)) & (np.sign(got) == np.sign(want))
        wrong &= ~over
    if twin is not None:
        alike = (np.isnan(got) & np.isnan(twin)) | (np.isinf(got) & (got == twin)) | (np.isfinite(got) & (got == twin))
        wrong &= ~alike
    if signs:
        wrong |= (got == 0) & (want == 0) & (np.signbit(got) != np.signbit(want))
    if wrong.any():
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        text = (
            f"{name}{list(index)}: {float(got[index])!r} where {float(want[index])!r} was expected; "
            f"{int(wrong.sum())} of {wrong.size} elements are of another kind"
        )
        raise Mismatch(Finding(name, index, float(got[index]), float(want[index]), np.inf, text))


def _loss_of(
    twin: tuple[Outputs, Outputs], spread: dict[str, np.ndarray], dtype: str, *, terms: int, order: int
) -> float:
    largest = 0.0
    for name, value in twin[0].values.items():
        target = twin[1].values.get(name)
        if target is None or value.dtype.kind != "f" or target.shape != value.shape or name not in spread:
            continue
        if spread[name].shape != value.shape:
            continue
        allowed = sensitivity.bound(target, spread[name], dtype, terms=terms, order=order)
        ratio = _ratio(value, target, allowed)
        largest = max(largest, float(np.max(ratio[np.isfinite(ratio)], initial=0.0)))
    return largest


def _ratio(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Return error over bound; zero where an element is no number, which was judged before."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = np.where(got == want, 0.0, np.abs(got - want) / bound)
    return np.where(np.isfinite(got) & np.isfinite(want), ratio, 0.0)


def _kind(dtype: str) -> str:
    # JAX without x64 has 32-bit integers where torch has 64: that is a setting, and no promotion of floats.
    for kind in ("uint", "int"):
        if dtype.startswith(kind):
            return kind
    return dtype
