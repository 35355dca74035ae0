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

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import precision as checks
from maskedlinear_torch import _compat
from maskedlinear_torch.kinds import Blocks, Kind
from maskedlinear_torch.products import NATIVE, Products, as_learned

Fixed = tuple[Products, Kind, Tensor | None, Tensor | None, Tensor | None]
"""What takes no gradient: products, kind, the bias mask, a constant base, V where it is known."""


def masked(
    kind: Kind,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bias_mask: Tensor | None,
    values: Tensor | None = None,
    products: Products = NATIVE,
    written: Tensor | None = None,
) -> Tensor:
    """Apply the rule to checked arguments.

    Args:
        kind: The trainable positions.
        input: (*B, I).
        weight: (O, I).
        bias: (O,) or None.
        bias_mask: Bool (O,); None = all of the bias trains.
        values: The packed entries, over a weight that is then a constant; None = the weight itself learns.
        products: How products are computed.
        written: V of the values, where it is known; nobody writes to it. Only eager code may give it.

    Returns:
        (*B, O).
    """
    if _compat.is_distributed(weight):
        kind, bias_mask = placed(kind, weight), _compat.replicate_like(weight)(bias_mask)
    if input.is_nested or input.layout not in _MULTIPLIED or (type(kind) is Blocks and input.is_sparse):
        # Torch knows the plain layer's derivatives of such an input, and has no kernels for the rule's.
        return reference(kind, input, weight, bias, bias_mask, values)
    transformed = _compat.in_transform()
    if transformed and torch.compiler.is_dynamo_compiling():
        # Dynamo differentiates through the forward of a Function and drops its rule there: without
        # an error, the frozen entries would learn. The reference program needs no rule.
        if products != NATIVE:
            checks.refuse_compiled_transform()
        return reference(kind, input, weight, bias, bias_mask, values)
    learned, base = (weight, None) if values is None else (values, weight.detach())
    if not transformed and not (learned.requires_grad and torch.is_grad_enabled()):
        # Nothing learns from W here: the plain layer is right, and keeps nothing of the input.
        matrix = _matrix(kind, learned, base) if written is None else written
        if base is not None and learned.requires_grad and input.dim() > 2:
            matrix = as_learned(matrix, input)
        return products.linear(input, matrix, _bias_view(bias, bias_mask))
    # Dynamo refuses a Function that defines jvp, and follows setup_context; without either a call costs least.
    if transformed or torch.compiler.is_dynamo_compiling():
        rule = _Rule if transformed else _Reverse
        output, _, _ = rule.apply(products, kind.without_arrays, input, learned, bias, bias_mask, base, *kind.arrays)
        return output
    if _compat.is_traced_by_jit():
        call_checks.refuse_jit_trace()
    return learning((products, kind, bias_mask, base, written), input, learned, bias)


_MULTIPLIED = torch.strided, torch.sparse_coo
"""Layouts of inputs that the rule's own products are of."""


def learning(fixed: Fixed, input: Tensor, learned: Tensor, bias: Tensor | None) -> Tensor:
    """Apply the rule in eager code outside of transforms, to what `masked` would: the weight or the values learn."""
    found = _ReverseOnly.apply(fixed, input, learned, bias)
    return found[0] if type(found) is tuple else found


def placed(kind: Kind, weight: Tensor) -> Kind:
    """Return positions on the devices that hold the parts of a weight that is a DTensor; of any other, the same."""
    if not _compat.is_distributed(weight):
        return kind
    return kind.with_arrays([*map(_compat.replicate_like(weight), kind.arrays)])


def reference(
    kind: Kind,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bias_mask: Tensor | None,
    values: Tensor | None = None,
) -> Tensor:
    """Return the same by the program that defines the op (contract S4), at the price of a copy of W and a dense dW."""
    learned, base = (weight, None) if values is None else (values, weight.detach())
    return F.linear(input, weight_view(kind, learned, base), _bias_view(bias, bias_mask))


def weight_view(kind: Kind, learned: Tensor, base: Tensor | None = None) -> Tensor:
    """Return V: where(M, W, stop_gradient(W)) if the weight learns, merge_into(W, v) if values over a base do."""
    if base is None:
        return torch.where(kind.mask(learned), learned, learned.detach())
    return _laid_out_like(base, kind.merge_into(base, learned.to(base.dtype)))


def _laid_out_like(base: Tensor, view: Tensor) -> Tensor:
    # The bits of a product depend on how its operands lie in memory. (Compiled and batched products have their own.)
    if torch.compiler.is_dynamo_compiling() or _compat.in_transform():
        return view
    # Also on how round their addresses are: memory from a file, or a part of another matrix, starts anywhere.
    is_plain = type(view) is Tensor
    try:
        shift, shifted = (base.data_ptr() % _ROUND, view.data_ptr() % _ROUND) if is_plain else (0, 0)
    except RuntimeError:  # no memory of its own: what a transform of torch.func left behind
        shift = shifted = 0
    if (base.is_contiguous() or view.stride() == base.stride()) and (shift == shifted or not view.numel()):
        return view
    if not is_plain and _compat.is_distributed(base):
        return view
    (height, width), (down, across) = base.shape, base.stride()
    if min(down, across) == 0 or (down < across * width and across < down * height):
        # Entries share memory, which cannot be written to: the nearest layout in which they do not.
        return view.t().contiguous().t() if down == 1 else view
    if not shift:
        like = torch.empty_strided((height, width), (down, across), dtype=base.dtype, device=base.device)
        return like.copy_(view)
    first = shift // base.element_size()
    size = first + (height - 1) * down + (width - 1) * across + 1
    memory = torch.empty(size, dtype=base.dtype, device=base.device).untyped_storage()
    # No view of a tensor, which autograd would have to know of.
    return view.new_empty(0).set_(memory, first, (height, width), (down, across)).copy_(view)


_ROUND = 64
"""Bytes to which torch rounds the addresses of what it allocates on a CPU."""


def _matrix(kind: Kind, learned: Tensor, base: Tensor | None) -> Tensor:
    # The values of V, where nothing differentiates them.
    return learned if base is None else weight_view(kind, learned, base)


def _bias_view(bias: Tensor | None, bias_mask: Tensor | None) -> Tensor | None:
    if bias is None or bias_mask is None:
        return bias
    return torch.where(bias_mask, bias, bias.detach())


class _Reverse(torch.autograd.Function):
    """The rule in reverse mode. Outputs: y, what is kept of x (None where that is x itself), its rows' `row_max`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        products: Products,
        kind: Kind,
        input: Tensor,
        learned: Tensor,
        bias: Tensor | None,
        bias_mask: Tensor | None,
        base: Tensor | None,
        *arrays: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        # What is kept must be an output: a tensor made in setup_context is unknown to autograd, and
        # double backward through it is wrong without an error.
        kind = kind.with_arrays(arrays)
        kept = kind.gather_input(input)
        output = products.linear(input, _matrix(kind, learned, base), bias)
        return output, None if kept is input else kept, products.row_max(input, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        products, kind, input, learned, _, bias_mask, base, *arrays = inputs
        _, kept, row_max = output
        ctx.products, ctx.kind = products, kind
        ctx.in_features = input.shape[-1]
        # A cotangent that does not exist stays None: as zeros it would be added to d_x at full cost.
        ctx.set_materialize_grads(False)
        # In packed form V is not saved but written again: nothing of the weight's size is kept.
        kept = input if kept is None else kept
        # The whole input for forward mode alone; and one tuple for both modes, as vmap knows the dimensions of one.
        forward_mode = _compat.in_dual_level()
        saved = (kept, row_max, input if forward_mode else None, learned, bias_mask, base, *arrays)
        ctx.save_for_backward(*saved)
        if forward_mode:
            ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, row_max, _, learned, bias_mask, base, *arrays = ctx.saved_tensors
        _, _, *wanted, _, _ = ctx.needs_input_grad[:7]
        fixed = ctx.products, ctx.kind.with_arrays(arrays), bias_mask, base, None
        found = _gradients(fixed, kept, row_max, learned, cotangents, wanted, ctx.in_features)
        return None, None, *found, *(None,) * (len(ctx.needs_input_grad) - 5)


class _Rule(_Reverse):
    """The rule in both modes."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        _, _, d_input, d_learned, d_bias, *_ = tangents
        _, _, input, learned, bias_mask, base, *arrays = ctx.saved_tensors
        products: Products = ctx.products
        kind: Kind = ctx.kind.with_arrays(arrays)
        with _compat.forward_mode_enabled():
            # The tensors carry this level's tangents; the rule is in terms of what is below it.
            input, learned = _compat.primal(input), _compat.primal(learned)
            shape = _shape(learned, base)
            terms = []
            if d_input is not None:
                terms.append(products.linear(d_input, weight_view(kind, learned, base)))
            if d_learned is not None:
                taken = kind.pack(d_learned) if base is None else d_learned.to(base.dtype)
                terms.append(products.apply(kind, input, taken, shape))
            if d_bias is not None:
                d_bias = d_bias if bias_mask is None else torch.where(bias_mask, d_bias, 0)
                terms.append(products.expand_batch(d_bias, input))
            kept = kind.gather_input(input)
            if kept is input:
                d_kept = None
            else:
                d_kept = torch.zeros_like(kept) if d_input is None else kind.gather_input(d_input)
            row_max = products.row_max(input, kept)
            return (
                functools.reduce(products.add, terms),
                d_kept,
                None if row_max is None else torch.zeros_like(row_max),
            )


_unwrapped = _compat.unwrapped


class _ReverseOnly(torch.autograd.Function):
    """The rule where only reverse mode is possible: what takes no gradient is one argument, because each costs time."""

    @classmethod
    def apply(cls, fixed: Fixed, input: Tensor, learned: Tensor, bias: Tensor | None) -> Any:
        # As `Function.apply` without setup_context and outside of torch.func, in half of its time.
        tensors = _unwrapped(input), _unwrapped(learned), None if bias is None else _unwrapped(bias)
        return super(torch.autograd.Function, cls).apply(fixed, *tensors)  # type: ignore[misc]

    @staticmethod
    def forward(
        ctx: Any,
        fixed: Fixed,
        input: Tensor,
        learned: Tensor,
        bias: Tensor | None,
    ) -> Any:
        products, kind, bias_mask, base, written = fixed
        kept = kind.gather_input(input)
        matrix = written
        if matrix is None:  # as `_matrix`, which would cost a call
            matrix = learned if base is None else weight_view(kind, learned, base)
        if base is not None and input.dim() > 2:
            matrix = as_learned(matrix, input)
        output = products.linear(input, matrix, bias)
        row_max = None if kept is input else products.row_max(input, kept)
        ctx.products, ctx.kind, ctx.written = products, kind, written  # the layer keeps V anyway, for its next call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, row_max, learned, bias_mask, base, *kind.arrays)
        return output if kept is input else (output, kept, row_max)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, row_max, learned, bias_mask, base, *arrays = ctx.saved_tensors
        _, *wanted = ctx.needs_input_grad
        fixed = ctx.products, ctx.kind.with_arrays(arrays), bias_mask, base, ctx.written
        return None, *_gradients(fixed, kept, row_max, learned, cotangents, wanted, _shape(learned, base)[1])


def _gradients(
    fixed: Fixed,
    kept: Tensor,
    row_max: Tensor | None,
    learned: Tensor,
    cotangents: Sequence[Tensor | None],
    wanted: Sequence[bool],
    in_features: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    # Of the input, of what is learned, and of the bias.
    products, kind, bias_mask, base, written = fixed
    g, kept_cotangent = cotangents[0], cotangents[1] if len(cotangents) > 1 else None
    input_wanted, learned_wanted, bias_wanted = wanted
    d_input = d_learned = d_bias = None
    if g is not None:
        if input_wanted:
            matrix = learned if base is None else written
            if matrix is None or _is_differentiated():
                matrix = weight_view(kind, learned, base)
            d_input = products.input_grad(g, matrix)
        if learned_wanted:
            shape = _shape(learned, base)
            if base is None:
                d_learned = kind.to_dense(products.weight_grad(kind, g, kept, row_max, shape), shape)
            else:  # values may be wider than the matrix
                same = g.dtype == learned.dtype == kept.dtype
                cotangent, kept = (g, kept) if same else (g.to(learned.dtype), kept.to(learned.dtype))
                d_learned = products.weight_grad(kind, cotangent, kept, row_max, shape)
            if _compat.is_distributed(learned):
                d_learned = _compat.placed_like(d_learned, learned)
        if bias_wanted:
            d_bias = products.sum_batch(g)
            d_bias = d_bias if bias_mask is None else torch.where(bias_mask, d_bias, 0)
    if kept_cotangent is not None and input_wanted:
        d_kept = kind.scatter_input(kept_cotangent, in_features)
        d_input = d_kept if d_input is None else d_input + d_kept
    return d_input, d_learned, d_bias


def _shape(learned: Tensor, base: Tensor | None) -> tuple[int, int]:
    outputs, inputs = (learned if base is None else base).shape
    return outputs, inputs


def _is_differentiated() -> bool:
    # Safe to skip the view otherwise: with grad mode off nothing records the backward for reverse mode, and
    # outside of dual levels and transforms there is no forward mode. Asking W for a tangent would not do: it
    # shows those of the innermost level only.
    return torch.is_grad_enabled() or _compat.in_transform()
