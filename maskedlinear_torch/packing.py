"""The packed form: the trainable entries as a small leaf of their own, over a constant matrix (contract S7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskedlinear_core import constructors
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_torch import lowering, rule
from maskedlinear_torch.engine_choice import choose
from maskedlinear_torch.functional import _FLOATS, _autocast, _check, _refuse_array, _spec
from maskedlinear_torch.kinds import Kind
from maskedlinear_torch.tensors import check_dense


def pack(weight: Tensor, *, grad_mask: MaskLike) -> Tensor:
    """Return the trainable entries of a weight, packed.

    The order is that of the positions, sorted. Differentiable: its transpose puts a gradient of the
    values among zeros.

    Args:
        weight: W, shape (out_features, in_features).
        grad_mask: As for `masked_linear`; inside of vmap and compile, elements as `mask.packed(weight.shape)`.

    Returns:
        Values of shape (rows, columns) for `columns`, `rows` and `submatrix`, (blocks, h, w) for `blocks`
        and (elements,) for `elements`, of the weight's dtype (contract S7).

    Raises:
        TypeError: A wrong kind of argument, or a mask whose number of positions is not known now.
        ValueError: A weight that is not two-dimensional, or a mask that does not fit it.
        IndexError: A position outside of the weight.

    Example:
        >>> import torch
        >>> from maskedlinear_torch import columns
        >>> pack(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), grad_mask=columns([1]))
        tensor([[2.],
                [4.]])
    """
    if isinstance(weight, Tensor):
        check_dense("pack", weight=weight)
    kind = _resolve("pack", weight, grad_mask)
    return kind.pack(weight)


def unpack(weight: Tensor, values: Tensor, *, grad_mask: MaskLike) -> Tensor:
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
        >>> import torch
        >>> from maskedlinear_torch import columns
        >>> unpack(torch.zeros(2, 2), torch.tensor([[5.0], [6.0]]), grad_mask=columns([1]))
        tensor([[0., 5.],
                [0., 6.]])
    """
    kind = _resolve("unpack", weight, grad_mask)
    _check_values("unpack", kind, weight, values)
    return kind.merge_into(weight, values.to(weight.dtype))


def packed_linear(
    input: Tensor,
    weight: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    *,
    grad_mask: MaskLike,
    bias_mask: BiasMaskLike | None = None,
    forward_mode: bool = False,
    precision: PrecisionLike = "native",
) -> Tensor:
    """Compute y = x V^T + b with V = unpack(W, v): the values v learn, the matrix W is a constant (contract S7).

    The value is that of `torch.nn.functional.linear(input, unpack(weight, values, ...), bias)`, bit for
    bit. The gradient of the values is computed directly in packed shape, in the values' dtype; no gradient
    of the weight's size exists, and V is not kept for the backward.

    Args:
        input: x, shape (*batch, in_features); any number of batch dimensions, including none.
        weight: W, shape (out_features, in_features). It gets no gradient.
        values: v, of the shape that `pack` gives; of the weight's dtype, or float32 over a 16-bit weight.
        bias: b, shape (out_features,), or None.
        grad_mask: As for `pack`.
        bias_mask: m, bool vector of shape (out_features,); None = all of the bias trains.
        forward_mode: The JAX twin needs True for outermost forward mode; here both modes always work.
        precision: "native", or "reproducible" or `reproducible(...)` for the same bits in both twins, on any
            device, thread count and batch split (contract S9); then float32, bfloat16 or float16.

    Returns:
        y, shape (*batch, out_features), of the input's dtype, or of autocast's.

    Raises:
        TypeError, ValueError, IndexError: As `masked_linear` and `unpack`.

    Example:
        >>> import torch
        >>> from maskedlinear_torch import columns
        >>> w, mask = torch.tensor([[3.0, 4.0]]), columns([1])
        >>> v = pack(w, grad_mask=mask).requires_grad_()
        >>> packed_linear(torch.tensor([[1.0, 2.0]]), w, v, grad_mask=mask).sum().backward()
        >>> v.grad
        tensor([[2.]])
    """
    if not (isinstance(input, Tensor) and isinstance(values, Tensor) and (bias is None or isinstance(bias, Tensor))):
        _refuse_array("packed_linear", input=input, values=values, bias=bias)
    if forward_mode is not False:
        call_checks.flag("forward_mode", forward_mode)
    if bias_mask is not None:
        bias_mask = constructors.as_bias_mask(bias_mask)
    kind = _resolve("packed_linear", weight, grad_mask)
    input, weight, bias = _autocast(input, weight, bias)
    _check("packed_linear", input, weight, bias, bias_mask)
    _check_values("packed_linear", kind, weight, values)
    if bias_mask is not None:
        bias_mask = lowering.bools(bias_mask, weight.device)
    chosen = choose(precision, "packed_linear", input, weight)
    return rule.masked(kind, input, weight, bias, bias_mask, values, chosen)


def repack(
    values: Tensor,
    old_mask: MaskLike,
    new_mask: MaskLike,
    *,
    weight: Tensor | None = None,
    shape: tuple[int, int] | None = None,
) -> Tensor:
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
        >>> import torch
        >>> from maskedlinear_torch import columns
        >>> old, new = columns([0, 1]), columns([1, 2])
        >>> repack(torch.tensor([[5.0, 6.0]]), old, new, shape=(1, 3))
        tensor([[6., 0.]])
    """
    packed_checks.one_shape(weight is not None, shape is not None)
    if not isinstance(values, Tensor):
        call_checks.refuse_array("values", values, function="repack")
    if weight is None:
        base = values.new_zeros(mask_checks.weight_shape(shape))
    else:
        # In the wider of the two dtypes, so that neither side is rounded.
        base = weight.to(values.dtype) if isinstance(weight, Tensor) else weight
    kind = _resolve("repack", base, old_mask)
    _check_values("repack", kind, base, values)
    new_kind = _resolve("repack", base, new_mask)
    return new_kind.pack(kind.merge_into(base, values))


def _resolve(function: str, weight: Any, grad_mask: MaskLike) -> Kind:
    if not isinstance(weight, Tensor):
        call_checks.refuse_array("weight", weight, function=function)
    if weight.is_nested or not (weight.dtype in _FLOATS and weight.layout is torch.strided and weight.dim() == 2):
        check_dense(function, weight=weight)
        packed_checks.weight(function, _spec(weight))
    mask = constructors.as_mask(grad_mask)
    outputs, inputs = weight.shape
    return lowering.resolve(mask, (outputs, inputs), weight.device, packed=True)


def _check_values(function: str, kind: Kind, weight: Tensor, values: Any) -> None:
    if not isinstance(values, Tensor):
        call_checks.refuse_array("values", values, function=function)
    if values.is_nested or values.layout is not torch.strided:
        check_dense(function, values=values)
    expected = kind.values_shape((weight.shape[0], weight.shape[1]))
    if values.shape == expected and values.dtype == weight.dtype and values.device == weight.device:
        return
    packed_checks.values(function, _spec(values), expected, _spec(weight))
