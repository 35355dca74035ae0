"""Frozen for good: what an optimizer may not move (SPEC S8)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskedlinear_core import frozen
from maskedlinear_core.arrays import to_numpy
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_core.masks import Mask
from maskedlinear_jax import lowering
from maskedlinear_jax.module import MaskedLinear, _is_float
from maskedlinear_jax.packed_module import PackedLinear


def hold_frozen(optimizer: Any, model: Any) -> Any:
    """Keep the frozen entries of masked layers, and their moments, bit for bit as they are in every step.

    A masked gradient is not a frozen weight: weight decay, momentum from before, and optimizers that mix
    entries (Muon) still move it. Wrap the whole chain, decay included. A frozen update becomes -0.0, which
    `optax.apply_updates` adds without changing a bit (+0.0 would turn a weight of -0.0 into +0.0), but for
    subnormal weights, which XLA on CPU flushes to zero in any addition: `apply_updates` leaves these alone too.

    Args:
        optimizer: An optax gradient transformation.
        model: A pytree that contains `MaskedLinear` layers; or what `grad_masks` gives; or a pytree like the
            parameters, of masks and bool arrays.

    Returns:
        A gradient transformation. When a mask changes during training, hand the new ones to
        `update(gradients, state, params, masks=grad_masks(model))`.

    Raises:
        TypeError: `optimizer` is no optax transformation.
        ValueError: The model has nothing to hold.
        ImportError: optax is missing.

    Example:
        >>> import optax
        >>> from maskedlinear_jax import columns, combine, partition
        >>> layer = MaskedLinear(3, 2, grad_mask=columns([0]), seed=0)
        >>> optimizer = hold_frozen(optax.adamw(0.1, weight_decay=0.5), layer)
        >>> params, rest = partition(layer)
        >>> grads = jax.grad(lambda params: combine(params, rest)(jnp.ones((1, 3))).sum())(params)
        >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
        >>> assert_frozen(layer, combine(optax.apply_updates(params, updates), rest))
        4
    """
    try:
        import optax  # not on import: the rest of the package does without, and starts faster
    except ImportError as error:
        raise ImportError("hold_frozen needs optax: pip install 'maskedlinear[optax]'") from error
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        frozen_checks.refuse_optimizer("an optax.GradientTransformation", optimizer)
    held = grad_masks(model) if _has_layers(model) else model
    if all(leaf is True for leaf in jax.tree.leaves(held, is_leaf=_is_mask)):
        frozen_checks.refuse_nothing_held()
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, *, masks: Any = held, **extra: Any) -> tuple[Any, Any]:
        trains = jax.tree.map(_as_bools, masks, updates, is_leaf=_is_mask)
        moved, now = inner.update(updates, state, params, **extra)
        moved = jax.tree.map(lambda m, u: jnp.where(m, u, jnp.asarray(-0.0, u.dtype)), trains, moved)
        return moved, _hold_state(trains, now, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def grad_masks(model: Any) -> Any:
    """Return what trains in a model: a pytree like `partition(model)[0]`, of bool arrays.

    Args:
        model: Any pytree.

    Returns:
        The bool array of each weight and bias of the masked layers; True for every other float leaf, which
        trains as a whole.

    Example:
        >>> from maskedlinear_jax import columns
        >>> grad_masks(MaskedLinear(3, 1, grad_mask=columns([0]), seed=0)).weight
        Array([[ True, False, False]], dtype=bool)
    """

    def masks(node: Any) -> Any:
        if not isinstance(node, MaskedLinear):
            return jax.tree.map(lambda leaf: True if _is_float(leaf) else None, node)
        bias = True if node.bias_mask is None else jnp.asarray(node.bias_mask)
        weight = _as_bools(node.grad_mask, node.weight)
        return node.replace(weight=weight, bias=None if node.bias is None else bias, grad_mask=_nothing(node.grad_mask),
                            bias_mask=None)  # fmt: skip

    return jax.tree.map(masks, model, is_leaf=lambda node: isinstance(node, MaskedLinear))


def assert_frozen(before: Any, after: Any, masks: Any = None) -> int:
    """Prove that every frozen entry has the bits it had.

    Args:
        before: A pytree from before.
        after: A pytree from now, of the same structure.
        masks: What trains: a pytree of the same structure, of masks and bool arrays. Left out, it is asked of
            the masked and packed layers in `after`; every other float leaf is taken to train as a whole.

    Returns:
        How many frozen entries were compared.

    Raises:
        FrozenMoved: Some entry changed; the text names it. It is an AssertionError.
        ValueError: The names or shapes differ, or nothing is frozen.

    Example:
        >>> from maskedlinear_jax import columns
        >>> assert_frozen({"w": jnp.ones((1, 2))}, {"w": jnp.array([[1.0, 2.0]])}, {"w": columns([1])})
        1
    """
    named = _named_masks(after) if masks is None else _named(masks, _is_mask)
    return frozen.assert_same_bits(_named_arrays(before), _named_arrays(after), named)


def apply_updates(params: Any, updates: Any) -> Any:
    """Add updates to parameters as `optax.apply_updates` does, leaving a parameter alone where its update is zero.

    Example:
        >>> apply_updates(jnp.array([1.0, 1e-40]), jnp.array([0.5, -0.0])).tolist()[0]
        1.5
    """

    def add(parameter: Any, update: Any) -> Any:
        moved = jnp.asarray(parameter + update, parameter.dtype)
        return jnp.where(update == 0, parameter, moved)

    return jax.tree.map(add, params, updates)


def _has_layers(tree: Any) -> bool:
    return any(_is_layer(node) and node.grad_mask is not None for node in jax.tree.leaves(tree, is_leaf=_is_layer))


def _is_layer(node: Any) -> bool:
    return isinstance(node, MaskedLinear | PackedLinear)


def _is_mask(node: Any) -> bool:
    return isinstance(node, Mask)


def _as_bools(mask: Any, like: Any) -> Any:
    if isinstance(like, Mask):  # a layer's own mask, which `partition` left without leaves
        return like
    if isinstance(mask, Mask):
        kind = lowering.resolve(mask, (like.shape[0], like.shape[1]))
        return jnp.broadcast_to(kind.mask(like), like.shape)
    return jnp.asarray(mask)


def _nothing(tree: Any) -> Any:
    # As `partition` leaves it: the structure, without leaves.
    return jax.tree.map(lambda leaf: None, tree)


def _hold_state(trains: Any, now: Any, before: Any) -> Any:
    # A leaf of the state belongs to the parameter whose path its own ends with. If it also has the parameter's
    # shape, it is kept entry by entry, and stays as it was where nothing trains.
    masks = dict(jax.tree_util.tree_flatten_with_path(trains)[0])

    def hold(path: tuple[Any, ...], new: Any, old: Any) -> Any:
        mask = next((masks[path[i:]] for i in range(len(path) + 1) if path[i:] in masks), None)
        if mask is None or mask.ndim == 0 or getattr(new, "shape", None) != mask.shape:
            return new
        return jnp.where(mask, new, old)

    return jax.tree_util.tree_map_with_path(hold, now, before)


def _named(tree: Any, is_leaf: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return convert_checks.by_name(
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves
    )


def _named_arrays(tree: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, node in _named(tree, _is_layer).items():
        if _is_layer(node):
            parts = {"weight": node.weight, "bias": node.bias}
            found |= {_join(name, part): to_numpy(array) for part, array in parts.items() if array is not None}
        elif _is_float(node):
            found[name] = to_numpy(node)
    return found


def _named_masks(tree: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, node in _named(tree, _is_layer).items():
        if _is_layer(node):
            found[_join(name, "weight")] = node.grad_mask
            if node.bias is not None:
                found[_join(name, "bias")] = node.bias_mask
        elif _is_float(node):
            found[name] = None
    return found


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
