"""The verdict on results: first what kind of number each element is, then its size (compare.py for exact demands)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from parity.execution.calls import Outputs
from parity.operator import trees
from parity.operator.tolerance import Tolerance
from parity.records import BINS, Finding
from parity.verdict import compare, sensitivity
from parity.verdict.bias import Slope
from parity.verdict.compare import TWIN_RATIO, Mismatch
from parity.verdict.outcomes import Error
from parity.verdict.sensitivity import Moved

LARGEST = {"float64": np.finfo(np.float64).max, "float32": float(np.finfo(np.float32).max), "bfloat16": 2.0**128,
           "float16": 65504.0}  # fmt: skip
"""Beyond it a dtype has infinity (bfloat16: to within its rounding)."""

INDICES = ({"int64", "int32"}, {"uint64", "uint32"})
"""Dtypes that are one: without x64 JAX has no integers of 64 bits, and some of its functions never return them."""

MANY, LUCK = 4, 4.0
"""Changes that must be seen of integers that rounding decides, and the standard deviations that a count may be off."""

PYTHON = {"float": "float", "int": "int", "bool": "bool", "complex": "complex"}
"""Python's numbers have no width: under jit they become arrays of the default one."""


@dataclass(frozen=True)
class Twin:
    """The other framework's run in the same dtype, and in float64: what it loses as well is no difference."""

    own: Outputs
    exact: Outputs


def assert_same_outputs(got: Outputs, want: Outputs, left: str = "jax", right: str = "torch") -> None:
    """Raise unless both have the same outputs, in the same structure, shapes and dtypes."""
    names = [trees.fields(one.marks) for one in (got, want)]
    marks = [[mark for mark in one.marks if trees.FIELDS not in mark] for one in (got, want)]
    if set(got.values) != set(want.values) or set(marks[0]) != set(marks[1]):
        found = [", ".join([*one.values, *rest]) or "nothing" for one, rest in zip((got, want), marks, strict=True)]
        text = f"{left} returns {found[0]}; {right} {found[1]}"
        raise Mismatch(Finding("structure", (), np.nan, np.nan, np.inf, text))
    for path in names[0].keys() & names[1].keys():
        if names[0][path] != names[1][path]:
            text = f"{path}: {left} returns a named tuple of {names[0][path]}; {right} of {names[1][path]}"
            raise Mismatch(Finding("structure", (), np.nan, np.nan, np.inf, text))
    for name, value in got.values.items():
        compare.assert_same_shape(name, value, want.values[name])
    assert_same_dtypes(got.dtypes, want.dtypes, left, right)


def assert_same_dtypes(got: Mapping[str, str], want: Mapping[str, str], left: str, right: str) -> None:
    """Raise unless outputs that both have are of the same dtype."""
    for name, dtype in got.items():
        if not same_dtype(dtype, want.get(name, dtype)):
            text = f"{name}: {left} returns {dtype}, {right} {want[name]}"
            raise Mismatch(Finding(name, (), np.nan, np.nan, np.inf, text))


def same_dtype(left: str, right: str) -> bool:
    """Return whether two dtypes are the same, but for what the frameworks' settings make of it.

    Example:
        >>> same_dtype("int64", "int32"), same_dtype("int64", "int16"), same_dtype("float", "float32")
        (True, False, True)
    """
    if left == right or {left, right} in INDICES:
        return True
    return any(one in PYTHON and other.startswith(PYTHON[one]) for one, other in ((left, right), (right, left)))


def assert_close(
    got: Outputs, want: Outputs, moved: Moved, dtype: str, *, order: int, signs: bool = False,
    twin: Twin | None = None, tolerance: Tolerance | None = None, single: frozenset[str] = frozenset(),
) -> Error:  # fmt: skip
    """Raise unless every element is of the right kind and within its bound.

    Args:
        got: What came.
        want: In float64, what should have come.
        moved: What rounding does to it (`sensitivity.moved`).
        dtype: What `got` was computed in.
        order: Order of derivative.
        signs: Whether the sign of a zero counts.
        twin: The other framework: an output may be off by TWIN_RATIO times what the other's is, in bounds; and an
            element that is the same in both is right.
        tolerance: The user's own: an element within it is right.
        single: Outputs that are float32, whatever the others are computed in.
    """
    asked = dtype
    ratios, rms, slopes, tolerated = [], {}, {}, 0
    sizes = sensitivity.sizes(want.values)
    for name, value in got.values.items():
        target = want.values[name]
        other = twin.own.values.get(name) if twin else None
        other = other if other is not None and other.shape == value.shape else None
        if value.dtype.kind != "f" or target.dtype.kind != "f":
            _assert_same_discrete(name, value, target, moved.seen.get(name, []), other)
            continue
        dtype = "float32" if name in single else asked
        s = moved.spread.get(name, np.zeros(target.shape))
        _assert_same_kind(name, value, target, dtype, signs, other)
        allowed = sensitivity.bound(sizes[name], s, dtype, order=order)
        ratio = _ratio(value, target, allowed)
        if other is not None:
            ratio = np.where(value == other, np.minimum(ratio, 1.0), ratio)
        excused = max(1.0, TWIN_RATIO * _loss_of(name, twin, s, dtype, order)) if twin else 1.0
        if tolerance is not None:
            given = _ratio(value, target, tolerance.atol + tolerance.rtol * sizes[name])
            tolerated += int(np.sum((ratio > excused) & (given <= 1)))
            ratio = np.where(given <= 1, np.minimum(ratio, 1.0), ratio)
        if ratio.size and np.max(ratio) > excused:
            index = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
            text = (
                f"{name}{list(index)}: error is {ratio[index]:.3g} times the bound {float(allowed[index]):.3g}; "
                f"{int(np.sum(ratio > 1))} of {ratio.size} elements are beyond it"
            )
            raise Mismatch(Finding(name, index, float(value[index]), float(target[index]), float(ratio[index]), text))
        ratios.append((ratio / excused).ravel())
        inherent = sensitivity.inherent(sizes[name], s, dtype)
        units = _ratio(value, target, inherent)
        rms[name] = (sensitivity.rms(units), units.size)
        slopes[name] = Slope.of(value, target, inherent)
    flat = np.concatenate(ratios) if ratios else np.zeros(0)
    return Error(float(flat.max(initial=0.0)), rms, histogram(flat), slopes, tolerated)


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


def _assert_same_discrete(
    name: str, got: np.ndarray, want: np.ndarray, seen: list[np.ndarray], other: np.ndarray | None
) -> None:
    """Raise unless indices, counts and truth values are the same, or rounding alone decides between them.

    Where rounding anew gave another value than the one expected, in the element's row, any value that was seen in
    that row is right, and the other framework's.
    """
    with np.errstate(invalid="ignore"):
        wrong = (got != want) & ~((got != got) & (want != want))
    if wrong.any() and seen:
        found = [one for one in [want, *seen, *([] if other is None else [other])] if one.shape == want.shape]
        unsteady = np.any([one != want for one in found[: len(seen) + 1]], axis=0)
        rows = np.stack(found).reshape(len(found), -1, want.shape[-1] if want.ndim else 1)
        flat = got.reshape(rows.shape[1:])
        usual = (flat[None, :, :, None] == rows[:, :, None, :]).any((0, 3)).reshape(got.shape)
        wrong &= ~(unsteady & usual)
        wrong &= ~_by_luck(wrong, got, want, [one for one in seen if one.shape == want.shape])
    if wrong.any():
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        text = f"{name}{list(index)}: {int(wrong.sum())} of {wrong.size} elements differ, and it is no floating result"
        came, expected = (float(one[index]) if one.dtype.kind in "fiub" else np.nan for one in (got, want))
        raise Mismatch(Finding(name, index, came, expected, np.inf, text))


def _by_luck(wrong: np.ndarray, got: np.ndarray, want: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """Return which elements differ as others were seen to: few draws do not show each that rounding may decide.

    Rounding anew changes a share of all elements, by so much at most. As many, and LUCK standard deviations more, may
    be changed without that it was seen. One that changed alone says nothing of others: MANY must have.
    """
    if not seen or want.dtype.kind not in "iu" or got.dtype.kind not in "iu":
        return np.zeros(wrong.shape, bool)
    steps = np.abs(np.stack(seen).astype(np.float64) - want)
    changed = float(np.mean(steps > 0)) * want.size
    near = wrong & (np.abs(got.astype(np.float64) - want) <= steps.max())
    few = changed * len(seen) >= MANY and near.sum() <= changed + LUCK * math.sqrt(changed)
    return near if few else np.zeros(wrong.shape, bool)


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


def _loss_of(name: str, twin: Twin, s: np.ndarray, dtype: str, order: int) -> float:
    """Return the largest error over bound of the other framework's output."""
    value, target = twin.own.values.get(name), twin.exact.values.get(name)
    if value is None or target is None or value.dtype.kind != "f" or not value.shape == target.shape == s.shape:
        return 0.0
    sizes = sensitivity.sizes(twin.exact.values)
    ratio = _ratio(value, target, sensitivity.bound(sizes[name], s, dtype, order=order))
    return float(np.max(ratio[np.isfinite(ratio)], initial=0.0))


def _ratio(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Return error over bound; zero where an element is no number, which was judged before."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = np.where(got == want, 0.0, np.abs(got - want) / bound)
    return np.where(np.isfinite(got) & np.isfinite(want), ratio, 0.0)
