"""What `freeze_others` froze stays so: counted, compared, and after a file was loaded, in every variant."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import nnx

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_jax import equinox as me
from maskedlinear_jax import nnx as mn

PACKED = pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])


class Torch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2)


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.n, self.b = (
            nnx.Linear(4, 3, rngs=rngs),
            nnx.LayerNorm(3, rngs=rngs),
            nnx.Linear(3, 2, rngs=rngs),
        )

    def __call__(self, x):
        return self.b(self.n(self.a(x)))


class Equinox(eqx.Module):
    a: eqx.nn.Linear
    n: eqx.nn.LayerNorm
    b: eqx.nn.Linear

    def __init__(self):
        one, two = jax.random.split(jax.random.key(0))
        self.a, self.n, self.b = eqx.nn.Linear(4, 3, key=one), eqx.nn.LayerNorm(3), eqx.nn.Linear(3, 2, key=two)


def moved_torch(model, path):
    with torch.no_grad():
        model.get_parameter(path).add_(1)
    return model


def moved_nnx(model, path):
    variable = {"a.bias": model.a.bias, "n.weight": model.n.scale}[path]
    variable.set_value(variable.get_value() + 1)
    return model


def moved_equinox(model, path):
    if path == "a.bias":
        return eqx.tree_at(lambda m: m.a.bias, model, model.a.bias + 1)
    return eqx.tree_at(lambda m: m.n.weight, model, mj.constant.Constant(model.n.weight + 1), is_leaf=lambda n: False)


VARIANTS = {
    "torch": (mt, Torch, copy.deepcopy, moved_torch),
    "nnx": (mn, Nnx, nnx.clone, moved_nnx),
    "equinox": (me, Equinox, lambda model: model, moved_equinox),
}
VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def made(variant, packed=False):
    library, model, *_ = VARIANTS[variant]
    return library.mask_linears(model(), {"a": library.columns([1]) if variant == "torch" else mj.columns([1])},
                                packed=packed, freeze_others=True)  # fmt: skip


@PACKED
@VARIANT
def test_what_is_frozen_is_counted(variant, packed):
    found = VARIANTS[variant][0].summary(made(variant, packed))
    assert (found.learns, found.frozen) == (3, 26)


@pytest.mark.parametrize("path", ["a.bias", "n.weight"])
@VARIANT
def test_what_is_frozen_is_compared(variant, path):
    library, _, copied, moved = VARIANTS[variant]
    before = made(variant)
    assert library.assert_frozen(before, copied(before)) == 26
    with pytest.raises(AssertionError, match="3 of 3 frozen entries moved"):
        library.assert_frozen(before, moved(copied(before), path))


@PACKED
@VARIANT
def test_a_file_thaws_nothing(variant, packed):
    library = VARIANTS[variant][0]
    model = made(variant, packed)
    loaded = library.load_packed(library.packed_bytes(model), model)
    found = library.summary(model if variant == "torch" else loaded)
    assert (found.learns, found.frozen) == (3, 26)


@PACKED
def test_an_optimizer_of_nnx_steps_on_after_a_file_was_loaded(packed):
    model = made("nnx", packed)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    gradients = nnx.grad(lambda model: (model(jnp.ones((2, 4))) ** 2).sum())
    optimizer.update(model, gradients(model))
    mn.load_packed(mn.packed_bytes(model), model)
    before = nnx.clone(model)
    optimizer.update(model, gradients(model))
    mn.assert_frozen(before, model)
