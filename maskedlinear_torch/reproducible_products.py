"""The reproducible products of a kind, with their derivatives (SPEC S4, S9).

A kind has three bilinear products, v being packed values and V the dense matrix of them:

    tangent(x, v)    x V^T         contracts the in_features
    pull(g, v)       keep(g V)     contracts the out_features
    product(g, k)    g^T k packed  contracts the batch

The derivative of each by either argument is another of the three, so they are closed under differentiation:
whatever the order and mode, every step is one of them, rounded as SPEC S9 says. The exponents of a row of x
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
from maskedlinear_torch.kinds import Arrays, Kind, flat


@dataclass(frozen=True)
class How:
    """How integers are added: settings, and the engine that suits the device."""

    settings: precision.Reproducible
    engine: Float64 | Digits


class Operands(NamedTuple):
    """What a product is of, and the largest magnitudes of the rows of x; None if nothing of them was cut."""

    left: Any
    right: Any
    row_max: Any


@dataclass(frozen=True)
class Tangent:
    """x V^T: left x (*B, I), or what was kept of it if that was cut; right v; (*B, O)."""

    how: How
    kind: Kind
    dtype: torch.dtype
    shape: tuple[int, int]
    is_cut: bool

    def compute(self, of: Operands, arrays: Arrays) -> Tensor:
        x = flat(of.left)
        left = operand(x, 1) if of.row_max is None else Operand(x.float(), flat(of.row_max))
        right = operand(self.kind.to_dense(of.right, self.shape, *arrays), 1)

        def contract(x: Tensor, v: Tensor) -> Tensor:
            kept = x if self.is_cut else self.kind.gather_input(x, *arrays)
            return self.kind.apply(kept, self.kind.pack(v, *arrays), self.shape[0], *arrays)

        y = _multiply(self, contract, lambda x, v: (x, v.squeeze(1)), left, right, self.shape[1])
        return y.reshape(*of.left.shape[:-1], self.shape[0])

    def along(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(right=right) if left is None else Operands(left, of.right, None)

    def by_left(self, u: Tensor, of: Operands, arrays: Arrays) -> Tensor:
        kept = apply(Pull(self.how, self.kind, of.left.dtype, self.shape), Operands(u, of.right, None), arrays)
        return kept if self.is_cut else self.kind.scatter_input(kept, self.shape[1], *arrays)

    def by_right(self, u: Tensor, of: Operands, arrays: Arrays) -> Tensor:
        kept, row_max = of.left, of.row_max
        if not self.is_cut:
            kept, row_max = self.kind.gather_input(of.left, *arrays), _row_max(of.left)
        return apply(Product(self.how, self.kind, of.right.dtype, self.shape), Operands(u, kept, row_max), arrays)


@dataclass(frozen=True)
class Pull:
    """keep(g V): left g (*B, O); right v; (*B, kept features)."""

    how: How
    kind: Kind
    dtype: torch.dtype
    shape: tuple[int, int]

    def compute(self, of: Operands, arrays: Arrays) -> Tensor:
        right = operand(self.kind.to_dense(of.right, self.shape, *arrays), 0)

        def contract(g: Tensor, v: Tensor) -> Tensor:
            return self.kind.input_grad(g, self.kind.pack(v, *arrays), self.shape[1], *arrays)

        def factors(g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            return g, self.kind.gather_input(v, *arrays).squeeze(0)

        y = _multiply(self, contract, factors, operand(flat(of.left), 1), right, self.shape[0])
        return y.reshape(*of.left.shape[:-1], y.shape[1])

    def along(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(right=right) if left is None else of._replace(left=left)

    def by_left(self, u: Tensor, of: Operands, arrays: Arrays) -> Tensor:
        tangent = Tangent(self.how, self.kind, of.left.dtype, self.shape, is_cut=True)
        return apply(tangent, Operands(u, of.right, None), arrays)

    def by_right(self, u: Tensor, of: Operands, arrays: Arrays) -> Tensor:
        return apply(Product(self.how, self.kind, of.right.dtype, self.shape), Operands(of.left, u, None), arrays)


@dataclass(frozen=True)
class Product:
    """g^T k, packed: left g (*B, O); right k, what was kept of x; the shape of v."""

    how: How
    kind: Kind
    dtype: torch.dtype
    shape: tuple[int, int]

    def compute(self, of: Operands, arrays: Arrays) -> Tensor:
        left, right = operand(flat(of.left), 0), operand(flat(of.right), 0)

        def contract(g: Tensor, kept: Tensor) -> Tensor:
            return self.kind.weight_grad(g, kept, *arrays)

        left, right, terms = collectives.spread(self.how.settings.group, left, right)
        return _multiply(self, contract, lambda g, kept: (contract(g, kept),), left, right, terms)

    def along(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return Operands(of.left, right, None) if left is None else of._replace(left=left)

    def by_left(self, u: Tensor, of: Operands, arrays: Arrays) -> Tensor:
        tangent = Tangent(self.how, self.kind, of.left.dtype, self.shape, is_cut=True)
        return apply(tangent, Operands(of.right, self.kind.mask_values(u, *arrays), of.row_max), arrays)

    def by_right(self, u: Tensor, of: Operands, arrays: Arrays) -> Tensor:
        pull = Pull(self.how, self.kind, of.right.dtype, self.shape)
        return apply(pull, Operands(of.left, self.kind.mask_values(u, *arrays), None), arrays)


@dataclass(frozen=True)
class Total:
    """The sum of left g (B, O) over the batch, (O,), its quantised numbers added exactly."""

    how: How
    rows: int

    def compute(self, of: Operands, arrays: Arrays) -> Tensor:
        (x,), terms = collectives.spread_one(self.how.settings.group, operand(of.left, 0))
        bits = precision.bits_for(self.how.settings, terms)
        reduce = functools.partial(collectives.add_up, self.how.settings.group)
        return self.how.engine.add_up(x, 0, terms=terms, bits=bits, reduce=reduce).to(of.left.dtype)

    def along(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(left=left)

    def by_left(self, u: Tensor, of: Operands, arrays: Arrays) -> Tensor:
        return apply(Spread(self.how, (self.rows,)), Operands(u, None, None), ())


@dataclass(frozen=True)
class Spread:
    """Left b (O,) for each of a batch, (*B, O): the transpose of a sum."""

    how: How
    batch: tuple[int, ...]

    def compute(self, of: Operands, arrays: Arrays) -> Tensor:
        return of.left.expand(*self.batch, *of.left.shape)

    def along(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(left=left)

    def by_left(self, u: Tensor, of: Operands, arrays: Arrays) -> Tensor:
        return total(self.how, u)


@dataclass(frozen=True)
class Settle:
    """The identity, to derivatives: left, with +0 for -0 and for a subnormal float32, and one NaN."""

    def compute(self, of: Operands, arrays: Arrays) -> Tensor:
        return flush(of.left.float()).nan_to_num_(torch.nan, torch.inf, -torch.inf).to(of.left.dtype)

    def along(self, of: Operands, left: Tensor | None, right: Tensor | None) -> Operands:
        return of._replace(left=left)

    def by_left(self, u: Tensor, of: Operands, arrays: Arrays) -> Tensor:
        return u


Op = Tangent | Pull | Product | Total | Spread | Settle


def _multiply(op: Tangent | Pull | Product, contract: Any, factors: Any, left: Any, right: Any, terms: int) -> Tensor:
    group = op.how.settings.group if isinstance(op, Product) else None
    return op.how.engine.multiply(
        contract, factors, left, right, terms=terms, bits=precision.bits_for(op.how.settings, terms),
        is_by_rows=not isinstance(op, Product), reduce=functools.partial(collectives.add_up, group),
    ).to(op.dtype)  # fmt: skip


def apply(op: Op, of: Operands, arrays: Arrays) -> Tensor:
    """Compute a product; its derivatives are recorded where something may ask for them."""
    if not torch.compiler.is_dynamo_compiling() and any(
        one is not None and _compat.is_batched_by_autograd(one) for one in of
    ):
        checks.refuse_batched_cotangents()
    if not _is_differentiated():
        return op.compute(of, arrays)
    return _Exact.apply(op, *of, *arrays)


def total(how: How, g: Tensor) -> Tensor:
    """Return the sum of (*B, O) over the batch, (O,), its quantised numbers added exactly."""
    g = flat(g)
    return apply(Total(how, g.shape[0]), Operands(g, None, None), ())


def spread(how: How, bias: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Return (O,) for each of a batch, (*B, O); its transpose is `total`."""
    return apply(Spread(how, tuple(batch)), Operands(bias, None, None), ())


def settle(tensor: Tensor) -> Tensor:
    """Return a sum that was rounded by the framework, with +0 for -0 and for a subnormal float32, and one NaN."""
    return apply(Settle(), Operands(tensor, None, None), ())


def _check_group(op: Op) -> None:
    # A sum over workers is the last step of a first derivative: its own would need all workers' cotangents.
    if isinstance(op, Product | Total) and op.how.settings.group is not None:
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
    def forward(op: Op, left: Tensor, right: Tensor | None, row_max: Tensor | None, *arrays: Any) -> Tensor:
        return op.compute(Operands(left, right, row_max), arrays).contiguous()  # no view of an input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        _check_group(ctx.op)
        left, right, row_max, *arrays = ctx.saved_tensors
        of = Operands(left, right, row_max)
        d_left = ctx.op.by_left(u, of, arrays) if ctx.needs_input_grad[1] else None
        d_right = ctx.op.by_right(u, of, arrays) if ctx.needs_input_grad[2] else None
        return None, d_left, d_right, None, *(None for _ in arrays)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        _check_group(ctx.op)
        _, d_left, d_right, *_ = tangents
        left, right, row_max, *arrays = ctx.saved_tensors
        with _compat.forward_mode_enabled():
            # The tensors carry this level's tangents; the product is of what is below it.
            of = Operands(*(None if one is None else _compat.primal(one) for one in (left, right, row_max)))
            terms = []
            if d_left is not None:
                terms.append(apply(ctx.op, ctx.op.along(of, d_left, None), arrays))
            if d_right is not None:
                terms.append(apply(ctx.op, ctx.op.along(of, None, d_right), arrays))
            return terms[0] if len(terms) == 1 else settle(terms[0] + terms[1])
