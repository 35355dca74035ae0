"""The JAX side of the masked linear layer, for the worlds of parity. Twin of torch_side.py, function by function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import maskedlinear_jax
from maskedlinear_core import constructors
from maskedlinear_core.annotations import PrecisionLike
from maskedlinear_jax import lowering
from parity.execution.jax_backend import DTYPES, Ops
from parity.execution.jax_backend import FRAMEWORK as FRAMEWORK
from parity.execution.jax_backend import devices as devices


def _packed(input: Any, weight: Any, bias: Any = None, *, grad_mask: Any, **keywords: Any) -> Any:
    # The matrix is a constant to packed_linear: all that flows to the weight flows through its values.
    values = maskedlinear_jax.pack(weight, grad_mask=grad_mask)
    return maskedlinear_jax.packed_linear(input, weight, values, bias, grad_mask=grad_mask, **keywords)


SUBJECTS = {False: maskedlinear_jax.masked_linear, True: _packed}
"""What is tested, by whether the case is packed."""


class Parts:
    """What wrong twins are made of (sabotage.py)."""

    where = staticmethod(jnp.where)
    zeros_like = staticmethod(jnp.zeros_like)
    stop_gradient = staticmethod(jax.lax.stop_gradient)
    pack = staticmethod(maskedlinear_jax.pack)
    packed_linear = staticmethod(maskedlinear_jax.packed_linear)

    @staticmethod
    def cast(array: Any, dtype: str) -> Any:
        """Return the array in another dtype."""
        return array.astype(DTYPES[dtype])

    @staticmethod
    def name(array: Any) -> str:
        """Return the name of an array's dtype."""
        return str(array.dtype)

    @staticmethod
    def fold(step: Callable[..., Any], total: Any, *rows: Any) -> Any:
        """Return the total after a step for each row."""
        return jax.lax.scan(lambda total, parts: (step(total, *parts), None), total, rows)[0]

    @staticmethod
    def dense(mask: Any, weight: Any) -> Any:
        """Return a mask, traced or not, as the framework's bool array of the weight's shape."""
        shape = (weight.shape[0], weight.shape[1])
        kind = lowering.resolve(constructors.as_mask(mask), shape)
        return jnp.broadcast_to(kind.mask(weight), shape)

    @staticmethod
    def under_vmap(array: Any) -> Any:
        """Return whether the array is batched, as a bool array."""
        flag = jax.custom_batching.custom_vmap(lambda array: jnp.zeros((), bool))
        flag.def_vmap(lambda size, batched, array: (jnp.ones((), bool), False))
        return flag(jax.lax.stop_gradient(array))

    @staticmethod
    def rule(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
        """Return an op with forward(x, W, b) and backward(x, W, b, M, m, g) -> (d_x, d_W, d_b), right or wrong."""

        @jax.custom_vjp
        def rule(x: Any, w: Any, b: Any, mask: Any, bias_mask: Any) -> Any:
            return forward(x, w, b)

        def first_half(x: Any, w: Any, b: Any, mask: Any, bias_mask: Any) -> Any:
            # Reverse over reverse differentiates this: masked, so that only the backward's fault shows.
            view = jnp.where(mask, w, jax.lax.stop_gradient(w))
            return forward(x, view, b), (x, w, b, mask, bias_mask)

        rule.defvjp(first_half, lambda saved, g: (*backward(*saved, g), None, None))
        return rule


def product(x: np.ndarray, w: np.ndarray, precision: str, bits: int | None = None) -> np.ndarray:
    """Return x w^T in float32, by the framework's own product or by the reproducible one."""
    left, right = jnp.asarray(x), jnp.asarray(w)
    if precision == "native":
        return _values(Ops.linear(left, right))
    how = maskedlinear_jax.reproducible(bits=bits)
    return _values(maskedlinear_jax.masked_linear(left, right, grad_mask=constructors.columns([]), precision=how))


def step(shape: tuple[int, int, int], mask: Any, precision: PrecisionLike, how: str) -> Callable[[], None]:
    """Return forward and backward of a layer on random numbers, to be timed; mask None is the plain layer."""
    x, w, b, g = _operands(shape)
    if mask is None:
        layer: Callable[..., Any] = Ops.linear
    else:
        layer = functools.partial(maskedlinear_jax.masked_linear, grad_mask=mask, precision=precision)

    def both(x: Any, w: Any, b: Any, g: Any) -> Any:
        output, pull = jax.vjp(layer, x, w, b)
        return output, pull(g)

    compiled = jax.jit(both) if how == "jit" else both

    def run() -> None:
        jax.block_until_ready(compiled(x, w, b, g))

    return run


def two_products(shape: tuple[int, int, int]) -> Callable[[], None]:
    """Return what no reproducible step by float64 products can do without: two of them for each product."""
    with jax.enable_x64(True):
        x, w, _, g = (operand.astype(jnp.float64) for operand in _operands(shape))
        three = (
            jax.jit(lambda x, w, g: (x @ w.T, g @ w, jax.lax.optimization_barrier(g.T) @ x)).lower(x, w, g).compile()
        )

    def run() -> None:
        for _ in range(2):
            jax.block_until_ready(three(x, w, g))

    return run


def _operands(shape: tuple[int, int, int]) -> list[jax.Array]:
    batch, outputs, inputs = shape
    sizes = ((batch, inputs), (outputs, inputs), (outputs,), (batch, outputs))
    return [
        jax.random.normal(key, size) for key, size in zip(jax.random.split(jax.random.key(0), 4), sizes, strict=True)
    ]


def _values(array: jax.Array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def weight_penalty(f: Callable[..., Any], theta: tuple[Any, ...], cotangent: Any) -> tuple[Any, ...]:
    """Differentiate |d_W|^2 / 2 in the framework's ordinary way: it depends on the input alone."""
    return _penalty(f, theta, cotangent, 1)


def gradient_penalty(f: Callable[..., Any], theta: tuple[Any, ...], cotangent: Any) -> tuple[Any, ...]:
    """Differentiate |d_x|^2 / 2 in the framework's ordinary way."""
    return _penalty(f, theta, cotangent, 0)


def _penalty(f: Callable[..., Any], theta: tuple[Any, ...], cotangent: Any, of: int) -> tuple[Any, ...]:

    def penalty(*theta: Any) -> Any:
        gradient = jax.vjp(f, *theta)[1](cotangent)[of]
        return (gradient**2).sum() * 0.5

    return jax.grad(penalty, tuple(range(len(theta))))(*theta)
