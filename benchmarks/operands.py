"""The numbers that every program of a row gets: integers, so that gradients are exact and equality can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.rows import Row


class NotTheSame(AssertionError):
    """A rival computes something else: it is not timed."""


@dataclass(frozen=True)
class Operands:
    """Input, weight, bias and cotangent, float32 arrays of small integers; the weight is none of the gradient's."""

    x: np.ndarray
    w: np.ndarray
    b: np.ndarray
    g: np.ndarray


def draw(row: Row) -> Operands:
    """Return the operands of a row, of values -2, -1, 1 and 2: sums stay exact in float32."""
    rng = np.random.default_rng(0)
    batch, (outputs, inputs) = row.shape[:-2], row.weight_shape
    sizes = ((*batch, inputs), (outputs, inputs), (outputs,), (*batch, outputs))
    x, w, b, g = (rng.choice(np.array([-2, -1, 1, 2], np.float32), size) for size in sizes)
    return Operands(x, w, b, g)


def check(name: str, row: Row, operands: Operands, mask: np.ndarray, d_weight: np.ndarray, d_input: np.ndarray) -> None:
    """Refuse a program whose gradients are not where(M, g^T x, 0) and g W.

    Args:
        name: Of the program.
        row: What is measured.
        operands: What it ran on.
        mask: M, bool (out_features, in_features).
        d_weight: Its gradient of the weight, (out_features, in_features).
        d_input: Its gradient of the input, or an empty array in a first layer.

    Raises:
        NotTheSame: With the name, the place and both values.
    """
    x, g = (operand.reshape(-1, operand.shape[-1]) for operand in (operands.x, operands.g))
    wanted = {"weight": np.where(mask, g.T @ x, 0)}
    if d_input.size:
        wanted["input"] = operands.g @ operands.w
    for argument, want in wanted.items():
        got = (d_weight if argument == "weight" else d_input).astype(np.float32)
        # In bfloat16 a product may be summed in parts that are rounded: each rounding is 2^-9 of a part, and
        # the sum of all parts' sizes is at most 4 for each term. In float32 all sums are exact.
        terms = x.shape[0] if argument == "weight" else g.shape[1]
        slack = 0.0 if row.dtype == "float32" else 2.0**-8 * 4 * terms**0.5
        wrong = np.abs(got - want) > slack + (0 if row.dtype == "float32" else 2.0**-7) * np.abs(want)
        if argument == "weight":
            wrong |= ~mask & (got != 0)
        if got.shape != want.shape or wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise NotTheSame(
                f"{name} computes another gradient than the masked one, and is not timed ({row.id}): "
                f"{argument}{list(at)} is {got[at]}, expected {want[at]}"
            )
