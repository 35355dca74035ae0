# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportMissingTypeStubs=false
# (JAX, Flax and Equinox leave types open, and optax ships none.)
"""What a type checker takes the results of the JAX twin and its adapters for: `assert_type` fails where a type is lost.

optax has no types for mypy, so what is of optax is not looked at here. A pytree of lists and dicts whose layers are
replaced is of another type afterwards; a module of Flax NNX or Equinox is of its own class.
"""

from pathlib import Path
from typing import Any, assert_type

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from numpy.typing import NDArray

import maskedlinear_jax as ml
import maskedlinear_jax.equinox as of_equinox
import maskedlinear_jax.nnx as of_nnx
from maskedlinear_jax import Mask


class Nnx(nnx.Module):
    """A masked layer, and plain ones."""

    def __init__(self, mask: Mask, rngs: nnx.Rngs) -> None:
        self.first = of_nnx.MaskedLinear(4, 4, grad_mask=mask, rngs=rngs)
        self.second = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.second(assert_type(self.first(x), Array))


class ScaledNnx(of_nnx.MaskedLinear):
    """A layer of the user's own."""

    def __call__(self, inputs: Array) -> Array:
        return super().__call__(inputs) * 2


class Eqx(eqx.Module):
    """A masked layer, and a plain one."""

    first: of_equinox.MaskedLinear
    second: eqx.nn.Linear

    def __call__(self, x: Array) -> Array:
        return self.second(assert_type(self.first(x), Array))


class ScaledEqx(of_equinox.MaskedLinear):
    """A layer of the user's own."""

    def __call__(self, input: Array, *, forward_mode: bool = False, key: Any = None) -> Array:
        return super().__call__(input, forward_mode=forward_mode, key=key) * 2


def pytrees(mask: Mask) -> None:
    weight = jnp.ones((4, 4))
    values = assert_type(ml.pack(weight, grad_mask=mask), Array)
    assert_type(ml.unpack(weight, values, grad_mask=mask), Array)
    assert_type(ml.masked_linear(weight, weight, grad_mask=mask, forward_mode=True), Array)
    assert_type(mask.to_array((4, 4)), NDArray[np.bool_])
    masked = ml.MaskedLinear(4, 2, grad_mask=mask, seed=0)
    assert_type(masked.weight, Array)
    assert_type(masked.bias, Array | None)
    assert_type(masked.grad_mask, Mask)
    assert_type(masked.replace(weight=masked.weight * 2), ml.MaskedLinear)
    packed = ml.PackedLinear(4, 2, grad_mask=mask, seed=0)
    assert_type(packed.values, Array)
    assert_type(packed.weight, Array)
    assert_type(packed.bias, Array | None)
    assert_type(packed.grad_mask, Mask)
    assert_type(ml.PackedLinear.from_linear(masked, grad_mask=mask), ml.PackedLinear)
    assert_type(ml.select.top_k(weight, 0.5, along="blocks", block_shape=(2, 2)), Mask)
    assert_type(ml.select.random(weight.shape, 0.5, seed=0), Mask)
    assert_type(ml.assert_frozen({"w": weight}, {"w": weight}, {"w": mask}), int)
    assert_type(packed.to_linear(), ml.MaskedLinear)
    assert_type(packed.repack(ml.rows([0])), ml.PackedLinear)
    params, rest = ml.partition(packed)
    assert_type(ml.combine(params, rest), ml.PackedLinear)
    assert_type(ml.apply_updates(params, params), ml.PackedLinear)
    words = ml.PackedEmbedding(4, 4, grad_mask=ml.rows([1]), seed=0)
    assert_type(words(jnp.array([1])), Array)
    assert_type(words.to_linear(), ml.MaskedEmbedding)
    assert_type(ml.MaskedEmbedding.from_embedding(words, grad_mask=ml.rows([1])), ml.MaskedEmbedding)


def in_nnx(mask: Mask, folder: Path) -> Nnx:
    model = Nnx(mask, nnx.Rngs(0))
    model = of_nnx.mask_linears(model, {"second": ml.rows([0])}, packed=True)
    assert_type(model, Nnx)
    assert_type(model.first.grad_mask, Mask)
    assert_type(model.first.bias_mask, np.ndarray | None)
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    nnx.Optimizer(model, of_nnx.hold_frozen(chain, model), wrt=nnx.Param)
    of_nnx.save_packed(folder / "nnx.safetensors", model)
    model = of_nnx.load_packed(folder / "nnx.safetensors", model)
    assert_type(of_nnx.merged(model), Nnx)
    alone: of_nnx.PackedLinear = of_nnx.mask_linears(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), {"": mask}, packed=True)
    assert alone.in_features == 4
    streams = nnx.Rngs(0)
    assert_type(of_nnx.PackedEmbed(4, 2, grad_mask=ml.rows([1]), rngs=streams).to_linear(), nnx.Embed)
    heads = of_nnx.MaskedLinearGeneral.from_linear(nnx.LinearGeneral(4, (2, 2), rngs=streams), grad_mask=mask)
    assert_type(heads.to_linear(), nnx.LinearGeneral)
    return of_nnx.unmask_linears(model)


def in_equinox(mask: Mask, folder: Path) -> Eqx:
    plain = eqx.nn.Linear(4, 2, key=jax.random.key(0))
    model = Eqx(of_equinox.MaskedLinear(4, 4, grad_mask=mask, seed=0), plain)
    model = of_equinox.mask_linears(model, {"second": ml.rows([0])}, packed=True)
    assert_type(model, Eqx)
    of_equinox.hold_frozen(optax.sgd(0.1), model)
    of_equinox.save_packed(folder / "equinox.safetensors", model)
    model = of_equinox.load_packed(folder / "equinox.safetensors", model)
    assert_type(of_equinox.merged(model), Eqx)
    assert_type(model.first.to_linear(), eqx.nn.Linear)
    alone: of_equinox.PackedLinear = of_equinox.mask_linears(plain, {"": mask}, packed=True)
    assert_type(alone.weight, Array)
    assert_type(of_equinox.PackedLinear.from_linear(plain, grad_mask=mask), of_equinox.PackedLinear)
    words = of_equinox.MaskedEmbedding.from_embedding(eqx.nn.Embedding(4, 3, key=jax.random.key(0)), grad_mask=mask)
    assert_type(words, of_equinox.MaskedEmbedding)
    assert_type(words.to_embedding(), eqx.nn.Embedding)
    return of_equinox.unmask_linears(model)


def main(folder: Path) -> float:
    mask = ml.columns([1, 2])
    pytrees(mask)
    x = jnp.ones(4)
    return float(in_nnx(mask, folder)(x).sum() + in_equinox(mask, folder)(x).sum())
