"""What the Equinox adapter must do in every version that pyproject.toml allows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import integers

import maskedlinear_jax.equinox as adapter
from maskedlinear_jax import columns

X = integers()[0]


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_a_model_is_converted_differentiated_saved_and_loaded(packed, tmp_path):
    # Whole numbers: Equinox multiplies W x, in an order of its own, and here no order rounds.
    drawn = eqx.nn.MLP(6, 2, 8, depth=1, key=jax.random.PRNGKey(0))
    plain = jax.tree_util.tree_map(lambda leaf: jnp.round(8 * leaf) if eqx.is_array(leaf) else leaf, drawn)
    model = adapter.mask_linears(plain, {"layers.0": columns([1])}, packed=packed)
    np.testing.assert_array_equal(jax.vmap(model)(X), jax.vmap(plain)(X))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda model: jax.vmap(model)(X).sum()))(model)
    if packed:
        assert gradient.layers[0].values.shape == (8, 1)
        adapter.save_packed(tmp_path / "model.safetensors", model)
        loaded = adapter.load_packed(tmp_path / "model.safetensors", plain)
        np.testing.assert_array_equal(jax.vmap(loaded)(X), jax.vmap(plain)(X))
    else:
        assert not np.asarray(gradient.layers[0].weight)[:, [0, 2, 3, 4, 5]].any()
    np.testing.assert_array_equal(jax.vmap(adapter.unmask_linears(model))(X), jax.vmap(plain)(X))
