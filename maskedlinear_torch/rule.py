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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from maskedlinear_torch import _compat
from maskedlinear_torch.kinds import Arrays, Kind, flat


def masked(
    kind: Kind,
    arrays: Arrays,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bias_mask: Tensor | None,
    values: Tensor | None = None,
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
        return reference(kind, arrays, input, weight, bias, bias_mask, values)
    learned, frozen = (weight, None) if values is None else (values, weight.detach())
    if not transformed and not (learned.requires_grad and torch.is_grad_enabled()):
        # Nothing learns from W here: the plain layer is right, and keeps nothing of the input.
        return F.linear(input, _matrix(kind, arrays, learned, frozen), _bias_view(bias, bias_mask))
    # Dynamo refuses a Function that defines jvp.
    rule = _Reverse if torch.compiler.is_dynamo_compiling() else _Rule
    output, _ = rule.apply(kind, input, learned, bias, bias_mask, frozen, *arrays)
    return output


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
    """The rule in reverse mode. Outputs: y, and what is kept of x (None where that is x itself)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        kind: Kind,
        input: Tensor,
        learned: Tensor,
        bias: Tensor | None,
        bias_mask: Tensor | None,
        frozen: Tensor | None,
        *arrays: Any,
    ) -> tuple[Tensor, Tensor | None]:
        # What is kept must be an output: a tensor made in setup_context is unknown to autograd, and
        # double backward through it is wrong without an error.
        kept = kind.keep(input, *arrays)
        return F.linear(input, _matrix(kind, arrays, learned, frozen), bias), None if kept is input else kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        kind, input, learned, _, bias_mask, frozen, *arrays = inputs
        _, kept = output
        ctx.kind = kind
        ctx.in_features = input.shape[-1]
        # A cotangent that does not exist stays None: as zeros it would be added to d_x at full cost.
        ctx.set_materialize_grads(False)
        # In packed form V is not saved but written again: nothing of the weight's size is kept.
        ctx.save_for_backward(input if kept is None else kept, learned, bias_mask, frozen, *arrays)
        ctx.save_for_forward(input, learned, bias_mask, frozen, *arrays)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        g, kept_cotangent = cotangents
        kept, learned, bias_mask, frozen, *arrays = ctx.saved_tensors
        kind: Kind = ctx.kind
        _, input_wanted, learned_wanted, bias_wanted, *_ = ctx.needs_input_grad
        d_input = d_learned = d_bias = None
        if g is not None:
            if input_wanted:
                view = weight_view if _is_differentiated() else _matrix
                d_input = g @ view(kind, arrays, learned, frozen)
            if learned_wanted:
                d_learned = kind.product(g.to(learned.dtype), kept.to(learned.dtype), *arrays)
                if frozen is None:
                    d_learned = kind.place(d_learned, (learned.shape[0], learned.shape[1]), *arrays)
                if _compat.is_distributed(learned):
                    d_learned = _compat.placed_like(d_learned, learned)
            if bias_wanted:
                d_bias = flat(g).sum(0)
                d_bias = d_bias if bias_mask is None else torch.where(bias_mask, d_bias, 0)
        if kept_cotangent is not None and input_wanted:
            d_kept = kind.unkeep(kept_cotangent, ctx.in_features, *arrays)
            d_input = d_kept if d_input is None else d_input + d_kept
        return None, d_input, d_learned, d_bias, None, None, *(None for _ in arrays)


class _Rule(_Reverse):
    """The rule in both modes."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor | None]:
        _, d_input, d_learned, d_bias, *_ = tangents
        input, learned, bias_mask, frozen, *arrays = ctx.saved_tensors
        kind: Kind = ctx.kind
        with _compat.forward_mode_enabled():
            # The tensors carry this level's tangents; the rule is in terms of what is below it.
            input, learned = _primal(input), _primal(learned)
            out_features = (learned if frozen is None else frozen).shape[0]
            terms = []
            if d_input is not None:
                terms.append(d_input @ weight_view(kind, arrays, learned, frozen).t())
            if d_learned is not None:
                taken = kind.take(d_learned, *arrays) if frozen is None else d_learned.to(frozen.dtype)
                terms.append(kind.tangent(kind.keep(input, *arrays), taken, out_features, *arrays))
            if d_bias is not None:
                d_bias = d_bias if bias_mask is None else torch.where(bias_mask, d_bias, 0)
                terms.append(d_bias.expand(*input.shape[:-1], out_features))
            kept = kind.keep(input, *arrays)
            if kept is input:
                d_kept = None
            else:
                d_kept = torch.zeros_like(kept) if d_input is None else kind.keep(d_input, *arrays)
            return sum(terms[1:], start=terms[0]), d_kept


def _primal(tensor: Tensor) -> Tensor:
    return forward_ad.unpack_dual(tensor).primal


def _is_differentiated() -> bool:
    # Safe to skip the view otherwise: with grad mode off nothing records the backward for reverse mode, and
    # outside of dual levels and transforms there is no forward mode. Asking W for a tangent would not do: it
    # shows those of the innermost level only.
    return torch.is_grad_enabled() or _compat.in_transform()
