"""The third party: what the answer is, in NumPy float64, from the formulas of the contract alone.

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

from parity.suites.masked_linear.arithmetic import FLOAT64, Arithmetic
from parity.suites.masked_linear.jets import Jet

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
        arithmetic: How products and sums are rounded: in float64 (S11), or as the reproducible precision (S9).
    """

    theta: Tree
    mask: np.ndarray
    bias_mask: np.ndarray
    scale: np.ndarray
    arithmetic: Arithmetic = FLOAT64

    def majorant(self) -> Point:
        """Return the point of absolute values."""
        theta = {name: np.abs(a) for name, a in self.theta.items()}
        return replace(self, theta=theta, scale=np.abs(self.scale), arithmetic=FLOAT64)


def masked(point: Point, tangent: Tree) -> Tree:
    """S3: the part of a tangent that counts: all of x', where(M, W', 0), where(m, b', 0)."""
    keep = {"input": np.ones((), bool), "weight": point.mask, "bias": point.bias_mask}
    return {name: np.where(keep[name], part, 0.0) for name, part in tangent.items()}


def jets(point: Point, directions: Sequence[Tree]) -> dict[str, Jet]:
    """S4: x, W and b moved along the directions, frozen entries standing still."""
    moves = [masked(point, direction) for direction in directions]
    return {name: Jet.along(value, [move[name] for move in moves]) for name, value in point.theta.items()}


def linear(theta: dict[str, Jet], arithmetic: Arithmetic = FLOAT64) -> Jet:
    """S2: y_bo = sum_i x_bi W_oi + b_o."""
    values = {name: jet.parts[0] for name, jet in theta.items()}
    output = theta["input"].times(theta["weight"], arithmetic.dot, arithmetic.add)
    shape = output.parts[0].shape
    if "bias" in theta:
        output = output.plus(theta["bias"].map(lambda b: np.broadcast_to(b, shape)), arithmetic.add)
    # The value itself is one operation: its bias is added before it is rounded to the dtype (S9).
    return Jet(output.parts | {0: arithmetic.linear(values["input"], values["weight"], values.get("bias"))})


def pullback(point: Point, theta: dict[str, Jet], g: Jet) -> dict[str, Jet]:
    """S3: d_x = g W, d_W = where(M, g^T x, +0.0), d_b = where(m, sum_b g, +0.0)."""
    how = point.arithmetic

    def product(g: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.where(point.mask, how.dot(_flat(g).T, _flat(x).T), 0.0)

    gradients = {
        "input": g.times(theta["weight"], lambda g, w: how.dot(g, w.T), how.add),
        "weight": g.times(theta["input"], product, how.add),
    }
    if "bias" in theta:
        gradients["bias"] = g.map(lambda g: np.where(point.bias_mask, how.total(_flat(g)), 0.0))
    return gradients


def forward(point: Point) -> np.ndarray:
    """S2: y."""
    return linear(jets(point, ()), point.arithmetic).parts[0]


def vjp(point: Point, g: np.ndarray) -> Tree:
    """S3: the gradients for the cotangent g."""
    pulled = pullback(point, jets(point, ()), Jet({0: g}))
    return {name: jet.parts[0] for name, jet in pulled.items()}


def jvp(point: Point, direction: Tree) -> np.ndarray:
    """S3: y' = x' W^T + x where(M, W', 0)^T + where(m, b', 0)."""
    theta = jets(point, (direction,))
    return linear(theta, point.arithmetic).coefficient(1, point.scale.shape)


def second_tangent(point: Point, directions: Sequence[Tree]) -> np.ndarray:
    """S4: the derivative of y along two directions, x1 V2^T + x2 V1^T."""
    return linear(jets(point, directions), point.arithmetic).coefficient(3, point.scale.shape)


def second_gradient(point: Point, g: np.ndarray, direction: Tree) -> Tree:
    """S4: the derivative along a direction of the gradients for a constant cotangent: g V', where(M, g^T x', +0.0)."""
    pulled = pullback(point, jets(point, (direction,)), Jet({0: g}))
    return {name: jet.coefficient(1, point.theta[name].shape) for name, jet in pulled.items()}


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
    d_input = point.arithmetic.dot(g, point.theta["weight"].T)
    gradients["weight"] = np.where(point.mask, point.arithmetic.dot(_flat(g).T, _flat(d_input).T), 0.0)
    return gradients


def weight_penalty(point: Point, g: np.ndarray) -> Tree:
    """S4: the gradient of |d_W|^2 / 2, of which d_W = where(M, g^T x, +0.0): d_x = g d_W."""
    gradients = {name: np.zeros_like(value) for name, value in point.theta.items()}
    d_weight = np.where(point.mask, point.arithmetic.dot(_flat(g).T, _flat(point.theta["input"]).T), 0.0)
    gradients["input"] = point.arithmetic.dot(g, d_weight.T)
    return gradients


def jacobian(point: Point) -> Tree:
    """S3: dy_bo / dx_b'i = [b = b'] W_oi, dy_bo / dW_o'i = [o = o'] x_bi M_oi, dy_bo / db_o' = [o = o'] m_o."""
    outputs = point.scale.size
    rows = [vjp(point, row.reshape(point.scale.shape)) for row in np.eye(outputs)]
    return {
        name: np.array([row[name] for row in rows]).reshape(point.scale.shape + value.shape)
        for name, value in point.theta.items()
    }


def jacobian_forward(point: Point) -> Tree:
    """S3: the same by tangents, each along one entry: other products, so other roundings (S9)."""
    blocks = {}
    for name, value in point.theta.items():
        columns = []
        for basis in np.eye(value.size):
            direction = {other: np.zeros_like(part) for other, part in point.theta.items()}
            direction[name] = basis.reshape(value.shape)
            columns.append(jvp(point, direction))
        stacked = np.array(columns).reshape(value.shape + point.scale.shape)
        blocks[name] = np.moveaxis(stacked, range(value.ndim), range(-value.ndim, 0))
    return blocks


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
