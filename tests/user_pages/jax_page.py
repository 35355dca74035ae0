# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportMissingTypeStubs=false
# (JAX, Flax and Equinox leave types open, and optax ships none.)
"""A page of a user's code in JAX, checked by `mypy --strict` and pyright, and run (tests/test_typing.py)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import maskedlinear_jax as ml
from maskedlinear_jax import Mask, MaskedLinear, PackedLinear, columns, elements, rows

Model = dict[str, Any]


def forward(model: Model, x: Array) -> Array:
    output: Array = model["second"](jax.nn.relu(model["first"](x)))
    return output


def loss(params: Model, rest: Model, x: Array, y: Array) -> Array:
    return jnp.mean((forward(ml.combine(params, rest), x) - y) ** 2)


def first_step(layer: MaskedLinear, x: Array) -> Array:
    params, rest = ml.partition(layer)
    grads = jax.grad(lambda params: ml.combine(params, rest)(x).sum())(params)
    moved = ml.apply_updates(params, jax.tree.map(lambda gradient: -0.1 * gradient, grads))
    return ml.combine(moved, rest).weight.sum()


def train(model: Model, x: Array, y: Array, steps: int) -> Model:
    optimizer = ml.hold_frozen(optax.adamw(0.01), model)
    params, rest = ml.partition(model)
    state = optimizer.init(params)
    for _ in range(steps):
        grads = jax.grad(loss)(params, rest, x, y)
        updates, state = optimizer.update(grads, state, params)
        params = ml.apply_updates(params, updates)
    trained: Model = ml.combine(params, rest)
    return trained


def main(folder: Path) -> float:
    x, y = jnp.ones((3, 8)), jnp.zeros((3, 4))
    mask: Mask = columns([1, 5])
    model: Model = {
        "first": MaskedLinear(8, 6, grad_mask=mask, seed=0),
        "second": PackedLinear(6, 4, grad_mask=rows([0, 2]), seed=1),
    }
    trained = train(model, x, y, 2)
    frozen: int = ml.assert_frozen(model, trained)
    assert frozen > 0

    ml.save_packed(folder / "learned.safetensors", trained)
    loaded: Model = ml.load_packed(folder / "learned.safetensors", trained)
    arrays: dict[str, np.ndarray] = ml.packed_arrays(loaded)
    assert arrays
    print(ml.summary(loaded))

    words = ml.MaskedEmbedding(10, 8, grad_mask=rows([8, 9]), seed=2)
    scored: Array = words.attend(words(jnp.array([1, 9])))
    layer = MaskedLinear(8, 6, grad_mask=mask, seed=3)
    assert float(first_step(layer, x)) + scored.size > 0

    weight, bias = jnp.ones((4, 8)), jnp.zeros(4)
    output: Array = ml.masked_linear(x, weight, bias, grad_mask=elements(np.eye(4, 8, dtype=bool)))
    exact: Array = ml.masked_linear(x, weight, bias, grad_mask=mask, precision=ml.reproducible())
    values: Array = ml.pack(weight, grad_mask=mask)
    again: Array = ml.packed_linear(x, weight, values, bias, grad_mask=mask)
    return float(output.sum() + exact.sum() + again.sum())
