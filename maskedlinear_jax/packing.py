"""The packed form: the trainable entries as a small leaf of their own, over a constant matrix (contract S7)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core import constructors
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_jax import _compat, lowering, rule
from maskedlinear_jax.engine_choice import choose
from maskedlinear_jax.functional import _maybe_spec, _spec
from maskedlinear_jax.kinds import Kind


def pack(weight: Array, *, grad_mask: MaskLike) -> Array:
    """Return the trainable entries of a weight, packed.

    The order is that of the positions, sorted. Differentiable: its transpose puts a gradient of the
    values among zeros.

    Args:
        weight: W, shape (out_features, in_features).
        grad_mask: As for `masked_linear`; inside of jit and vmap, elements as `mask.packed(weight.shape)`.

    Returns:
        Values of shape (rows, columns) for `columns`, `rows` and `submatrix`, (blocks, h, w) for `blocks`
        and (elements,) for `elements`, of the weight's dtype (contract S7).

    Raises:
        TypeError: A wrong kind of argument, or a mask whose number of positions is not known now.
        ValueError: A weight that is not two-dimensional, or a mask that does not fit it.
        IndexError: A position outside of the weight.

    Example:
        >>> from maskedlinear_jax import columns
        >>> pack(jnp.array([[1.0, 2.0], [3.0, 4.0]]), grad_mask=columns([1]))
        Array([[2.],
               [4.]], dtype=float32)
    """
    kind = _resolve("pack", weight, grad_mask)
    return _taken(kind, jnp.asarray(weight))


def unpack(weight: Array, values: Array, *, grad_mask: MaskLike) -> Array:
    """Return a copy of a weight with packed values in their places.

    Args:
        weight: W, shape (out_features, in_features).
        values: Values of the shape that `pack` gives; of the weight's dtype, or float32 over a 16-bit weight.
        grad_mask: As for `pack`.

    Returns:
        A weight of the same shape and dtype (contract S7).

    Raises:
        TypeError, ValueError, IndexError: As `pack`, and for values of another shape, dtype or device.

    Example:
        >>> from maskedlinear_jax import columns
        >>> unpack(jnp.zeros((2, 2)), jnp.array([[5.0], [6.0]]), grad_mask=columns([1]))
        Array([[0., 5.],
               [0., 6.]], dtype=float32)
    """
    kind = _resolve("unpack", weight, grad_mask)
    _check_values("unpack", kind, weight, values)
    return rule.weight_view(kind, jnp.asarray(values), jnp.asarray(weight))


def packed_linear(
    input: Array,
    weight: Array,
    values: Array,
    bias: Array | None = None,
    *,
    grad_mask: MaskLike,
    bias_mask: BiasMaskLike | None = None,
    forward_mode: bool = False,
    precision: PrecisionLike = "native",
) -> Array:
    """Compute y = x V^T + b with V = unpack(W, v): the values v learn, the matrix W is a constant (contract S7).

    The value is that of `input @ unpack(weight, values, ...).T + bias`, bit for
    bit. The gradient of the values is computed directly in packed shape, in the values' dtype; no gradient
    of the weight's size exists, and V is not kept for the backward.

    Args:
        input: x, shape (*batch, in_features); any number of batch dimensions, including none.
        weight: W, shape (out_features, in_features). It gets no gradient.
        values: v, of the shape that `pack` gives; of the weight's dtype, or float32 over a 16-bit weight.
        bias: b, shape (out_features,), or None.
        grad_mask: As for `pack`.
        bias_mask: m, bool vector of shape (out_features,); None = all of the bias trains.
        forward_mode: True for outermost forward mode, as for `masked_linear`.
        precision: "native", or "reproducible" or `reproducible(...)` for the same bits in both twins, on any
            device, thread count and batch split (contract S9); then float32, bfloat16 or float16.

    Returns:
        y, shape (*batch, out_features), of the input's dtype.

    Raises:
        TypeError, ValueError, IndexError: As `masked_linear` and `unpack`.

    Example:
        >>> import jax
        >>> from maskedlinear_jax import columns
        >>> x, w, mask = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]), columns([1])
        >>> jax.grad(lambda v: packed_linear(x, w, v, grad_mask=mask).sum())(pack(w, grad_mask=mask))
        Array([[2.]], dtype=float32)
    """
    for name, value in (("input", input), ("values", values), ("bias", bias)):
        if not isinstance(value, Array | np.ndarray) and not (name == "bias" and value is None):
            call_checks.refuse_array(name, value, function="packed_linear")
    call_checks.flag("forward_mode", forward_mode)
    if bias_mask is not None:
        bias_mask = constructors.as_bias_mask(bias_mask)
    kind = _resolve("packed_linear", weight, grad_mask)
    call_checks.linear(
        _spec(input), _spec(weight), _maybe_spec(bias), _maybe_spec(bias_mask), function="packed_linear"
    )  # fmt: skip
    _check_values("packed_linear", kind, weight, values)
    input, weight, values = jnp.asarray(input), jnp.asarray(weight), jnp.asarray(values)
    bias = None if bias is None else jnp.asarray(bias)
    if bias_mask is not None:
        bias_mask = jnp.asarray(bias_mask)
    chosen = choose(precision, "packed_linear", input, weight)
    return rule.masked(
        kind, input, weight, bias, bias_mask, values, chosen, forward_mode=forward_mode
    )  # fmt: skip


def repack(
    values: Array,
    old_mask: MaskLike,
    new_mask: MaskLike,
    *,
    weight: Array | None = None,
    shape: tuple[int, int] | None = None,
) -> Array:
    """Return packed values for another mask: what stays trainable keeps its value.

    For the same count of positions nothing recompiles. An optimizer's moments, which have the values'
    shape, are repacked alike, with `shape=`: what is newly trainable has no history and starts from zero.

    Args:
        values: Packed for `old_mask`.
        old_mask: As for `pack`.
        new_mask: As for `pack`.
        weight: W: what is newly trainable starts from it. The values of what is frozen now are not written
            to it: `unpack` with the old mask gives the matrix that holds them.
        shape: The weight's shape (out_features, in_features); what is newly trainable starts from zero.

    Returns:
        Values packed for `new_mask`, of the dtype of `values` (contract S7).

    Raises:
        TypeError, ValueError, IndexError: As `unpack`; or not exactly one of weight and shape is given.

    Example:
        >>> from maskedlinear_jax import columns
        >>> old, new = columns([0, 1]), columns([1, 2])
        >>> repack(jnp.array([[5.0, 6.0]]), old, new, shape=(1, 3))
        Array([[6., 0.]], dtype=float32)
    """
    packed_checks.one_shape(weight is not None, shape is not None)
    if not isinstance(values, Array | np.ndarray):
        call_checks.refuse_array("values", values, function="repack")
    if weight is None:
        base: Any = jnp.zeros(mask_checks.weight_shape(shape), values.dtype)
    else:
        # In the wider of the two dtypes, so that neither side is rounded.
        base = jnp.asarray(weight).astype(values.dtype) if isinstance(weight, Array | np.ndarray) else weight
    kind = _resolve("repack", base, old_mask)
    _check_values("repack", kind, base, values)
    new_kind = _resolve("repack", base, new_mask)
    return _taken(new_kind, rule.weight_view(kind, jnp.asarray(values), base))


def _taken(kind: Kind, weight: Array) -> Array:
    # Of a weight whose sharding is part of its type, on every device.
    sharding = _compat.explicit_sharding(weight)
    everywhere = None if sharding is None else jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return _compat.auto_axes(type(kind).pack, everywhere)(kind, weight)


def _resolve(function: str, weight: Any, grad_mask: MaskLike) -> Kind:
    if not isinstance(weight, Array | np.ndarray):
        call_checks.refuse_array("weight", weight, function=function)
    packed_checks.weight(function, _spec(weight))
    mask = constructors.as_mask(grad_mask)
    return lowering.resolve(mask, (weight.shape[0], weight.shape[1]), packed=True)


def _check_values(function: str, kind: Kind, weight: Array, values: Any) -> None:
    if not isinstance(values, Array | np.ndarray):
        call_checks.refuse_array("values", values, function=function)
    expected = kind.values_shape((weight.shape[0], weight.shape[1]))
    packed_checks.values(function, _spec(values), expected, _spec(weight))
