"""What the twins must do together in every version that pyproject.toml allows: files, gradients, a step of training."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from problem import NAMES, integers, masks
from torch import nn

import maskedlinear_jax
import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch

IN_TORCH, IN_JAX = masks(maskedlinear_torch), masks(maskedlinear_jax)
X, W, B = integers()
each_kind = pytest.mark.parametrize("name", NAMES)


@each_kind
@pytest.mark.parametrize("precision", ["native", "reproducible"])
def test_one_step_of_training_gives_the_same_bits(name, precision):
    layer = maskedlinear_torch.MaskedLinear(6, 4, grad_mask=IN_TORCH[name], seed=0, precision=precision)
    twin = maskedlinear_jax.MaskedLinear(6, 4, grad_mask=IN_JAX[name], seed=0, precision=precision)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(W))
        layer.bias.copy_(torch.from_numpy(B))
    twin = twin.replace(weight=jnp.asarray(W), bias=jnp.asarray(B))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    maskedlinear_torch.hold_frozen(optimizer, layer)
    layer(torch.from_numpy(X)).square().sum().backward()
    optimizer.step()
    params, rest = maskedlinear_jax.partition(twin)
    rule = maskedlinear_jax.hold_frozen(optax.sgd(0.5), twin)
    gradient = jax.grad(lambda params: (maskedlinear_jax.combine(params, rest)(X) ** 2).sum())(params)
    updates, _ = rule.update(gradient, rule.init(params), params)
    params = maskedlinear_jax.apply_updates(params, updates)
    np.testing.assert_array_equal(layer.weight.detach().numpy(), params.weight)
    np.testing.assert_array_equal(layer.bias.detach().numpy(), params.bias)
    assert (layer.weight.detach().numpy() != W).any()


class Net(nnx.Module):
    """Two layers of Flax NNX, named as those in torch."""

    def __init__(self):
        self.first, self.second = nnx.Linear(6, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x)))


class EqxNet(eqx.Module):
    """Two layers of Equinox, named as those in torch."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self):
        self.first, self.second = (eqx.nn.Linear(*size, key=jax.random.key(0)) for size in ((6, 8), (8, 2)))

    def __call__(self, x):
        return jax.vmap(lambda row: self.second(jax.nn.relu(self.first(row))))(x)


class TorchNet(nn.Module):
    """Two layers whose weights are small integers, so that every order of sums gives the same bits."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.from_numpy(rng.integers(-2, 3, tuple(parameter.shape)).astype(np.float32)))

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def trained():
    """Return a packed torch model of which some numbers have moved, and its file as bytes."""
    model = maskedlinear_torch.mask_linears(
        TorchNet(), {"first": maskedlinear_torch.columns([0, 3]), "second": maskedlinear_torch.rows([1])}, packed=True
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    return model, maskedlinear_torch.packed_bytes(model, with_base=True)


def test_a_file_of_torch_is_loaded_by_each_jax_library_and_back():
    model, file = trained()
    want = model(torch.from_numpy(X)).detach().numpy()
    assert (want != TorchNet()(torch.from_numpy(X)).detach().numpy()).any()
    flax_model = Net()
    in_nnx.load_packed(file, flax_model)
    eqx_model = in_equinox.load_packed(file, EqxNet())
    np.testing.assert_array_equal(flax_model(X), want)
    np.testing.assert_array_equal(eqx_model(jnp.asarray(X)), want)
    for adapter, other in ((in_nnx, flax_model), (in_equinox, eqx_model)):
        back = maskedlinear_torch.load_packed(adapter.packed_bytes(other, with_base=True), TorchNet())
        np.testing.assert_array_equal(back(torch.from_numpy(X)).detach(), want)


def test_new_tokens_of_torch_are_loaded_in_jax():
    table = nn.Embedding(6, 4)
    model = nn.ModuleDict({"tokens": copy.deepcopy(table)})
    maskedlinear_torch.train_new_tokens(model, first=4)
    with torch.no_grad():
        model["tokens"].values += 1
    file = maskedlinear_torch.packed_bytes(model, with_base=True)
    plain = maskedlinear_jax.MaskedEmbedding(6, 4, grad_mask=maskedlinear_jax.columns(slice(None)), seed=0)
    loaded = maskedlinear_jax.load_packed(file, {"tokens": plain})["tokens"]
    numbers = np.arange(6)
    np.testing.assert_array_equal(loaded(numbers), model["tokens"](torch.from_numpy(numbers)).detach())
    np.testing.assert_array_equal(np.asarray(loaded(numbers))[:4], table.weight.detach()[:4])
