"""The reproducible products of both twins, and the oracle's, by their bits: what several test files ask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core import columns
from parity.suites.masked_linear import numbers
from parity.suites.masked_linear.arithmetic import Reproducible

ENGINES = ["float64", "float32", "int8"]


def bits(array):
    return np.asarray(array, np.float32).view(np.uint32)


def draw(kind, shape, seed=0):
    return numbers.KINDS[kind](np.random.default_rng(seed), shape).astype(np.float32)


def torch_dot(x, w, **settings):
    """X w^T by the layer's own products."""
    how = mt.reproducible(**settings)
    return mt.masked_linear(torch.tensor(x), torch.tensor(w), grad_mask=columns([]), precision=how).numpy()


@functools.partial(jax.jit, static_argnames="how")
def jax_layer(x, w, how):
    return mj.masked_linear(x, w, grad_mask=columns([]), precision=how)


def jax_dot(x, w, **settings):
    return np.asarray(jax_layer(jnp.asarray(x), jnp.asarray(w), how=mj.reproducible(**settings)))


def oracle(x, w, p=0):
    return bits(Reproducible("float32", p).dot(x.astype(np.float64), w.astype(np.float64)))


def gradients(twin, x, w, b, g, mask, how="reproducible"):
    if twin == "torch":
        leaves = [torch.tensor(part, requires_grad=True) for part in (x, w, b)]
        y = mt.masked_linear(*leaves, grad_mask=mask, precision=how)
        y.backward(torch.tensor(g))
        return [bits(part.detach()) for part in (y, *(leaf.grad for leaf in leaves))]
    y, pull = jax.vjp(
        lambda *theta: mj.masked_linear(*theta, grad_mask=mask, precision=how), *map(jnp.asarray, (x, w, b))
    )
    return [bits(part) for part in (y, *pull(jnp.asarray(g)))]


MASK = columns(range(0, 96, 7))


def same(left, right):
    return all((a == b).all() for a, b in zip(left, right, strict=True))
