"""Embeddings and their tied head on eight host devices: NamedSharding, shard_map, data parallel; vmap and jvp (S13)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import maskedlinear_jax as mj

TOKENS, WIDTH = 16, 8
IDS = np.random.default_rng(0).integers(0, TOKENS, (8, 5))
MASKS = {
    "rows": mj.rows([3, 9, 15]),
    "columns": mj.columns([0, 5]),
    "submatrix": mj.submatrix([3, 15], [0, 5]),
    "elements": mj.elements(np.random.default_rng(1).random((TOKENS, WIDTH)) < 0.3),
}
CUTS = {"by rows": P("d", None), "by columns": P(None, "d"), "replicated": P()}
FORMS = {"masked": mj.MaskedEmbedding, "packed": mj.PackedEmbedding}


@pytest.fixture(scope="module")
def mesh():
    assert len(jax.devices()) == 8, "the tests run on eight host devices (tests/conftest.py)"
    return Mesh(np.array(jax.devices()), ("d",))


def numbers():
    """A matrix of small integers, of which every sum is exact."""
    return np.random.default_rng(2).integers(-2, 3, (TOKENS, WIDTH)).astype(np.float32)


def make(form, kind):
    layer = mj.MaskedEmbedding(TOKENS, WIDTH, grad_mask=MASKS[kind], seed=0).replace(weight=jnp.asarray(numbers()))
    return layer if form == "masked" else mj.PackedEmbedding.from_embedding(layer, grad_mask=MASKS[kind])


def leaf(tree, form):
    return tree.values if form == "packed" else tree.weight


def loss(params, rest, ids):
    layer = mj.combine(params, rest)
    return jnp.square(layer.attend(layer(ids))).sum()


def oracle(form, kind):
    """The gradient of sum (E W W^T)^2 by NumPy in float64: both uses of the one weight."""
    w = numbers().astype(np.float64)
    one_hot = np.eye(TOKENS)[IDS.reshape(-1)]
    x = one_hot @ w
    g = 2 * (x @ w.T)
    full = one_hot.T @ (g @ w) + g.T @ x
    if form == "packed":
        return np.asarray(mj.pack(jnp.asarray(full.astype(np.float32)), grad_mask=MASKS[kind]))
    return np.where(MASKS[kind].to_array(w.shape), full, 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["rows", "elements"])
def test_named_sharding_is_exact(mesh, kind, cut, form):
    layer = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, P())), make(form, kind))
    name = "base_bits" if form == "packed" else "weight"
    layer = layer.replace(**{name: jax.device_put(getattr(layer, name), NamedSharding(mesh, CUTS[cut]))})
    params, rest = mj.partition(layer)
    grads = jax.jit(jax.grad(loss))(params, rest, jax.device_put(IDS, NamedSharding(mesh, P())))
    np.testing.assert_array_equal(np.asarray(leaf(grads, form)), oracle(form, kind))
    halves = jax.device_put(IDS, NamedSharding(mesh, P("d")))
    np.testing.assert_array_equal(
        np.asarray(leaf(jax.jit(jax.grad(loss))(params, rest, halves), form)), oracle(form, kind)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MASKS)
def test_shard_map_over_the_batch_is_exact(mesh, kind, form):
    params, rest = mj.partition(make(form, kind))

    def step(params, rest, ids):
        # Replicated parameters: the transpose of what enters a shard is the sum over the shards.
        return jax.grad(lambda params: jax.lax.psum(loss(params, rest, ids), "d"))(params)

    where = jax.tree.map(lambda _: P(), (params, rest))
    mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(*where, P("d")), out_specs=where[0]))
    np.testing.assert_array_equal(np.asarray(leaf(mapped(params, rest, IDS), form)), oracle(form, kind))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MASKS)
def test_transforms_are_exact(kind, form):
    params, rest = mj.partition(make(form, kind))
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, None, 0)))(params, rest, IDS)
    np.testing.assert_array_equal(np.asarray(leaf(each, form)).sum(0), oracle(form, kind))
    remat = jax.jit(jax.grad(jax.checkpoint(loss)))(params, rest, IDS)
    np.testing.assert_array_equal(np.asarray(leaf(remat, form)), oracle(form, kind))
    # Twice in reverse, by the directional derivative of <gradient, gradient>: frozen entries have none of any order.
    second = jax.jit(
        jax.grad(lambda params: sum(jnp.vdot(a, a) for a in jax.tree.leaves(jax.grad(loss)(params, rest, IDS))))
    )
    if form == "masked":
        assert not np.asarray(second(params).weight)[~MASKS[kind].to_array((TOKENS, WIDTH))].any()
    assert np.asarray(leaf(second(params), form)).any()


@pytest.mark.parametrize("cut", ["by rows", "by columns"])
@pytest.mark.parametrize("kind", ["rows"])
def test_a_held_step_over_cut_matrices_moves_no_frozen_bit(mesh, kind, cut):
    layer = make("masked", kind)
    placed = layer.replace(weight=jax.device_put(layer.weight, NamedSharding(mesh, CUTS[cut])))
    params, rest = mj.partition(placed)
    tx = mj.hold_frozen(optax.adamw(0.1, weight_decay=0.1), placed)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params, rest, IDS), state, params)
        return mj.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    assert mj.assert_frozen(layer, mj.combine(params, rest)) == int((~MASKS[kind].to_array((TOKENS, WIDTH))).sum())
    assert params.weight.sharding.is_equivalent_to(placed.weight.sharding, 2)
