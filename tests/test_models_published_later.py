"""What more published ports met: keys beside examples, integers, tables that are made otherwise, scales of zero."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.models import Inputs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 8)).astype(np.float32)


class Biased(nn.Module):
    """A norm, and scores with a bias that is looked up by a stored table of places."""

    def __init__(self, *, stored=True):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(9))
        places = torch.arange(5)
        self.register_buffer("index", places[:, None] - places[None, :] + 4, persistent=stored)

    def forward(self, x):
        x = self.norm(x)
        return torch.softmax(x @ x.mT + self.table[self.index], -1) @ self.mix(x)


class EquinoxBiased(eqx.Module):
    """The port, of one example: it may begin the places at another number, and drops units at a rate of its own."""

    norm: eqx.nn.LayerNorm
    mix: eqx.nn.Linear
    table: jax.Array
    index: jax.Array
    rate: float

    def __init__(self, *, first=4, eps=1e-5, rate=0.0):
        self.norm, self.mix = eqx.nn.LayerNorm(8, eps=eps), eqx.nn.Linear(8, 8, key=jax.random.key(0))
        self.table, self.rate = jnp.zeros(9), rate
        self.index = jnp.arange(5)[:, None] - jnp.arange(5)[None, :] + first

    def __call__(self, x, *, key):
        x = jax.vmap(self.norm)(x)
        x = jax.nn.softmax(x @ x.T + self.table[self.index]) @ jax.vmap(self.mix)(x)
        kept = jax.random.bernoulli(key, 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0)


def biased(key=None, examples=2, **options):
    torch.manual_seed(0)
    model, port = Biased(stored=options.pop("stored", True)), EquinoxBiased(**options)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    x = RNG.standard_normal((examples, 5, 8)).astype(np.float32)
    key = jax.random.PRNGKey(0) if key is None else key
    return parity.compare_models(model, port, Inputs(torch=(x,), jax=parity.Args(x, key=key)))


@pytest.mark.parametrize("examples", [2, 3])
@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), jax.random.key(0)], ids=["old", "new"])
def test_a_key_is_one_for_all_examples(examples, key):
    report = biased(key, examples)
    assert report.ok, report
    assert report.precision == "float64"
    assert len(report.gradients) == 6


@pytest.mark.parametrize("stored", [True, False])
def test_a_table_that_the_port_makes_otherwise_is_named(stored):
    report = biased(first=0, stored=stored)
    assert report.first.diagnosis.cause == "buffer: other numbers", report
    assert "index holds other numbers in JAX, 25 of 25" in report.first.diagnosis.text


def test_dropout_that_drops_nothing_is_no_cause():
    assert biased(rate=0.5).first.diagnosis.cause == "dropout on"
    report = biased(eps=1e-2)
    assert report.first.path == "norm"
    assert "0.01 in JAX where torch has 1e-05" in report.first.diagnosis.text
    model, port = Biased(), EquinoxBiased()
    port = parity.map_weights(model, port).load_into_jax(model, port)
    port = eqx.tree_at(lambda one: one.index, port, port.index[::-1])  # no table of torch's: transposed and turned
    found = parity.compare_models(model, port, Inputs(torch=(X,), jax=parity.Args(X, key=jax.random.PRNGKey(0))))
    assert "dropout" not in str(found), found


class Words(linen.Module):
    """A port that insists on what JAX makes of integers without float64."""

    @linen.compact
    def __call__(self, ids):
        assert ids.dtype == jnp.int32
        return linen.Dense(3)(linen.Embed(7, 4)(ids))


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_integers_are_as_without_float64(dtype):
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))
    ids = np.array([[1, 2, 6]], dtype)
    port = Words(), Words().init(jax.random.key(0), jnp.asarray(ids))
    port = parity.map_weights(model, port).load_into_jax(model, port)
    report = parity.compare_models(model, port, (ids,))
    assert (report.ok, report.precision, len(report.gradients)) == (True, "float64", 3), report


class Scaled(nn.Module):
    """A convolution of stride 2 that a scale follows, which is made with zero."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Parameter(torch.zeros(4)), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.scale * self.conv(x).mean((2, 3)))


class LinenScaled(linen.Module):
    """The port; `SAME` pads another side."""

    padding: object = ((1, 1), (1, 1))

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3), (2, 2), self.padding, name="conv")(x)
        scale = self.param("scale", linen.initializers.zeros, (4,))
        return linen.Dense(2, name="head")(scale * x.mean((1, 2)))


@pytest.mark.parametrize("perturb", [True, False])
def test_a_scale_of_zero_hides_no_module_before_it(perturb):
    images = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    inputs = Inputs(torch=(images,), jax=(images.transpose(0, 2, 3, 1),))

    def compared(module):
        model = Scaled()
        port = module, module.init(jax.random.key(0), inputs.jax[0])
        port = parity.map_weights(model, port).load_into_jax(model, port)
        return parity.compare_models(model, port, inputs, perturb=perturb)

    assert compared(LinenScaled()).ok
    report = compared(LinenScaled("SAME"))
    assert (report.ok, report.first and report.first.path) == (False, "conv"), report
    assert report.first.diagnosis.cause == "padding"
