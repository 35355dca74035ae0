"""Ports that put eps elsewhere, round otherwise, cut masks or windows otherwise: named, and right ones let through."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity import compare

rng = np.random.default_rng(0)
X, IMAGE = rng.standard_normal((6, 8)), rng.standard_normal((2, 8, 7, 7))
WHOLE = np.array([7, -7, 8, -9, 5, -3]), np.array([2, 2, -3, -4, 3, 2])
HALVES, TIES = np.array([0.5, 1.5, 2.5, -0.5, 0.3]), np.array([[1.0, 3, 3, 2], [2, 2, 2, 2]])
LABELS = np.array([0, 3, -100, 1, 2, 2])


def norm(x, where):
    v = x.var(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / (jnp.sqrt(v) + 1e-5 if where == "outside" else jnp.sqrt(v + 1e-5))


def adam(root, inside, order=(0, 1)):
    def step(p, g):
        m, v = 0.1 * g, 0.001 * g * g
        d = root(v / 0.001 + 1e-8) if inside else root(v / 0.001) + 1e-8
        return p - 1e-2 * m / 0.1 / d, (m, v)[order[0]], (m, v)[order[1]]

    return step


def attend(diagonal):
    def causal(x):
        scores = jnp.where(jnp.tril(jnp.ones((6, 6), bool), diagonal), x @ x.T / 8**0.5, -jnp.inf)
        return jax.nn.softmax(scores, -1) @ x

    return causal


def pool(x):
    return x[:, :, :6, :6].reshape(2, 8, 3, 2, 3, 2).mean((3, 5))


def whole_pool(x):
    edges = [(i * 7 // 3, -(-(i + 1) * 7 // 3)) for i in range(3)]
    rows = [jnp.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in edges], -1) for a, b in edges]
    return jnp.stack(rows, -2)


def groups(neighbours):
    def normed(x):
        y = x.reshape(2, 4, 2, 7, 7) if neighbours else x.reshape(2, 2, 4, 7, 7).swapaxes(1, 2)
        y = (y - y.mean((2, 3, 4), keepdims=True)) / jnp.sqrt(y.var((2, 3, 4), keepdims=True) + 1e-5)
        return (y if neighbours else y.swapaxes(1, 2)).reshape(x.shape)

    return normed


def loss(count):
    def entropy(z, y):
        each = -jnp.take_along_axis(jax.nn.log_softmax(z), jnp.maximum(y, 0)[:, None], 1)[:, 0]
        return jnp.where(y >= 0, each, 0).sum() / count

    return entropy


def statistics(x, mean, var):
    mean, var = mean.clone(), var.clone()
    return F.batch_norm(x, mean, var, training=True, momentum=0.1), mean, var


def running(momentum, ddof):
    def normed(x, mean, var):
        m, v = x.mean(0), x.var(0, ddof=ddof)
        y = (x - m) / jnp.sqrt(x.var(0) + 1e-5)
        return y, (1 - momentum) * mean + momentum * m, (1 - momentum) * var + momentum * v

    return normed


ROWS = (
    ("eps beside the root", lambda x: F.layer_norm(x, (8,)), lambda x: norm(x, "outside"), lambda x: norm(x, "under"),
     (X,), "eps", "added to the root in JAX where torch has 1e-05 under"),
    ("Adam's eps", adam(torch.sqrt, False), adam(jnp.sqrt, True), adam(jnp.sqrt, False), (X[0], X[1]), "eps",
     "added to the root in torch"),
    ("outputs exchanged", adam(torch.sqrt, False), adam(jnp.sqrt, False, (1, 0)), adam(jnp.sqrt, False), (X[0], X[1]),
     "order of outputs", r"output\[1\] and output\[2\]"),
    ("quotients", lambda a, b: torch.div(a, b, rounding_mode="trunc"), lambda a, b: a // b, jax.lax.div, WHOLE,
     "rounding", "trunc .* in torch where JAX has floor"),
    ("remainders", torch.remainder, jax.lax.rem, jnp.mod, (5 * X[0], abs(X[1]) + 0.5), "rounding", "divisor's sign"),
    ("a diagonal", lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), attend(1), attend(0), (X,),
     "diagonal", "0 in torch where JAX has 1"),
    ("adaptive pools", lambda x: F.adaptive_avg_pool2d(x, 3), pool, whole_pool, (IMAGE,), "pooling", "windows"),
    ("groups", lambda x: F.group_norm(x, 4), groups(False), groups(True), (IMAGE,), "channel order", "every 4th"),
    ("ignored labels", F.cross_entropy, loss(6), loss(5), (X, LABELS), "ignore_index", "all labels"),
    ("a momentum", statistics, running(0.9, 1), running(0.1, 1), (X, X[0], abs(X[1])), "momentum",
     "0.1 in torch where JAX has 0.9"),
    ("a running variance", statistics, running(0.1, 0), running(0.1, 1), (X, X[0], abs(X[1])), "ddof",
     "that divides by n - 1 in torch where JAX has one that divides by n"),
    ("a cubic kernel", lambda x: F.interpolate(x, size=(9, 9), mode="bicubic"),
     lambda x: jax.image.resize(x, (2, 8, 9, 9), "cubic"), None, (IMAGE[:, :, :3, :3],), "cubic kernel",
     "-0.75 in torch"),
    ("halves", torch.round, lambda x: jnp.floor(x + 0.5), jnp.round, (HALVES,), "tie", "beside them they agree"),
    ("order of ties", lambda x: torch.sort(x, stable=True, descending=True)[1],
     lambda x: jnp.argsort(x, stable=True)[..., ::-1], lambda x: jnp.argsort(x, stable=True, descending=True), (TIES,),
     "tie", "numbers are equal"),
    ("another start of a pool", lambda x: F.max_pool2d(x, 3, 2, 1),
     lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), [(0, 0)] * 2 + [(1, 1)] * 2),
     lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2),
                                     [(0, 0)] * 2 + [(1, 1)] * 2), (IMAGE - 1,), "", ""),
)  # fmt: skip
"""A name, the original, a wrong port and a right one, inputs, and patterns of the cause and of its text."""


def judged(original, port, inputs, transform="forward"):
    return compare(original, port, inputs, transforms=[transform], worlds=["jax-eager"], data=["random"],
                   dtypes=["float64"])  # fmt: skip


@pytest.mark.parametrize(("original", "port", "inputs", "cause", "text"), [
    pytest.param(original, wrong, inputs, cause, text, id=name)
    for name, original, wrong, _, inputs, cause, text in ROWS
])  # fmt: skip
def test_wrong_port_is_named(original, port, inputs, cause, text):
    (record,) = judged(original, port, inputs).cells
    assert record.failed
    assert re.search(cause, record.diagnosis.cause)
    assert re.search(text, record.diagnosis.text)


@pytest.mark.parametrize(("original", "port", "inputs"), [
    pytest.param(original, right, inputs, id=name)
    for name, original, _, right, inputs, *_ in ROWS if right is not None
])  # fmt: skip
def test_right_port_is_let_through(original, port, inputs):
    assert judged(original, port, inputs).ok


def test_gradient_at_a_bound_differs():
    """torch.clamp lets it through whole, jnp.clip a half of it: nothing there is decided by rounding."""
    at = np.array([-1.0, 1.0, 0.5, 2.0])
    (record,) = judged(lambda x: x.clamp(-1, 1), lambda x: jnp.clip(x, -1, 1), (at,), "vjp").cells
    assert record.failed
    assert record.diagnosis.cause == "tie or kink"
    both = judged(lambda x: torch.minimum(torch.maximum(x, -x.new_ones(())), x.new_ones(())),
                  lambda x: jnp.clip(x, -1, 1), (at,), "vjp")  # fmt: skip
    assert both.ok
