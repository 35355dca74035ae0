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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core import precision
from maskedlinear_core.checks import precision as checks
from maskedlinear_jax import _compat, collectives
from maskedlinear_jax.integer_products import Digits, Float64, Operand, flush, largest, operand
from maskedlinear_jax.kinds import Arrays, Kind, flat


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
    dtype: Any
    shape: tuple[int, int]
    is_cut: bool

    def compute(self, of: Operands, arrays: Arrays) -> Array:
        x = flat(of.left)
        left = operand(x, 1) if of.row_max is None else Operand(_wide(x), flat(of.row_max))
        right = operand(self.kind.to_dense(of.right, self.shape, *arrays), 1)

        def contract(x: Array, v: Array) -> Array:
            kept = x if self.is_cut else self.kind.gather_input(x, *arrays)
            return self.kind.apply(kept, self.kind.pack(v, *arrays), self.shape[0], *arrays)

        y = _multiply(self, contract, lambda x, v: (x, v.squeeze(1)), left, right, self.shape[1])
        return y.reshape(*of.left.shape[:-1], self.shape[0])

    def along(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(right=right) if left is None else Operands(left, of.right, None)

    def by_left(self, u: Array, of: Operands, arrays: Arrays) -> Array:
        kept = apply(Pull(self.how, self.kind, of.left.dtype, self.shape), Operands(u, of.right, None), arrays)
        return kept if self.is_cut else self.kind.scatter_input(kept, self.shape[1], *arrays)

    def by_right(self, u: Array, of: Operands, arrays: Arrays) -> Array:
        kept, row_max = of.left, of.row_max
        if not self.is_cut:
            kept, row_max = self.kind.gather_input(of.left, *arrays), _row_max(of.left)
        return apply(Product(self.how, self.kind, of.right.dtype, self.shape), Operands(u, kept, row_max), arrays)


@dataclass(frozen=True)
class Pull:
    """keep(g V): left g (*B, O); right v; (*B, kept features)."""

    how: How
    kind: Kind
    dtype: Any
    shape: tuple[int, int]

    def compute(self, of: Operands, arrays: Arrays) -> Array:
        right = operand(self.kind.to_dense(of.right, self.shape, *arrays), 0)

        def contract(g: Array, v: Array) -> Array:
            return self.kind.input_grad(g, self.kind.pack(v, *arrays), self.shape[1], *arrays)

        def factors(g: Array, v: Array) -> tuple[Array, ...]:
            return g, self.kind.gather_input(v, *arrays).squeeze(0)

        y = _multiply(self, contract, factors, operand(flat(of.left), 1), right, self.shape[0])
        return y.reshape(*of.left.shape[:-1], y.shape[1])

    def along(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(right=right) if left is None else of._replace(left=left)

    def by_left(self, u: Array, of: Operands, arrays: Arrays) -> Array:
        tangent = Tangent(self.how, self.kind, of.left.dtype, self.shape, is_cut=True)
        return apply(tangent, Operands(u, of.right, None), arrays)

    def by_right(self, u: Array, of: Operands, arrays: Arrays) -> Array:
        return apply(Product(self.how, self.kind, of.right.dtype, self.shape), Operands(of.left, u, None), arrays)


@dataclass(frozen=True)
class Product:
    """g^T k, packed: left g (*B, O); right k, what was kept of x; the shape of v."""

    how: How
    kind: Kind
    dtype: Any
    shape: tuple[int, int]

    def compute(self, of: Operands, arrays: Arrays) -> Array:
        left, right = operand(flat(of.left), 0), operand(flat(of.right), 0)

        def contract(g: Array, kept: Array) -> Array:
            return self.kind.weight_grad(g, kept, *arrays)

        left, right, terms = collectives.spread(self.how.settings.group, left, right)
        return _multiply(self, contract, lambda g, kept: (contract(g, kept),), left, right, terms)

    def along(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return Operands(of.left, right, None) if left is None else of._replace(left=left)

    def by_left(self, u: Array, of: Operands, arrays: Arrays) -> Array:
        tangent = Tangent(self.how, self.kind, of.left.dtype, self.shape, is_cut=True)
        return apply(tangent, Operands(of.right, self.kind.mask_values(u, *arrays), of.row_max), arrays)

    def by_right(self, u: Array, of: Operands, arrays: Arrays) -> Array:
        pull = Pull(self.how, self.kind, of.right.dtype, self.shape)
        return apply(pull, Operands(of.left, self.kind.mask_values(u, *arrays), None), arrays)


@dataclass(frozen=True)
class Total:
    """The sum of left g (B, O) over the batch, (O,), its quantised numbers added exactly."""

    how: How
    rows: int

    def compute(self, of: Operands, arrays: Arrays) -> Array:
        (x,), terms = collectives.spread_one(self.how.settings.group, operand(of.left, 0))
        bits = precision.bits_for(self.how.settings, terms)
        reduce = functools.partial(collectives.add_up, self.how.settings.group)
        return self.how.engine.add_up(x, 0, terms=terms, bits=bits, reduce=reduce).astype(of.left.dtype)

    def along(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(left=left)

    def by_left(self, u: Array, of: Operands, arrays: Arrays) -> Array:
        return apply(Spread(self.how, (self.rows,)), Operands(u, None, None), ())


@dataclass(frozen=True)
class Spread:
    """Left b (O,) for each of a batch, (*B, O): the transpose of a sum."""

    how: How
    batch: tuple[int, ...]

    def compute(self, of: Operands, arrays: Arrays) -> Array:
        return jnp.broadcast_to(of.left, (*self.batch, *of.left.shape))

    def along(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(left=left)

    def by_left(self, u: Array, of: Operands, arrays: Arrays) -> Array:
        return total(self.how, u)


@dataclass(frozen=True)
class Settle:
    """The identity, to derivatives: left, with +0 for -0 and for a subnormal float32, and one NaN."""

    def compute(self, of: Operands, arrays: Arrays) -> Array:
        settled = flush(_wide(of.left))
        return jnp.where(jnp.isnan(settled), jnp.nan, settled).astype(of.left.dtype)

    def along(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(left=left)

    def by_left(self, u: Array, of: Operands, arrays: Arrays) -> Array:
        return u


Op = Tangent | Pull | Product | Total | Spread | Settle


def _multiply(op: Tangent | Pull | Product, contract: Any, factors: Any, left: Any, right: Any, terms: int) -> Array:
    group = op.how.settings.group if isinstance(op, Product) else None
    return op.how.engine.multiply(
        contract, factors, left, right, terms=terms, bits=precision.bits_for(op.how.settings, terms),
        is_by_rows=not isinstance(op, Product), reduce=functools.partial(collectives.add_up, group),
    ).astype(op.dtype)  # fmt: skip


def apply(op: Op, of: Operands, arrays: Arrays) -> Array:
    """Compute a product, with its derivatives at any order and mode."""
    leaves, tree = jax.tree.flatten((of, arrays))
    if isinstance(op, Product | Total) and op.how.settings.group is not None:
        return _over_workers(op, of, arrays)
    return _bind(op, tree, (), leaves)


def total(how: How, g: Array) -> Array:
    """Return the sum of (*B, O) over the batch, (O,), its quantised numbers added exactly."""
    g = flat(g)
    return apply(Total(how, g.shape[0]), Operands(g, None, None), ())


def spread(how: How, bias: Array, batch: tuple[int, ...]) -> Array:
    """Return (O,) for each of a batch, (*B, O); its transpose is `total`."""
    return apply(Spread(how, batch), Operands(bias, None, None), ())


def settle(array: Array) -> Array:
    """Return a sum that was rounded by the framework, with +0 for -0 and for a subnormal float32, and one NaN."""
    return apply(Settle(), Operands(array, None, None), ())


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _over_workers(op: Op, of: Operands, arrays: Arrays) -> Array:
    return op.compute(of, arrays)


@_over_workers.defjvp
def _over_workers_jvp(op: Op, primals: Any, tangents: Any) -> Any:
    # A sum over workers is the last step of a first derivative: its own would need all workers' cotangents.
    checks.refuse_second_order()


def _row_max(rows: Array) -> Array:
    return largest(_wide(jax.lax.stop_gradient(rows)), -1)


def _wide(array: Array) -> Array:
    return array.astype(jnp.float32)


def _run(op: Op, tree: Any, *leaves: Array) -> Array:
    return op.compute(*jax.tree.unflatten(tree, leaves))


def _batched(function: Callable[..., Array], axes: tuple[Any, ...]) -> Callable[..., Array]:
    # Each vmap that the product went through, the innermost first.
    for in_axes in axes:
        function = jax.vmap(function, in_axes)
    return function


def _bind(op: Op, tree: Any, axes: tuple[Any, ...], leaves: Any) -> Array:
    key = op, tree, axes, tuple(map(jax.typeof, leaves))
    if key not in _TYPES:
        _TYPES[key] = _compat.output_type(_batched(functools.partial(_run, op, tree), axes), leaves)
    return _exact.bind(*leaves, op=op, tree=tree, axes=axes, aval=_TYPES[key])


_TYPES: dict[Any, Any] = {}
"""Types of outputs, by types of operands: each is found by tracing, once."""


@functools.cache
def _compiled(op: Op, tree: Any, axes: tuple[Any, ...]) -> Callable[..., Array]:
    return jax.jit(_batched(functools.partial(_run, op, tree), axes))


def _implementation(*leaves: Array, op: Op, tree: Any, axes: tuple[Any, ...], aval: Any) -> Array:
    return _compiled(op, tree, axes)(*leaves)


def _lowering(*leaves: Array, op: Op, tree: Any, axes: tuple[Any, ...], aval: Any) -> Array:
    return _batched(functools.partial(_run, op, tree), axes)(*leaves)


def _output_type(*leaves: Any, aval: Any, **params: Any) -> Any:
    return aval


def _batch(leaves: Any, dims: Any, *, op: Op, tree: Any, axes: tuple[Any, ...], aval: Any) -> tuple[Array, int]:
    return _bind(op, tree, (*axes, tuple(dims)), leaves), 0


def _tangent(leaves: Any, tangents: Any, *, op: Op, tree: Any, axes: tuple[Any, ...], aval: Any) -> tuple[Any, Any]:
    output = _exact.bind(*leaves, op=op, tree=tree, axes=axes, aval=aval)
    terms = []
    for name in ("left", "right"):
        index = _index(tree, name)
        if index is None or _compat.is_zero(tangents[index]):
            continue

        def along(tangent: Array, *leaves: Array, name: str = name) -> Array:
            of, arrays = jax.tree.unflatten(tree, leaves)
            return apply(op, op.along(of, **{"left": None, "right": None, name: tangent}), arrays)

        in_axes = tuple((dims[index], *dims) for dims in axes)
        terms.append(_batched(along, in_axes)(tangents[index], *leaves))
    if not terms:
        return output, jnp.zeros_like(output)
    return output, terms[0] if len(terms) == 1 else settle(terms[0] + terms[1])


def _transpose(cotangent: Any, *leaves: Any, op: Op, tree: Any, axes: tuple[Any, ...], aval: Any) -> list[Any]:
    found: list[Any] = [None] * len(leaves)
    index = next(i for i, leaf in enumerate(leaves) if _compat.is_linear(leaf))
    if _compat.is_zero(cotangent):
        return found
    by = op.by_left if index == _index(tree, "left") else op.by_right  # type: ignore[union-attr]
    # The operand that the product is linear in has no values: only its dtype is asked for.
    shape = _base_shape(leaves[index].aval, [dims[index] for dims in axes])

    def pull(u: Array, *others: Any) -> Array:
        of, arrays = jax.tree.unflatten(tree, (*others[:index], shape, *others[index:]))
        return by(u, of, arrays)

    for dims in axes:
        pull = _pulled(pull, dims, index)
    found[index] = pull(cotangent, *leaves[:index], *leaves[index + 1 :])
    return found


def _pulled(pull: Callable[..., Array], dims: tuple[Any, ...], index: int) -> Callable[..., Array]:
    in_axes = (0, *dims[:index], *dims[index + 1 :])
    if dims[index] is None:  # one for all copies: their cotangents add up
        return lambda *args: jax.vmap(pull, in_axes)(*args).sum(0)
    return jax.vmap(pull, in_axes, out_axes=dims[index])


def _base_shape(aval: Any, dims: list[int | None]) -> jax.ShapeDtypeStruct:
    shape = list(aval.shape)
    for dim in reversed(dims):
        if dim is not None:
            del shape[dim]
    return jax.ShapeDtypeStruct(tuple(shape), aval.dtype)


def _index(tree: Any, name: str) -> int | None:
    of, _ = jax.tree.unflatten(tree, range(tree.num_leaves))
    return getattr(of, name)


_exact = _compat.primitive(
    "maskedlinear_exact", _implementation, _lowering, _output_type, _batch, _tangent, _transpose
)  # fmt: skip
