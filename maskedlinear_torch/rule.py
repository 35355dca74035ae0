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

In packed form (SPEC S7) the trainable entries are a leaf of their own, the values v, over a constant
matrix W. It is the same rule with

    V       = write(W, v)
    d_v     = product(g, keep(x))         for d_W
    y'      = x' V^T + tangent(keep(x), v') + where(m, b', 0)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskedlinear_core.checks import precision as checks
from maskedlinear_torch import _compat
from maskedlinear_torch.kinds import Arrays, Kind
from maskedlinear_torch.precision import NATIVE, Precision


def masked(
    kind: Kind,
    arrays: Arrays,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bias_mask: Tensor | None,
    values: Tensor | None = None,
    precision: Precision = NATIVE,
) -> Tensor:
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

    Returns:
        (*B, O).
    """
    if _compat.is_distributed(weight):
        beside = _compat.beside(weight)
        arrays, bias_mask = tuple(map(beside, arrays)), beside(bias_mask)
    transformed = _compat.in_transform()
    if transformed and torch.compiler.is_dynamo_compiling():
        # Dynamo differentiates through the forward of a Function and drops its rule there: without
        # an error, the frozen entries would learn. The reference program needs no rule.
        if precision != NATIVE:
            checks.refuse_compiled_transform()
        return reference(kind, arrays, input, weight, bias, bias_mask, values)
    learned, frozen = (weight, None) if values is None else (values, weight.detach())
    if not transformed and not (learned.requires_grad and torch.is_grad_enabled()):
        # Nothing learns from W here: the plain layer is right, and keeps nothing of the input.
        return precision.linear(input, _matrix(kind, arrays, learned, frozen), _bias_view(bias, bias_mask))
    # Dynamo refuses a Function that defines jvp, and follows setup_context; without either a call costs least.
    if transformed or torch.compiler.is_dynamo_compiling():
        rule = _Rule if transformed else _Reverse
        output, _, _ = rule.apply(precision, kind, input, learned, bias, bias_mask, frozen, *arrays)
        return output
    found = _Plain.apply((precision, kind, bias_mask, frozen, arrays), input, learned, bias)
    return found[0] if isinstance(found, tuple) else found


def reference(
    kind: Kind,
    arrays: Arrays,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bias_mask: Tensor | None,
    values: Tensor | None = None,
) -> Tensor:
    """Return the same by the program that defines the op (SPEC S4), at the price of a copy of W and a dense dW."""
    learned, frozen = (weight, None) if values is None else (values, weight.detach())
    return F.linear(input, weight_view(kind, arrays, learned, frozen), _bias_view(bias, bias_mask))


def weight_view(kind: Kind, arrays: Arrays, learned: Tensor, frozen: Tensor | None = None) -> Tensor:
    """Return V: where(M, W, stop_gradient(W)) of a weight that learns, write(W, v) of values over a frozen one."""
    if frozen is None:
        return torch.where(kind.mask(learned, *arrays), learned, learned.detach())
    return kind.write(frozen, learned.to(frozen.dtype), *arrays)


def _matrix(kind: Kind, arrays: Arrays, learned: Tensor, frozen: Tensor | None) -> Tensor:
    # The values of V, where nothing differentiates them.
    return learned if frozen is None else weight_view(kind, arrays, learned, frozen)


def _bias_view(bias: Tensor | None, bias_mask: Tensor | None) -> Tensor | None:
    if bias is None or bias_mask is None:
        return bias
    return torch.where(bias_mask, bias, bias.detach())


class _Reverse(torch.autograd.Function):
    """The rule in reverse mode. Outputs: y, what is kept of x (None where that is x itself), its rows' `top`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        precision: Precision,
        kind: Kind,
        input: Tensor,
        learned: Tensor,
        bias: Tensor | None,
        bias_mask: Tensor | None,
        frozen: Tensor | None,
        *arrays: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        # What is kept must be an output: a tensor made in setup_context is unknown to autograd, and
        # double backward through it is wrong without an error.
        kept = kind.keep(input, *arrays)
        output = precision.linear(input, _matrix(kind, arrays, learned, frozen), bias)
        return output, None if kept is input else kept, precision.top(input, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        precision, kind, input, learned, _, bias_mask, frozen, *arrays = inputs
        _, kept, top = output
        ctx.precision, ctx.kind = precision, kind
        ctx.in_features = input.shape[-1]
        # A cotangent that does not exist stays None: as zeros it would be added to d_x at full cost.
        ctx.set_materialize_grads(False)
        # In packed form V is not saved but written again: nothing of the weight's size is kept.
        kept = input if kept is None else kept
        # The whole input for forward mode alone; and one tuple for both modes, as vmap knows the dimensions of one.
        forward_mode = _compat.in_dual_level()
        saved = (kept, top, input if forward_mode else None, learned, bias_mask, frozen, *arrays)
        ctx.save_for_backward(*saved)
        if forward_mode:
            ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, top, _, learned, bias_mask, frozen, *arrays = ctx.saved_tensors
        _, _, *wanted, _, _ = ctx.needs_input_grad[:7]
        fixed = ctx.precision, ctx.kind, bias_mask, frozen, tuple(arrays)
        found = _gradients(fixed, kept, top, learned, cotangents, wanted, ctx.in_features)
        return None, None, *found, *(None,) * (len(ctx.needs_input_grad) - 5)


class _Rule(_Reverse):
    """The rule in both modes."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        _, _, d_input, d_learned, d_bias, *_ = tangents
        _, _, input, learned, bias_mask, frozen, *arrays = ctx.saved_tensors
        precision: Precision = ctx.precision
        kind: Kind = ctx.kind
        with _compat.forward_mode_enabled():
            # The tensors carry this level's tangents; the rule is in terms of what is below it.
            input, learned = _compat.primal(input), _compat.primal(learned)
            shape = _shape(learned, frozen)
            terms = []
            if d_input is not None:
                terms.append(precision.linear(d_input, weight_view(kind, arrays, learned, frozen)))
            if d_learned is not None:
                taken = kind.take(d_learned, *arrays) if frozen is None else d_learned.to(frozen.dtype)
                terms.append(precision.tangent(kind, arrays, input, taken, shape))
            if d_bias is not None:
                d_bias = d_bias if bias_mask is None else torch.where(bias_mask, d_bias, 0)
                terms.append(precision.spread(d_bias, input))
            kept = kind.keep(input, *arrays)
            if kept is input:
                d_kept = None
            else:
                d_kept = torch.zeros_like(kept) if d_input is None else kind.keep(d_input, *arrays)
            top = precision.top(input, kept)
            return functools.reduce(precision.add, terms), d_kept, None if top is None else torch.zeros_like(top)


Fixed = tuple[Precision, Kind, Tensor | None, Tensor | None, Arrays]
"""What takes no gradient: precision, kind, the bias mask, a constant matrix, positions."""


class _Plain(torch.autograd.Function):
    """The rule where reverse mode is all there is: what takes no gradient is one argument, as each has its price."""

    @staticmethod
    def forward(
        ctx: Any,
        fixed: Fixed,
        input: Tensor,
        learned: Tensor,
        bias: Tensor | None,
    ) -> Any:
        precision, kind, bias_mask, frozen, arrays = fixed
        kept = kind.keep(input, *arrays)
        output = precision.linear(input, _matrix(kind, arrays, learned, frozen), bias)
        top = None if kept is input else precision.top(input, kept)
        ctx.precision, ctx.kind = precision, kind
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, top, learned, bias_mask, frozen, *arrays)
        return output if kept is input else (output, kept, top)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, top, learned, bias_mask, frozen, *arrays = ctx.saved_tensors
        _, *wanted = ctx.needs_input_grad
        fixed = ctx.precision, ctx.kind, bias_mask, frozen, tuple(arrays)
        return None, *_gradients(fixed, kept, top, learned, cotangents, wanted, _shape(learned, frozen)[1])


def _gradients(
    fixed: Fixed,
    kept: Tensor,
    top: Tensor | None,
    learned: Tensor,
    cotangents: Sequence[Tensor | None],
    wanted: Sequence[bool],
    in_features: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    # Of the input, of what is learned, and of the bias.
    precision, kind, bias_mask, frozen, arrays = fixed
    g, kept_cotangent = cotangents[0], cotangents[1] if len(cotangents) > 1 else None
    input_wanted, learned_wanted, bias_wanted = wanted
    d_input = d_learned = d_bias = None
    if g is not None:
        if input_wanted:
            masks = frozen is not None or _is_differentiated()
            d_input = precision.back(g, weight_view(kind, arrays, learned, frozen) if masks else learned)
        if learned_wanted:
            shape = _shape(learned, frozen)
            if frozen is None:
                d_learned = kind.place(precision.product(kind, arrays, g, kept, top, shape), shape, *arrays)
            else:  # values may be wider than the matrix
                cotangent, kept = g.to(learned.dtype), kept.to(learned.dtype)
                d_learned = precision.product(kind, arrays, cotangent, kept, top, shape)
            if _compat.is_distributed(learned):
                d_learned = _compat.placed_like(d_learned, learned)
        if bias_wanted:
            d_bias = precision.total(g)
            d_bias = d_bias if bias_mask is None else torch.where(bias_mask, d_bias, 0)
    if kept_cotangent is not None and input_wanted:
        d_kept = kind.unkeep(kept_cotangent, in_features, *arrays)
        d_input = d_kept if d_input is None else d_input + d_kept
    return d_input, d_learned, d_bias


def _shape(learned: Tensor, frozen: Tensor | None) -> tuple[int, int]:
    outputs, inputs = (learned if frozen is None else frozen).shape
    return outputs, inputs


def _is_differentiated() -> bool:
    # Safe to skip the view otherwise: with grad mode off nothing records the backward for reverse mode, and
    # outside of dual levels and transforms there is no forward mode. Asking W for a tangent would not do: it
    # shows those of the innermost level only.
    return torch.is_grad_enabled() or _compat.in_transform()
