"""The third party: what the answer is, in NumPy float64, from the formulas of the SPEC alone.

Imports no framework and nothing of the twins. Every function cites its clause. Derivatives of any
order come from evaluating the first-order formulas (S3) on jets whose tangents are zero at frozen
entries (S4): the op is bilinear, so this is exact up to the rounding of float64.

The same evaluation on absolute values, with every sign plus, is the *majorant*: the sum of the
magnitudes of all monomials. It is what rounding errors are proportional to (bounds.py), and where it
stays below 2^significand for integer data, every partial sum is exact (cases.py).

Index letters: b batch, o output feature, i input feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from parity.jets import Jet

Tree = dict[str, np.ndarray]
"""Arrays by name: input, weight, bias (absent without bias)."""


@dataclass(frozen=True)
class Point:
    """Where the op is evaluated.

    Attributes:
        theta: input (*B, I), weight (O, I) and bias (O,).
        mask: M, bool (O, I).
        bias_mask: m, bool (O,).
        scale: u (*B, O), the coefficients of the test function u y^2 / 2.
    """

    theta: Tree
    mask: np.ndarray
    bias_mask: np.ndarray
    scale: np.ndarray

    def majorant(self) -> Point:
        """Return the point of absolute values."""
        return replace(self, theta={name: np.abs(a) for name, a in self.theta.items()}, scale=np.abs(self.scale))


def masked(point: Point, tangent: Tree) -> Tree:
    """S3: the part of a tangent that counts: all of x', where(M, W', 0), where(m, b', 0)."""
    keep = {"input": np.ones((), bool), "weight": point.mask, "bias": point.bias_mask}
    return {name: np.where(keep[name], part, 0.0) for name, part in tangent.items()}


def jets(point: Point, directions: Sequence[Tree]) -> dict[str, Jet]:
    """S4: x, W and b moved along the directions, frozen entries standing still."""
    moves = [masked(point, direction) for direction in directions]
    return {name: Jet.along(value, [move[name] for move in moves]) for name, value in point.theta.items()}


def linear(theta: dict[str, Jet]) -> Jet:
    """S2: y_bo = sum_i x_bi W_oi + b_o."""
    output = theta["input"].times(theta["weight"], lambda x, w: x @ w.T)
    if "bias" not in theta:
        return output
    shape = output.parts[0].shape
    return output + theta["bias"].map(lambda b: np.broadcast_to(b, shape))


def pullback(point: Point, theta: dict[str, Jet], g: Jet) -> dict[str, Jet]:
    """S3: d_x = g W, d_W = where(M, g^T x, +0.0), d_b = where(m, sum_b g, +0.0)."""
    gradients = {
        "input": g.times(theta["weight"], lambda g, w: g @ w),
        "weight": g.times(theta["input"], lambda g, x: np.where(point.mask, _flat(g).T @ _flat(x), 0.0)),
    }
    if "bias" in theta:
        gradients["bias"] = g.map(lambda g: np.where(point.bias_mask, _flat(g).sum(0), 0.0))
    return gradients


def forward(point: Point) -> np.ndarray:
    """S2: y."""
    return linear(jets(point, ())).parts[0]


def vjp(point: Point, g: np.ndarray) -> Tree:
    """S3: the gradients for the cotangent g."""
    pulled = pullback(point, jets(point, ()), Jet({0: g}))
    return {name: jet.parts[0] for name, jet in pulled.items()}


def jvp(point: Point, direction: Tree) -> np.ndarray:
    """S3: y' = x' W^T + x where(M, W', 0)^T + where(m, b', 0)."""
    theta = jets(point, (direction,))
    return linear(theta).coefficient(1, point.scale.shape)


def quadratic(point: Point, directions: Sequence[Tree]) -> np.ndarray:
    """S4: the derivative along all directions of F = u y^2 / 2."""
    y = linear(jets(point, directions))
    value = y.times(y, lambda a, b: point.scale * a * b / 2)
    return value.coefficient((1 << len(directions)) - 1, point.scale.shape)


def quadratic_gradient(point: Point, cotangent: np.ndarray, directions: Sequence[Tree]) -> Tree:
    """S4: the derivative along all directions of the gradient of <c, u y^2 / 2>: S3 with g = c u y."""
    theta = jets(point, directions)
    g = linear(theta).map(lambda y: cotangent * point.scale * y)
    pulled = pullback(point, theta, g)
    everything = (1 << len(directions)) - 1
    return {name: jet.coefficient(everything, point.theta[name].shape) for name, jet in pulled.items()}


def gradient_penalty(point: Point, g: np.ndarray) -> Tree:
    """S4: the gradient of |g W|^2 / 2, the penalty on the input gradient: d_W = where(M, g^T (g W), +0.0)."""
    gradients = {name: np.zeros_like(value) for name, value in point.theta.items()}
    gradients["weight"] = np.where(point.mask, _flat(g).T @ _flat(g @ point.theta["weight"]), 0.0)
    return gradients


def jacobian(point: Point) -> Tree:
    """S3: dy_bo / dx_b'i = [b = b'] W_oi, dy_bo / dW_o'i = [o = o'] x_bi M_oi, dy_bo / db_o' = [o = o'] m_o."""
    outputs = point.scale.size
    rows = [vjp(point, row.reshape(point.scale.shape)) for row in np.eye(outputs)]
    return {
        name: np.array([row[name] for row in rows]).reshape(point.scale.shape + value.shape)
        for name, value in point.theta.items()
    }


def hessian(point: Point, cotangent: np.ndarray) -> Tree:
    """S4: second derivatives of <c, u y^2 / 2>, named "left/right": d^2 / d left d right."""
    blocks = {}
    for right, value in point.theta.items():
        columns = []
        for basis in np.eye(value.size):
            direction = {name: np.zeros_like(other) for name, other in point.theta.items()}
            direction[right] = basis.reshape(value.shape)
            columns.append(quadratic_gradient(point, cotangent, (direction,)))
        for left, other in point.theta.items():
            stacked = np.array([column[left] for column in columns]).reshape(value.shape + other.shape)
            axes = (*range(value.ndim, value.ndim + other.ndim), *range(value.ndim))
            blocks[f"{left}/{right}"] = stacked.transpose(axes)
    return blocks


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(int(np.prod(array.shape[:-1])), array.shape[-1])
