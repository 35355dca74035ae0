"""What a training step of packed layers holds at once in JAX, as XLA plans it (S7): nothing is timed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskedlinear_jax import (
    PackedLinear,
    blocks,
    columns,
    combine,
    elements,
    pack,
    packed_linear,
    partition,
    rows,
    rule,
)

LAYERS, BATCH, LENGTH, WIDTH, HEADS = 6, 8, 64, 384, 12
"""An encoder of the size of MiniLM, without its embedding."""
MASKS = {
    "columns": lambda shape: columns(range(0, shape[1], 10)),
    "rows": lambda shape: rows(range(0, shape[0], 10)),
    "blocks": lambda shape: blocks(np.indices((shape[0] // 16, shape[1] // 16)).sum(0) % 8 == 0, (16, 16)),
    "elements": lambda shape: elements(np.arange(shape[0] * shape[1]).reshape(shape) % 250 == 0),
}


def plan(kind):
    """XLA's plan of an AdamW step of an encoder: packed with such masks, or plain and all learning (None)."""
    layers = []
    for number in range(LAYERS):
        for shape in [(WIDTH, WIDTH)] * 4 + [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]:
            mask = columns([0]) if kind is None else MASKS[kind](shape)
            layers.append(PackedLinear(shape[1], shape[0], grad_mask=mask, seed=number))
    if kind is None:
        learned, rest = [(layer.weight, layer.bias) for layer in layers], [None] * len(layers)
        call = lambda layer, _, x: x @ layer[0].T + layer[1]  # noqa: E731
    else:
        parts = [partition(layer) for layer in layers]
        learned, rest = [part[0] for part in parts], [part[1] for part in parts]
        call = lambda layer, rest, x: combine(layer, rest)(x)  # noqa: E731
    optimizer = optax.adamw(1e-3)

    def loss(learned, rest, x):
        pairs = iter(zip(learned, rest, strict=True))
        for _ in range(LAYERS):
            q, k, v = (call(*next(pairs), x).reshape(BATCH, LENGTH, HEADS, -1).swapaxes(1, 2) for _ in "qkv")
            seen = jax.nn.softmax(q @ k.swapaxes(2, 3)) @ v
            x = jax.nn.standardize(x + call(*next(pairs), seen.swapaxes(1, 2).reshape(x.shape)))
            hidden = jax.nn.gelu(call(*next(pairs), x))
            x = jax.nn.standardize(x + call(*next(pairs), hidden))
        return (x**2).sum()

    def step(learned, state, rest, x):
        updates, state = optimizer.update(jax.grad(loss)(learned, rest, x), state, learned)
        return optax.apply_updates(learned, updates), state

    arguments = learned, optimizer.init(learned), rest, jnp.ones((BATCH, LENGTH, WIDTH))
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments)
    # The code that LLVM makes changes nothing of the plan, and takes most of the time.
    return lowered.compile({"xla_backend_optimization_level": 0}).memory_analysis()


@pytest.fixture(scope="module")
def dense():
    return plan(None).temp_size_in_bytes


@pytest.mark.parametrize("kind", ["columns", "rows", "elements"])
def test_a_packed_step_holds_no_more_than_a_plain_one(kind, dense):
    # Single elements are taken from a dense product that is made in halves; the plain layer's is the gradient itself.
    product = 4 * WIDTH * WIDTH * 4 if kind == "elements" else 0
    assert 0 < plan(kind).temp_size_in_bytes <= dense + product


def test_a_matrix_kept_from_the_forward_is_seen(dense, monkeypatch):
    monkeypatch.setattr(rule, "_matrix_after", lambda before, kind, *source: rule.weight_view(kind, *source))
    assert plan("rows").temp_size_in_bytes > dense


@pytest.mark.parametrize("kind", MASKS)
def test_a_batch_of_cotangents_makes_one_matrix(kind):
    """Under vmap of the backward alone nothing has a copy of the matrix for each cotangent."""
    shape, count = (32, 48), 5
    mask = MASKS[kind](shape)
    w, x, g = jnp.ones(shape), jnp.ones((2, 48)), jnp.ones((count, 2, 32))
    values = pack(w, grad_mask=mask)
    pull = jax.vjp(lambda x, v: packed_linear(x, w, v, grad_mask=mask), x, values)[1]
    sizes = [v.aval.size for v in _variables(jax.make_jaxpr(jax.vmap(pull))(g).jaxpr)]
    assert max(sizes) < count * w.size


def _variables(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _variables(inner)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 0.0, 3e38])
def test_no_number_of_a_cotangent_changes_the_matrix(number):
    w, mask = jnp.ones((3, 4)), columns([1])
    values = 2 * pack(w, grad_mask=mask)
    for shape in ((2, 3), (2, 2, 3), (3,)):
        g = jnp.full(shape, number).at[(-1,) * len(shape)].set(1)
        x = jnp.ones((*shape[:-1], 4))
        seen = jax.jit(lambda x, g: jax.vjp(lambda x: packed_linear(x, w, values, grad_mask=mask), x)[1](g))(x, g)[0]
        np.testing.assert_array_equal(seen, g @ w.at[:, 1].set(2))
