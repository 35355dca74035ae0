"""Faults of order and of rules, proved in the traced program; the same functions ported rightly are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import parity
from tests.test_steps_of_optimizers import optax_steps, torch_steps

RNG = np.random.default_rng(0)
FORWARD = {"transforms": ["forward"], "worlds": ["jax-jit"], "data": ["random"], "dtypes": ["float64"]}
STEP = tuple(RNG.standard_normal((4, 8)) for _ in range(3))
STEPS = (*STEP, STEP[1] * 2 + 1)


def torch_made(name, **options):
    return torch_steps(lambda of: getattr(torch.optim, name)(of, **options))


def adam(form="", amsgrad=False, first=True, second=True):
    """Adam written out: with eps at another place, the largest second moment, no bias corrections, NAdam's moment."""

    def steps(p, *gradients):
        m = v = largest = jnp.zeros_like(p)
        for t, g in enumerate(gradients, 1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            one, two = 1 - 0.9**t if first else 1, 1 - 0.999**t if second else 1
            largest = jnp.maximum(largest, v)
            moment = m / one
            if form == "nadam":
                moment = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / one
            root = jnp.sqrt((largest if amsgrad else v) / two) + 1e-3
            if form == "eps-hat":
                moment, root = moment * jnp.sqrt(two), jnp.sqrt(v) + 1e-3
            p = p - 0.01 * moment / root
        return p

    return steps


def sgd(dampening):
    def steps(p, *gradients):
        buffer = None
        for g in gradients:
            buffer = g if buffer is None else 0.9 * buffer + (1 - dampening) * g
            p = p - 0.1 * buffer
        return p

    return steps


ADAM = torch_made("Adam", lr=0.01, eps=1e-3)


def clip(a, b, s):
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    scores, labels = s.exp() * a @ b.T, torch.arange(len(a))
    return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2


def clip_port(which):
    def loss(a, b, s):
        a, b = (one / jnp.linalg.norm(one, axis=-1, keepdims=True) for one in (a, b))
        scores, labels = jnp.exp(s) * a @ b.T, jnp.arange(len(a))
        rows, columns = (
            optax.softmax_cross_entropy_with_integer_labels(one, labels).mean() for one in (scores, scores.T)
        )
        return {"rows": rows, "columns": columns, "both": (rows + columns) / 2}[which]

    return loss


PAIRS = (RNG.standard_normal((5, 6)), RNG.standard_normal((5, 6)), np.array(1.1))


def sinkhorn(c):
    x = -c / 0.1
    for _ in range(3):
        x = x - torch.logsumexp(x, 1, True)
        x = x - torch.logsumexp(x, 0, True)
    return x.exp()


def sinkhorn_port(axes, rounds=3):
    def run(c):
        x = -c / 0.1
        for _ in range(rounds):
            for axis in axes:
                x = x - jax.nn.logsumexp(x, axis, keepdims=True)
        return jnp.exp(x)

    return run


def gru(x, h, wi, wh, bi, bh):
    (r, z, n), (rh, zh, nh) = ((a @ w.T + b).chunk(3, -1) for a, w, b in ((x, wi, bi), (h, wh, bh)))
    r, z = torch.sigmoid(r + rh), torch.sigmoid(z + zh)
    return (1 - z) * torch.tanh(n + r * nh) + z * h


def gru_port(before=False, other_gate=False, order=(0, 1, 2)):
    def run(x, h, wi, wh, bi, bh):
        one, two = jnp.split(x @ wi.T + bi, 3, -1), jnp.split(h @ wh.T + bh, 3, -1)
        (r, z, n), (rh, zh, nh) = ([parts[at] for at in order] for parts in (one, two))
        r, z, size = jax.nn.sigmoid(r + rh), jax.nn.sigmoid(z + zh), h.shape[-1]
        n = jnp.tanh(n + ((r * h) @ wh[2 * size :].T + bh[2 * size :] if before else r * nh))
        return z * n + (1 - z) * h if other_gate else (1 - z) * n + z * h

    return run


CELL = tuple(RNG.standard_normal(shape) for shape in ((3, 4), (3, 5), (15, 4), (15, 5), (15,), (15,)))


def biased(x, base=8.0):
    heads, length = x.shape[:2]
    slopes = 2.0 ** (-base * torch.arange(1, heads + 1, dtype=x.dtype) / heads)
    at = torch.arange(length, dtype=x.dtype)
    return (x @ x.mT / 2 + slopes[:, None, None] * (at[None] - at[:, None])).softmax(-1) @ x


def biased_port(base=8.0, start=1, how="right"):
    def run(x):
        heads, length = x.shape[:2]
        slopes, at = 2.0 ** (-base * jnp.arange(start, start + heads) / heads), jnp.arange(length)
        apart = at[None] - at[:, None]
        apart = {"right": apart, "turned": -apart, "sizes": -jnp.abs(apart)}[how]
        return jax.nn.softmax(x @ x.mT / 2 + slopes[:, None, None] * apart, -1) @ x

    return run


HEADS = (RNG.standard_normal((4, 5, 6)),)


def attend(q, k, v, mask):
    return (q @ k.mT / 8**0.5).masked_fill(~mask, -1e9).softmax(-1) @ v


def attend_port(fill=-1e9, axis=-1, after=False):
    def run(q, k, v, mask):
        scores = q @ k.mT / 8**0.5
        if after:
            return (jax.nn.softmax(scores, axis) * mask) @ v
        return jax.nn.softmax(jnp.where(mask, scores, fill), axis) @ v

    return run


KEYS = (*(RNG.standard_normal((2, n, 8)) for n in (5, 6, 6)), RNG.random((5, 6)) > 0.3)


def norm(x, w, b):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b


def block(x, w, b, m):
    return x + torch.tanh(F.layer_norm(x, x.shape[-1:], w, b) @ m)


BLOCK = tuple(RNG.standard_normal(shape) for shape in ((3, 6), (6,), (6,), (6, 6)))


def pooled(x, mask):
    return torch.tanh((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


POOL = (RNG.standard_normal((3, 5, 4)), np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], float))
LABELS = (RNG.standard_normal((6, 7)), np.array([0, 1, 2, 0, 4, 5]))
JOIN = tuple(RNG.standard_normal(shape) for shape in ((4, 3), (4, 2), (5, 5)))


def log_likelihood(axis=-1, counted="kept"):
    def loss(x, y):
        losses, kept = -jnp.take_along_axis(jax.nn.log_softmax(x, axis), y[:, None], 1)[:, 0], y != 0
        return (losses * kept).sum() / kept.sum() if counted == "kept" else losses.mean()

    return loss


# name: torch function, JAX function, inputs, the cause, a part of its text
NAMED = {
    "AMSGrad in torch": (torch_made("Adam", lr=0.01, eps=1e-3, amsgrad=True), adam(), STEPS, "optimizer: AMSGrad",
                         "the largest second moment so far (maximum) in torch"),
    "AMSGrad in JAX": (ADAM, adam(amsgrad=True), STEPS, "optimizer: AMSGrad", "so far (max) in JAX"),
    "NAdam": (ADAM, optax_steps(optax.nadam(0.01, eps=1e-3)), STEPS, "optimizer: NAdam", "Adam's moment in torch"),
    "a schedule of momenta": (torch_made("NAdam", lr=0.01, eps=1e-3), adam("nadam"), STEPS, "optimizer: NAdam",
                              "its schedule of momenta in torch where JAX has one momentum"),
    "Adam for NAdam": (torch_made("NAdam", lr=0.01, eps=1e-3), adam(), STEPS, "optimizer: NAdam", "without Nesterov's"),
    "first moment not corrected": (ADAM, adam(first=False), STEPS, "optimizer: bias correction", "b = 0.9,"),
    "second moment not corrected": (ADAM, adam(second=False), STEPS, "optimizer: bias correction", "b = 0.999,"),
    "no bias correction": (ADAM, adam(first=False, second=False), STEPS, "optimizer: bias correction",
                           "b = 0.9 and 0.999,"),
    "eps-hat": (ADAM, adam("eps-hat"), STEPS, "default argument: eps", "added to the root before the correction"),
    "dampening in torch": (torch_made("SGD", lr=0.1, momentum=0.9, dampening=0.5), sgd(0.0), STEPS,
                           "optimizer: dampening", "dampening of 0.5"),
    "dampening in JAX": (torch_made("SGD", lr=0.1, momentum=0.9), sgd(0.25), STEPS, "optimizer: dampening",
                         "dampening of 0.25"),
    "rows alone": (clip, clip_port("rows"), PAIRS, "term left out", "the mean of two terms"),
    "columns alone": (clip, clip_port("columns"), PAIRS, "term left out", "the second alone"),
    "columns first": (sinkhorn, sinkhorn_port((0, 1)), (RNG.random((4, 5)),), "default argument: dim",
                      "along axes 1 and 0 in turn"),
    "a round fewer": (sinkhorn, sinkhorn_port((1, 0), 2), (RNG.random((4, 5)),), "another formula",
                      "in torch where JAX has none"),
    "the reset gate before": (gru, gru_port(before=True), CELL, "operator order", "a factor of what goes in"),
    "1 - z": (gru, gru_port(other_gate=True), CELL, "another formula: gate", "where JAX has 1 - z"),
    "gates in another order": (gru, gru_port(order=(1, 0, 2)), CELL, "split order", "in the order 2, 1, 3"),
    "slopes of another base": (biased, biased_port(4.0), HEADS, "constant", "-4 in JAX where torch has -8"),
    "slopes from zero": (biased, biased_port(start=0), HEADS, "position offset", "from 1 on"),
    "slopes turned": (biased, biased_port(how="turned"), HEADS, "another formula: sign", "b - a"),
    "distances": (biased, biased_port(how="sizes"), HEADS, "steps left out", "abs, neg) in JAX"),
    "a finite fill": (attend, attend_port(-2.0), KEYS, "mask", "-2 in JAX"),
    "a mask after the softmax": (attend, attend_port(after=True), KEYS, "mask: after the softmax", "does not add up"),
    "softmax over queries": (attend, attend_port(axis=-2), KEYS, "default argument: dim", "axis 1"),
    "log_softmax over examples": (lambda x, y: F.cross_entropy(x, y), log_likelihood(0, "all"), LABELS,
                                  "default argument: dim", "log_softmax along axis 1"),
    "the norm after the sum": (block, lambda x, w, b, m: norm(x + jnp.tanh(x @ m), w, b), BLOCK, "norm order",
                               "before add"),
    "the residual of the norm": (block, lambda x, w, b, m: norm(x, w, b) + jnp.tanh(norm(x, w, b) @ m), BLOCK,
                                 "another operand", "what layer_norm returns"),
    "the norm after the activation": (lambda x, w, b, m: torch.relu(F.layer_norm(x @ m, x.shape[-1:], w, b)),
                                      lambda x, w, b, m: norm(jax.nn.relu(x @ m), w, b), BLOCK, "norm order", "relu"),
    "a mean over pads": (pooled, lambda x, m: jnp.tanh((x * m[..., None]).sum(1) / x.shape[1]), POOL, "mask: left out",
                         "a count of all"),
    "pads that count": (lambda x, y: F.cross_entropy(x, y, ignore_index=0), log_likelihood(counted="all"), LABELS,
                        "default argument: ignore_index", "labels 0 that do not count"),
    "parts in another order": (lambda a, b, w: torch.tanh(torch.cat([a, b], -1) @ w.T),
                               lambda a, b, w: jnp.tanh(jnp.concatenate([b, a], -1) @ w.T), JOIN, "concat order",
                               "in the order 2, 1"),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine", "inputs", "cause", "text"), NAMED.values(), ids=NAMED)
def test_a_fault_is_named(theirs, mine, inputs, cause, text):
    (cell,) = parity.compare(theirs, mine, inputs, **FORWARD).cells
    assert cell.verdict == "differs"
    assert cell.diagnosis.cause == cause, cell.diagnosis
    assert text in cell.diagnosis.text, cell.diagnosis


RIGHT = {
    "Adam": (ADAM, adam(), STEPS),
    "AMSGrad": (torch_made("Adam", lr=0.01, eps=1e-3, amsgrad=True), adam(amsgrad=True), STEPS),
    "momentum with dampening": (torch_made("SGD", lr=0.1, momentum=0.9, dampening=0.5), sgd(0.5), STEPS),
    "contrastive loss": (clip, clip_port("both"), PAIRS),
    "Sinkhorn": (sinkhorn, sinkhorn_port((1, 0)), (RNG.random((5, 5)),)),
    "GRU": (gru, gru_port(), CELL),
    "ALiBi": (biased, biased_port(), HEADS),
    "attention": (attend, attend_port(), KEYS),
    "a block": (block, lambda x, w, b, m: x + jnp.tanh(norm(x, w, b) @ m), BLOCK),
    "pooling": (pooled, lambda x, m: jnp.tanh((x * m[..., None]).sum(1) / m.sum(1, keepdims=True)), POOL),
    "pads": (lambda x, y: F.cross_entropy(x, y, ignore_index=0), log_likelihood(), LABELS),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine", "inputs"), RIGHT.values(), ids=RIGHT)
def test_the_right_port_is_left_alone(theirs, mine, inputs):
    assert parity.compare(theirs, mine, inputs, **FORWARD).ok
