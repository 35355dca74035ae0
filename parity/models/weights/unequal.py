"""How two weights that pair differ in value: a transpose, a permutation, a factor, another weight, or otherwise."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity.models.weights.jax_side import JaxTree
from parity.models.weights.pairs import WeightPair
from parity.models.weights.torch_side import TorchTree
from parity.verdict.bounds import UNIT

LOOKED_AT = 1 << 25
"""Numbers that are looked at for how weights differ; beyond that they differ, and no more is said."""
LARGEST = 1 << 22
"""Weights with more numbers than this are looked at by their first columns when a permutation is sought."""
COMPUTED = 4.0
"""Units that a value may be off by where a rule computes it: one for each way, and a function that is approximated."""
KEYS = 8
"""Columns by which rows are sorted when a permutation is sought."""


@dataclass(frozen=True)
class Unequal:
    """A pair whose values differ.

    Attributes:
        pair: The pair.
        text: How they differ, for a reader.
        cause: "transpose", "permutation", "scale", "exchanged", "initial values", "not finite" or "differs".
        error: The largest difference.
    """

    pair: WeightPair
    text: str
    cause: str
    error: float

    def __str__(self) -> str:
        return f"{' + '.join(self.pair.torch)} and {', '.join(self.pair.jax)}: {self.text}"


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values as they are when they have been kept in a type."""
    if dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes

        return values.astype(getattr(ml_dtypes, dtype)).astype(np.float32)
    return values.astype(dtype)


def explain(expected: np.ndarray, got: np.ndarray) -> tuple[str, str]:
    """Return how two arrays of one shape differ, as (cause, text).

    Example:
        >>> one = np.arange(9.0).reshape(3, 3)
        >>> explain(one, one.T)
        ('transpose', 'equal after a transpose')
        >>> explain(one, one[[2, 0, 1]])
        ('permutation', 'equal after a permutation of axis 0: [2, 0, 1]')
        >>> explain(one, one / 8)
        ('scale', "JAX's is torch's times 0.125")
        >>> kernel = np.arange(36.0).reshape(2, 2, 3, 3)
        >>> explain(kernel, kernel.swapaxes(0, 1)[..., ::-1, ::-1])
        ('permutation', 'equal after a transpose of the axes [1, 0, 2, 3], and then axes 2, 3 are reversed')
    """
    ours, theirs = expected.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(ours).all() or not np.isfinite(theirs).all():
        where = "torch" if not np.isfinite(ours).all() else "JAX"
        return "not finite", f"{where}'s values are not all finite"
    close = (
        4 * float(np.finfo(np.float32).eps) * float(np.abs(ours).max(initial=0))
    )  # a cast, or a division, and its rounding
    if _near(ours, theirs, close):
        return (
            "rounding",
            f"differs by no more than a cast to float32 does, by {np.abs(ours - theirs).max():.3g} at most",
        )
    if not _may_be_moved(ours, theirs, close):
        return _computed(ours, theirs, close)
    for axes in _transposes(theirs.shape):
        if _near(ours, theirs.transpose(axes), close):
            text = "a transpose" if theirs.ndim == 2 else f"a transpose of the axes {list(axes)}"
            return "transpose", f"equal after {text}"
    for axis in range(theirs.ndim):
        if theirs.shape[axis] > 1 and _near(ours, np.flip(theirs, axis), close):
            return "permutation", f"equal after axis {axis} is reversed"
    for axis in range(theirs.ndim):
        order = _permutation(ours, theirs, axis, close)
        if order is not None:
            shown = str(order) if len(order) <= 12 else f"[{', '.join(map(str, order[:8]))}, ...]"
            return "permutation", f"equal after a permutation of axis {axis}: {shown}"
    if _near(np.sort(ours, axis=None), np.sort(theirs, axis=None), close):
        return "permutation", _reversed(ours, theirs, close) or "the same numbers in another order"
    return _computed(ours, theirs, close)


def _reversed(ours: np.ndarray, theirs: np.ndarray, close: float) -> str | None:
    """Return in words which axes are reversed, after a transpose or without: kernels of transposed convolutions are."""
    every = tuple(range(theirs.ndim))
    for axes in (every, *_transposes(theirs.shape)):
        turned = theirs.transpose(axes)
        for flipped in (some for count in range(1, theirs.ndim + 1) for some in itertools.combinations(every, count)):
            if _near(ours, np.flip(turned, flipped), close):
                also = "" if axes == every else f"a transpose of the axes {list(axes)}, and then "
                return f"equal after {also}axes {', '.join(map(str, flipped))} are reversed"
    return None


def _may_be_moved(ours: np.ndarray, theirs: np.ndarray, close: float) -> bool:
    """Return whether two arrays can hold the same numbers in another order: their sums agree then."""
    most = close * ours.size + 1e-9 * float(np.abs(ours).sum())
    return abs(float(np.abs(ours).sum() - np.abs(theirs).sum())) <= most


def _computed(ours: np.ndarray, theirs: np.ndarray, close: float) -> tuple[str, str]:
    """Return how two arrays differ whose numbers are not the same in another order."""
    if (factor := _factor(ours, theirs)) is not None:
        return "scale", f"JAX's is torch's times {factor:.6g}"
    if (offset := float(np.median(theirs - ours))) and _near(ours + offset, theirs, close + 1e-6 * abs(offset)):
        return "offset", f"JAX's is torch's plus {offset:.6g}"
    for value, name in ((0.0, "zeros"), (1.0, "ones")):
        if np.all(theirs == value) or np.all(ours == value):
            side = "JAX's is" if np.all(theirs == value) else "torch's is"
            return "initial values", f"{side} all {name}: not loaded?"
    return "differs", f"differs, by {np.abs(ours - theirs).max():.3g} at most"


def _near(one: np.ndarray, other: np.ndarray, close: float) -> bool:
    return one.shape == other.shape and bool(np.all(np.abs(one - other) <= close))


def _transposes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the exchanges of two axes of equal length."""
    found = []
    for first in range(len(shape)):
        for second in range(first + 1, len(shape)):
            if shape[first] == shape[second] > 1:
                axes = list(range(len(shape)))
                axes[first], axes[second] = second, first
                found.append(tuple(axes))
    return found


def _permutation(ours: np.ndarray, theirs: np.ndarray, axis: int, close: float) -> list[int] | None:
    """Return `order` with ours.take(order, axis) = theirs, or None."""
    length = ours.shape[axis]
    if length < 2 or ours.ndim < 1:
        return None
    one, other = (
        np.moveaxis(array, axis, 0).reshape(length, -1)[:, : max(1, LARGEST // length)] for array in (ours, theirs)
    )
    if len(np.unique(one, axis=0)) < 2:
        return None
    sorted_one, sorted_other = (np.lexsort(array[:, :KEYS].T[::-1]) for array in (one, other))
    if not _near(one[sorted_one], other[sorted_other], close):
        return None
    order = np.empty(length, dtype=int)
    order[sorted_other] = sorted_one
    whole = ours.take(order, axis)
    return order.tolist() if _near(whole, theirs, close) else None


def _factor(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Return the factor that leads from ours to theirs throughout; two numbers at least, or it would say nothing."""
    where = ours != 0
    if int(where.sum()) < 2 or np.any(theirs[~where] != 0):
        return None
    ratios = theirs[where] / ours[where]
    middle = float(np.median(ratios))
    if middle == 0 or np.abs(ratios / middle - 1).max() > 1e-5 or len(np.unique(ours[where])) < 2:
        return None
    return middle


def compared(pairs: Sequence[WeightPair], torch: TorchTree, jax: JaxTree) -> list[Unequal]:
    """Return the pairs whose values differ, each with how; what is another pair's value is named first."""
    ours, theirs = torch.weights(), jax.weights()
    wrong: list[tuple[WeightPair, np.ndarray, np.ndarray]] = []
    for pair in pairs:
        got = pair.jax_part(theirs)
        expected = rounded(pair.transform.to_jax(pair.torch_parts(ours), pair.jax_shape), jax.leaves[pair.jax[0]].dtype)
        if not _equal(expected, got, pair, jax):
            wrong.append((pair, expected, got))
    digests: dict[tuple[tuple[int, ...], bytes], list[WeightPair]] = {}
    for pair, expected, _ in wrong:
        digests.setdefault((expected.shape, _digest(expected)), []).append(pair)
    made: list[Unequal] = []
    budget = LOOKED_AT
    for pair, expected, got in wrong:
        error = float(np.abs(expected.astype(np.float64) - got.astype(np.float64)).max(initial=0))
        owner = next(iter(digests.get((got.shape, _digest(got)), [])), None)
        if owner is not None and got.size > 1 and len(np.unique(got[..., :2])) > 1:
            made.append(
                Unequal(pair, f"JAX's holds torch's {' + '.join(map(str, owner.torch_views))}", "exchanged", error)
            )
            continue
        budget -= expected.size
        cause, text = explain(expected, got) if budget > 0 else ("differs", f"differs, by {error:.3g} at most")
        made.append(Unequal(pair, text, cause, error))
    return _exchanges(made)


def _equal(expected: np.ndarray, got: np.ndarray, pair: WeightPair, jax: JaxTree) -> bool:
    """Return whether values are equal: bit by bit, or to some units where they are computed, in whatever order."""
    if np.array_equal(expected, got, equal_nan=True):
        return True
    if not pair.transform.computes or expected.shape != got.shape:
        return False
    unit = UNIT.get(jax.leaves[pair.jax[0]].dtype, 0.0)
    one, other = expected.astype(np.float64), got.astype(np.float64)
    return bool(np.all(np.abs(one - other) <= COMPUTED * unit * np.maximum(np.abs(one), np.abs(other))))


def _exchanges(made: list[Unequal]) -> list[Unequal]:
    """Say "q and k are exchanged" where two weights hold each other's values."""
    held = {id(one.pair): one.text.removeprefix("JAX's holds torch's ") for one in made if one.cause == "exchanged"}
    names = {id(one.pair): " + ".join(map(str, one.pair.torch_views)) for one in made}
    result = []
    for one in made:
        name = names[id(one.pair)]
        other = held.get(id(one.pair))
        if other and any(names[key] == other and what == name for key, what in held.items()):
            one = Unequal(one.pair, f"{name} and {other} are exchanged", one.cause, one.error)
        result.append(one)
    return result


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
