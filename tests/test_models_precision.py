"""Models in bfloat16, under autocast, and with numbers that were rounded once: right ports are quiet, faults found."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity

X = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)


class Net(nn.Module):
    """A norm and two products, under autocast where it is asked for."""

    def __init__(self, cast=False):
        super().__init__()
        self.norm, self.up, self.out, self.cast = nn.LayerNorm(16), nn.Linear(16, 8), nn.Linear(8, 3), cast

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.cast):
            return self.out(torch.relu(self.up(self.norm(x))))


class Port(nnx.Module):
    """The port, in bfloat16 with weights in a type."""

    def __init__(self, eps=1e-5, weights=jnp.float32):
        options = {"dtype": jnp.bfloat16, "param_dtype": weights, "rngs": nnx.Rngs(0)}
        self.norm = nnx.LayerNorm(16, epsilon=eps, **options)
        self.up, self.out = nnx.Linear(16, 8, **options), nnx.Linear(8, 3, **options)

    def __call__(self, x):
        return self.out(nnx.relu(self.up(self.norm(x))))


def compared(model, port, *inputs, **options):
    """Return the report of a port with the weights of the model."""
    port = parity.map_weights(model, port).load_into_jax(model, port)
    return parity.compare_models(model, port, inputs or (X,), **options)


LOW = {"bfloat16": lambda: Net().to(torch.bfloat16), "autocast": lambda: Net(cast=True)}


@pytest.mark.parametrize("model", LOW.values(), ids=LOW)
def test_a_port_in_the_same_type_is_quiet_and_a_fault_in_it_is_found(model):
    report = compared(model(), Port())
    assert report.ok, report
    wrong = compared(model(), Port(eps=1e-3))
    assert (wrong.first.path, wrong.first.diagnosis.cause) == ("norm", "default argument: eps")


def test_weights_in_bfloat16_are_perturbed_to_numbers_that_it_has():
    report = compared(Net().to(torch.bfloat16), Port(weights=jnp.bfloat16))
    assert report.ok, report


def test_a_lower_type_on_one_side_is_no_port():
    assert not compared(Net(), Port()).ok


class Scaled(nn.Module):
    """Words times the root of their width."""

    def __init__(self):
        super().__init__()
        self.word = nn.Embedding(7, 12)

    def forward(self, ids):
        return self.word(ids) * 12**0.5


class ScaledPort(nnx.Module):
    """The port, whose factor is an array of a type."""

    def __init__(self, dtype):
        self.word, self.factor = nnx.Embed(7, 12, rngs=nnx.Rngs(0)), dtype

    def __call__(self, ids):
        return self.word(ids) * jnp.asarray(12**0.5, self.factor).astype(jnp.float32)


@pytest.mark.parametrize(("dtype", "ok"), [(jnp.float32, True), (jnp.bfloat16, False)], ids=["float32", "bfloat16"])
def test_a_factor_that_float32_rounded_is_the_same_factor(dtype, ok):
    assert compared(Scaled(), ScaledPort(dtype), np.arange(6).reshape(2, 3)).ok == ok


class Normed(nn.Module):
    """A convolution and its norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class NormedPort(eqx.Module):
    """The port, of one image, with a state."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.conv = eqx.nn.Conv2d(3, 4, 3, 1, 1, key=jax.random.key(0))
        self.norm = eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state)
        return jax.nn.relu(x), state


def test_a_state_beside_the_output_is_no_output():
    images = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32)
    report = compared(Normed(), eqx.nn.make_with_state(NormedPort)(), images, mode="train")
    assert report.ok, report
    assert (report.precision, report.notes) == ("float64", [])
    assert len(report.gradients) == 5
