# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportMissingTypeStubs=false
# (JAX, Flax and Equinox leave types open, and optax ships none.)
"""A page of a user's code in Equinox, checked by `mypy --strict` and pyright, and run (tests/test_typing.py)."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import maskedlinear_jax.equinox as ml
from maskedlinear_jax import Mask, columns, elements, rows


class Model(eqx.Module):
    """Two layers, of which the first is masked."""

    first: ml.MaskedLinear
    second: eqx.nn.Linear

    def __call__(self, x: Array) -> Array:
        hidden: Array = self.first(x)
        return self.second(jax.nn.relu(hidden))


def loss(model: Model, x: Array) -> Array:
    return jnp.mean(jax.vmap(model)(x) ** 2)


def main(folder: Path) -> float:
    x = jnp.ones((3, 8))
    mask: Mask = columns([1, 5])
    first: ml.MaskedLinear = ml.MaskedLinear(8, 6, grad_mask=mask, seed=0)
    model = Model(first, eqx.nn.Linear(6, 4, key=jax.random.key(0)))
    optimizer = ml.hold_frozen(optax.adamw(0.1), model)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    grads = eqx.filter_grad(loss)(model, x)
    updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    trained: Model = ml.keep_frozen(model, eqx.apply_updates(model, updates), ml.grad_masks(model))
    frozen: int = ml.assert_frozen(model, trained)
    assert frozen > 0

    packed: Model = ml.mask_linears(trained, {"second": rows([0])}, packed=True)
    layer: ml.PackedLinear = ml.PackedLinear(4, 2, grad_mask=elements(np.eye(2, 4, dtype=bool)), seed=1)
    output: Array = layer(jnp.ones(4))
    ml.save_packed(folder / "learned.safetensors", packed)
    loaded: Model = ml.load_packed(folder / "learned.safetensors", packed)
    arrays: dict[str, np.ndarray] = ml.packed_arrays(loaded)
    assert arrays
    words = ml.MaskedEmbedding(10, 8, grad_mask=rows([8]), key=jax.random.key(1))
    embedded: Array = words(jnp.array(9))
    assert embedded.shape == (8,)
    print(ml.summary(loaded))
    return float(output.sum() + loss(loaded, x))
