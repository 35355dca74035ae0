"""Trials H3 to H5, M2 in JAX: masks and constants that changed behind a hold or a layer are noticed (S7, S8)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as me
from maskedlinear_core import columns

O, I = 4, 6
X = np.random.default_rng(0).standard_normal((8, I)).astype(np.float32)


def test_h5_another_mask_under_a_held_optimizer_is_noticed_in_jax():
    layer = mj.MaskedLinear(I, O, bias=False, grad_mask=columns([1]), seed=0)
    optimizer = mj.hold_frozen(optax.adamw(0.1, weight_decay=0.1), layer)
    params, rest = mj.partition(layer)
    state = optimizer.init(params)

    def gradient(params, rest, penalty=0.0):
        def loss(params):
            layer = mj.combine(params, rest)
            return jnp.square(layer(X)).mean() + penalty * jnp.square(layer.weight).sum()

        return jax.grad(loss)(params)

    for penalty in (0.0, 0.1):  # a penalty on the whole weight reaches frozen entries, and is held
        updates, state = optimizer.update(gradient(params, rest, penalty), state, params)
        params = mj.apply_updates(params, updates)
    changed = mj.combine(params, rest).replace(grad_mask=columns([2]))
    before, (params, rest) = params, mj.partition(changed)
    with pytest.raises(ValueError, match=r"hold_frozen: weight: expected a gradient of zero where the mask freezes it"):
        optimizer.update(gradient(params, rest), state, params)
    updates, state = optimizer.update(gradient(params, rest), state, params, masks=mj.grad_masks(changed))
    params = mj.apply_updates(params, updates)
    assert mj.assert_frozen({"w": before.weight}, {"w": params.weight}, {"w": columns([2])}) == (I - 1) * O
    assert bool((params.weight[:, 2] != before.weight[:, 2]).all())


PENALTIES = {
    "all": lambda w: jnp.square(w).sum(),
    "large ones": lambda w: jnp.maximum(jnp.abs(w) - 0.3, 0).sum(),
    "too small for the rest": lambda w: (1e-38 * jnp.square(1e-5 * w)).sum() + 1e-44 * jnp.square(w).sum(),
    "some rows": lambda w: jnp.square(w[:2]).sum(),
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_h5_a_penalty_is_held_and_one_on_some_places_needs_the_masks(name, compiled):
    layer = mj.MaskedLinear(I, O, bias=False, grad_mask=columns([1]), seed=0)
    optimizer = mj.hold_frozen(optax.sgd(0.1), layer)
    params, rest = mj.partition(layer)
    state = optimizer.init(params)

    def loss(params):
        layer = mj.combine(params, rest)
        return jnp.square(layer(X)).mean() + PENALTIES[name](layer.weight)

    gradient = jax.grad(loss)(params)
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    masks = {}
    if name == "some rows":
        kind = jax.errors.JaxRuntimeError if compiled else ValueError
        with pytest.raises(kind, match=r"that are; a penalty on some places of the weight .* masks="):
            jax.block_until_ready(update(gradient, state, params))
        masks = {"masks": mj.grad_masks(layer)}
    updates, _ = update(gradient, state, params, **masks)
    after = mj.apply_updates(params, updates)
    assert mj.assert_frozen({"w": params.weight}, {"w": after.weight}, {"w": columns([1])}) == (I - 1) * O
    assert bool((after.weight[:, 1] != params.weight[:, 1]).all())


def test_h5_another_mask_stops_a_compiled_step():
    layer = mj.MaskedLinear(I, O, bias=False, grad_mask=columns([1]), seed=0)
    optimizer = mj.hold_frozen(optax.adamw(0.1, weight_decay=0.1), layer)
    params, rest = mj.partition(layer)

    @jax.jit
    def step(params, rest, state, penalty, masks=None):
        def loss(params):
            layer = mj.combine(params, rest)
            return jnp.square(layer(X)).mean() + penalty * jnp.square(layer.weight).sum()

        given = {} if masks is None else {"masks": masks}
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, **given)
        return mj.apply_updates(params, updates), state

    stepped, state = step(params, rest, optimizer.init(params), 0.1)  # a penalty reaches all frozen entries
    assert mj.assert_frozen(layer, mj.combine(stepped, rest)) == (I - 1) * O
    other = layer.replace(grad_mask=columns([2]))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"hold_frozen: weight: expected a gradient of zero .* masks="):
        jax.block_until_ready(step(stepped, mj.partition(other)[1], state, 0.0))
    again, _ = step(stepped, mj.partition(other)[1], state, 0.0, mj.grad_masks(other))
    assert mj.assert_frozen({"w": stepped.weight}, {"w": again.weight}, {"w": columns([2])}) == (I - 1) * O


def test_h3_a_mask_that_does_not_fit_is_refused_by_init_in_jax():
    optimizer = mj.hold_frozen(optax.sgd(0.1), {"a": columns([1])})
    with pytest.raises(ValueError, match=r"mask of a: expected a weight of shape"):
        optimizer.init({"a": jnp.ones(3)})


@pytest.mark.parametrize("change", ["averaged", "cast"])
def test_h4_a_constant_that_was_averaged_or_cast_is_noticed_in_jax(change):
    layer = mj.PackedLinear(I, O, grad_mask=columns([1]), seed=0)
    by = {"averaged": lambda leaf: leaf * 0.9 + leaf * 0.1, "cast": lambda leaf: leaf.astype(jnp.bfloat16)}[change]
    with pytest.raises(TypeError, match=r"PackedLinear: expected its constant matrix as the bits of float32"):
        jax.tree.map(by, layer)(X)
    parameters = jax.tree.map(lambda leaf: leaf * 0.5 + leaf * 0.5, mj.partition(layer)[0])
    np.testing.assert_array_equal(mj.combine(parameters, mj.partition(layer)[1]).weight, layer.weight)


def test_m2_equinox_tree_at_of_a_packed_weight_is_refused():
    layer = me.PackedLinear(I, O, grad_mask=columns([1]), seed=0)
    with pytest.raises(TypeError, match=r"make a layer of another weight by from_linear"):
        eqx.tree_at(lambda layer: layer.weight, layer, jnp.zeros((O, I)))
