"""Weights that functions bring along: modules as operators, closures. They are cast, paired and differentiated."""

import collections
import functools
import types

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

import parity
from parity.operator.brought import lift
from parity.operator.pair import Pair

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((5, 8)),)
FEW = {"worlds": ["torch-eager", "jax-jit"], "data": ["random"], "transforms": ["forward", "vjp"]}


class TorchMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x):
        return self.down(F.gelu(self.norm(self.up(x))))


class NnxMlp(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)
        self.down = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.gelu(self.norm(self.up(x)), approximate=False))


class EquinoxMlp(eqx.Module):
    up: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    down: eqx.nn.Linear

    def __init__(self, eps=1e-5):
        keys = jax.random.split(jax.random.key(0))
        self.up, self.down = eqx.nn.Linear(8, 16, key=keys[0]), eqx.nn.Linear(16, 4, key=keys[1])
        self.norm = eqx.nn.LayerNorm(16, eps=eps)

    def __call__(self, x):
        return jax.vmap(lambda row: self.down(jax.nn.gelu(self.norm(self.up(row)), approximate=False)))(x)


def arrays(model):
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


def to_nnx(weights):
    model = NnxMlp(nnx.Rngs(0))
    for name in ("up", "down"):
        layer = getattr(model, name)
        layer.kernel.set_value(jnp.asarray(weights[f"{name}.weight"].T))
        layer.bias.set_value(jnp.asarray(weights[f"{name}.bias"]))
    return model


def to_equinox(weights, eps=1e-5):
    names = [f"{layer}.{part}" for layer in ("up", "down") for part in ("weight", "bias")]
    return eqx.tree_at(
        lambda m: (m.up.weight, m.up.bias, m.down.weight, m.down.bias),
        EquinoxMlp(eps),
        tuple(jnp.asarray(weights[name]) for name in names),
    )


@pytest.mark.parametrize("make", [to_nnx, to_equinox])
def test_modules_are_operators_whose_weights_are_inputs(make):
    model = TorchMlp()
    pair = Pair(model, make(arrays(model)), X)
    assert (pair.name, pair.weights, pair.note) == ("torchmlp", 6, "")
    report = parity.compare(model, make(arrays(model)), X, **FEW)
    assert report.ok, str(report)
    assert {cell.dtype for cell in report.cells} == {"float64", "float32", "bfloat16"}
    assert all(value.dtype == torch.float32 for value in model.parameters())  # the user's module is as it was


def test_gradients_by_weights_are_compared():
    model = TorchMlp()

    @jax.custom_vjp
    def stopped(w):
        return w

    stopped.defvjp(lambda w: (w, None), lambda _, g: (g * 2,))
    wrong = to_equinox(arrays(model))

    def call(x):
        return eqx.tree_at(lambda m: m.down.weight, wrong, stopped(wrong.down.weight))(x)

    report = parity.compare(model, call, X, **FEW)
    assert {cell.transform for cell in report.failed} == {"vjp"}
    assert "by weights['down.weight']" in str(report)


def test_a_wrong_eps_in_a_module_is_named():
    model = TorchMlp()
    report = parity.compare(model, to_equinox(arrays(model), eps=1e-3), X, **FEW)
    assert {cell.diagnosis.cause for cell in report.failed} == {"default argument: eps"}


W = RNG.standard_normal((8, 4)).astype(np.float32)
TORCH_W, JAX_W = torch.tensor(W), jnp.asarray(W)
LAYER = nn.Linear(8, 4)
KERNEL, BIAS = jnp.asarray(LAYER.weight.detach().numpy().T), jnp.asarray(LAYER.bias.detach().numpy())


def scaled(scale, x):
    return x * scale


CLOSED = {
    "globals": (lambda x: torch.tanh(x @ TORCH_W), lambda x: jnp.tanh(x @ JAX_W)),
    "a layer in a closure": (lambda x: LAYER(x).relu(), lambda x: jax.nn.relu(x @ KERNEL + BIAS)),
    "partial": (
        functools.partial(lambda w, x: x @ w, TORCH_W),
        jax.jit(lambda x: x @ JAX_W),
    ),
    "a bound module of Linen": (LAYER, linen.Dense(4).bind({"params": {"kernel": KERNEL, "bias": BIAS}})),
    "a list of layers": (lambda x: [LAYER][0](x), lambda x: sum([x @ KERNEL, BIAS])),
}


@pytest.mark.parametrize(("theirs", "mine"), CLOSED.values(), ids=CLOSED)
def test_what_is_closed_over_is_cast_and_differentiated(theirs, mine):
    report = parity.compare(theirs, mine, X, **FEW)
    assert report.ok, str(report)
    assert lift(theirs, mine).weights


def test_an_array_of_one_side_alone_is_cast_and_said():
    pair = Pair(lambda x: LAYER(x), lambda x: x @ KERNEL, X, name="p")
    assert pair.weights == 1
    assert "LAYER.bias in torch" in pair.note
    report = parity.compare(lambda x: LAYER(x), lambda x: x @ KERNEL, X, **FEW)
    assert {cell.diagnosis.cause for cell in report.failed} == {"another formula: bias"}


def test_equal_arrays_are_told_apart_by_name_or_not_paired():
    a, b = torch.zeros(3), torch.zeros(3)
    left, right = jnp.zeros(3), jnp.zeros(3)
    lifted = lift(lambda x: x + a * 2 + b, lambda x: x + left * 2 + right)
    assert lifted.weights == {}
    assert lifted.alone == {"torch": ("a", "b"), "jax": ("left", "right")}


def test_functions_that_bring_nothing_are_left_alone():
    assert lift(torch.tanh, jnp.tanh) is None
    assert lift(lambda x: x + np.ones(3), lambda x: x) is None


SQUARE = torch.zeros(4, 4), jnp.zeros((4, 4)), torch.eye(4), jnp.eye(4)
UNIT_AXES = torch.arange(1.0, 5).reshape(1, 1, 4), jnp.arange(1.0, 5).reshape(1, 4, 1)


def test_no_order_of_axes_is_guessed():
    for theirs, mine in (SQUARE[:2], SQUARE[2:]):
        functions = (lambda x: torch.tanh(F.linear(x, theirs)), lambda x: jnp.tanh(x @ mine))  # noqa: B023
        assert lift(*functions).alone == {"torch": ("theirs",), "jax": ("mine",)}
        report = parity.compare(*functions, (X[0][:, :4],), **{**FEW, "dtypes": ["float64"]})
        assert report.ok, str(report)
        assert "theirs in torch" in Pair(*functions, (X[0][:, :4],)).note
    left, right = UNIT_AXES
    assert set(lift(lambda x: x * left, lambda x: x * right).weights) == {"left"}


def batch_norms(train):
    theirs, mine = nn.BatchNorm1d(8), nnx.BatchNorm(8, epsilon=1e-5, momentum=0.9, rngs=nnx.Rngs(0))
    theirs.running_mean.copy_(torch.linspace(-1, 1, 8))
    mine.mean.set_value(jnp.asarray(theirs.running_mean.numpy()))
    (theirs.train if train else theirs.eval)()
    return theirs, (mine.train if train else mine.eval)() or mine


def test_buffers_are_not_differentiated_and_modules_not_written_to():
    theirs, mine = batch_norms(train=False)
    assert set(lift(theirs, mine).weights) <= {"weight", "bias"}
    report = parity.compare(theirs, lambda x: mine(x), X, **{**FEW, "dtypes": ["float64", "float32"]})
    assert report.ok, str(report)
    theirs, mine = batch_norms(train=True)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    parity.compare(theirs, lambda x: mine(x), X, **{**FEW, "dtypes": ["float64"], "transforms": ["forward"]})
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_a_frozen_parameter_is_cast_alone():
    layer = nn.Linear(8, 4)
    layer.bias.requires_grad_(False)
    kernel, bias = jnp.asarray(layer.weight.detach().numpy().T), jnp.asarray(layer.bias.detach().numpy())
    assert set(lift(layer, lambda x: x @ kernel + bias).weights) == {"weight"}


class Plain:
    def __init__(self, weight):
        self.weight = weight
        self.itself = self

    def __call__(self, x):
        return x @ self.weight


Parts = collections.namedtuple("Parts", ["weight"])
STATE, PARTS = collections.OrderedDict(weight=TORCH_W), Parts(TORCH_W)
VIEW = types.MappingProxyType({"weight": JAX_W})


def again(x, left=1):
    return again(x, left - 1) if left else x @ TORCH_W


def of_closures():
    def again(x, left=1):
        return again(x, left - 1) if left else x @ JAX_W

    return again


HELD = {
    "an OrderedDict, a view": (lambda x: x @ STATE["weight"], lambda x: x @ VIEW["weight"]),
    "a namedtuple": (lambda x: x @ PARTS.weight, lambda x: x @ Parts(JAX_W).weight),
    "instances": (Plain(TORCH_W), Plain(JAX_W)),
    "a bound method": (Plain(TORCH_W).__call__, Plain(JAX_W).__call__),
    "functions that call themselves": (again, of_closures()),
}


@pytest.mark.parametrize(("theirs", "mine"), HELD.values(), ids=HELD)
def test_weights_are_found_where_they_are_held(theirs, mine):
    lifted = lift(theirs, mine)
    assert len(lifted.weights) == 1
    assert lifted.alone == {"torch": (), "jax": ()}
    ((name, values),) = lifted.weights.items()
    x = torch.ones(2, 8, dtype=torch.float64)
    found = lifted.torch(x, {name: torch.from_numpy(2 * values)})
    np.testing.assert_array_equal(found, x.numpy() @ (2 * values))
    np.testing.assert_allclose(lifted.jax(jnp.ones((2, 8)), {name: jnp.asarray(2 * values)}), found, rtol=1e-5)


def test_what_is_lifted_is_not_lifted_again():
    lifted = lift(*CLOSED["globals"])
    assert lift(lifted.torch, lifted.jax) is None
    layer = lift(LAYER, lambda x: x @ KERNEL + BIAS)
    assert lift(layer.torch, layer.jax) is None
