"""Ports that a hostile reader made: called as they are, told apart though counts are cut, and true words for each."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.models.causes.weights import explain

X = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
IDS = np.array([[3, 4, 5, 0, 0], [1, 2, 8, 7, 6]])


def arrays(module):
    return {name: jnp.asarray(value.detach().numpy()) for name, value in module.named_parameters()}


def normed(axis):
    def call(p, x):
        return (x - x.mean(axis, keepdims=True)) / jnp.sqrt(x.var(axis, keepdims=True) + 1e-5) * p["weight"] + p["bias"]

    return call


@pytest.mark.parametrize(("axis", "ok"), [(-1, True), (0, False)], ids=["features", "batch"])
def test_a_function_is_called_on_the_batch(axis, ok):
    """Mapped over the first axis, a norm over the batch would be one over the features."""
    layer = nn.LayerNorm(5)
    assert parity.compare_models(layer, (normed(axis), arrays(layer)), (X,)).ok == ok


class Norm(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return normed(0)(vars(self), x)


def test_that_a_module_was_mapped_is_said_where_it_runs_on_the_batch_too():
    report = parity.compare_models(nn.LayerNorm(5), Norm(jnp.ones(5), jnp.zeros(5)), (X,))
    assert any("was mapped over the first axis of its inputs" in note for note in report.notes)


class Positions(nn.Module):
    """Embeds the positions of what is no padding, and takes their mean."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(9, 4)

    def forward(self, ids):
        mask = (ids != 0).to(self.places.weight.dtype)
        found = self.places((mask.cumsum(1) * mask).long())
        return (found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("factor", [1.0, 0.9, 0.0])
def test_rounding_does_not_cut_counts_to_other_ones(factor):
    """Positions that were moved and cut made the bound as large as the output, and any output right."""

    def port(p, ids):
        mask = (ids != 0).astype(p["places"]["weight"].dtype)
        found = p["places"]["weight"][(mask.cumsum(1) * mask).astype(int)]
        return factor * (found * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)

    model = Positions()
    weights = {"places": {"weight": jnp.asarray(model.places.weight.detach().numpy())}}
    assert parity.compare_models(model, (port, weights), (IDS,)).ok == (factor == 1)


def test_another_order_of_axes_is_said():
    layer = nn.Linear(5, 4)
    report = parity.compare_models(layer, (lambda p, x: (x @ p["weight"].T + p["bias"]).T, arrays(layer)), (X,))
    assert "output is [3, 4] in torch and [4, 3] in JAX: compared in JAX's order of axes" in report.notes


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(3)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Scanned(eqx.Module):
    layers: eqx.nn.Linear

    def __call__(self, x):
        return jax.lax.scan(jax.checkpoint(lambda x, layer: (layer(x), None)), x, self.layers)[0]


def test_layers_in_a_scan_that_is_computed_again_are_compared():
    model = Stack()
    layers = [eqx.nn.Linear(5, 5, key=jax.random.key(0)) for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    port = parity.map_weights(model, Scanned(stacked)).load_into_jax(model, Scanned(stacked))
    report = parity.compare_models(model, port, (X,))
    assert report.ok, report


def test_an_input_that_is_added_is_no_residual():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(5, 5)

        def forward(self, x, bias):
            return torch.relu(self.up(x) + bias)

    model = Biased()
    weights = {"up": {"weight": jnp.asarray(model.up.weight.detach()), "bias": jnp.asarray(model.up.bias.detach())}}
    port = (lambda p, x, bias: jax.nn.relu(x @ p["up"]["weight"].T + p["up"]["bias"]), weights)
    report = parity.compare_models(model, port, (X, np.full((3, 5), 0.5, np.float32) + X[::-1]))
    assert not report.ok
    assert "residual" not in str(report)


@pytest.mark.parametrize(
    ("want", "got", "words"),
    [
        (np.array([1.0]), np.array([-0.5]), "was not loaded"),
        (np.linspace(1, 2, 64), np.linspace(1, 2, 64).astype(np.float16).astype(float), "rounded to float16"),
        (np.linspace(1, 2, 64), np.linspace(1, 2, 64) + 0.1 * (np.arange(64) == 3), "1 of the 64 numbers"),
    ],
    ids=["one number", "float16", "one of many"],
)
def test_what_a_weight_is_is_true(want, got, words):
    assert words in explain("w", want, got).text


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_is_handed_over_in_training_is_said_to_be(training):
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)).train(training)
    port = (lambda p, x: x @ p["0"]["weight"].T + p["0"]["bias"], {"0": arrays(model[0])})
    report = parity.compare_models(model, port, (X,))
    said = "the torch model is in training, with dropout (1): both were compared as in evaluation"
    assert report.ok
    assert (said in report.notes) == training
    assert model.training == training
