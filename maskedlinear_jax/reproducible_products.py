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

import dataclasses
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
from maskedlinear_jax.integer_products import ENGINES, Digits, Float64, Operand, flush, largest, operand
from maskedlinear_jax.kinds.sums import flat


@dataclass(frozen=True)
class Arithmetic:
    """How integers are added: the settings that were asked for, and the engine that suits the device.

    Attributes:
        settings: What was asked for.
        engine_on: What adds in a program that is lowered for a platform, by what was asked for and the platform. It is
            asked there and not before: a program may be traced on one host and run on another. All engines give the
            same bits, where their numbers are what they are on a CPU: a TPU has no float64.
        engine: What adds, once the platform is known.
    """

    settings: precision.Reproducible
    engine_on: Callable[[precision.Engine, str], precision.Engine]
    engine: Float64 | Digits = ENGINES["float64"]

    def on(self, platform: str) -> Arithmetic:
        """Return the arithmetic of a program that is lowered for a platform."""
        return self.by(self.engine_on(self.settings.engine, platform))

    def by(self, engine: str) -> Arithmetic:
        """Return the arithmetic of an engine."""
        return Arithmetic(self.settings, self.engine_on, ENGINES[engine])


class Operands(NamedTuple):
    """The operands of a product, and the largest magnitudes of the rows of x; None if x is whole."""

    left: Any
    right: Any
    row_max: Any


@dataclass(frozen=True)
class Apply:
    """x V^T: left x (*B, I), or what was kept of it if that was cut; right v; (*B, O)."""

    arithmetic: Arithmetic
    dtype: Any
    shape: tuple[int, int]
    is_cut: bool

    def compute(self, of: Operands, kind: Any) -> Array:
        x = flat(of.left)
        left = operand(x, 1) if of.row_max is None else Operand(_wide(x), flat(of.row_max))
        right = operand(kind.to_dense(of.right, self.shape), 1)

        def contract(x: Array, v: Array) -> Array:
            kept = x if self.is_cut else kind.gather_input(x)
            return kind.apply(kept, kind.pack(v), self.shape[0])

        y = _multiply(self, contract, lambda x, v: (x, v.squeeze(1)), left, right, self.shape[1])
        return y.reshape(*of.left.shape[:-1], self.shape[0])

    def with_tangent(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(right=right) if left is None else Operands(left, of.right, None)

    def left_grad(self, u: Array, of: Operands, kind: Any) -> Array:
        kept = evaluate(InputGrad(self.arithmetic, of.left.dtype, self.shape), Operands(u, of.right, None), kind)
        return kept if self.is_cut else kind.scatter_input(kept, self.shape[1])

    def right_grad(self, u: Array, of: Operands, kind: Any) -> Array:
        kept, row_max = of.left, of.row_max
        if not self.is_cut:
            kept, row_max = kind.gather_input(of.left), _row_max(of.left)
        return evaluate(WeightGrad(self.arithmetic, of.right.dtype, self.shape), Operands(u, kept, row_max), kind)


@dataclass(frozen=True)
class InputGrad:
    """gather_input(g V): left g (*B, O); right v; (*B, kept features)."""

    arithmetic: Arithmetic
    dtype: Any
    shape: tuple[int, int]

    def compute(self, of: Operands, kind: Any) -> Array:
        right = operand(kind.to_dense(of.right, self.shape), 0)

        def contract(g: Array, v: Array) -> Array:
            return kind.input_grad(g, kind.pack(v), self.shape[1])

        def factors(g: Array, v: Array) -> tuple[Array, ...]:
            return g, kind.gather_input(v).squeeze(0)

        y = _multiply(self, contract, factors, operand(flat(of.left), 1), right, self.shape[0])
        return y.reshape(*of.left.shape[:-1], y.shape[1])

    def with_tangent(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(right=right) if left is None else of._replace(left=left)

    def left_grad(self, u: Array, of: Operands, kind: Any) -> Array:
        product = Apply(self.arithmetic, of.left.dtype, self.shape, is_cut=True)
        return evaluate(product, Operands(u, of.right, None), kind)

    def right_grad(self, u: Array, of: Operands, kind: Any) -> Array:
        return evaluate(WeightGrad(self.arithmetic, of.right.dtype, self.shape), Operands(of.left, u, None), kind)


@dataclass(frozen=True)
class WeightGrad:
    """g^T k, packed: left g (*B, O); right k, what was kept of x; the shape of v."""

    arithmetic: Arithmetic
    dtype: Any
    shape: tuple[int, int]

    def compute(self, of: Operands, kind: Any) -> Array:
        left, right = operand(flat(of.left), 0), operand(flat(of.right), 0)

        def contract(g: Array, kept: Array) -> Array:
            return kind.weight_grad(g, kept)

        left, right, terms = collectives.synchronize(self.arithmetic.settings.group, left, right)
        return _multiply(self, contract, lambda g, kept: (contract(g, kept),), left, right, terms)

    def with_tangent(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return Operands(of.left, right, None) if left is None else of._replace(left=left)

    def left_grad(self, u: Array, of: Operands, kind: Any) -> Array:
        product = Apply(self.arithmetic, of.left.dtype, self.shape, is_cut=True)
        return evaluate(product, Operands(of.right, kind.mask_values(u), of.row_max), kind)

    def right_grad(self, u: Array, of: Operands, kind: Any) -> Array:
        product = InputGrad(self.arithmetic, of.right.dtype, self.shape)
        return evaluate(product, Operands(of.left, kind.mask_values(u), None), kind)


@dataclass(frozen=True)
class BatchSum:
    """The sum of left g (B, O) over the batch, (O,), its quantised numbers added exactly."""

    arithmetic: Arithmetic
    rows: int

    def compute(self, of: Operands, kind: Any) -> Array:
        (x,), terms = collectives.synchronize_one(self.arithmetic.settings.group, operand(of.left, 0))
        bits = precision.bits_for(self.arithmetic.settings, terms)
        reduce = functools.partial(collectives.add_up, self.arithmetic.settings.group)
        return self.arithmetic.engine.add_up(x, 0, terms=terms, bits=bits, reduce=reduce).astype(of.left.dtype)

    def with_tangent(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(left=left)

    def left_grad(self, u: Array, of: Operands, kind: Any) -> Array:
        return evaluate(BatchExpand(self.arithmetic, (self.rows,)), Operands(u, None, None), None)


@dataclass(frozen=True)
class BatchExpand:
    """Left b (O,) for each of a batch, (*B, O): the transpose of a sum."""

    arithmetic: Arithmetic
    batch: tuple[int, ...]

    def compute(self, of: Operands, kind: Any) -> Array:
        return jnp.broadcast_to(of.left, (*self.batch, *of.left.shape))

    def with_tangent(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(left=left)

    def left_grad(self, u: Array, of: Operands, kind: Any) -> Array:
        return sum_batch(self.arithmetic, u)


@dataclass(frozen=True)
class Canonical:
    """The identity, to derivatives: left, with +0 for -0 and for a subnormal float32, and one NaN."""

    def compute(self, of: Operands, kind: Any) -> Array:
        settled = flush(_wide(of.left))
        return jnp.where(jnp.isnan(settled), jnp.nan, settled).astype(of.left.dtype)

    def with_tangent(self, of: Operands, left: Array | None, right: Array | None) -> Operands:
        return of._replace(left=left)

    def left_grad(self, u: Array, of: Operands, kind: Any) -> Array:
        return u


@dataclass(frozen=True)
class IsFloat64:
    """Whether a program adds in float64: a constant, since it is computed where the program is lowered."""

    arithmetic: Arithmetic

    def compute(self, of: Operands, kind: Any) -> Array:
        return jnp.asarray(self.arithmetic.engine == Float64())


Op = Apply | InputGrad | WeightGrad | BatchSum | BatchExpand | Canonical


def _multiply(
    op: Apply | InputGrad | WeightGrad, contract: Any, factors: Any, left: Any, right: Any, terms: int
) -> Array:
    group = op.arithmetic.settings.group if isinstance(op, WeightGrad) else None
    return op.arithmetic.engine.multiply(
        contract, factors, left, right, terms=terms, bits=precision.bits_for(op.arithmetic.settings, terms),
        is_by_rows=not isinstance(op, WeightGrad), reduce=functools.partial(collectives.add_up, group),
    ).astype(op.dtype)  # fmt: skip


def evaluate(op: Op, of: Operands, kind: Any) -> Array:
    """Compute a product, with its derivatives at any order and mode."""
    leaves, tree = jax.tree.flatten((of, kind))
    if isinstance(op, WeightGrad | BatchSum) and op.arithmetic.settings.group is not None:
        return _over_workers(op, of, kind)
    return _bind(op, tree, (), leaves)


def sum_batch(arithmetic: Arithmetic, g: Array) -> Array:
    """Return the sum of (*B, O) over the batch, (O,), its quantised numbers added exactly."""
    g = flat(g)
    return evaluate(BatchSum(arithmetic, g.shape[0]), Operands(g, None, None), None)


def expand_batch(arithmetic: Arithmetic, bias: Array, batch: tuple[int, ...]) -> Array:
    """Return (O,) for each of a batch, (*B, O); its transpose is `sum_batch`."""
    return evaluate(BatchExpand(arithmetic, batch), Operands(bias, None, None), None)


def canonicalize(array: Array) -> Array:
    """Return a sum that was rounded by the framework, with +0 for -0 and for a subnormal float32, and one NaN."""
    return evaluate(Canonical(), Operands(array, None, None), None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _over_workers(op: WeightGrad | BatchSum, of: Operands, kind: Any) -> Array:
    # No primitive: the axes of a mesh have names while a program is traced, and none where it is lowered.
    leaves, tree = jax.tree.flatten((of, kind))
    arithmetic = op.arithmetic
    runs = {
        name: functools.partial(_run, dataclasses.replace(op, arithmetic=arithmetic.by(name)), tree) for name in ENGINES
    }
    if arithmetic.settings.engine != "auto":
        return runs[arithmetic.settings.engine](*leaves)

    def on_cuda(*leaves: Array) -> Array:
        question: Any = IsFloat64(arithmetic)  # without operands it has no derivatives
        is_float64 = evaluate(question, Operands(None, None, None), None)
        return jax.lax.cond(is_float64, runs["float64"], runs["float32"], *leaves)

    return jax.lax.platform_dependent(*leaves, cpu=runs["float64"], cuda=on_cuda, default=runs["float32"])


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
    return jax.jit(lambda *leaves: _bind(op, tree, axes, leaves))


def _implementation(*leaves: Array, op: Op, tree: Any, axes: tuple[Any, ...], aval: Any) -> Array:
    with jax.disable_jit(False):  # as JAX does with primitives of its own
        return _compiled(op, tree, axes)(*leaves)


def _lowering(
    *leaves: Array, op: Op, tree: Any, axes: tuple[Any, ...], platforms: tuple[str, ...], aval: Any = None
) -> Array:
    ops = {name: _on(op, name) for name in platforms}
    runs = {op: _program(op, tree, axes) for op in ops.values()}
    (first, *others) = runs.values()
    if not others:
        return first(*leaves)
    last = ops[platforms[-1]]
    by_name = {name: runs[op] for name, op in ops.items() if op != last}
    return jax.lax.platform_dependent(*leaves, **by_name, default=runs[last])


@functools.cache
def _program(op: Op, tree: Any, axes: tuple[Any, ...]) -> Callable[..., Array]:
    # Compiled by itself so that it is traced once, and stands once in a program that uses it often.
    return jax.jit(_batched(functools.partial(_run, op, tree), axes))


def _on(op: Op, platform: str) -> Op:
    """Return the product as a program that is lowered for a platform computes it."""
    if isinstance(op, Canonical | BatchExpand):  # nothing is added up
        return op
    return dataclasses.replace(op, arithmetic=op.arithmetic.on(platform))


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

        def with_tangent(tangent: Array, *leaves: Array, name: str = name) -> Array:
            of, kind = jax.tree.unflatten(tree, leaves)
            return evaluate(op, op.with_tangent(of, **{"left": None, "right": None, name: tangent}), kind)

        in_axes = tuple((dims[index], *dims) for dims in axes)
        terms.append(_batched(with_tangent, in_axes)(tangents[index], *leaves))
    if not terms:
        return output, jnp.zeros_like(output)
    return output, terms[0] if len(terms) == 1 else canonicalize(terms[0] + terms[1])


def _transpose(cotangent: Any, *leaves: Any, op: Op, tree: Any, axes: tuple[Any, ...], aval: Any) -> list[Any]:
    found: list[Any] = [None] * len(leaves)
    index = next(i for i, leaf in enumerate(leaves) if _compat.is_linear(leaf))
    if _compat.is_zero(cotangent):
        return found
    by = op.left_grad if index == _index(tree, "left") else op.right_grad  # type: ignore[union-attr]
    # The operand that the product is linear in has no values: only its dtype is asked for.
    shape = _base_shape(leaves[index].aval, [dims[index] for dims in axes])

    def pull(u: Array, *others: Any) -> Array:
        of, kind = jax.tree.unflatten(tree, (*others[:index], shape, *others[index:]))
        return by(u, of, kind)

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
