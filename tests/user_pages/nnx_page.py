# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportMissingTypeStubs=false
# (JAX, Flax and Equinox leave types open, and optax ships none.)
"""A page of a user's code in Flax NNX, checked by `mypy --strict` and pyright, and run (tests/test_typing.py)."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import maskedlinear_jax.nnx as ml
from maskedlinear_jax import Mask, columns, rows


class Model(nnx.Module):
    """Two layers, of which the first is masked."""

    def __init__(self, mask: Mask, rngs: nnx.Rngs) -> None:
        self.first: ml.MaskedLinear = ml.MaskedLinear(8, 6, grad_mask=mask, rngs=rngs)
        self.second = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        hidden: Array = self.first(x)
        return self.second(nnx.relu(hidden))


def loss(model: Model, x: Array) -> Array:
    return jnp.mean(model(x) ** 2)


def main(folder: Path) -> float:
    x = jnp.ones((3, 8))
    mask: Mask = columns([1, 5])
    model = Model(mask, nnx.Rngs(0))
    before = nnx.state(model, nnx.Param)
    held = ml.hold_frozen(optax.adamw(0.1), model)
    optimizer = nnx.Optimizer(model, held, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(loss)(model, x))
    frozen: int = ml.assert_frozen(before, nnx.state(model, nnx.Param), ml.grad_masks(model))
    assert frozen > 0

    ml.mask_linears(model, {"second": rows([0])}, packed=True)
    packed: ml.PackedLinear = ml.PackedLinear(4, 2, grad_mask=columns([1]), rngs=nnx.Rngs(1))
    output: Array = packed(jnp.ones((2, 4)))
    ml.save_packed(folder / "learned.safetensors", model)
    ml.load_packed(folder / "learned.safetensors", model)
    arrays: dict[str, np.ndarray] = ml.packed_arrays(model)
    assert arrays
    words = ml.MaskedEmbed(10, 8, grad_mask=rows([8, 9]), rngs=nnx.Rngs(2))
    scored: Array = words.attend(words(jnp.array([1, 9])))
    assert scored.shape == (2, 10)
    print(ml.summary(model))
    return float(output.sum() + loss(model, x))
