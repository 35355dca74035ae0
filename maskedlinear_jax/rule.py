"""The derivative rule, written to the equation (SPEC S2-S4).

With M the mask, m the bias mask, and V = where(M, W, stop_gradient(W)), the view of W through which
alone W is differentiated:

    y       = x W^T + b
    d_x     = g V                         never masked
    d_W     = where(M, g^T x, +0.0)       as place(product(g, keep(x))): only the wanted entries are computed
    d_b     = where(m, sum g, +0.0)
    y'      = x' V^T + tangent(keep(x), take(W')) + where(m, b', 0)

V has the values of W. Where something differentiates the rule itself, V is what keeps the frozen
entries out of every higher derivative: with W in its place a gradient penalty would reach them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_jax import _compat
from maskedlinear_jax.kinds import Arrays, Kind, Shape, flat


def masked(
    kind: Kind,
    arrays: Arrays,
    input: Array,
    weight: Array,
    bias: Array | None,
    bias_mask: Array | None,
    *,
    forward_mode: bool,
) -> Array:
    """Apply the rule to checked arguments.

    Args:
        kind: The kind of mask.
        arrays: Its positions.
        input: (*B, I).
        weight: (O, I).
        bias: (O,) or None.
        bias_mask: Bool (O,); None = all of the bias trains.
        forward_mode: Whether outermost forward mode must work, which JAX forbids through custom_vjp.

    Returns:
        (*B, O).
    """
    rule = _rule if forward_mode else _reverse
    return rule(kind, input, weight, bias, bias_mask, arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weight_view(kind: Kind, weight: Array, arrays: Arrays) -> Array:
    """Return V = where(M, W, stop_gradient(W)); written as an identity with that derivative, it copies nothing."""
    return weight


@partial(weight_view.defjvp, symbolic_zeros=True)
def _weight_view_jvp(kind: Kind, primals: Any, tangents: Any) -> tuple[Array, Any]:
    (weight, arrays), (d_weight, _) = primals, tangents
    view = weight_view(kind, weight, arrays)
    if _compat.is_symbolic_zero(d_weight):
        return view, jnp.zeros_like(weight)
    return view, jnp.where(kind.mask(weight, *arrays), d_weight, jnp.zeros_like(d_weight))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reverse(
    kind: Kind, input: Array, weight: Array, bias: Array | None, bias_mask: Array | None, arrays: Arrays
) -> Array:
    """Compute y, with the rule in reverse mode; what JAX derives from its two halves is right in both modes."""
    return _value(input, weight, bias)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Wanted:
    """Which arguments something differentiates, and the shape of W: what the backward knows without arrays."""

    input: bool
    weight: bool
    bias: bool
    weight_shape: Shape


def _forward(kind: Kind, input: Any, weight: Any, bias: Any, bias_mask: Any, arrays: Any) -> tuple[Array, Any]:
    shape = (weight.value.shape[0], weight.value.shape[1])
    wanted = _Wanted(input.perturbed, weight.perturbed, bias is not None and bias.perturbed, shape)
    input, weight, bias, bias_mask, arrays = jax.tree.map(
        lambda leaf: leaf.value, (input, weight, bias, bias_mask, arrays), is_leaf=_is_primal
    )
    # Masked in the value as well: forward over reverse differentiates this half.
    view = weight_view(kind, weight, arrays)
    kept = kind.keep(input, *arrays) if wanted.weight else None
    residual = (wanted, kept, view if wanted.input else None, bias_mask, arrays)
    return _value(input, view, _bias_view(bias, bias_mask)), residual


def _backward(kind: Kind, residual: Any, g: Any) -> tuple[Any, ...]:
    wanted, kept, view, bias_mask, arrays = residual
    if _compat.is_symbolic_zero(g):
        return None, None, None, None, None
    d_input = d_weight = d_bias = None
    if wanted.input:
        d_input = g @ view
    if wanted.weight:
        d_weight = kind.place(kind.product(g, kept, *arrays), wanted.weight_shape, *arrays)
    if wanted.bias:
        d_bias = flat(g).sum(0)
        d_bias = d_bias if bias_mask is None else jnp.where(bias_mask, d_bias, jnp.zeros_like(d_bias))
    return d_input, d_weight, d_bias, None, None


_reverse.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rule(
    kind: Kind, input: Array, weight: Array, bias: Array | None, bias_mask: Array | None, arrays: Arrays
) -> Array:
    """Compute y, with the rule in forward mode; JAX transposes it into reverse mode."""
    return _value(input, weight, bias)


@partial(_rule.defjvp, symbolic_zeros=True)
def _tangent(kind: Kind, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (input, weight, bias, bias_mask, arrays), (d_input, d_weight, d_bias, _, _) = primals, tangents
    output = _rule(kind, input, weight, bias, bias_mask, arrays)
    terms = []
    if not _compat.is_symbolic_zero(d_input):
        terms.append(d_input @ weight_view(kind, weight, arrays).T)
    if not _compat.is_symbolic_zero(d_weight):
        taken = kind.take(d_weight, *arrays)
        terms.append(kind.tangent(kind.keep(input, *arrays), taken, weight.shape[0], *arrays))
    if bias is not None and not _compat.is_symbolic_zero(d_bias):
        d_bias = d_bias if bias_mask is None else jnp.where(bias_mask, d_bias, jnp.zeros_like(d_bias))
        terms.append(jnp.broadcast_to(d_bias, output.shape))
    return output, sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(output)


def _value(input: Array, weight: Array, bias: Array | None) -> Array:
    return input @ weight.T if bias is None else input @ weight.T + bias


def _bias_view(bias: Array | None, bias_mask: Array | None) -> Array | None:
    if bias is None or bias_mask is None:
        return bias
    return jnp.where(bias_mask, bias, jax.lax.stop_gradient(bias))


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")
