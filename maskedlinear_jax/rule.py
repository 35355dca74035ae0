"""The derivative rule, written to the equation (contract S2-S4).

With M the mask, m the bias mask, and V = where(M, W, stop_gradient(W)), the view of W through which
alone W is differentiated:

    y       = x W^T + b
    d_x     = g V                         never masked
    d_W     = where(M, g^T x, +0.0)       to_dense(weight_grad(g, gather_input(x))): no other entry is computed
    d_b     = where(m, sum g, +0.0)
    y'      = x' V^T + apply(gather_input(x), pack(W')) + where(m, b', 0)

V has the values of W. Where something differentiates the rule itself, V is what keeps the frozen
entries out of every higher derivative: with W in its place a gradient penalty would reach them.

In packed form (contract S7) the trainable entries are a leaf of their own, the values v, over a constant
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
from maskedlinear_jax.kinds import Kind
from maskedlinear_jax.products import NATIVE, Products


def masked(
    kind: Kind,
    input: Array,
    weight: Array,
    bias: Array | None,
    bias_mask: Array | None,
    values: Array | None = None,
    products: Products = NATIVE,
    *,
    forward_mode: bool,
) -> Array:
    """Apply the rule to checked arguments.

    Args:
        kind: The trainable positions.
        input: (*B, I).
        weight: (O, I).
        bias: (O,) or None.
        bias_mask: Bool (O,); None = all of the bias trains.
        values: The packed entries, over a weight that is then a constant; None = the weight itself learns.
        products: How products are computed.
        forward_mode: Whether outermost forward mode must work, which JAX forbids through custom_vjp.

    Returns:
        (*B, O).
    """
    rule = _rule if forward_mode else _reverse
    learned, base = (weight, None) if values is None else (values, jax.lax.stop_gradient(weight))
    operands = _alike(products, input, learned, bias, (bias_mask, base, kind))
    sharding = None
    if _compat.explicit_sharding(input) or _compat.explicit_sharding(weight):
        # Shardings that are part of types are those of the plain layer outside, and the compiler's inside.
        sharding = jax.eval_shape(lambda x, w: jnp.einsum("...i,oi->...o", x, w), input, weight).sharding
    apply = _compat.auto_axes(partial(rule, products), sharding)
    return apply(*operands, bias_mask, base, kind)


def _alike(products: Products, input: Array, learned: Array, bias: Array | None, fixed: Any) -> list[Any]:
    # Inside of shard_map: what is one on all devices varies from here on as the others do, as it does for JAX's own
    # operations, and its gradient is summed over the devices. A custom_vjp must give each argument's own type back.
    operands = [input, learned, bias]
    axes = frozenset[str]().union(*map(_compat.varying_axes, jax.tree.leaves((operands, fixed))))
    axes -= products.summed_axes  # over these the rule sums by itself
    if not axes:
        return operands

    def vary(one: Array) -> Array:
        missing = tuple(sorted(axes - _compat.varying_axes(one)))
        return jax.lax.pcast(one, missing, to="varying") if missing else one

    return [None if one is None else vary(one) for one in operands]


def weight_view(kind: Kind, learned: Array, base: Array | None = None) -> Array:
    """Return V: where(M, W, stop_gradient(W)) if the weight learns, merge_into(W, v) if values over a base do."""
    if base is None:
        return _identity(learned, kind)
    merge = _compat.auto_axes(type(kind).merge_into, _compat.explicit_sharding(base))
    return merge(kind, base, learned.astype(base.dtype))


@jax.custom_jvp
def _identity(weight: Array, kind: Kind) -> Array:
    """Return W, with the derivative of V: it copies nothing."""
    return weight


@partial(_identity.defjvp, symbolic_zeros=True)
def _identity_jvp(primals: Any, tangents: Any) -> tuple[Array, Any]:
    (weight, kind), (d_weight, _) = primals, tangents
    view = _identity(weight, kind)
    if _compat.is_symbolic_zero(d_weight):
        return view, jnp.zeros_like(weight)
    return view, jnp.where(kind.mask(weight), d_weight, jnp.zeros_like(d_weight))


def _matrix(kind: Kind, learned: Array, base: Array | None) -> Array:
    # The values of V, where nothing differentiates them.
    return learned if base is None else weight_view(kind, learned, base)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reverse(
    products: Products,
    input: Array,
    learned: Array,
    bias: Array | None,
    bias_mask: Array | None,
    base: Array | None,
    kind: Kind,
) -> Array:
    """Compute y, with the rule in reverse mode; what JAX derives from its two halves is right in both modes."""
    return products.linear(input, _matrix(kind, learned, base), bias)


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
    products: Products,
    input: Any,
    learned: Any,
    bias: Any,
    bias_mask: Any,
    base: Any,
    kind: Any,
) -> tuple[Array, Any]:
    perturbed = input.perturbed, learned.perturbed, bias is not None and bias.perturbed
    shape = (learned if base is None else base).value.shape
    wanted = _Wanted(*perturbed, base is None, shape, learned.value.dtype)
    input, learned, bias, bias_mask, base, kind = jax.tree.map(
        lambda leaf: leaf.value, (input, learned, bias, bias_mask, base, kind), is_leaf=_is_primal
    )
    # Masked in the value as well: forward over reverse differentiates this half.
    view = weight_view(kind, learned) if base is None else _matrix_after(input, kind, learned, base)
    kept = row_max = None
    if wanted.learned:
        kept = kind.gather_input(input)
        row_max = products.row_max(input, kept)
    # In packed form V is not kept but written again: nothing of the weight's size is.
    source = (view if base is None else learned, base) if wanted.input else None
    output = products.linear(input, view, _bias_view(bias, bias_mask))
    return output, (wanted, kept, row_max, source, bias_mask, kind)


def _backward(products: Products, residual: Any, g: Any) -> tuple[Any, ...]:
    wanted, kept, row_max, source, bias_mask, kind = residual
    if _compat.is_symbolic_zero(g):
        return None, None, None, None, None, None
    d_input = d_learned = d_bias = None
    if wanted.input:
        d_input = products.input_grad(g, _matrix(kind, *source) if wanted.is_dense else _matrix_after(g, kind, *source))
    if wanted.learned:
        d_learned = _gradient(products, wanted, kind, g, kept, row_max)
    if wanted.bias:
        d_bias = products.sum_batch(g)
        d_bias = d_bias if bias_mask is None else jnp.where(bias_mask, d_bias, jnp.zeros_like(d_bias))
    return d_input, d_learned, d_bias, None, None, None


@partial(jax.jit, static_argnums=(0, 1))
def _gradient(products: Products, wanted: _Wanted, kind: Kind, g: Array, kept: Array, row_max: Array | None) -> Array:
    # As one program: eager code compiles, and calls, each operation by itself.
    dtype, shape = wanted.learned_dtype, wanted.shape
    d_learned = products.weight_grad(kind, g.astype(dtype), kept.astype(dtype), row_max, shape)
    return kind.to_dense(d_learned, shape) if wanted.is_dense else d_learned


_reverse.defvjp(_forward, _backward, symbolic_zeros=True)


def _matrix_after(before: Array, kind: Kind, learned: Array, base: Array) -> Array:
    # V, made when something else is there: the input in the forward, the cotangent in the backward. XLA on a CPU makes
    # first whatever it can make, so all layers' matrices at once; and it sees that both halves make the same one, and
    # keeps it in between. So it is made of a base of which XLA knows no more than that it depends on `before`.
    if not before.size:
        return weight_view(kind, learned, base)

    def merge(kind: Kind, base: Array, learned: Array, before: Array) -> Array:
        later = jnp.where(_never(jax.lax.stop_gradient(before)), jnp.zeros_like(base), base)
        return kind.merge_into(later, learned.astype(base.dtype))

    return _compat.auto_axes(merge, _compat.explicit_sharding(base))(kind, base, learned, before)


@jax.custom_batching.custom_vmap
def _never(array: Array) -> Array:
    # False, whatever is in there.
    return jax.lax.reshape(jax.lax.slice(array, (0,) * array.ndim, (1,) * array.ndim), ()) > jnp.inf


@_never.def_vmap
def _never_batched(size: int, is_batched: Any, array: Array) -> tuple[Array, bool]:
    # Of the first of a batch alone: else there would be a matrix for each.
    return _never(jax.lax.index_in_dim(array, 0, keepdims=False)), False


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rule(
    products: Products,
    input: Array,
    learned: Array,
    bias: Array | None,
    bias_mask: Array | None,
    base: Array | None,
    kind: Kind,
) -> Array:
    """Compute y, with the rule in forward mode; JAX transposes it into reverse mode."""
    return products.linear(input, _matrix(kind, learned, base), bias)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _along(products: Products, shape: tuple[int, int], dtype: Any, kind: Kind, input: Array, d_learned: Array) -> Array:
    # x V'^T as one program, as in _gradient; of the dtype of a constant matrix, None = the weight itself learns.
    taken = kind.pack(d_learned) if dtype is None else d_learned.astype(dtype)
    return products.apply(kind, input, taken, shape)


@partial(_rule.defjvp, symbolic_zeros=True)
def _tangent(products: Products, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (input, learned, bias, bias_mask, base, kind), (d_input, d_learned, d_bias, _, _, _) = primals, tangents
    output = _rule(products, input, learned, bias, bias_mask, base, kind)
    shape = (learned if base is None else base).shape
    terms = []
    if not _compat.is_symbolic_zero(d_input):
        terms.append(products.linear(d_input, weight_view(kind, learned, base)))
    if not _compat.is_symbolic_zero(d_learned):
        dtype = None if base is None else base.dtype
        terms.append(_along(products, shape, dtype, kind, input, d_learned))
    if bias is not None and not _compat.is_symbolic_zero(d_bias):
        d_bias = d_bias if bias_mask is None else jnp.where(bias_mask, d_bias, jnp.zeros_like(d_bias))
        terms.append(products.expand_batch(d_bias, input))
    return output, reduce(products.add, terms) if terms else jnp.zeros_like(output)


def _bias_view(bias: Array | None, bias_mask: Array | None) -> Array | None:
    if bias is None or bias_mask is None:
        return bias
    return jnp.where(bias_mask, bias, jax.lax.stop_gradient(bias))


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")
