"""Layers stacked along an axis, for a scan or a vmap over them: held, compared, counted, or refused in words."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
from maskedlinear_core import blocks, columns, elements, rows

N, SIZE = 3, 6
X = jnp.asarray(np.random.default_rng(0).standard_normal((5, SIZE)), jnp.float32)
EYE = np.eye(SIZE, dtype=bool)
MASKS = {
    "columns": lambda i: columns([1, i + 2]),
    "blocks": lambda i: blocks(np.roll(np.eye(3, dtype=bool), i, 0), (2, 2)),
    "elements": lambda i: elements(np.roll(EYE, i, 0)),
    "the same for all": lambda i: columns(slice(0, 2)),
}
FORMS = pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
DECAYS = optax.adamw(0.1, weight_decay=0.3)


def layer(i, mask, packed):
    made = mj.MaskedLinear(SIZE, SIZE, grad_mask=mask, bias_mask=np.arange(SIZE) == i, seed=i)
    return mj.PackedLinear.from_linear(made, grad_mask=mask, bias_mask=np.arange(SIZE) == i) if packed else made


def scanned(model):
    return (jax.lax.scan(lambda x, one: (jnp.tanh(one(x)), None), X, model)[0] ** 2).mean()


@FORMS
@pytest.mark.parametrize("name", MASKS)
def test_h3_a_scan_over_layers_is_held(name, packed):
    layers = [layer(i, MASKS[name](i), packed) for i in range(N)]
    model = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    optimizer = DECAYS if packed else mj.hold_frozen(DECAYS, model)
    params, rest = mj.partition(model)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda params: scanned(mj.combine(params, rest)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = step(params, state)
    trained = mj.combine(params, rest)
    one_by_one = [
        mj.assert_frozen(one, jax.tree.map(lambda leaf, i=i: leaf[i], trained)) for i, one in enumerate(layers)
    ]
    assert mj.assert_frozen(model, trained) == sum(one_by_one) == mj.summary(model).frozen
    assert scanned(trained) < scanned(model)
    moved = trained.replace(**({"base_bits": trained.base_bits + 1} if packed else {"weight": trained.weight + 1}))
    with pytest.raises(AssertionError, match=r"\[2\]\.weight: \d+ of \d+ frozen entries moved"):
        mj.assert_frozen(model, moved)
    with pytest.raises(ValueError, match=r"save_packed: the layer: expected one layer, got a stack of them"):
        mj.packed_bytes(model)


def test_h3_a_vmap_of_equinox_models_is_held():
    def made(key):
        return in_equinox.mask_linears(eqx.nn.MLP(SIZE, 2, 4, 1, key=key), {"layers.0": columns([1])})

    model = eqx.filter_vmap(made)(jax.random.split(jax.random.key(0), N))  # its masks are not stacked, being NumPy
    optimizer = mj.hold_frozen(DECAYS, model)
    params = eqx.filter(model, eqx.is_inexact_array)
    gradient = eqx.filter_grad(lambda model: (eqx.filter_vmap(lambda one: jax.vmap(one)(X))(model) ** 2).mean())(model)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    trained = eqx.apply_updates(model, updates)
    assert mj.assert_frozen(model, trained) == N * 4 * (SIZE - 1)
    with pytest.raises(ValueError, match=r"mask_linears: layers.0: expected one layer, got a stack"):
        in_equinox.mask_linears(
            eqx.filter_vmap(lambda key: eqx.nn.MLP(SIZE, 2, 4, 1, key=key))(jax.random.split(jax.random.key(0), N)),
            {"layers.0": columns([1])},
        )


@FORMS
def test_h3_a_scan_over_nnx_layers_is_held(packed):
    def stack(make):
        return nnx.split_rngs(splits=N)(nnx.vmap(make, in_axes=(0,), out_axes=0))(nnx.Rngs(0))

    def plain(rngs):
        return nnx.Sequential(nnx.Linear(SIZE, SIZE, rngs=rngs), jnp.tanh)

    model = stack(lambda rngs: in_nnx.mask_linears(plain(rngs), {"layers.0": columns([1])}, packed=packed))
    before = nnx.clone(model)
    optimizer = nnx.Optimizer(model, DECAYS if packed else mj.hold_frozen(DECAYS, model), wrt=nnx.Param)
    forward = nnx.scan(lambda x, one: one(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    for _ in range(2):
        optimizer.update(model, nnx.grad(lambda model: (forward(X, model) ** 2).mean())(model))
    assert mj.assert_frozen(before, model) == N * SIZE * (SIZE - 1)
    with pytest.raises(ValueError, match=r"save_packed: layers.0: expected one layer, got a stack of them"):
        in_nnx.packed_bytes(model)
    with pytest.raises(ValueError, match=r"mask_linears: layers.0: expected one layer, got a stack"):
        in_nnx.mask_linears(stack(plain), {"layers.0": columns([1])}, packed=packed)


@pytest.mark.parametrize("name", MASKS)
def test_the_weight_of_packed_layers_that_are_stacked_is_theirs(name):
    """It was refused as an index of two axes."""
    layers = [layer(i, MASKS[name](i), True) for i in range(N)]
    model = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), model)
    for part in ("weight", "bias"):
        want = jnp.stack([getattr(one, part) for one in layers])
        assert (getattr(model, part) == want).all()
        assert (jax.jit(lambda model, part=part: getattr(model, part))(model) == want).all()
        assert (getattr(twice, part) == want).all()
        assert getattr(twice, part).shape == (2, *want.shape)
    with pytest.raises(
        ValueError, match=r"got shape \(3, 6, 6\); .* inside of the vmap or scan that goes over a stack"
    ):
        model(X)


@FORMS
@pytest.mark.parametrize("mask", [columns([1, 4]), elements(EYE[:4]), columns([1]) | rows([2])], ids=str)
def test_a_checkpoint_of_what_jit_returned_is_loaded_into_a_fresh_model(mask, packed):
    fresh = in_equinox.mask_linears(eqx.nn.MLP(SIZE, 2, 4, 1, key=jax.random.key(0)), {"layers.0": mask}, packed=packed)
    trained = eqx.filter_jit(lambda model: model)(fresh)
    for saved, like in ((trained, fresh), (fresh, trained)):
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, saved)
        file.seek(0)
        loaded = eqx.tree_deserialise_leaves(file, like)
        assert (jax.vmap(loaded)(X) == jax.vmap(fresh)(X)).all()
