"""Blocks of a large weight: no more of the batch is gathered at once than comes in, where no cache asks for less."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core import blocks, positions

SIDE, BLOCK, BATCH = 256, 4, 1024
RNG = np.random.default_rng(0)
LEARN = RNG.random((SIDE // BLOCK, SIDE // BLOCK)) < 0.2
MASK = blocks(LEARN, (BLOCK, BLOCK))
X, G = (RNG.integers(-3, 4, (BATCH, SIDE)).astype(np.float32) for _ in range(2))
WANTED = np.where(np.kron(LEARN, np.ones((BLOCK, BLOCK), bool)), G.T @ X, 0)


@pytest.fixture(autouse=True)
def traced_anew():
    """What JAX traced before was traced with another limit."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def little(monkeypatch):
    """What comes in is the limit, not what is little."""
    monkeypatch.setattr(positions, "GATHERED", 1)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor holds that an operator made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.numbers = max(
            [self.numbers, *(one.numel() for one in torch.utils._pytree.tree_leaves(made) if torch.is_tensor(one))]
        )
        return made


def of_torch(dtype):
    weight = torch.zeros(SIDE, SIDE, dtype=dtype, requires_grad=True)
    y = mt.masked_linear(torch.from_numpy(X).to(dtype), weight, grad_mask=MASK)
    with Largest() as largest:
        y.backward(torch.from_numpy(G).to(dtype))
    return weight.grad, largest.numbers


def test_torch_gathers_no_more_than_comes_in(little):
    """Under a mode a sum is not cut for a cache, as on a GPU."""
    found, numbers = of_torch(torch.float32)
    assert np.array_equal(found.numpy(), WANTED)
    assert numbers <= BATCH * SIDE


def test_torch_gathers_all_where_that_is_little():
    _, numbers = of_torch(torch.float32)
    assert numbers == LEARN.sum() * BLOCK * BATCH


def test_torch_gives_the_same_bits_in_16_bits(little, monkeypatch):
    some, _ = of_torch(torch.bfloat16)
    monkeypatch.setattr(positions, "GATHERED", 2**40)
    at_once, _ = of_torch(torch.bfloat16)
    assert torch.equal(some, at_once)
    assert torch.equal(some, torch.from_numpy(WANTED).to(torch.bfloat16))


def of_jax():
    def gradient(g, x):
        return jax.vjp(lambda weight: mj.masked_linear(x, weight, grad_mask=MASK), jnp.zeros((SIDE, SIDE)))[1](g)[0]

    return jax.jit(gradient).trace(jnp.asarray(G), jnp.asarray(X))


def largest_in(text):
    return max(math.prod(map(int, sizes.split("x")[:-1])) for sizes in re.findall(r"tensor<([0-9x]+f32)>", text))


def test_jax_gathers_no_more_than_comes_in(little):
    text = of_jax().lower(lowering_platforms=("cuda",)).as_text()
    assert largest_in(text) <= BATCH * SIDE


def test_jax_gathers_all_where_that_is_little():
    text = of_jax().lower(lowering_platforms=("cuda",)).as_text()
    assert largest_in(text) == LEARN.sum() * BLOCK * BATCH


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_jax_in_pieces_is_right_and_has_derivatives(little, monkeypatch, order):
    """Of 16 bits sums are not cut on a CPU either: the same program as on a GPU runs here."""
    x, g = (jnp.asarray(array, jnp.bfloat16) for array in (X, G))

    def gradient(x):
        return jax.vjp(lambda weight: mj.masked_linear(x, weight, grad_mask=MASK), jnp.zeros((SIDE, SIDE), x.dtype))[1](
            g
        )[0]

    def derivative(x):
        if order == "forward":
            return jax.jvp(gradient, (x,), (x,))[1]
        return jax.vjp(gradient, x)[1](jnp.ones((SIDE, SIDE), x.dtype))[0]

    found = [jax.jit(function)(x) for function in (gradient, derivative)]
    jax.clear_caches()
    monkeypatch.setattr(positions, "GATHERED", 2**40)
    at_once = [jax.jit(function)(x) for function in (gradient, derivative)]
    assert all(np.array_equal(a, b) for a, b in zip(found, at_once, strict=True))
    assert np.array_equal(found[0], jnp.asarray(WANTED, jnp.bfloat16))
