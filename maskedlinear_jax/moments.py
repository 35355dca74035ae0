"""An optimizer's moments, taken along where the masks of packed layers change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_core.annotations import Later
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_core.masks import Mask
from maskedlinear_jax import _compat, packing
from maskedlinear_jax.module import partition
from maskedlinear_jax.packed_module import PackedLinear

if TYPE_CHECKING:
    import optax
else:
    optax = Later("optax")

State = TypeVar("State")
"""Whatever an optimizer of optax keeps."""

Path = tuple[str, ...]


class Moved(NamedTuple):
    """How the values of one layer changed.

    Attributes:
        old: The mask they had.
        new: The mask they have.
        shape: Shape of the weight (out_features, in_features).
        values_shape: Shape of the values before.
    """

    old: Mask
    new: Mask
    shape: tuple[int, int]
    values_shape: tuple[int, ...]

    @property
    def new_values_shape(self) -> tuple[int, ...]:
        """Of the values now."""
        weight = jax.ShapeDtypeStruct(self.shape, jnp.float32)
        return jax.eval_shape(lambda weight: packing.pack(weight, grad_mask=self.new), weight).shape

    @property
    def stays(self) -> bool:
        """Whether nothing changed."""
        return self.old == self.new

    def carry(self, state: Array, made: Array) -> Array:
        """Return the state of the values now: of those that stay it is the old one, of the others what was made."""
        weight = packing.unpack(jnp.zeros(self.shape, made.dtype), made, grad_mask=self.new)
        return packing.repack(state, self.old, self.new, weight=weight)


class MovedBias(NamedTuple):
    """How the trainable entries of one bias changed.

    Attributes:
        old: Bool (out_features,): which there were; None for all.
        new: Which there are.
        values_shape: Shape of these entries before.
        new_values_shape: Shape of these entries now.
    """

    old: Any
    new: Any
    values_shape: tuple[int, ...]
    new_values_shape: tuple[int, ...]

    @property
    def stays(self) -> bool:
        """Whether nothing changed. Masks that are traced may have."""
        if any(map(_compat.is_tracer, (self.old, self.new))):
            return False
        old, new = [None if one is None or np.asarray(one).all() else np.asarray(one) for one in (self.old, self.new)]
        return np.array_equal(old, new) if old is not None and new is not None else old is new

    def carry(self, state: Array, made: Array) -> Array:
        """Return the state of the entries now, as `Moved.carry` does."""
        size = next((one.size for one in (self.old, self.new) if one is not None), state.size)
        old, new = [jnp.ones(size, bool) if one is None else jnp.asarray(one) for one in (self.old, self.new)]
        (index,) = jnp.nonzero(new, size=math.prod(self.new_values_shape))
        came_from = jnp.where(old, jnp.cumsum(old), 0)[index].reshape(made.shape)
        known = jnp.concatenate([jnp.zeros(1, state.dtype), state.reshape(-1)])
        return jnp.where(came_from > 0, known[came_from], made)


def check(function: str, optimizer: Any) -> None:
    """Refuse what is no optimizer of Flax NNX, before anything changes; None is right."""
    if optimizer is not None and not all(hasattr(optimizer, name) for name in ("tx", "opt_state", "wrt")):
        frozen_checks.refuse_optimizer("an nnx.Optimizer", optimizer, function)


def repack_state(optimizer: optax.GradientTransformation, state: State, before: Any, after: Any) -> State:
    """Return an optimizer's state for a model whose masks were changed.

    What stays trainable keeps its history. What learns anew gets what the optimizer makes for it at first. State that
    is not kept value by value (Adafactor's sums of rows and columns) starts anew.

    Args:
        optimizer: The optax gradient transformation.
        state: Its state for `partition(before)[0]`.
        before: The model as it was.
        after: The model as `mask_linears` or `repack` made it.

    Returns:
        The state for `partition(after)[0]`.

    Example:
        >>> import optax
        >>> from maskedlinear_jax import columns
        >>> before = PackedLinear(3, 1, bias=False, grad_mask=columns([0, 1]), seed=0)
        >>> optimizer = optax.trace(0.9)
        >>> _, state = optimizer.update(partition(before)[0], optimizer.init(partition(before)[0]))
        >>> after = before.repack(columns([1, 2]))
        >>> moved = repack_state(optimizer, state, before, after)
        >>> bool(moved.trace.values[0, 0] == before.values[0, 1]), float(moved.trace.values[0, 1])
        (True, 0.0)
    """
    old, new = packed_layers(before), packed_layers(after)
    moved: dict[Path, Any] = {
        (*path, "values"): Moved(
            layer.grad_mask, new[path].grad_mask, (layer.out_features, layer.in_features), layer.values.shape
        )
        for path, layer in old.items()
        if path in new
    }
    for path, layer in old.items():
        now = new.get(path)
        if now is not None and layer.bias_values is not None and now.bias_values is not None:
            shapes = layer.bias_values.shape, now.bias_values.shape
            moved[*path, "bias_values"] = MovedBias(layer.bias_mask, now.bias_mask, *shapes)
    new_state: State = move(state, optimizer.init(partition(after)[0]), moved)
    return new_state


def move(state: Any, fresh: Any, moved: Mapping[Path, Any]) -> Any:
    """Return a fresh state with what an old one has learned.

    Args:
        state: The old state.
        fresh: The state that the optimizer makes for the new values.
        moved: By the path of the values: a `Moved` or a `MovedBias`.
    """
    known = {names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}

    def leaf_of(path: Any, leaf: Any) -> Any:
        old = known.get(names(path))
        if old is None:
            return leaf
        where = names(path)
        change = next((moved[where[i:]] for i in range(len(where)) if where[i:] in moved), None)
        if change is not None and getattr(old, "shape", None) == tuple(change.values_shape):
            if getattr(leaf, "shape", None) != change.new_values_shape:
                return leaf  # what it keeps now is not kept value by value
            # What learns anew has what the optimizer makes for it: zeros, a copy of the weight, a first step size.
            return old if change.stays else change.carry(jnp.asarray(old), leaf)
        return old if getattr(old, "shape", None) == getattr(leaf, "shape", None) else leaf

    return jax.tree_util.tree_map_with_path(leaf_of, fresh)


def packed_layers(model: Any) -> dict[Path, PackedLinear]:
    """Return the packed layers of a pytree by their paths."""
    nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, PackedLinear))
    return {names(path): node for path, node in nodes if isinstance(node, PackedLinear)}


def names(path: Any) -> Path:
    """Return a path as the names of its keys; a variable's own `value` is no name.

    Example:
        >>> names((jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(0), jax.tree_util.GetAttrKey("value")))
        ('a', '0')
    """
    found = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return found[:-1] if found and found[-1] == "value" else found
