"""Norms around a module: the layer whose weight they compute is refused, the layers beside it are masked (M7, S8)."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
from maskedlinear_core import columns

FORMS = pytest.mark.parametrize("packed", [False, True])


class Around(eqx.Module):
    """A weight of its own, which a norm computes, behind a linear layer and a normed one."""

    weight: jax.Array
    inner: eqx.nn.Linear
    normed: eqx.Module

    def __call__(self, x):
        return self.weight @ self.normed(self.inner(x))


def in_a_norm():
    one, two = (eqx.nn.Linear(3, 3, key=jax.random.key(at)) for at in range(2))
    return {"part": eqx.nn.WeightNorm(Around(jnp.ones((3, 3)), one, eqx.nn.WeightNorm(two)))}


@FORMS
def test_an_equinox_norm_of_a_module_leaves_the_layers_inside_to_be_masked(packed):
    model, x = in_a_norm(), jnp.arange(3.0)
    made = in_equinox.mask_linears(model, {"part.layer.inner": columns([0])}, packed=packed)
    assert type(made["part"].layer.inner) is (in_equinox.PackedLinear if packed else in_equinox.MaskedLinear)
    np.testing.assert_allclose(made["part"](x), model["part"](x), rtol=1e-6)  # a product of three terms
    assert type(in_equinox.unmask_linears(made)["part"].layer.inner) is eqx.nn.Linear


@FORMS
@pytest.mark.parametrize("name", ["part.layer.normed.layer", "part.layer.*"])
def test_the_layer_that_an_equinox_norm_is_put_over_is_refused(name, packed):
    with pytest.raises(TypeError, match=r"part\.layer\.normed\.layer: expected a weight and bias that are parameters"):
        in_equinox.mask_linears(in_a_norm(), {name: columns([0])}, packed=packed, strict=True)


def test_a_norm_that_is_frozen_refuses_all_layers_inside():
    for name in ("part.layer.inner", "part.layer.normed.layer"):
        with pytest.raises(TypeError, match=re.escape(f"{name}: expected a weight and bias that are parameters")):
            in_equinox.mask_linears(in_a_norm(), {name: columns([0])}, freeze_others=True)


class Two(nnx.Module):
    """A linear layer and one that is normed."""

    def __init__(self):
        self.free, self.normed = (nnx.Linear(4, 4, rngs=nnx.Rngs(at)) for at in range(2))

    def __call__(self, x):
        return self.normed(self.free(x))


def chosen():
    only = nnx.All(nnx.PathContains("normed"), nnx.PathContains("kernel"))
    return nnx.WeightNorm(Two(), variable_filter=only, rngs=nnx.Rngs(0))


@FORMS
@pytest.mark.parametrize("freeze", [False, True])
def test_an_nnx_norm_leaves_the_layers_that_it_passes_by_to_be_masked(packed, freeze):
    model, x = chosen(), jnp.ones((1, 4))
    before = model(x)
    in_nnx.mask_linears(model, {"layer_instance.free": columns([1])}, packed=packed, freeze_others=freeze)
    assert type(model.layer_instance.free) is (in_nnx.PackedLinear if packed else in_nnx.MaskedLinear)
    np.testing.assert_allclose(model(x), before, rtol=1e-6)  # the norm of a kernel that it has normed already


@FORMS
def test_the_layer_that_an_nnx_norm_writes_to_is_refused(packed):
    with pytest.raises(TypeError, match=r"layer_instance\.normed: expected a weight and bias that are parameters"):
        in_nnx.mask_linears(chosen(), {"layer_instance.normed": columns([1])}, packed=packed)
    whole = nnx.SpectralNorm(Two(), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"layer_instance\.free: expected a weight and bias that are parameters"):
        in_nnx.mask_linears(whole, {"layer_instance.free": columns([1])}, packed=packed)
