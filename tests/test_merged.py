"""Packed models of JAX merged for inference: the same bits, no copy, and the model itself unchanged (S7).

Equinox multiplies W x in an order of its own, so its models hold whole numbers here, of which no order rounds.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import maskedlinear_jax as mj
from maskedlinear_jax import equinox as masked_eqx
from maskedlinear_jax import nnx as masked_nnx

MASKS = {
    "columns": mj.columns([0, 5]),
    "rows": mj.rows([1]),
    "submatrix": mj.submatrix([1, 3], [0, 2]),
    "blocks": mj.blocks(np.eye(4, dtype=bool), (2, 2)),
    "elements": mj.elements(np.eye(8, dtype=bool)),
}
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)


def in_pytree(mask, **keywords):
    layers = [mj.PackedLinear(8, 8, grad_mask=mask, seed=seed, **keywords) for seed in (0, 1)]
    layers = [layer.replace(values=layer.values + 1) for layer in layers]
    return layers, mj.merged, lambda model, x: model[1](jnp.tanh(model[0](x)))


def in_equinox(mask, **keywords):
    model = eqx.nn.MLP(8, 8, 8, depth=1, key=jax.random.key(0))
    model = jax.tree.map(lambda leaf: jnp.round(16 * leaf) if eqx.is_inexact_array(leaf) else leaf, model)
    model = masked_eqx.mask_linears(model, {"layers.*": mask}, packed=True, **keywords)
    model = jax.tree.map(lambda leaf: leaf + 1 if eqx.is_inexact_array(leaf) else leaf, model)
    return model, masked_eqx.merged, lambda model, x: jax.vmap(model)(jnp.round(4 * x))


def in_nnx(mask, **keywords):
    model = nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(8, 8, rngs=nnx.Rngs(1)))
    masked_nnx.mask_linears(model, {"layers.0": mask, "layers.2": mask}, packed=True, **keywords)
    for at in (0, 2):
        model.layers[at].values.set_value(model.layers[at].values.get_value() + 1)
    return model, masked_nnx.merged, lambda model, x: model(x)


LIBRARIES = {"pytree": in_pytree, "Equinox": in_equinox, "NNX": in_nnx}


def names(call, model):
    """The operations of a forward, those of inner functions too."""

    def inside(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from inside(inner)

    return set(inside(jax.make_jaxpr(lambda x: call(model, x))(X).jaxpr))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_bits_without_a_copy(library, name):
    model, merged, call = LIBRARIES[library](MASKS[name])
    before = call(model, X)
    assert "scatter" in names(call, model)
    fast = merged(model)
    np.testing.assert_array_equal(call(fast, X), before)
    assert names(call, fast) & {"scatter", "gather", "copy"} == set()
    np.testing.assert_array_equal(call(model, X), before)
    assert "scatter" in names(call, model)


@pytest.mark.parametrize("library", LIBRARIES)
def test_training_goes_on_in_the_model_itself(library):
    model, merged, call = LIBRARIES[library](MASKS["columns"])
    fast = merged(model)
    before = call(fast, X)
    if library == "NNX":
        model.layers[0].values.set_value(model.layers[0].values.get_value() + 1)
    else:
        first = model[0] if library == "pytree" else model.layers[0]
        first.values = first.values + 1
    assert (call(model, X) != before).any()
    np.testing.assert_array_equal(call(fast, X), before)
    np.testing.assert_array_equal(call(merged(model), X), call(model, X))


@pytest.mark.parametrize("library", LIBRARIES)
def test_reproducible_layers_stay_reproducible(library):
    model, merged, call = LIBRARIES[library](MASKS["rows"], precision="reproducible")
    np.testing.assert_array_equal(call(merged(model), X), call(model, X))


def test_embeddings_and_masked_layers():
    model = [
        mj.PackedEmbedding(8, 4, grad_mask=mj.rows([1]), seed=0),
        mj.MaskedLinear(4, 2, grad_mask=mj.rows([1]), seed=0),
    ]
    fast = mj.merged(model)
    assert type(fast[0]) is mj.MaskedEmbedding
    assert fast[1] is model[1]
    np.testing.assert_array_equal(fast[0](jnp.array([1, 7])), model[0](jnp.array([1, 7])))


def test_models_of_others_are_refused():
    with pytest.raises(TypeError, match=r"^merged: .* use maskedlinear_jax.nnx.merged$"):
        mj.merged(in_nnx(MASKS["rows"])[0])
    with pytest.raises(TypeError, match=r"^merged: .* use maskedlinear_jax.equinox.merged$"):
        mj.merged(in_equinox(MASKS["rows"])[0])
    with pytest.raises(TypeError, match=r"^merged: .* use maskedlinear_jax.nnx.merged$"):
        masked_eqx.merged(in_nnx(MASKS["rows"])[0])
    with pytest.raises(TypeError, match=r"^merged: expected a flax.nnx.Module, got list"):
        masked_nnx.merged(in_pytree(MASKS["rows"])[0])
