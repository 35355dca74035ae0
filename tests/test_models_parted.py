"""A module of one side whose weights are in several of the other: an LSTM of torch has all of its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity

TOKENS = np.random.default_rng(0).integers(0, 20, (2, 6))


class Tagger(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.tokens = torch.nn.Embedding(20, 8)
        self.lstm = torch.nn.LSTM(8, 12, num_layers=layers, batch_first=True)
        self.head = torch.nn.Linear(12, 5)

    def forward(self, tokens):
        return self.head(self.lstm(self.tokens(tokens))[0])


class Layer(nnx.Module):
    """An LSTM of one layer; `gates` are those of torch, or in another order."""

    def __init__(self, inputs, width, gates, *, rngs):
        self.ih, self.hh = nnx.Linear(inputs, 4 * width, rngs=rngs), nnx.Linear(width, 4 * width, rngs=rngs)
        self.width, self.gates = width, gates

    def __call__(self, x):
        def step(state, now):
            hidden, cell = state
            of = dict(zip(self.gates, jnp.split(self.ih(now) + self.hh(hidden), 4, -1), strict=True))
            cell = jax.nn.sigmoid(of["f"]) * cell + jax.nn.sigmoid(of["i"]) * jnp.tanh(of["g"])
            hidden = jax.nn.sigmoid(of["o"]) * jnp.tanh(cell)
            return (hidden, cell), hidden

        start = jnp.zeros((x.shape[0], self.width))
        return jax.lax.scan(step, (start, start), x.swapaxes(0, 1))[1].swapaxes(0, 1)


class Port(nnx.Module):
    def __init__(self, gates, rngs):
        self.tokens = nnx.Embed(20, 8, rngs=rngs)
        sizes = [8] + [12] * (len(gates) - 1)
        self.layers = nnx.List([Layer(size, 12, one, rngs=rngs) for size, one in zip(sizes, gates, strict=True)])
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def compared(*gates):
    model, port = Tagger(len(gates)).eval(), Port(gates, nnx.Rngs(0))
    port = parity.map_weights(model, port).load_into_jax(model, port)
    return parity.compare_models(model, port, (TOKENS,), perturb=False)


@pytest.mark.parametrize(("second", "verdict"), [("ifgo", "the same function"), ("figo", "different")])
def test_which_modules_hold_its_weights_is_said(second, verdict):
    report = compared("ifgo", second)
    assert f": {verdict}" in str(report).splitlines()[0]
    assert "lstm is one module in torch and 2 in JAX (layers.0, layers.1)" in "\n".join(report.notes)
    assert report.first is None or report.first.diagnosis.cause == "split order"


def test_one_module_on_both_sides_needs_no_words():
    report = compared("ifgo")
    assert {one.path: one.jax_path for one in report.modules}["lstm"] == "layers.0"
    assert "one module in" not in "\n".join(report.notes)
