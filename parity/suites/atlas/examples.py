"""One number each at which two operators differ: what the reason says, seen without the harness.

`tests/test_atlas_examples.py` computes every one of them anew, with plain torch and plain JAX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

NAN, INF = float("nan"), float("inf")

Of = Literal[
    "value", "value under jit", "gradient", "gradient of the first number", "tangent along [1, 0]", "tangent along ones"
]
"""The result itself; the derivative of its sum, or of its first number, by the first argument; a forward derivative,
along the entry [1, 0] of the first argument, or along all of it."""


@dataclass(frozen=True)
class Example:
    """Where two operators differ, and what each gives.

    Attributes:
        at: The arguments.
        torch: What torch gives, or "raises" and the name of the error.
        jax: What JAX gives, likewise.
        of: What the two values are of: the result itself or a derivative.
        dtype: Dtype of the floating arguments.
        said: The arguments in words, where they are long.
        entry: Which entry of the result; None = all of it.
    """

    at: tuple[Any, ...]
    torch: Any
    jax: Any
    of: Of = "value"
    dtype: str = "float64"
    said: str = ""
    entry: tuple[int, ...] | None = None

    def __str__(self) -> str:
        at = self.said or ", ".join(map(str, self.at))
        what = self.of if self.entry is None else f"entry {list(self.entry)} of the {self.of}"
        dtype = "" if self.dtype == "float64" else f" in {self.dtype}"
        return f"For instance, {what} at {at}{dtype}: torch {self.torch}, JAX {self.jax}."


def _grid(size: int) -> list[list[float]]:
    return [[float(10 * i + j) for j in range(size)] for i in range(size)]


def _identity(size: int) -> list[list[float]]:
    return [[float(i == j) for j in range(size)] for i in range(size)]


_QKV = ([[[[0.1], [0.7]]]], [[[[1.0], [0.3]]]], [[[[1.0], [2.0]]]])
_TWO_HEADS = ([[[[1.0], [0.0]], [[0.0], [1.0]]]],) * 2 + ([[[[1.0], [2.0]], [[3.0], [4.0]]]],)
_SAID = "q = k = [[[[1], [0]], [[0], [1]]]], v = [[[[1], [2]], [[3], [4]]]]"
_ONES = [[[[1.0]] * 4]]
_TIES = [[1.0] * 6]

_FIRST = {
    "leaky_relu": Example(([0.0],), [0.01], [1.0], "gradient"),
    "gelu": Example(([1.0],), [0.8413447461], [0.8411919906]),
    "hard_tanh": Example(([-1.0, 1.0],), [0.0, 0.0], [1.0, 1.0], "gradient"),
    "hard_sigmoid": Example(([0.0],), [0.16666667163], [0.16666666667], "gradient"),
    "normalize": Example(([[0.0, 0.0]],), [[0.0, 0.0]], [[NAN, NAN]]),
    "cosine_similarity": Example(([[0.0, 0.0]], [[1.0, 2.0]]), [0.0], [NAN]),
    "std": Example(([[1.0, 3.0]],), [1.4142135624], [1.0]),
    "std, ddof alike": Example(([[2.0, 2.0]],), [[0.0, 0.0]], [[NAN, NAN]], "gradient"),
    "std, correction alike": Example(([[2.0, 2.0]],), [[0.0, 0.0]], [[NAN, NAN]], "gradient"),
    "var": Example(([[1.0, 3.0]],), [2.0], [1.0]),
    "median": Example(([[1.0, 2.0, 3.0, 10.0]],), [2.0], [2.5]),
    "max": Example(([[2.0, 1.0, 2.0]],), [[1.0, 0.0, 0.0]], [[0.5, 0.0, 0.5]], "gradient"),
    "norm": Example(([[0.0, 0.0]],), [[0.0, 0.0]], [[NAN, NAN]], "gradient"),
    "cummax": Example(([[1.0, 1.0]],), [[1.0, 1.0]], [[1.5, 0.5]], "gradient"),
    "topk": Example(
        (_TIES,), [[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]], "gradient",
    ),
    "topk, indices": Example((_TIES,), [[3, 5, 4]], [[0, 1, 2]]),
    "unique": Example(([1.0, 1.0, 2.0],), [1.0, 2.0], "raises ConcretizationTypeError", "value under jit"),
    "cholesky": Example(
        ([[4.0, 2.0], [2.0, 5.0]],), [[0.0, 0.0], [0.5, -0.125]], [[0.0, 0.0], [0.25, -0.125]], "tangent along [1, 0]",
    ),
    "vander": Example(([2.0, 3.0],), [[1.0, 2.0], [1.0, 3.0]], [[2.0, 1.0], [3.0, 1.0]]),
    "vander, increasing alike": Example(([0.0, 2.0],), [1.0, 1.0], [NAN, 1.0], "gradient"),
    "l2_loss": Example(([1.0], [3.0]), 4.0, 2.0),
    "l1_loss": Example(([1.0], [1.0]), [0.0], [1.0], "gradient"),
    "kl_div": Example(([[0.0, 1.0]], [[1.0, 0.0]]), 0.2310585786, 0.4621171573),
    "triplet_margin_loss": Example(([[1.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.5]]), 0.5000024142, 0.500999),
    "attention": Example(
        _TWO_HEADS, 1.2689414214, 1.5378828943,
        said=_SAID,
        entry=(0, 0, 0, 0),
    ),
    "attention, axes alike": Example(_QKV, [[[[1.4825071423], [1.3798935677]]]], [[[[1.4825072288], [1.3798936009]]]]),
    "attention, causal": Example(_QKV, [[[[1.0], [1.3798935677]]]], [[[[1.0], [1.3798936009]]]]),
    "attention, a row wholly masked": Example(
        (_ONES, _ONES, [[[[1.0], [2.0], [3.0], [4.0]]]]), 0.0, 2.5,
        said="q = k = 1, v = 1, 2, 3, 4", entry=(0, 0, 1, 0),
    ),
    "index out of range": Example(([1.0, 2.0, 3.0], [5]), "raises IndexError", [3.0]),
    "repeat": Example(([[1.0], [2.0]],), [[1.0], [2.0], [1.0], [2.0]], [[1.0], [1.0], [2.0], [2.0]]),
    "meshgrid": Example(([1.0, 2.0], [3.0, 4.0]), [[1.0, 1.0], [2.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]),
    "gammaln": Example(([0.0],), [-INF], [NAN], "gradient"),
    "digamma": Example(([0.0],), [-INF], [NAN]),
    "polygamma": Example(([1.0],), [1.6449340676], [1.6449340668]),
    "i0": Example(([0.0],), [0.0], [1.0], "gradient"),
    "logit": Example(([2.0],), [NAN], [-0.5], "gradient"),
    "xlogy": Example(([0.0], [0.0]), [0.0], [-INF], "gradient"),
    "abs": Example(([0.0],), [0.0], [1.0], "gradient"),
    "atan2": Example(([0.0], [0.0]), [0.0], [NAN], "gradient"),
    "hypot": Example(([0.0], [0.0]), [NAN], [0.5], "gradient"),
    "pow": Example(([0.0], [0.0]), [0.0], [NAN], "gradient"),
    "clip": Example(([-1.0, 1.0],), [1.0, 1.0], [0.5, 0.5], "gradient"),
    "floor_divide": Example(([3.0], [2.0]), "raises RuntimeError", [0.0], "gradient"),
    "heaviside": Example(([3.0], [2.0]), "raises RuntimeError", [0.0], "gradient"),
    "conv_transpose1d": Example(([[[1.0]]], [[[1.0, 2.0, 3.0]]]), [[[1.0, 2.0, 3.0]]], [[[3.0, 2.0, 1.0]]]),
    "interpolate, bilinear, smaller": Example(
        ([[_identity(6)]],), 0.625, 0.4320987654, said="the identity of 6 x 6", entry=(0, 0, 1, 1),
    ),
    "interpolate, bicubic": Example(
        ([[_identity(6)]],), 0.72265625, 0.640625, said="the identity of 6 x 6", entry=(0, 0, 4, 4),
    ),
    "interpolate, nearest": Example(
        ([[_grid(6)]],), [10.0, 11.0, 13.0, 14.0], [20.0, 22.0, 23.0, 25.0], said="x[i, j] = 10 i + j of 6 x 6",
        entry=(0, 0, 1),
    ),
    "hann window": Example(
        ([1.0] * 6,), [0.0, 0.25, 0.75, 1.0, 0.75, 0.25],
        [0.0, 0.3454915028, 0.9045084972, 0.9045084972, 0.3454915028, 0.0],
    ),
}  # fmt: skip

_FUSED_KERNEL = Example(
    ([[[[1.0], [1.0]]]],) * 3,
    "raises NotImplementedError",
    [[[[0.0], [0.0]]]],
    "tangent along ones",
    said="q = k = v = 1",
)

_SECOND = {
    "std": Example(([[2.0, 2.0]],), [[0.0, 0.0]], [[NAN, NAN]], "gradient"),
    "vander": Example(([0.0, 2.0],), [1.0, 1.0], [NAN, 1.0], "gradient"),
    "gammaln": Example(([1.01],), [-0.0056903027], [-0.0056900978], dtype="float32"),
    "digamma": Example(([1.0],), [1.6449340676], [1.6449340668], "gradient"),
    "polygamma": Example(([-1.0],), [6.580790147320947e32], [INF]),
    "attention": _FUSED_KERNEL,
}
"""Of those that differ for a second reason."""

EXAMPLES = {name: (one, _SECOND[name]) if name in _SECOND else (one,) for name, one in _FIRST.items()}
"""By the name of the operator; one for each reason that it differs for."""
