"""Faults of models that passed for the same function: transposed scores, another precision, another axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.models import Inputs

RNG = np.random.default_rng(0)


class Scores(torch.nn.Module):
    """As many positions as positions: an output of three axes that no channels are in."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(3, 6, 3, padding=1)
        self.q, self.k = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

    def forward(self, x):
        hidden = self.conv(x).transpose(1, 2)
        return self.q(hidden) @ self.k(hidden).transpose(1, 2)


class NnxScores(nnx.Module):
    def __init__(self, transposed):
        self.conv = nnx.Conv(3, 6, (3,), padding=1, rngs=nnx.Rngs(0))
        self.q, self.k = (nnx.Linear(6, 6, rngs=nnx.Rngs(0)) for _ in range(2))
        self.transposed = transposed

    def __call__(self, x):
        hidden = self.conv(x)
        scores = self.q(hidden) @ self.k(hidden).swapaxes(1, 2)
        return scores.swapaxes(1, 2) if self.transposed else scores


@pytest.mark.parametrize("transposed", [False, True])
def test_transposed_scores_are_another_function(transposed):
    x = RNG.standard_normal((2, 3, 9)).astype(np.float32)
    model, port = Scores(), NnxScores(transposed)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    report = parity.compare_models(model, port, Inputs(torch=(x,), jax=(x.transpose(0, 2, 1),)))
    assert report.ok is not transposed, report


def test_the_users_precision_of_products_is_kept():
    """The comparison took its own, in which nothing differed."""
    layer = torch.nn.Linear(64, 3)
    params = {name: jnp.asarray(value.detach().numpy()) for name, value in layer.named_parameters()}
    port = (lambda p, x: x @ p["weight"].T + p["bias"], params)
    seen = []
    with jax.default_matmul_precision("BF16_BF16_F32"):
        parity.compare_models(
            layer, port, (np.ones((4, 64), np.float32),),
            progress=lambda _: seen.append(jax.config.jax_default_matmul_precision),
        )  # fmt: skip
    assert set(seen) == {"BF16_BF16_F32"}


def test_another_number_of_axes_is_another_function():
    layer = torch.nn.Linear(3, 2)
    params = {name: jnp.asarray(value.detach().numpy()) for name, value in layer.named_parameters()}
    port = (lambda p, x: (x @ p["weight"].T + p["bias"])[None], params)
    report = parity.compare_models(layer, port, (np.ones((4, 3), np.float32),))
    assert report.first.diagnosis.cause == "output shape", report
    assert "output is [4, 2] in torch and [1, 4, 2] in JAX" in report.first.diagnosis.text
