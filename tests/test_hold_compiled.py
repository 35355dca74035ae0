"""What a compiled, held step of JAX puts back, how early, and how a large weight is looked at (contract S8)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskedlinear_jax as mj

OUT, IN = 96, 64
DRAW = np.random.default_rng(0)
MASKS = {
    "columns": mj.columns([3, 5]),
    "rows": mj.rows([3, 5]),
    "elements": mj.elements(DRAW.random((OUT, IN)) < 0.1),
    "blocks": mj.blocks(DRAW.random((6, 4)) < 0.3, (16, 16)),
}
WIDTHS = {"many parts": IN, "a prime": 61, "one column": 1, "an even number": 134}
OPTIMIZERS = {
    "adamw": optax.adamw(0.01),
    "nadamw": optax.nadamw(0.01),
    "amsgrad": optax.amsgrad(0.01),
    "lion": optax.lion(0.01),
    "sgd": optax.sgd(0.01, momentum=0.9),
    "rmsprop": optax.rmsprop(0.01, centered=True, momentum=0.9),
    "16 bits": optax.adamw(0.01, mu_dtype=jnp.bfloat16),
    "not by entry": optax.contrib.muon(0.01),
    "a norm": optax.chain(optax.scale_by_adam(), optax.scale_by_trust_ratio(), optax.scale(-0.01)),
}


def made(mask):
    layer = mj.MaskedLinear(IN, OUT, grad_mask=mask, seed=0)
    return layer, *mj.partition(layer)


def gradient(params, rest):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((7, IN)), jnp.float32)
    return jax.grad(lambda params: jnp.square(mj.combine(params, rest)(x)).mean())(params)


def dirty(state, shape):
    """A state whose frozen entries are not zero, as after a change of the mask."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5) if leaf.shape == shape else leaf, state)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_step_keeps_what_an_eager_one_keeps(kind, name):
    layer, params, rest = made(MASKS[kind])
    held = mj.hold_frozen(OPTIMIZERS[name], layer)
    state = dirty(held.init(params), (OUT, IN))
    grads = gradient(params, rest)
    eager = held.update(grads, state, params)
    compiled = jax.jit(held.update)(grads, state, params)
    where = np.asarray(mj.grad_masks(layer).weight)
    before = jax.tree.leaves(state)
    for one, two in zip(*(jax.tree.leaves(step) for step in (eager, compiled)), strict=True):
        one, two = (np.asarray(array, np.float32) for array in (one, two))
        # Newton and Schulz multiply rounding errors; compiled code rounds otherwise.
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-3 * np.abs(two).max())
    for after in (eager[1], compiled[1]):
        kept = [(new, old) for new, old in zip(jax.tree.leaves(after), before, strict=True) if new.shape == (OUT, IN)]
        assert kept
        for new, old in kept:
            assert (np.asarray(new)[~where] == np.asarray(old)[~where]).all()
    zero = np.asarray(compiled[0].weight)[~where]
    assert (zero == 0).all()
    assert np.signbit(zero).all()


def test_a_held_step_needs_no_copy_of_the_state():
    layer, params, rest = made(MASKS["elements"])

    def temporary(transform):
        def move(params, state):
            updates, state = transform.update(gradient(params, rest), state, params)
            return optax.apply_updates(params, updates), state

        program = jax.jit(move, donate_argnums=(0, 1)).lower(params, transform.init(params)).compile()
        return program.memory_analysis().temp_size_in_bytes

    more = temporary(mj.hold_frozen(optax.adamw(0.01), layer)) - temporary(optax.adamw(0.01))
    assert more < OUT * IN * 4  # one moment alone; a bool for each entry is a quarter of it


@pytest.mark.parametrize("kind", [*MASKS, "few elements"])
def test_gradients_of_blocks_are_turned_into_rows_once(kind):
    mask = MASKS.get(kind, mj.elements(np.random.default_rng(0).random((OUT, IN)) < 1 / 250))
    layer, params, rest = made(mask)
    held = mj.hold_frozen(optax.adamw(0.01), layer)
    program = jax.make_jaxpr(held.update)(gradient(params, rest), held.init(params), params)
    barriers = [step for step in program.jaxpr.eqns if step.primitive.name == "optimization_barrier"]
    assert any(one.invars[0].aval.shape == (OUT, IN) for one in barriers) == (kind == "blocks")


def test_an_infinite_gradient_where_an_entry_is_frozen_does_not_leak():
    layer, params, rest = made(MASKS["columns"])
    held = mj.hold_frozen(optax.adamw(0.01), layer)
    grads = gradient(params, rest)
    bad = grads.replace(weight=jnp.where(mj.grad_masks(layer).weight, grads.weight, jnp.nan))
    updates, state = jax.jit(lambda *given: held.update(*given, masks=mj.grad_masks(layer)))(
        bad, held.init(params), params
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", MASKS)
def test_a_large_weight_whose_mask_changed_is_refused(kind, compiled):
    layer, params, rest = made(MASKS[kind])
    held = mj.hold_frozen(optax.sgd(0.1), layer)
    state = held.init(params)
    update = jax.jit(held.update) if compiled else held.update
    jax.block_until_ready(update(gradient(params, rest), state, params))
    one_more = np.asarray(MASKS["elements"].to_array((OUT, IN))).copy()
    one_more[tuple(np.argwhere(~one_more)[2000])] = True
    other = {
        "columns": mj.columns([3, 6]),
        "rows": mj.rows([3, 6]),
        "blocks": mj.blocks(np.eye(6, 4, dtype=bool), (16, 16)),
        "elements": mj.elements(one_more),
    }[kind]
    _, changed = mj.partition(layer.replace(grad_mask=other))
    with pytest.raises(Exception, match=r"weight: expected a gradient of zero where the mask freezes it"):
        jax.block_until_ready(update(gradient(params, changed), state, params))


@pytest.mark.parametrize("place", [(0, 0), (-1, -1), (17, -2)])
@pytest.mark.parametrize("width", WIDTHS)
def test_one_entry_of_a_large_weight_is_seen_wherever_it_lies(width, place):
    if WIDTHS[width] < 2 and place[1] == -2:
        place = place[0], -1
    shape = (5000, WIDTHS[width])
    held = mj.hold_frozen(optax.sgd(0.1), one := mj.MaskedLinear(shape[1], shape[0], grad_mask=mj.rows([3]), seed=0))
    params, _ = mj.partition(one)
    zero = jax.tree.map(jnp.zeros_like, params)
    # The largest weights of its lines are left out.
    least = params.replace(weight=jnp.ones(shape).at[place].set(0.5))
    state = held.init(least)
    jax.block_until_ready(jax.jit(held.update)(zero, state, least))
    with pytest.raises(Exception, match=r"expected a gradient of zero where the mask freezes it"):
        jax.block_until_ready(jax.jit(held.update)(zero.replace(weight=zero.weight.at[place].set(1)), state, least))


@pytest.mark.parametrize("penalty", ["all of it", "the large ones", "the largest"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_penalty_on_a_large_weight_is_held(penalty, compiled):
    layer, params, rest = made(MASKS["columns"])
    held = mj.hold_frozen(optax.adamw(0.1), layer)
    of = {
        "all of it": lambda w: jnp.square(w).sum(),
        "the large ones": lambda w: jax.nn.relu(jnp.abs(w) - 0.1).sum(),
        "the largest": lambda w: jnp.abs(w).max(),
    }[penalty]
    grads = jax.tree.map(jnp.add, gradient(params, rest), jax.grad(lambda p: of(p.weight))(params))
    update = jax.jit(held.update) if compiled else held.update
    updates, _ = update(grads, held.init(params), params)
    assert mj.assert_frozen(layer, mj.combine(optax.apply_updates(params, updates), rest)) == OUT * (IN - 2)
