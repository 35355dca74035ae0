"""Gradients, running statistics and optimizer steps of a torch model and its JAX port, beside each other."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.models import optimizers, training
from parity.models.backward import Backward
from parity.models.inputs import Inputs, of_both

IMAGE = np.random.default_rng(0).normal(size=(2, 3, 5, 5)).astype(np.float32)
BOTH = Inputs(torch=(IMAGE,), jax=(IMAGE.transpose(0, 2, 3, 1),))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))


class Nnx(nnx.Module):
    def __init__(self, momentum: float = 0.9) -> None:
        rngs = nnx.Rngs(0)
        self.conv1 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(4, momentum=momentum, epsilon=1e-5, rngs=rngs)
        self.conv2 = nnx.Conv(4, 5, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv2(jax.nn.relu(self.bn(self.conv1(x))))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = linen.Conv(4, (3, 3))(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
        return linen.Conv(5, (3, 3))(jax.nn.relu(x))


class Equinox(eqx.Module):
    conv1: eqx.nn.Conv2d
    bn: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d

    def __init__(self) -> None:
        key = jax.random.key(0)
        self.conv1 = eqx.nn.Conv2d(3, 4, 3, padding=1, key=key)
        self.bn = eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode="batch")
        self.conv2 = eqx.nn.Conv2d(4, 5, 3, padding=1, key=key)

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.bn(self.conv1(x), state)
        return self.conv2(jax.nn.relu(x)), state


def linen_model() -> Any:
    return Linen(), Linen().init(jax.random.key(0), jnp.ones((1, 5, 5, 3)))


PORTS = {
    "nnx": (Nnx, BOTH, False),
    "linen": (linen_model, BOTH, False),
    "equinox": (lambda: eqx.nn.make_with_state(Equinox)(), (IMAGE,), True),
}


def run_of(model: nn.Module, port: Any, inputs: Any, **options: Any) -> Backward:
    """Return both models with torch's weights in both."""
    found = parity.map_weights(model, port)
    port = found.load_into_jax(model, port)
    return Backward(model, port, of_both(inputs), found, **options)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("framework", PORTS)
def test_gradients_and_statistics_of_a_right_port(framework):
    make, inputs, mapped = PORTS[framework]
    run = run_of(convolutions(), make(), inputs, mode="train", mapped=mapped)
    gradients = run.compare()
    assert len(gradients) == 7  # 6 parameters and the input
    assert {one.verdict for one in gradients} <= {"identical", "within bound"}, gradients
    assert max(one.error for one in gradients) < 1e-9
    mean, variance = training.statistics(run)
    assert mean.verdict == "within bound"
    assert variance.verdict == "not judged"
    assert "unbiased one of 50 numbers, over 49" in variance.reason


def test_gradients_are_those_of_torch():
    """The values that are compared, against torch.autograd by hand."""
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    run = run_of(model, linear_port(), (x.detach().numpy(),), loss=lambda out: (out**2).sum())
    (model(x) ** 2).sum().backward()
    taken = run.of_torch()
    assert np.allclose(taken.weights["weight"], model.weight.grad.numpy(), rtol=1e-14)
    assert np.allclose(taken.inputs["0"], x.grad.numpy(), rtol=1e-14)
    assert np.allclose(run.of_jax().weights["kernel"], model.weight.grad.numpy().T, rtol=1e-14)


def linear_port(function: Any = None) -> Any:
    params = {"kernel": jnp.zeros((3, 2), jnp.float32), "bias": jnp.zeros(2, jnp.float32)}
    return (function or (lambda p, x: x @ p["kernel"] + p["bias"]), params)


WRONG = {
    "stopped": (
        lambda p, x: x @ jax.lax.stop_gradient(p["kernel"]) + p["bias"],
        {"weight": "no gradient reaches it in JAX"},
    ),
    "stopped input": (
        lambda p, x: jax.lax.stop_gradient(x) @ p["kernel"] + p["bias"],
        {"input 0": "no gradient reaches it in JAX"},
    ),
    "scaled": (
        lambda p, x: x @ (p["kernel"] + 0.5 * (p["kernel"] - jax.lax.stop_gradient(p["kernel"]))) + p["bias"],
        {"weight": "torch's times 1.5"},
    ),
    "1e-6 off": (
        lambda p, x: x @ p["kernel"] + p["bias"] + 1e-6 * (p["bias"] - jax.lax.stop_gradient(p["bias"])),
        {"bias": "torch's times 1"},
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_gradient_of_a_right_forward_is_named(fault):
    function, expected = WRONG[fault]
    x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    found = {one.torch: one for one in run_of(nn.Linear(3, 2), linear_port(function), (x,)).compare()}
    wrong = {name: one.reason for name, one in found.items() if one.verdict == "differs"}
    assert wrong.keys() == expected.keys(), found
    for name, text in expected.items():
        assert text in wrong[name]


def test_frozen_weights_are_named():
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    x = np.ones((4, 3), np.float32)
    found = {one.torch: one for one in run_of(model, linear_port(), (x,)).compare()}
    assert found["weight"].verdict == "not judged"
    assert "frozen in torch (requires_grad=False), not in JAX" in found["weight"].reason
    assert found["bias"].verdict in ("identical", "within bound")


def test_a_gradient_through_no_weight_is_zero_on_both_sides():
    """The bias of attention's keys has no gradient but rounding's: it is no difference."""

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.attn(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attn(x, x, x)[0]

    x = np.random.default_rng(2).normal(size=(2, 4, 8)).astype(np.float32)
    found = run_of(Model(), Port(), (x,)).compare()
    key = next(one for one in found if "key.bias" in one.jax)
    assert {one.verdict for one in found} <= {"identical", "within bound"}, found
    assert key.error < 1  # of a millionth of the model's largest gradient


def test_a_tied_weight_has_the_sum_of_both_uses():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.embed(ids)))

    def untied(p: Any, ids: jax.Array) -> jax.Array:
        return jnp.tanh(p["embed"]["embedding"][ids]) @ p["head"]["kernel"]

    params = {"embed": {"embedding": jnp.zeros((7, 4))}, "head": {"kernel": jnp.zeros((4, 7))}}
    ids = np.array([[1, 2, 3], [3, 5, 6]])
    (one,) = run_of(Model(), (untied, params), (ids,)).compare()
    assert one.jax == "embed.embedding, head.kernel"
    assert one.verdict == "within bound"


def test_a_loss_that_is_no_number_is_refused():
    x = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"loss of torch's outputs: expected one number, got shape \(4, 2\)"):
        run_of(nn.Linear(3, 2), linear_port(), (x,), loss=lambda out: out).compare()


def test_a_pair_of_losses():
    x = np.ones((4, 3), np.float32)
    both = lambda out: out.pow(2).mean(), lambda out: jnp.square(out).mean()
    found = run_of(nn.Linear(3, 2), linear_port(), (x,), loss=both).compare()
    assert {one.verdict for one in found} <= {"identical", "within bound"}


OPTIMIZERS = [
    "sgd",
    ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("adamw", {"lr": 0.01}),
    ("rmsprop", {"momentum": 0.5, "centered": True}),
    (functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=1e-4), optax.adamw(0.01)),
]


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    torch.manual_seed(1)
    return nn.Linear(3, 2), np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: str(one[0] if isinstance(one, tuple) else one)[:24])
def test_the_same_optimizer_makes_the_same_steps(small, optimizer):
    model, x = small
    before = model.weight.detach().clone()
    made = training.train(run_of(model, linear_port(), (x,)), optimizer, steps=4)
    assert {one.verdict for one in made.parameters} <= {"identical", "within bound"}, made.parameters
    assert len(made.distances) == len(made.losses) == 4
    assert max(made.distances) < 1e-6
    assert torch.equal(model.weight, before)


def test_other_optimizers_are_named(small):
    model, x = small
    made = training.train(
        run_of(model, linear_port(), (x,)), (functools.partial(torch.optim.AdamW, lr=0.01), optax.adamw(0.01))
    )
    assert "another weight decay" in made.parameters[0].reason
    made = training.train(
        run_of(model, linear_port(), (x,)), (functools.partial(torch.optim.SGD, lr=0.1), optax.sgd(0.2))
    )
    assert {one.verdict for one in made.parameters} == {"differs"}
    assert "2 times torch's: another learning rate" in made.parameters[0].reason
    assert made.distances[0] > 0.1


def test_another_momentum_of_a_statistic_is_named():
    run = run_of(convolutions(), Nnx(momentum=0.99), BOTH, mode="train")
    mean, variance = training.statistics(run)
    assert mean.verdict == variance.verdict == "differs"
    assert "JAX's moves 0.1 times as far as torch's: another momentum" in mean.reason


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("adamax", ValueError, "optimizer: expected one of sgd, adam, adamw, rmsprop, got 'adamax'"),
        (("sgd", {"beta": 1}), ValueError, "an option of sgd: expected one of lr, momentum, nesterov"),
        ((torch.optim.SGD, 3), TypeError, "and a transformation of optax, got type and int"),
        (3, TypeError, "optimizer: expected a name"),
    ],
    ids=["name", "option", "pair", "number"],
)
def test_an_optimizer_that_is_none_is_refused(given, error, text):
    with pytest.raises(error, match=text):
        optimizers.both(given)
