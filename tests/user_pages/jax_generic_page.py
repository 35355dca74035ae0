# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportMissingTypeStubs=false
# (JAX, Flax and Equinox leave types open, and optax ships none.)
"""A user's own functions and classes around the layers of the JAX twin, checked and run as the other pages."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, assert_type

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
from maskedlinear_jax import Mask, MaskedLinear, PackedLinear

Layer = TypeVar("Layer", MaskedLinear, PackedLinear)
NnxLayer = TypeVar("NnxLayer", of_nnx.MaskedLinear, of_nnx.PackedLinear)
MakesMask = Callable[[Sequence[int]], Mask]


class HasMask(Protocol):
    """Whatever has a mask."""

    @property
    def grad_mask(self) -> Mask: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Net:
    """A pytree of the user's own that holds layers."""

    first: MaskedLinear
    second: PackedLinear

    def __call__(self, x: Array) -> Array:
        return self.second(jax.nn.relu(self.first(x)))


class Training(NamedTuple):
    """What a scan carries."""

    params: Net
    state: Any


class Block(nnx.Module, Generic[NnxLayer]):
    """Layers of one class in a module of NNX."""

    def __init__(self, layers: Sequence[NnxLayer], plain: nnx.Linear) -> None:
        self.layers: nnx.List[NnxLayer] = nnx.List(layers)
        self.plain = plain

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return self.plain(x)


class Tower(eqx.Module):
    """Layers of several classes in a module of Equinox."""

    layers: tuple[of_equinox.MaskedLinear | of_equinox.PackedLinear, ...]
    head: eqx.nn.Linear
    scale: float = eqx.field(static=True, default=2.0)

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = assert_type(layer(x), Array)
        return self.head(x * self.scale)


def share(layer: HasMask, shape: tuple[int, int]) -> float:
    return layer.grad_mask.density(shape)


def doubled(layer: Layer) -> Layer:
    twice: Layer = jax.tree.map(lambda leaf: leaf * 2 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, layer)
    return twice


def learned(layer: MaskedLinear | PackedLinear) -> Array:
    if isinstance(layer, PackedLinear):
        return assert_type(layer.values, Array)
    return assert_type(layer.weight, Array)


def pytrees(x: Array, makers: Mapping[str, MakesMask]) -> Array:
    half = functools.partial(MaskedLinear, 4, 4, seed=0)
    net = Net(half(grad_mask=makers["columns"]([0])), PackedLinear(4, 4, grad_mask=makers["rows"]([1]), seed=1))
    params, rest = ml.partition(net)
    assert_type(params, Net)
    optimizer = ml.hold_frozen(optax.adamw(0.1), net)

    @jax.jit
    def loss(params: Net, x: Array) -> Array:
        return jnp.mean(ml.combine(params, rest)(x) ** 2)

    def step(carry: Training, x: Array) -> tuple[Training, Array]:
        value, grads = jax.value_and_grad(loss)(carry.params, x)
        params: Any = carry.params  # optax knows of trees of dicts, lists and tuples alone
        updates, state = optimizer.update(grads, carry.state, params)
        return Training(ml.apply_updates(carry.params, updates), state), value

    initial: Any = params
    trained, losses = jax.lax.scan(step, Training(params, optimizer.init(initial)), jnp.stack([x, x]))
    after = assert_type(ml.combine(trained.params, rest), Net)
    assert_type(ml.assert_frozen(net, after), int)
    masks = ml.grad_masks(net)
    assert isinstance(masks, Net)
    assert_type(doubled(after.first), MaskedLinear)
    rows: Array = jax.vmap(after)(x)
    assert share(after.second, (4, 4)) == 0.25
    ml.summary(after)
    return losses.sum() + rows.sum() + learned(after.first).sum() + learned(after.second).sum()


def in_nnx(x: Array, mask: Mask, folder: Path) -> Array:
    rngs = nnx.Rngs(0)
    block = Block([of_nnx.MaskedLinear(4, 4, grad_mask=mask, rngs=rngs)], nnx.Linear(4, 4, rngs=rngs))
    block = assert_type(of_nnx.mask_linears(block, {"plain": mask}, packed=True), Block[of_nnx.MaskedLinear])
    optimizer = nnx.Optimizer(block, of_nnx.hold_frozen(optax.sgd(0.1), block), wrt=nnx.Param)

    @nnx.jit
    def step(block: Block[of_nnx.MaskedLinear], optimizer: nnx.Optimizer[Block[of_nnx.MaskedLinear]]) -> Array:
        value, grads = nnx.value_and_grad(lambda block: jnp.mean(block(x) ** 2))(block)
        optimizer.update(block, grads)
        return jnp.asarray(value)

    value: Array = step(block, optimizer)
    for _, module in nnx.iter_modules(block):
        if isinstance(module, of_nnx.MaskedLinear):
            assert_type(module.grad_mask, Mask)
    of_nnx.save_packed(folder / "block.safetensors", block)
    assert_type(of_nnx.load_packed(folder / "block.safetensors", block), Block[of_nnx.MaskedLinear])
    return value


def in_equinox(x: Array, mask: Mask) -> Array:
    layers = (
        of_equinox.MaskedLinear(4, 4, grad_mask=mask, seed=0),
        of_equinox.PackedLinear(4, 4, grad_mask=mask, seed=1),
    )
    tower = Tower(layers, eqx.nn.Linear(4, 2, key=jax.random.key(0)))
    optimizer = of_equinox.hold_frozen(optax.adam(0.1), tower)
    state = optimizer.init(eqx.filter(tower, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(tower: Tower, state: Any) -> tuple[Tower, Any]:
        grads = eqx.filter_grad(lambda tower: jnp.mean(jax.vmap(tower)(x) ** 2))(tower)
        updates, state = optimizer.update(grads, state, eqx.filter(tower, eqx.is_inexact_array))
        return eqx.apply_updates(tower, updates), state

    after, state = step(tower, state)
    assert_type(of_equinox.assert_frozen(tower, after), int)
    swapped = eqx.tree_at(lambda tower: tower.layers[0], after, of_equinox.MaskedLinear(4, 4, grad_mask=~mask, seed=2))
    outputs: Array = jax.vmap(swapped)(x)
    return outputs.sum()


def main(folder: Path) -> float:
    mask = ml.columns([0, 1])
    makers: dict[str, MakesMask] = {"columns": ml.columns, "rows": ml.rows}
    x = jnp.ones((2, 4))
    frozen: NDArray[np.bool_] = ~mask.to_array((4, 4))
    functional = functools.partial(ml.masked_linear, grad_mask=mask, precision="native")
    output: Array = functional(x, jnp.ones((4, 4)))
    total = pytrees(x, makers) + in_nnx(x, mask, folder) + in_equinox(x, mask) + output.sum()
    return float(total) + float(frozen.sum())
