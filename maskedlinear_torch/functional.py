"""The public function: checks, casts, and the call of the rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskedlinear_core import arrays, constructors
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.checks.words import FLOAT_DTYPES
from maskedlinear_torch import _compat, lowering, rule
from maskedlinear_torch.engine_choice import choose
from maskedlinear_torch.tensors import check_dense


def masked_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    grad_mask: MaskLike,
    bias_mask: BiasMaskLike | None = None,
    forward_mode: bool = False,
    precision: PrecisionLike = "native",
) -> Tensor:
    """Compute y = x W^T + b, letting the gradient of W flow at the masked positions only (contract S2-S4).

    The value is that of `torch.nn.functional.linear`, bit for bit. All derivatives, of any order and
    mode, are those of `x @ where(M, W, W.detach()).T + where(m, b, b.detach())`.

    Args:
        input: x, shape (*batch, in_features); any number of batch dimensions, including none.
        weight: W, shape (out_features, in_features).
        bias: b, shape (out_features,), or None.
        grad_mask: M: `columns(...)`, `rows(...)`, `submatrix(...)`, `blocks(...)`, `elements(...)`, a
            combination of these, or a bool array of the weight's shape. True = the gradient flows.
        bias_mask: m, bool vector of shape (out_features,); None = all of the bias trains.
        forward_mode: The JAX twin needs True for outermost forward mode; here both modes always work.
        precision: "native", or "reproducible" or `reproducible(...)` for the same bits in both twins, on any
            device, thread count and batch split (contract S9); then float32, bfloat16 or float16.

    Returns:
        y, shape (*batch, out_features), of the arguments' dtype (float32, float64, bfloat16 or
        float16), or of autocast's.

    Raises:
        TypeError: A wrong kind of argument, or a dtype that is not supported or not shared (contract S10).
        ValueError: Shapes or devices that do not fit.
        IndexError: A position outside of the weight.

    Example:
        >>> from maskedlinear_torch import columns
        >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> masked_linear(x, w, grad_mask=columns([1])).sum().backward()
        >>> w.grad
        tensor([[0., 2.]])
    """
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))):
        _refuse_array("masked_linear", input=input, weight=weight, bias=bias)
    if forward_mode is not False:
        call_checks.flag("forward_mode", forward_mode)
    mask = constructors.as_mask(grad_mask)
    if bias_mask is not None:
        bias_mask = constructors.as_bias_mask(bias_mask)
    input, weight, bias = _autocast(input, weight, bias)
    _check("masked_linear", input, weight, bias, bias_mask)
    if bias_mask is not None:
        bias_mask = lowering.bools(bias_mask, weight.device)
    outputs, inputs = weight.shape
    kind = lowering.resolve(mask, (outputs, inputs), weight.device)
    chosen = choose(precision, "masked_linear", input, weight)
    return rule.masked(kind, input, weight, bias, bias_mask, None, chosen)


def _refuse_array(function: str, **arguments: Any) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            call_checks.refuse_array(name, value, function=function)


def _check(
    function: str, input: Tensor, weight: Tensor, bias: Tensor | None, bias_mask: BiasMaskLike | None = None
) -> None:
    # In words only where something is wrong: at batch 1 they would cost as much as the layer.
    if bias_mask is None and _fits(input, weight, bias):
        return
    check_dense(function, weight=weight, bias=bias)
    specs = _spec(input), _spec(weight), _maybe_spec(bias), _maybe_spec(bias_mask)
    call_checks.linear(*specs, function=function)


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    # Whether `call_checks.linear` surely passes these.
    if input.is_nested or weight.is_nested or not (input.layout is weight.layout is torch.strided):
        return False
    shape, given, dtype, device = weight.shape, input.shape, weight.dtype, weight.device
    return (
        dtype in _FLOATS
        and len(shape) == 2
        and len(given) > 0
        and given[-1] == shape[1]
        and input.dtype == dtype
        and input.device == device
        and (bias is None or (bias.shape == shape[:1] and bias.dtype == dtype and bias.device == device))
    )


_FLOATS = tuple(getattr(torch, name) for name in FLOAT_DTYPES)


def _spec(tensor: Any) -> call_checks.Spec:
    if getattr(tensor, "is_nested", False) and tensor.layout is torch.strided:  # which has a length of one axis alone
        shape = (*(-1 for _ in range(tensor.dim() - 1)), tensor.size(-1))
    else:
        shape = tuple(tensor.shape)
    return call_checks.Spec(shape, arrays.dtype_name(tensor), getattr(tensor, "device", None))


def check_matrix(function: str, weight: Any, bias: Tensor | None = None) -> None:
    """Refuse a layer's weight that is no dense matrix of numbers."""
    if not isinstance(weight, Tensor):
        _refuse_array(function, weight=weight)
    check_dense(function, weight=weight, bias=bias)
    if weight.dim() != 2:
        packed_checks.weight(function, _spec(weight))


def _maybe_spec(tensor: Any) -> call_checks.Spec | None:
    return None if tensor is None else _spec(tensor)


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    # As autocast does for F.linear: every float but float64 is cast, and the cast is differentiated.
    if not (torch.compiler.is_dynamo_compiling() or _compat.in_autocast()):
        return input, weight, bias
    device = weight.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    return cast(input), cast(weight), None if bias is None else cast(bias)
