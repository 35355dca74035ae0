"""Causes in whole modules: what a proof must hold fixed, and what a fault is called."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.models.causes.naming import named
from parity.models.training import _divisor
from parity.records import Diagnosis

X = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)


class Words(nn.Module):
    """Words and their places; what is masked counts nothing."""

    def __init__(self):
        super().__init__()
        self.word, self.place, self.out = nn.Embedding(9, 8), nn.Embedding(8, 8), nn.Linear(8, 4)

    def forward(self, ids, mask):
        x = self.word(ids) + self.place(torch.arange(ids.shape[1]))
        x = torch.where(mask[..., None], x, 0.0)
        return self.out(x.mean(1))


class WordsPort(nnx.Module):
    """The port; positions begin elsewhere."""

    def __init__(self, offset):
        rngs = nnx.Rngs(0)
        self.word, self.place = nnx.Embed(9, 8, rngs=rngs), nnx.Embed(8, 8, rngs=rngs)
        self.out, self.offset = nnx.Linear(8, 4, rngs=rngs), offset

    def __call__(self, ids, mask):
        x = self.word(ids) + self.place(jnp.arange(ids.shape[1]) + self.offset)
        return self.out(jnp.where(mask[..., None], x, 0.0).mean(1))


IDS = np.random.default_rng(0).integers(0, 9, (2, 5))


@pytest.mark.parametrize("mask", [bool, np.int32], ids=["bool", "int"])
def test_a_mask_changes_with_both_models_where_a_cause_is_proved(mask):
    inputs = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool)
    given = parity.models.Inputs(torch=(IDS, inputs), jax=(IDS, inputs.astype(mask)))
    model, port = Words(), WordsPort(1)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    found = parity.compare_models(model, port, given).first
    assert found.diagnosis.cause == "position offset"
    assert not found.diagnosis.text.startswith("Likely")


class Attends(nn.Module):
    """Attention whose softmax is nearly all at one place where it is not scaled."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 64) for _ in range(3))

    def forward(self, x):
        return torch.softmax(self.q(x) @ self.k(x).mT / 8, -1) @ self.v(x)


class AttendsPort(nnx.Module):
    """The port, which leaves the scale out."""

    def __init__(self):
        self.q, self.k, self.v = (nnx.Linear(8, 64, rngs=nnx.Rngs(0)) for _ in range(3))

    def __call__(self, x):
        return jax.nn.softmax(self.q(x) @ self.k(x).swapaxes(-1, -2)) @ self.v(x)


def test_a_scale_that_is_left_out_is_found_where_the_softmax_is_full():
    model, port = Attends(), AttendsPort()
    with torch.no_grad():
        for one in (model.q, model.k):
            one.weight.mul_(8)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    found = parity.compare_models(model, port, (X,), perturb=False).first
    assert found.diagnosis.cause == "constant: attention scale"
    assert "8 in torch where JAX has 1" in found.diagnosis.text


class Normed(nn.Module):
    """A norm with statistics, and an activation between two products."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.down(nn.functional.leaky_relu(self.norm(self.up(x)), 0.1))


class NormedPort(linen.Module):
    """The port, with a momentum and an activation."""

    activation: object = lambda x: linen.leaky_relu(x, 0.1)
    momentum: float = 0.9
    training: bool = False

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(6, name="up")(x)
        x = linen.BatchNorm(not self.training, momentum=self.momentum, epsilon=1e-5, name="norm")(x)
        return linen.Dense(3, name="down")(self.activation(x))


def normed(**options):
    """Return the model, and a port with its weights."""
    model, module = Normed(), NormedPort(**options)
    port = module, module.init(jax.random.key(0), X[0])
    return model, parity.map_weights(model, port).load_into_jax(model, port)


def test_a_changed_program_that_trains_leaves_the_statistics_to_the_next():
    found = parity.compare_models(*normed(activation=linen.silu), (X[0],)).first
    assert found.diagnosis.cause == "another formula: activation"


@pytest.mark.parametrize(("momentum", "ok"), [(0.9, True), (0.99, False)], ids=["right", "another"])
def test_statistics_after_a_step_are_part_of_the_verdict(momentum, ok):
    report = parity.compare_models(*normed(momentum=momentum, training=True), (X[0],), mode="train")
    assert report.ok == ok, report
    if not ok:
        assert (report.first.path, report.first.diagnosis.cause) == ("norm", "momentum")
        assert "another momentum" in str(report)


def test_the_divisor_is_told_from_a_momentum_of_trained_statistics():
    rng = np.random.default_rng(0)
    start, batch = rng.uniform(0.5, 2, 7), rng.uniform(0.5, 2, 7)
    torch_after, jax_after = (0.9 * start + 0.1 * batch * factor for factor in (12 / 11, 1.0))
    assert _divisor(start, torch_after, start, jax_after) == 12
    assert _divisor(start, torch_after, start, 0.99 * start + 0.01 * batch) is None


class Causal(nn.Module):
    """Attention with a causal mask."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        at = torch.arange(x.shape[1])
        scores = torch.where(at[:, None] >= at, self.q(x) @ self.k(x).mT, -1e9)
        return scores.softmax(-1) @ self.v(x)


def test_positions_that_are_compared_only_are_a_mask():
    model = Causal()

    def port(p, x):
        q, k, v = (x @ p[name]["weight"].T + p[name]["bias"] for name in "qkv")
        at = jnp.arange(x.shape[1])
        return jax.nn.softmax(jnp.where(at[:, None] + 1 >= at, q @ k.mT, -1e9)) @ v

    params = {
        name: {key: jnp.asarray(value.detach().numpy()) for key, value in getattr(model, name).named_parameters()}
        for name in "qkv"
    }
    found = parity.compare_models(model, (port, params), (X,)).first
    assert found.diagnosis.cause.startswith("mask")


def test_an_order_of_channels_is_of_heads_only_where_there_is_attention():
    found = Diagnosis("arrangement: channel order", "x in torch where JAX has it", "")
    assert (named(found).cause, named(found, attends=False).cause) == ("head order", "flatten order")


def test_a_stride_is_read_off_the_size():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 1, 1)

        def forward(self, x):
            return self.b(self.a(x))

    class Port(nnx.Module):
        def __init__(self):
            same = {"padding": ((1, 1), (1, 1)), "rngs": nnx.Rngs(0)}
            self.a, self.b = nnx.Conv(3, 4, (3, 3), strides=1, **same), nnx.Conv(4, 5, (3, 3), strides=2, **same)

        def __call__(self, x):
            return self.b(self.a(x))

    model, port = Net(), Port()
    port = parity.map_weights(model, port).load_into_jax(model, port)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    found = parity.compare_models(model, port, parity.models.Inputs(torch=(x,), jax=(x.transpose(0, 2, 3, 1),))).first
    assert (found.path, found.diagnosis.cause) == ("a", "stride")
    assert found.diagnosis.text.startswith("Likely")
