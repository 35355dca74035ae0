"""What people use in JAX, each as they write it: the dense layer, ours, and the rivals. Twin of torch_rivals.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import maskedlinear_jax as mj
from benchmarks import rows
from benchmarks.operands import Operands
from benchmarks.rows import Row

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass
class Program:
    """A layer to be timed.

    Attributes:
        layer: Called with (learned, rest, input).
        learned: A pytree of what is differentiated.
        rest: A pytree of what is not: constants, positions, masks.
        gradient: Takes the gradient of `learned` and returns that of the weight, weight-shaped.
        mask_gradients: Called with (gradient of learned, rest) before the optimizer sees it, if the rival masks there.
    """

    layer: Callable[[Any, Any, Array], Array]
    learned: Any
    rest: Any
    gradient: Callable[[Any], Array]
    mask_gradients: Callable[[Any, Any], Any] | None = None

    def transformation(self, optimizer: optax.GradientTransformation, rest: Any) -> optax.GradientTransformation:
        """Return the optimizer, behind an optax mask of entries if the rival masks there."""
        if self.mask_gradients is None:
            return optimizer
        mask_gradients = self.mask_gradients
        return optax.chain(optax.stateless(lambda updates, _: mask_gradients(updates, rest)), optimizer)


def programs(row: Row, operands: Operands, device: str) -> dict[str, Program]:
    """Return the programs of a row by name; the first is the dense layer, which all are compared with.

    Args:
        row: What is measured.
        operands: The weight and the bias that all of them start from.
        device: "cpu" or "cuda".
    """
    mask = rows.mask_of(row)
    place = jax.devices("cpu" if device == "cpu" else "gpu")[0]
    array = jax.device_put(jnp.asarray(mask.to_array(row.weight_shape)), place)
    w, b = linear(row, operands, device)
    return {
        "dense": dense(w, b),
        "masked": masked(w, b, mask),
        "packed": packed(w, b, mask),
        "one-liner": one_liner(w, b, array),
        "masked afterwards": masked_afterwards(w, b, array),
        "densified": densified(w, b, mask),
    }


def linear(row: Row, operands: Operands, device: str) -> tuple[Array, Array]:
    """Return the weight and the bias of the plain layer on the row's operands."""
    place = jax.devices("cpu" if device == "cpu" else "gpu")[0]
    w, b = (jax.device_put(jnp.asarray(a, DTYPES[row.dtype]), place) for a in (operands.w, operands.b))
    return w, b


def dense(w: Array, b: Array) -> Program:
    """Return the plain layer: nothing is frozen."""
    return Program(lambda learned, rest, x: x @ learned[0].T + learned[1], (w, b), None, lambda grad: grad[0])


def frozen(w: Array, b: Array) -> Program:
    """Return the plain layer whose weight does not learn."""
    return Program(lambda b, w, x: x @ w.T + b, b, w, lambda grad: jnp.zeros_like(w))


def masked(w: Array, b: Array, mask: Any) -> Program:
    """Return our layer that masks the gradient of its weight."""
    learned, rest = mj.partition(mj.MaskedLinear.from_linear(_layer(w, b), grad_mask=mask))
    return Program(_call, learned, jax.tree.map(jnp.asarray, rest), lambda grad: grad.weight)


def packed(w: Array, b: Array, mask: Any) -> Program:
    """Return our layer whose trainable entries are a leaf of their own."""
    learned, rest = mj.partition(mj.PackedLinear.from_linear(_layer(w, b), grad_mask=mask))
    zeros = jnp.zeros_like(w)
    return Program(
        _call, learned, jax.tree.map(jnp.asarray, rest), lambda grad: mj.unpack(zeros, grad.values, grad_mask=mask)
    )


def one_liner(w: Array, b: Array, mask: Array) -> Program:
    """Return the reference program, `where(mask, w, stop_gradient(w))`, as a layer."""

    def layer(learned: Any, mask: Array, x: Array) -> Array:
        w, b = learned
        return x @ jnp.where(mask, w, jax.lax.stop_gradient(w)).T + b

    return Program(layer, (w, b), mask, lambda grad: grad[0])


def masked_afterwards(w: Array, b: Array, mask: Array) -> Program:
    """Return the plain layer whose gradient is masked before the optimizer, by an optax transformation there."""

    def mask_gradients(grads: Any, mask: Array) -> Any:
        return jnp.where(mask, grads[0], 0), grads[1]

    return Program(
        lambda learned, rest, x: x @ learned[0].T + learned[1], (w, b), mask, lambda grad: grad[0], mask_gradients
    )


def densified(w: Array, b: Array, mask: Any) -> Program:
    """Return a small delta, added to the constant weight where it belongs by `.at[].add`."""
    at = _index(mask, (w.shape[0], w.shape[1]))
    values = jnp.zeros_like(w[_whole(at)])

    def layer(learned: Any, rest: Any, x: Array) -> Array:
        (values, b), (w, at) = learned, rest
        return x @ w.at[_whole(at)].add(values).T + b

    return Program(layer, (values, b), (w, at), lambda grad: jnp.zeros_like(w).at[_whole(at)].add(grad[0]))


def _call(learned: Any, rest: Any, x: Array) -> Array:
    return mj.combine(learned, rest)(x)


def _layer(w: Array, b: Array) -> Any:
    layer = mj.MaskedLinear(w.shape[1], w.shape[0], grad_mask=mj.columns([]), dtype=w.dtype, key=jax.random.key(0))
    return layer.replace(weight=w, bias=b)


def _index(mask: Any, shape: tuple[int, int]) -> tuple[Array | None, Array | None]:
    # As one would write it: along an axis where the mask is that, else by rows and columns; None for a whole axis.
    array = mask.to_array(shape)
    lines = array.any(1), array.any(0)
    if not (array == lines[0][:, None] & lines[1]).all():
        of_rows, of_columns = np.nonzero(array)
        return jnp.asarray(of_rows), jnp.asarray(of_columns)
    of_rows, of_columns = (np.flatnonzero(line) for line in lines)
    if lines[0].all():
        return None, jnp.asarray(of_columns)
    return jnp.asarray(of_rows) if lines[1].all() else jnp.asarray(of_rows)[:, None], (
        None if lines[1].all() else jnp.asarray(of_columns)
    )


def _whole(at: tuple[Array | None, Array | None]) -> Any:
    return tuple(slice(None) if part is None else part for part in at)
