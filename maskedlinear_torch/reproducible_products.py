"""The reproducible products of a kind, with their derivatives (contract S4, S9).

A kind has three bilinear products, v being packed values and V the dense matrix of them:

    apply(x, v)          x V^T                contracts the in_features
    input_grad(g, v)     gather_input(g V)    contracts the out_features
    weight_grad(g, k)    g^T k, packed        contracts the batch

The derivative of each by either argument is another of the three, so they are closed under differentiation:
whatever the order and mode, every step is one of them, rounded as contract S9 says. The exponents of a row of x
are those of the whole row, also where only some columns of it are kept; `row_max` carries them along.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskedlinear_core import precision
from maskedlinear_core.checks import precision as checks
from maskedlinear_torch import _compat, collectives
from maskedlinear_torch.integer_products import Digits, Float64, Operand, flush, largest, operand
from maskedlinear_torch.kinds import Kind
from maskedlinear_torch.kinds.sums import flat


@dataclass(frozen=True)
class Arithmetic:
    """How integers are added: the settings that were asked for, and the engine that suits the device."""

    settings: precision.Reproducible
    engine: Float64 | Digits


class Operands(NamedTuple):
    """The operands of a product, and the largest magnitudes of the rows of x; None if x is whole."""

    left: Any
    right: Any
    row_max: Any


@dataclass(frozen=True)
class Apply:
    """x V^T: left x (*B, I), or what was kept of it if that was cut; right v; (*B, O)."""

    arithmetic: Arithmetic
    dtype: torch.dtype
    shape: tuple[int, int]
    is_cut: bool

    def compute(self, of: Operands, kind: Any) -> Tensor:
        x = flat(of.left)
        left = operand(x, 1) if of.row_max is None else Operand(x.float(), flat(of.row_max))
        right = operand(kind.to_dense(of.right, self.shape), 1)

        def contract(x: Tensor, v: Tensor) -> Tensor:
            kept = x if self.is_cut else kind.gather_input(x)
            return kind.apply(kept, kind.pack(v), self.shape[0])

        y = _multiply(self, contract, lambda x, v: (x, v.squeeze(1)), left, right, self.shape[1])
        return y.reshape(*of.left.shape[:-1], self.shape[0])

    def with_tangent(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(right=right) if left is None else Operands(left, of.right, None)

    def left_grad(self, u: Tensor, of: Operands, kind: Any) -> Tensor:
        kept = evaluate(InputGrad(self.arithmetic, of.left.dtype, self.shape), Operands(u, of.right, None), kind)
        return kept if self.is_cut else kind.scatter_input(kept, self.shape[1])

    def right_grad(self, u: Tensor, of: Operands, kind: Any) -> Tensor:
        kept, row_max = of.left, of.row_max
        if not self.is_cut:
            kept, row_max = kind.gather_input(of.left), _row_max(of.left)
        return evaluate(WeightGrad(self.arithmetic, of.right.dtype, self.shape), Operands(u, kept, row_max), kind)


@dataclass(frozen=True)
class InputGrad:
    """gather_input(g V): left g (*B, O); right v; (*B, kept features)."""

    arithmetic: Arithmetic
    dtype: torch.dtype
    shape: tuple[int, int]

    def compute(self, of: Operands, kind: Any) -> Tensor:
        right = operand(kind.to_dense(of.right, self.shape), 0)

        def contract(g: Tensor, v: Tensor) -> Tensor:
            return kind.input_grad(g, kind.pack(v), self.shape[1])

        def factors(g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            return g, kind.gather_input(v).squeeze(0)

        y = _multiply(self, contract, factors, operand(flat(of.left), 1), right, self.shape[0])
        return y.reshape(*of.left.shape[:-1], y.shape[1])

    def with_tangent(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(right=right) if left is None else of._replace(left=left)

    def left_grad(self, u: Tensor, of: Operands, kind: Any) -> Tensor:
        product = Apply(self.arithmetic, of.left.dtype, self.shape, is_cut=True)
        return evaluate(product, Operands(u, of.right, None), kind)

    def right_grad(self, u: Tensor, of: Operands, kind: Any) -> Tensor:
        return evaluate(WeightGrad(self.arithmetic, of.right.dtype, self.shape), Operands(of.left, u, None), kind)


@dataclass(frozen=True)
class WeightGrad:
    """g^T k, packed: left g (*B, O); right k, what was kept of x; the shape of v."""

    arithmetic: Arithmetic
    dtype: torch.dtype
    shape: tuple[int, int]

    def compute(self, of: Operands, kind: Any) -> Tensor:
        left, right = operand(flat(of.left), 0), operand(flat(of.right), 0)

        def contract(g: Tensor, kept: Tensor) -> Tensor:
            return kind.weight_grad(g, kept)

        left, right, terms = collectives.synchronize(self.arithmetic.settings.group, left, right)
        return _multiply(self, contract, lambda g, kept: (contract(g, kept),), left, right, terms)

    def with_tangent(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return Operands(of.left, right, None) if left is None else of._replace(left=left)

    def left_grad(self, u: Tensor, of: Operands, kind: Any) -> Tensor:
        product = Apply(self.arithmetic, of.left.dtype, self.shape, is_cut=True)
        return evaluate(product, Operands(of.right, kind.mask_values(u), of.row_max), kind)

    def right_grad(self, u: Tensor, of: Operands, kind: Any) -> Tensor:
        product = InputGrad(self.arithmetic, of.right.dtype, self.shape)
        return evaluate(product, Operands(of.left, kind.mask_values(u), None), kind)


@dataclass(frozen=True)
class BatchSum:
    """The sum of left g (B, O) over the batch, (O,), its quantised numbers added exactly."""

    arithmetic: Arithmetic
    rows: int

    def compute(self, of: Operands, kind: Any) -> Tensor:
        (x,), terms = collectives.synchronize_one(self.arithmetic.settings.group, operand(of.left, 0))
        bits = precision.bits_for(self.arithmetic.settings, terms)
        reduce = functools.partial(collectives.add_up, self.arithmetic.settings.group)
        return self.arithmetic.engine.add_up(x, 0, terms=terms, bits=bits, reduce=reduce).to(of.left.dtype)

    def with_tangent(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(left=left)

    def left_grad(self, u: Tensor, of: Operands, kind: Any) -> Tensor:
        return evaluate(BatchExpand(self.arithmetic, (self.rows,)), Operands(u, None, None), None)


@dataclass(frozen=True)
class BatchExpand:
    """Left b (O,) for each of a batch, (*B, O): the transpose of a sum."""

    arithmetic: Arithmetic
    batch: tuple[int, ...]

    def compute(self, of: Operands, kind: Any) -> Tensor:
        return of.left.expand(*self.batch, *of.left.shape)

    def with_tangent(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(left=left)

    def left_grad(self, u: Tensor, of: Operands, kind: Any) -> Tensor:
        return sum_batch(self.arithmetic, u)


@dataclass(frozen=True)
class Canonical:
    """The identity, to derivatives: left, with +0 for -0 and for a subnormal float32, and one NaN."""

    def compute(self, of: Operands, kind: Any) -> Tensor:
        return flush(of.left.float()).nan_to_num_(torch.nan, torch.inf, -torch.inf).to(of.left.dtype)

    def with_tangent(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(left=left)

    def left_grad(self, u: Tensor, of: Operands, kind: Any) -> Tensor:
        return u


Op = Apply | InputGrad | WeightGrad | BatchSum | BatchExpand | Canonical


def _multiply(
    op: Apply | InputGrad | WeightGrad, contract: Any, factors: Any, left: Any, right: Any, terms: int
) -> Tensor:
    group = op.arithmetic.settings.group if isinstance(op, WeightGrad) else None
    return op.arithmetic.engine.multiply(
        contract, factors, left, right, terms=terms, bits=precision.bits_for(op.arithmetic.settings, terms),
        is_by_rows=not isinstance(op, WeightGrad), reduce=functools.partial(collectives.add_up, group),
    ).to(op.dtype)  # fmt: skip


def evaluate(op: Op, of: Operands, kind: Any) -> Tensor:
    """Compute a product; its derivatives are recorded where something may ask for them."""
    if not torch.compiler.is_dynamo_compiling() and any(
        one is not None and _compat.is_batched_by_autograd(one) for one in of
    ):
        checks.refuse_batched_cotangents()
    if not _is_differentiated():
        return op.compute(of, kind)
    static, arrays = (None, ()) if kind is None else (kind.without_arrays, kind.arrays)
    return _Exact.apply(op, static, *of, *arrays)


def sum_batch(arithmetic: Arithmetic, g: Tensor) -> Tensor:
    """Return the sum of (*B, O) over the batch, (O,), its quantised numbers added exactly."""
    g = flat(g)
    return evaluate(BatchSum(arithmetic, g.shape[0]), Operands(g, None, None), None)


def expand_batch(arithmetic: Arithmetic, bias: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Return (O,) for each of a batch, (*B, O); its transpose is `sum_batch`."""
    return evaluate(BatchExpand(arithmetic, tuple(batch)), Operands(bias, None, None), None)


def canonicalize(tensor: Tensor) -> Tensor:
    """Return a sum that was rounded by the framework, with +0 for -0 and for a subnormal float32, and one NaN."""
    return evaluate(Canonical(), Operands(tensor, None, None), None)


def _check_group(op: Op) -> None:
    # A sum over workers is the last step of a first derivative: its own would need all workers' cotangents.
    if isinstance(op, WeightGrad | BatchSum) and op.arithmetic.settings.group is not None:
        checks.refuse_second_order()


def _row_max(rows: Tensor) -> Tensor:
    return largest(rows.detach().float(), -1)


def _is_differentiated() -> bool:
    if torch.compiler.is_dynamo_compiling():
        return False  # inside of a rule, whose own derivatives a compiler does not take
    return torch.is_grad_enabled() or _compat.in_transform()


class _Exact(torch.autograd.Function):
    """One of the products, in both modes and at any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        op: Op, kind: Kind | None, left: Tensor, right: Tensor | None, row_max: Tensor | None, *arrays: Any
    ) -> Tensor:
        kind = kind and kind.with_arrays(arrays)
        return op.compute(Operands(left, right, row_max), kind).contiguous()  # no view of an input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op, ctx.kind = inputs[:2]
        ctx.save_for_backward(*inputs[2:])
        ctx.save_for_forward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        _check_group(ctx.op)
        left, right, row_max, *arrays = ctx.saved_tensors
        of, kind = Operands(left, right, row_max), ctx.kind and ctx.kind.with_arrays(arrays)
        d_left = ctx.op.left_grad(u, of, kind) if ctx.needs_input_grad[2] else None
        d_right = ctx.op.right_grad(u, of, kind) if ctx.needs_input_grad[3] else None
        return None, None, d_left, d_right, None, *(None for _ in arrays)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        _check_group(ctx.op)
        _, _, d_left, d_right, *_ = tangents
        left, right, row_max, *arrays = ctx.saved_tensors
        kind = ctx.kind and ctx.kind.with_arrays(arrays)
        with _compat.forward_mode_enabled():
            # The tensors carry this level's tangents; the product is of what is below it.
            of = Operands(*(None if one is None else _compat.primal(one) for one in (left, right, row_max)))
            terms = []
            if d_left is not None:
                terms.append(evaluate(ctx.op, ctx.op.with_tangent(of, d_left, None), kind))
            if d_right is not None:
                terms.append(evaluate(ctx.op, ctx.op.with_tangent(of, None, d_right), kind))
            return terms[0] if len(terms) == 1 else canonicalize(terms[0] + terms[1])
