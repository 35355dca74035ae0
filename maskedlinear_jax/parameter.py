"""Any other parameter of any shape: the reference program itself, at the price of a copy (contract S13)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core import masks, parameters
from maskedlinear_core.annotations import MaskLike
from maskedlinear_core.arrays import dtype_name, is_framework_array
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import parameter as parameter_checks
from maskedlinear_jax import lowering


def masked_parameter(weight: Array, grad_mask: MaskLike) -> Array:
    """Return where(M, W, stop_gradient(W)): the same values, of which only the masked ones learn.

    For parameters that have no layer here: convolutions, scales of norms, recurrent weights. All derivatives, of any
    order and mode, are the framework's own.

    Args:
        weight: W, of any shape and any float or complex dtype.
        grad_mask: M: a bool array of the weight's shape, or a mask over its first two axes (out, in), broadcast over
            the others. For a weight of one axis it must be `rows`. True = the gradient flows.

    Returns:
        An array of the weight's shape and dtype.

    Raises:
        TypeError: No array, one of integers, or no mask.
        ValueError: A mask of another shape.
        IndexError: A position outside of the weight.

    Example:
        >>> from maskedlinear_jax import rows
        >>> jax.grad(lambda weight: masked_parameter(weight, rows([1])).sum())(jnp.ones((2, 1, 3))).tolist()
        [[[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]]
    """
    if not isinstance(weight, Array | np.ndarray):
        call_checks.refuse_array("weight", weight, function="masked_parameter")
    weight = jnp.asarray(weight)
    parameter_checks.can_learn(dtype_name(weight), jnp.issubdtype(weight.dtype, jnp.inexact))
    return jnp.where(_trains(weight, grad_mask), weight, jax.lax.stop_gradient(weight))


def _trains(weight: Array, grad_mask: MaskLike) -> Array:
    if isinstance(grad_mask, masks.Mask):  # its positions may be traced
        two, across = parameters.over_two_axes(grad_mask, tuple(weight.shape))
        found = lowering.resolve(grad_mask, two).mask(jnp.empty(two))
        return jnp.broadcast_to(found, two).reshape(across)
    if isinstance(grad_mask, Array):  # it may be traced or batched
        parameter_checks.bool_of_shape(dtype_name(grad_mask), tuple(grad_mask.shape), tuple(weight.shape))
        return grad_mask
    if not is_framework_array(grad_mask):
        call_checks.refuse_mask(grad_mask)
    return jnp.asarray(parameters.to_array(grad_mask, tuple(weight.shape)))
