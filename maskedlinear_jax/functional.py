"""The public function: checks, casts, and the call of the rule."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core import arrays, constructors
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.checks import call as call_checks
from maskedlinear_jax import _compat, lowering, rule
from maskedlinear_jax.engine_choice import choose


def masked_linear(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    grad_mask: MaskLike,
    bias_mask: BiasMaskLike | None = None,
    forward_mode: bool = False,
    precision: PrecisionLike = "native",
) -> Array:
    """Compute y = x W^T + b, letting the gradient of W flow at the masked positions only (contract S2-S4).

    The value is that of `input @ weight.T + bias`, bit for bit. All derivatives, of any order and
    mode, are those of `x @ where(M, W, stop_gradient(W)).T + where(m, b, stop_gradient(b))`.

    Args:
        input: x, shape (*batch, in_features); any number of batch dimensions, including none.
        weight: W, shape (out_features, in_features).
        bias: b, shape (out_features,), or None.
        grad_mask: M: `columns(...)`, `rows(...)`, `submatrix(...)`, `blocks(...)`, `elements(...)`, a
            combination of these, or a bool array of the weight's shape. True = the gradient flows.
            A mask is a pytree: passed as an argument, other positions of the same count never recompile.
        bias_mask: m, bool vector of shape (out_features,); None = all of the bias trains.
        forward_mode: True for outermost forward mode (jvp, jacfwd, linearize, reverse over forward),
            which JAX forbids through custom_vjp. Same values and derivatives, in both modes.
        precision: "native", or "reproducible" or `reproducible(...)` for the same bits in both twins, on any
            device, thread count and batch split (contract S9); then float32, bfloat16 or float16.

    Returns:
        y, shape (*batch, out_features), of the arguments' dtype (float32, float64, bfloat16 or float16).

    Raises:
        TypeError: A wrong kind of argument, or a dtype that is not supported or not shared (contract S10).
        ValueError: Shapes or devices that do not fit.
        IndexError: A position outside of the weight.

    Example:
        >>> import jax
        >>> from maskedlinear_jax import columns
        >>> x, w = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])
        >>> jax.grad(lambda w: masked_linear(x, w, grad_mask=columns([1])).sum())(w)
        Array([[0., 2.]], dtype=float32)
    """
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Array | np.ndarray) and not (name == "bias" and value is None):
            if hasattr(value, "grad_mask"):
                call_checks.refuse_layer(name, type(value).__name__)
            call_checks.refuse_array(name, value)
    call_checks.flag("forward_mode", forward_mode)
    mask = constructors.as_mask(grad_mask)
    if bias_mask is not None:
        bias_mask = constructors.as_bias_mask(bias_mask)
    call_checks.linear(_spec(input), _spec(weight), _maybe_spec(bias), _maybe_spec(bias_mask))
    input, weight = jnp.asarray(input), jnp.asarray(weight)
    bias = None if bias is None else jnp.asarray(bias)
    if bias_mask is not None:
        bias_mask = jnp.asarray(bias_mask)
    kind = lowering.resolve(mask, (weight.shape[0], weight.shape[1]))
    chosen = choose(precision, "masked_linear", input, weight)
    return rule.masked(
        kind, input, weight, bias, bias_mask, products=chosen, forward_mode=forward_mode
    )  # fmt: skip


def _spec(array: Any) -> call_checks.Spec:
    dtype = arrays.dtype_name(array)
    if dtype == "float64" and not _compat.x64_enabled():
        call_checks.refuse_float64()
    return call_checks.Spec(tuple(array.shape), dtype, _compat.device_of(array))


def _maybe_spec(array: Any) -> call_checks.Spec | None:
    return None if array is None else _spec(array)
