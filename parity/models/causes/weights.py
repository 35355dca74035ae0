"""A weight that was loaded wrongly: what of torch's weights it really is. Facts, for the numbers are equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parity.explanation.arrangement import Rearrangement, rearrangements
from parity.records import Diagnosis

CLOSE = 1e-6
"""How near, relative to the largest number, two loaded float32 arrays must be to be the same."""

LOW = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit of types that weights are rounded to."""

ENOUGH = 4
"""Arrays with fewer numbers are equal by chance, after one change of many."""

FEW = 20
"""One number in so many may be another, and the array was loaded for all that."""

FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the square root": np.sqrt,
    "the square": np.square,
    "the inverse": lambda x: 1 / x,
    "the inverse root": lambda x: 1 / np.sqrt(x),
    "the exponential": np.exp,
    "the logarithm": np.log,
    "the negative": np.negative,
}

STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")


def diagnose_weights(
    pairs: Sequence[Any], torch_weights: Mapping[str, np.ndarray], jax_weights: Mapping[str, np.ndarray]
) -> dict[int, Diagnosis]:
    """Return what each wrongly loaded weight is, by its place among the pairs; equal ones are not in the result.

    Args:
        pairs: `WeightPair`s of a map.
        torch_weights: Torch's weights by name, as they were loaded.
        jax_weights: The JAX model's, by path, likewise.
    """
    wanted, loaded = {}, {}
    for place, pair in enumerate(pairs):
        try:
            wanted[place] = _first(pair.to_jax({name: np.asarray(torch_weights[name]) for name in pair.torch}))
            loaded[place] = np.asarray(pair.jax_part(jax_weights), np.float64)
        except (KeyError, ValueError, TypeError, AttributeError):
            wanted.pop(place, None)  # a weight that has no counterpart of its shape
    holders: dict[tuple[Any, ...], list[int]] = {}
    for place, value in wanted.items():
        holders.setdefault(_key(value), []).append(place)
    found = {}
    for place, want in wanted.items():
        got = loaded[place]
        if got.shape != want.shape or same(got, want):
            continue
        others = [j for j in holders.get(_key(got), []) if j != place]
        found[place] = _of_another(pairs, wanted, loaded, place, others) or explain(
            _name(pairs[place]), want, got, f"{' and '.join(pairs[place].jax)}: {pairs[place].rule}"
        )
    return found


def explain(name: str, want: np.ndarray, got: np.ndarray, rule: str = "") -> Diagnosis:
    """Return what one loaded array is of the array that it should be.

    Args:
        name: Of the weight.
        want: What it should be, in the JAX model's layout.
        got: What it is.
        rule: How the two layouts belong together, in words.

    Example:
        >>> square = np.arange(9.0).reshape(3, 3)
        >>> explain("w", square, square.T).cause
        'weight: transposed'
    """
    what = "statistic" if name.rpartition(".")[2] in STATISTICS else "weight"
    rule = f" ({rule})" if rule else ""
    flat = got.reshape(-1)
    if got.size and not np.any(flat != flat[0]) and np.any(want != want.reshape(-1)[0]) and flat[0] in (0, 1):
        return Diagnosis(
            f"{what}: not loaded",
            f"{name} is all {flat[0]:g} in JAX, its initial value; torch's is not.",
            f"Load {name} into the JAX model.",
        )
    for dtype, unit in LOW.items():
        if np.all(np.abs(got - want) <= unit * np.abs(want) + 1e-30) and want.size >= ENOUGH:
            return Diagnosis(f"{what}: rounded", f"{name} was rounded to {dtype} in JAX.", f"Load {name} in float32.")
    if want.size >= ENOUGH:
        for one in rearrangements(want.shape, weights=True):
            if same(got, one.of(want)):
                return _arranged(name, one, rule)
        permuted = _permuted(want, got)
        if permuted is not None:
            return Diagnosis(
                "weight: order",
                f"{name} has in JAX the same slices along axis {permuted} in another order.",
                f"Reorder {name} along that axis where weights are converted.",
            )
        for words, function in FUNCTIONS.items():
            with np.errstate(all="ignore"):
                if same(got, function(want)):
                    return Diagnosis(
                        f"{what}: {words.removeprefix('the ')} of it",
                        f"{name} in JAX is {words} of torch's.",
                        f"Load {name} as it is: torch's running_var and Flax's var are both variances."
                        if what == "statistic"
                        else f"Load {name} as it is.",
                    )
        scaled = _scaled(name, want, got)
        if scaled is not None:
            return scaled
    size = float(np.max(np.abs(want))) or 1.0
    far = float(np.max(np.abs(got - want)) / size)
    few = int(np.count_nonzero(np.abs(got - want) > CLOSE * size))
    if FEW * few <= want.size:
        return Diagnosis(
            f"{what}: other numbers",
            f"{few} of the {want.size} numbers of {name} are others in JAX, by up to {far:.2g} of the largest.",
            f"Load {name} as it is.",
        )
    return Diagnosis(
        f"{what}: other numbers",
        f"Likely: {name} was not loaded. Its numbers in JAX are others, by up to {far:.2g} of the largest, and no "
        "transpose, order, scale or other weight explains them.",
        f"Load {name} into the JAX model{rule}.",
    )


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two loaded arrays are the same numbers, but for the type that holds them."""
    if a.shape != b.shape:
        return False
    if np.array_equal(a, b, equal_nan=True):
        return True
    size = float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0))
    with np.errstate(invalid="ignore"):
        return bool(np.all((np.abs(a - b) <= CLOSE * size) | (a == b)))


WORDS = {
    "transposed": ("weight: transposed", "Transpose {name} where weights are converted{rule}."),
    "arrangement: kernel flip": (
        "weight: kernel flip",
        "Do not flip {name}: both frameworks correlate (a transposed convolution in lax is the exception).",
    ),
    "arrangement: part order": (
        "weight: part order",
        "Reorder the parts of {name} (gates; q, k and v; heads) where weights are converted.",
    ),
    "arrangement: channel order": ("weight: head order", "Split {name} as (head, channel) on both sides."),
    "arrangement: interleaved": (
        "weight: head order",
        "Split {name} alike on both sides: (head, channel), or halves against pairs of neighbours.",
    ),
}


def _arranged(name: str, one: Rearrangement, rule: str) -> Diagnosis:
    cause, fix = WORDS.get(one.cause, ("weight: order", "Reorder {name} where weights are converted."))
    return Diagnosis(
        cause, f"{name} in JAX is torch's, {one.words} (axes of the JAX layout).", fix.format(name=name, rule=rule)
    )


def _of_another(
    pairs: Sequence[Any],
    wanted: Mapping[int, np.ndarray],
    loaded: Mapping[int, np.ndarray],
    place: int,
    others: Sequence[int],
) -> Diagnosis | None:
    if not others or wanted[place].size < ENOUGH or not np.any(wanted[place]):
        return None
    if not np.any(loaded[place] != loaded[place].flat[0]):
        return None  # initial values of many weights are all one number
    other = others[0]
    mine, theirs = _name(pairs[place]), _name(pairs[other])
    if same(loaded[other], wanted[place]):
        layers = _layers(mine, theirs)
        if layers:
            return Diagnosis(
                "weight: layer order",
                f"{mine} in JAX is torch's {theirs}, and the other way round: layers {layers} are exchanged.",
                "Stack or load the layers from the first to the last.",
            )
        return Diagnosis(
            "weight: exchanged",
            f"{mine} and {theirs} are exchanged in JAX.",
            f"Load {mine} where {theirs} was loaded, and the other way round.",
        )
    return Diagnosis(
        "weight: of another module", f"{mine} in JAX holds torch's {theirs}.", f"Load {mine} from torch's {mine}."
    )


def _layers(mine: str, theirs: str) -> str:
    """Return the numbers of two layers, where two names differ in nothing else."""
    left, right = mine.split("."), theirs.split(".")
    apart = [(a, b) for a, b in zip(left, right, strict=False) if a != b]
    if len(left) != len(right) or len(apart) != 1 or not all(part.isdigit() for part in apart[0]):
        return ""
    return " and ".join(sorted(apart[0], key=int))


def _permuted(want: np.ndarray, got: np.ndarray) -> int | None:
    """Return the axis along which slices stand in another order, or None."""
    for axis in range(want.ndim):
        if want.shape[axis] < 2 or (want.size == want.shape[axis] and np.unique(want).size < want.size):
            continue
        rows = [np.moveaxis(one, axis, 0).reshape(want.shape[axis], -1).astype(np.float32) for one in (want, got)]
        ordered = [np.array(sorted(map(bytes, np.ascontiguousarray(one)))) for one in rows]
        if np.array_equal(ordered[0], ordered[1]):
            return axis
    return None


def _scaled(name: str, want: np.ndarray, got: np.ndarray) -> Diagnosis | None:
    with np.errstate(all="ignore"):
        ratio = (got / want)[want != 0]
    if ratio.size >= ENOUGH and np.allclose(ratio, ratio[0], rtol=1e-5, atol=0) and np.isfinite(ratio[0]):
        return Diagnosis(
            "weight: scaled",
            f"{name} in JAX is {float(ratio[0]):.6g} times torch's.",
            f"Load {name} as it is, or take the factor out of the JAX code.",
        )
    step = got - want
    if step.size < ENOUGH:
        return None
    if np.allclose(step, step.flat[0], rtol=1e-5, atol=1e-6) and abs(float(step.flat[0])) > 1e-3:
        return Diagnosis(
            "weight: shifted",
            f"{name} in JAX is torch's plus {float(step.flat[0]):.6g}.",
            f"Load {name} as it is: some norms multiply by 1 + weight.",
        )
    return None


def _first(arrays: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(next(iter(arrays.values())), np.float64)


def _key(value: np.ndarray) -> tuple[Any, ...]:
    return (value.shape, value.astype(np.float32).tobytes())


def _name(pair: Any) -> str:
    return " and ".join(pair.torch)
