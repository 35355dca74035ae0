"""A JAX layer that went through jit, device_put or tree.map is the same layer: its mask can be read (S1, S8)."""

import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_jax import MaskedLinear, combine, partition

O, I = 4, 6
MASKS = {
    "columns": columns([0, 3]),
    "rows": rows([1]),
    "submatrix": submatrix([0], [1, 2]),
    "blocks": blocks(np.eye(2) == 1, (2, 3)),
    "elements": elements(np.eye(O, I) == 1),
    "union": columns([0]) | rows([2]),
}
TRIPS = {
    "flatten": lambda layer: jax.tree.unflatten(*reversed(jax.tree.flatten(layer))),
    "jit": jax.jit(lambda layer: layer),
    "device_put": jax.device_put,
    "asarray": lambda layer: jax.tree.map(jnp.asarray, layer),
    "partition": lambda layer: combine(*partition(layer)),
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("name", MASKS)
def test_layer_is_the_same_after(trip, name):
    layer = MaskedLinear(I, O, grad_mask=MASKS[name], bias_mask=[True, False, True, True], seed=0)
    again = TRIPS[trip](layer)
    assert again.grad_mask == layer.grad_mask
    np.testing.assert_array_equal(again.grad_mask.to_array((O, I)), layer.grad_mask.to_array((O, I)))
    assert repr(again) == repr(layer)
    np.testing.assert_array_equal(again(jnp.ones((2, I))), layer(jnp.ones((2, I))))


def test_repr_of_what_has_no_arrays():
    """What jax.grad returns for a partitioned layer can be printed, in a debugger or an error message."""
    params, rest = partition(MaskedLinear(I, O, grad_mask=columns([0]), bias_mask=[True] * O, seed=0))
    assert "MaskedLinear" in repr(params)
    assert "MaskedLinear" in repr(rest)


def test_repr_of_a_traced_layer_with_a_bias_mask():
    seen = []
    layer = MaskedLinear(I, O, grad_mask=columns([0]), bias_mask=[True] * O, seed=0)
    jax.jit(lambda layer: seen.append(repr(layer)) or layer.weight)(layer)
    assert "traced" in seen[0]


def test_another_mask_in_the_layer_does_not_trace_again():
    traces = []

    @jax.jit
    def forward(layer, x):
        traces.append(1)
        return layer(x)

    for mask in (columns([0, 3]), columns([5, -6]), columns([2, 2])):
        forward(MaskedLinear(I, O, grad_mask=mask, seed=0), jnp.ones((2, I)))
    assert len(traces) == 1


def test_vmap_over_layers_with_masks_of_their_own():
    layers = [MaskedLinear(I, O, grad_mask=columns([i, i + 1]), seed=i) for i in range(3)]
    params, rest = partition(jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))
    seen = jax.vmap(jax.grad(lambda p, r: combine(p, r)(jnp.ones((2, I))).sum()))(params, rest)
    for i, layer in enumerate(layers):
        np.testing.assert_array_equal(seen.weight[i], np.where(layer.grad_mask.to_array((O, I)), 2.0, 0.0))


def test_pickled_jax_layer_is_read_where_torch_is_absent(tmp_path):
    """Both twins imported when it was written, one where it is read: the positions are NumPy's, not a framework's."""
    (tmp_path / "layer.pickle").write_bytes(pickle.dumps(MaskedLinear(I, O, grad_mask=columns([0, 3]), seed=0)))
    code = (
        "import sys, pickle; sys.modules['torch'] = None\n"
        "print(repr(pickle.loads(open(sys.argv[1], 'rb').read()).grad_mask))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "layer.pickle"], capture_output=True, text=True, check=False
    )
    assert seen.stdout.strip() == "columns([0, 3])", seen.stderr
