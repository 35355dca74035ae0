"""What only JAX has: ahead-of-time lowering, forward_mode, sharding, NumPy arguments (S5)."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_jax import MaskedLinear, PackedLinear, masked_linear

O, I = 4, 6
MASKS = {
    "columns": columns([0, 3]),
    "rows": rows([1, 2]),
    "submatrix": submatrix([1], [0, 2]),
    "blocks": blocks(np.eye(2, dtype=bool), (2, 3)),
    "elements": elements(np.arange(O * I).reshape(O, I) % 3 == 0),
}
X, W = (jnp.asarray(np.random.default_rng(i).integers(-3, 4, s), jnp.float32) for i, s in enumerate(((8, I), (O, I))))


def gradient(w, mask, **keywords):
    return jax.grad(lambda w: masked_linear(X, w, grad_mask=mask, **keywords).sum())(w)


@pytest.mark.parametrize("name", MASKS)
def test_ahead_of_time(name):
    compiled = jax.jit(gradient).lower(jax.ShapeDtypeStruct((O, I), jnp.float32), MASKS[name]).compile()
    np.testing.assert_array_equal(compiled(W, MASKS[name]), gradient(W, MASKS[name]))


@pytest.mark.parametrize("name", MASKS)
def test_export_for_a_batch_of_any_size(name):
    def backward(x, w):
        return jax.grad(lambda w: masked_linear(x, w, grad_mask=MASKS[name]).sum())(w)

    batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), I), jnp.float32)
    exported = jax.export.export(jax.jit(backward))(batch, jax.ShapeDtypeStruct((O, I), jnp.float32))
    np.testing.assert_array_equal(exported.call(X, W), gradient(W, MASKS[name]))


@pytest.mark.parametrize("transform", ["jvp", "jacfwd", "linearize", "reverse-over-forward"])
def test_outermost_forward_mode_needs_the_switch(transform):
    def f(w, forward_mode):
        return (masked_linear(X, w, grad_mask=columns([0, 3]), forward_mode=forward_mode) ** 2).sum()

    run = {
        "jvp": lambda f: jax.jvp(f, (W,), (jnp.ones_like(W),))[1],
        "jacfwd": lambda f: jax.jacfwd(f)(W),
        "linearize": lambda f: jax.linearize(f, W)[1](jnp.ones_like(W)),
        "reverse-over-forward": lambda f: jax.grad(lambda w: jax.jvp(f, (w,), (jnp.ones_like(W),))[1])(W),
    }[transform]
    got = run(lambda w: f(w, True))
    mask = jnp.asarray(columns([0, 3]).to_array((O, I)))
    want = run(lambda w: ((X @ jnp.where(mask, w, jax.lax.stop_gradient(w)).T) ** 2).sum())
    np.testing.assert_array_equal(got, want)
    with pytest.raises(TypeError, match="forward-mode autodiff"):
        run(lambda w: f(w, False))


def test_linear_transpose_needs_the_switch():
    """The layer without a bias is linear in x; JAX transposes a custom_jvp, and no custom_vjp."""

    def layer(x, forward_mode):
        return masked_linear(x, W, grad_mask=columns([0, 3]), forward_mode=forward_mode)

    g = jnp.arange(8.0 * O).reshape(8, O)
    (got,) = jax.linear_transpose(lambda x: layer(x, True), X)(g)
    np.testing.assert_array_equal(got, g @ W)
    with pytest.raises(NotImplementedError, match="custom_vjp"):
        jax.linear_transpose(lambda x: layer(x, False), X)(g)


@pytest.mark.parametrize("name", MASKS)
def test_numpy_arguments(name):
    got = masked_linear(np.asarray(X), np.asarray(W), np.ones(O, np.float32), grad_mask=MASKS[name])
    np.testing.assert_array_equal(got, X @ W.T + 1)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("spec", [PartitionSpec("d"), PartitionSpec(None, "d")], ids=["by-rows", "by-columns"])
def test_sharded_weight(name, spec):
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
    sharded = jax.device_put(W, NamedSharding(mesh, spec))
    got = jax.jit(gradient)(sharded, MASKS[name])
    np.testing.assert_array_equal(got, gradient(W, MASKS[name]))


@pytest.mark.parametrize("policy", ["everything_saveable", "nothing_saveable"])
@pytest.mark.parametrize("name", MASKS)
def test_checkpoint(name, policy):
    def f(w):
        return (masked_linear(X, w, grad_mask=MASKS[name]) ** 2).sum()

    remat = jax.checkpoint(f, policy=getattr(jax.checkpoint_policies, policy))
    np.testing.assert_array_equal(jax.grad(remat)(W), jax.grad(f)(W))


def test_masks_stack_as_pytrees_under_vmap():
    masks = jax.tree.map(lambda *leaves: jnp.stack(leaves), columns([0, 1]), columns([2, 5]))
    seen = jax.vmap(lambda mask: gradient(W, mask))(masks)
    for got, mask in zip(seen, (columns([0, 1]), columns([2, 5])), strict=True):
        np.testing.assert_array_equal(got, gradient(W, mask))


def test_traced_bools_are_masks_too():
    """How many positions they select is unknown, so they cost what elements cost; the result is the same."""
    keep = np.arange(I) % 2 == 0
    np.testing.assert_array_equal(jax.jit(lambda k: gradient(W, columns(k)))(keep), gradient(W, columns(keep)))
    both = jax.jit(lambda k: gradient(W, submatrix([1, 2], k) | rows(k[:O])))(keep)
    np.testing.assert_array_equal(both, gradient(W, submatrix([1, 2], keep) | rows(keep[:O])))


def test_traced_positions_out_of_range_train_nothing():
    """Under jit a position cannot raise: it is dropped, and nothing else begins to train."""
    seen = jax.jit(lambda i: gradient(W, columns(i)))(jnp.array([1, 6, -7, 100]))
    np.testing.assert_array_equal(seen, gradient(W, columns([1])))


PENALTY = """
import jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
from maskedlinear_jax import columns, masked_linear
mask, w, xs = columns([0, 1, 2]), jnp.ones((6, 8)), jnp.ones((2, 5, 8))
value = lambda w, x: jnp.sin(masked_linear(x, w, grad_mask=mask)).sum()
penalty = lambda w, x: (jax.grad(value)(w, x) ** 2).sum()
print(jax.vmap(jax.grad(penalty, 1), (None, 0))(w, xs).shape)
"""


def test_per_sample_penalty_of_a_small_float64_layer_does_not_end_the_process():
    """XLA aborts over the layout of a small product behind an optimization barrier, under vmap."""
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", PENALTY], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "(2, 5, 8)", done.stderr[-500:]


@pytest.mark.parametrize("layer", [MaskedLinear, PackedLinear], ids=lambda layer: layer.__name__)
def test_a_leaf_that_is_not_there_is_not_replaced(layer):
    """A name beside the leaves would be dropped by the next flattening, without a word."""
    with pytest.raises(TypeError, match=rf"{layer.__name__}\.replace: expected .*, got biass; only these are stored"):
        layer(3, 2, grad_mask=columns([0]), seed=0).replace(biass=jnp.ones(2))


def test_the_bias_of_a_packed_layer_is_replaced_by_its_values():
    layer = PackedLinear(3, 2, grad_mask=columns([0]), seed=0)
    with pytest.raises(TypeError, match=r"expected values, bias_values, .* got bias; only these are stored"):
        layer.replace(bias=jnp.ones(2))
    np.testing.assert_array_equal(layer.replace(bias_values=jnp.ones(2)).bias, np.ones(2))
