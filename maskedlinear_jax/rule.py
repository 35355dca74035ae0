"""The derivative rule, written to the equation (SPEC S2-S4).

With M the mask, m the bias mask, and V = where(M, W, stop_gradient(W)), the view of W through which
alone W is differentiated:

    y       = x W^T + b
    d_x     = g V                         never masked
    d_W     = where(M, g^T x, +0.0)       to_dense(weight_grad(g, gather_input(x))): no other entry is computed
    d_b     = where(m, sum g, +0.0)
    y'      = x' V^T + apply(gather_input(x), pack(W')) + where(m, b', 0)

V has the values of W. Where something differentiates the rule itself, V is what keeps the frozen
entries out of every higher derivative: with W in its place a gradient penalty would reach them.

In packed form (SPEC S7) the trainable entries are a leaf of their own, the values v, over a constant
matrix W. It is the same rule with

    V       = merge_into(W, v)
    d_v     = weight_grad(g, gather_input(x))         in place of d_W
    y'      = x' V^T + apply(gather_input(x), v') + where(m, b', 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_jax import _compat
from maskedlinear_jax.kinds import Arrays, Kind
from maskedlinear_jax.precision import NATIVE, Precision


def masked(
    kind: Kind,
    arrays: Arrays,
    input: Array,
    weight: Array,
    bias: Array | None,
    bias_mask: Array | None,
    values: Array | None = None,
    precision: Precision = NATIVE,
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
        values: The packed entries, over a weight that is then a constant; None = the weight itself learns.
        precision: How products are computed.
        forward_mode: Whether outermost forward mode must work, which JAX forbids through custom_vjp.

    Returns:
        (*B, O).
    """
    rule = _rule if forward_mode else _reverse
    learned, base = (weight, None) if values is None else (values, jax.lax.stop_gradient(weight))
    operands = _alike(precision, input, learned, bias, (bias_mask, base, arrays))
    sharding = None
    if _compat.explicit_sharding(input) or _compat.explicit_sharding(weight):
        # Shardings that are part of types are those of the plain layer outside, and the compiler's inside.
        sharding = jax.eval_shape(lambda x, w: jnp.einsum("...i,oi->...o", x, w), input, weight).sharding
    apply = _compat.auto_axes(partial(rule, precision, kind), sharding)
    return apply(*operands, bias_mask, base, arrays)


def _alike(precision: Precision, input: Array, learned: Array, bias: Array | None, fixed: Any) -> list[Any]:
    # Inside of shard_map: what is one on all devices varies from here on as the others do, as it does for JAX's own
    # operations, and its gradient is summed over the devices. A custom_vjp must give each argument's own type back.
    operands = [input, learned, bias]
    axes = frozenset[str]().union(*map(_compat.varying_axes, jax.tree.leaves((operands, fixed))))
    axes -= precision.summed_axes  # over these the rule sums by itself
    if not axes:
        return operands

    def vary(one: Array) -> Array:
        missing = tuple(sorted(axes - _compat.varying_axes(one)))
        return jax.lax.pcast(one, missing, to="varying") if missing else one

    return [None if one is None else vary(one) for one in operands]


def weight_view(kind: Kind, arrays: Arrays, learned: Array, base: Array | None = None) -> Array:
    """Return V: where(M, W, stop_gradient(W)) if the weight learns, merge_into(W, v) if values over a base do."""
    if base is None:
        return _identity(kind, learned, arrays)
    write = _compat.auto_axes(kind.merge_into, _compat.explicit_sharding(base))
    return write(base, learned.astype(base.dtype), *arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _identity(kind: Kind, weight: Array, arrays: Arrays) -> Array:
    """Return W, with the derivative of V: it copies nothing."""
    return weight


@partial(_identity.defjvp, symbolic_zeros=True)
def _identity_jvp(kind: Kind, primals: Any, tangents: Any) -> tuple[Array, Any]:
    (weight, arrays), (d_weight, _) = primals, tangents
    view = _identity(kind, weight, arrays)
    if _compat.is_symbolic_zero(d_weight):
        return view, jnp.zeros_like(weight)
    return view, jnp.where(kind.mask(weight, *arrays), d_weight, jnp.zeros_like(d_weight))


def _matrix(kind: Kind, arrays: Arrays, learned: Array, base: Array | None) -> Array:
    # The values of V, where nothing differentiates them.
    return learned if base is None else weight_view(kind, arrays, learned, base)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _reverse(
    precision: Precision,
    kind: Kind,
    input: Array,
    learned: Array,
    bias: Array | None,
    bias_mask: Array | None,
    base: Array | None,
    arrays: Arrays,
) -> Array:
    """Compute y, with the rule in reverse mode; what JAX derives from its two halves is right in both modes."""
    return precision.linear(input, _matrix(kind, arrays, learned, base), bias)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Wanted:
    """Which arguments something differentiates, and what learns: what the backward knows without arrays."""

    input: bool
    learned: bool
    bias: bool
    is_dense: bool
    shape: tuple[int, int]
    learned_dtype: Any


def _forward(
    precision: Precision,
    kind: Kind,
    input: Any,
    learned: Any,
    bias: Any,
    bias_mask: Any,
    base: Any,
    arrays: Any,
) -> tuple[Array, Any]:
    perturbed = input.perturbed, learned.perturbed, bias is not None and bias.perturbed
    shape = (learned if base is None else base).value.shape
    wanted = _Wanted(*perturbed, base is None, shape, learned.value.dtype)
    input, learned, bias, bias_mask, base, arrays = jax.tree.map(
        lambda leaf: leaf.value, (input, learned, bias, bias_mask, base, arrays), is_leaf=_is_primal
    )
    # Masked in the value as well: forward over reverse differentiates this half.
    view = weight_view(kind, arrays, learned, base)
    kept = row_max = None
    if wanted.learned:
        kept = kind.gather_input(input, *arrays)
        row_max = precision.row_max(input, kept)
    # In packed form V is not kept but written again: nothing of the weight's size is.
    source = (view if base is None else learned, base) if wanted.input else None
    output = precision.linear(input, view, _bias_view(bias, bias_mask))
    return output, (wanted, kept, row_max, source, bias_mask, arrays)


def _backward(precision: Precision, kind: Kind, residual: Any, g: Any) -> tuple[Any, ...]:
    wanted, kept, row_max, source, bias_mask, arrays = residual
    if _compat.is_symbolic_zero(g):
        return None, None, None, None, None, None
    d_input = d_learned = d_bias = None
    if wanted.input:
        d_input = precision.back(g, _matrix(kind, arrays, *source))
    if wanted.learned:
        d_learned = _gradient(precision, kind, wanted, arrays, g, kept, row_max)
    if wanted.bias:
        d_bias = precision.total(g)
        d_bias = d_bias if bias_mask is None else jnp.where(bias_mask, d_bias, jnp.zeros_like(d_bias))
    return d_input, d_learned, d_bias, None, None, None


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient(
    precision: Precision, kind: Kind, wanted: _Wanted, arrays: Arrays, g: Array, kept: Array, row_max: Array | None
) -> Array:
    # As one program: eager code compiles, and calls, each operation by itself.
    dtype, shape = wanted.learned_dtype, wanted.shape
    d_learned = precision.product(kind, arrays, g.astype(dtype), kept.astype(dtype), row_max, shape)
    return kind.to_dense(d_learned, shape, *arrays) if wanted.is_dense else d_learned


_reverse.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rule(
    precision: Precision,
    kind: Kind,
    input: Array,
    learned: Array,
    bias: Array | None,
    bias_mask: Array | None,
    base: Array | None,
    arrays: Arrays,
) -> Array:
    """Compute y, with the rule in forward mode; JAX transposes it into reverse mode."""
    return precision.linear(input, _matrix(kind, arrays, learned, base), bias)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _along(
    precision: Precision, kind: Kind, shape: tuple[int, int], dtype: Any, arrays: Arrays, input: Array, d_learned: Array
) -> Array:
    # x V'^T as one program, as in _gradient; of the dtype of a constant matrix, None = the weight itself learns.
    taken = kind.pack(d_learned, *arrays) if dtype is None else d_learned.astype(dtype)
    return precision.tangent(kind, arrays, input, taken, shape)


@partial(_rule.defjvp, symbolic_zeros=True)
def _tangent(precision: Precision, kind: Kind, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (input, learned, bias, bias_mask, base, arrays), (d_input, d_learned, d_bias, _, _, _) = primals, tangents
    output = _rule(precision, kind, input, learned, bias, bias_mask, base, arrays)
    shape = (learned if base is None else base).shape
    terms = []
    if not _compat.is_symbolic_zero(d_input):
        terms.append(precision.linear(d_input, weight_view(kind, arrays, learned, base)))
    if not _compat.is_symbolic_zero(d_learned):
        dtype = None if base is None else base.dtype
        terms.append(_along(precision, kind, shape, dtype, arrays, input, d_learned))
    if bias is not None and not _compat.is_symbolic_zero(d_bias):
        d_bias = d_bias if bias_mask is None else jnp.where(bias_mask, d_bias, jnp.zeros_like(d_bias))
        terms.append(precision.spread(d_bias, input))
    return output, reduce(precision.add, terms) if terms else jnp.zeros_like(output)


def _bias_view(bias: Array | None, bias_mask: Array | None) -> Array | None:
    if bias is None or bias_mask is None:
        return bias
    return jnp.where(bias_mask, bias, jax.lax.stop_gradient(bias))


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")
