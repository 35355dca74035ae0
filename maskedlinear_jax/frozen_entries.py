"""Which entries of a pytree are frozen: masks by path, and their counterparts in other pytrees (contract S8).

Masks, parameters, updates and an optimizer's state are pytrees that agree in parts only: optax puts `MaskedNode` in
the place of what another transformation has, Equinox puts None, and a state holds trees like the parameters within
structures of its own. So what belongs together is found by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskedlinear_core.arrays import is_framework_array
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_core.masks import Mask
from maskedlinear_jax import _compat, lowering

Path = tuple[str, ...]


def by_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[Path, Any]:
    """Return the leaves of a pytree by their paths, as text: a dict's key 0 and a list's first are one name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {path_of(keys): leaf for keys, leaf in leaves}


def path_of(keys: Any) -> Path:
    """Return a path as text. A variable's value (Flax NNX) goes by the variable's name."""
    if keys and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def masks_by_path(masks: Any) -> dict[Path, Any]:
    """Return masks by path, without those that say nothing: None and True, for what trains as a whole."""
    found = by_path(masks, is_leaf=lambda node: node is None or isinstance(node, Mask))
    return {path: mask for path, mask in found.items() if mask is not None and mask is not True}


class Rows(NamedTuple):
    """Which rows of a matrix train. A program then reads no matrix of bools."""

    rows: Any


def as_rows(mask: Any) -> Any:
    """Return a bool array as `Rows`, if it is of whole rows and can be read."""
    if _compat.is_tracer(mask) or getattr(mask, "ndim", 0) != 2 or not mask.size:
        return mask
    found = np.asarray(mask)
    return Rows(found[:, 0]) if (found == found[:, :1]).all() else mask


def lies_in_blocks(mask: Any) -> bool:
    """Tell whether a bool array that can be read is of blocks: most entries have equal neighbours, both ways."""
    if _compat.is_tracer(mask) or getattr(mask, "ndim", 0) != 2 or not mask.size:
        return False
    found = np.asarray(mask)
    borders = (np.count_nonzero(np.diff(found, axis=axis)) for axis in (0, 1))
    few = min(trainable := np.count_nonzero(found), found.size - trainable)
    return all(0 < 4 * number <= few for number in borders)


def lies_in_columns(mask: Any) -> bool:
    """Tell whether a bool array that can be read is of whole columns."""
    if _compat.is_tracer(mask) or getattr(mask, "ndim", 0) != 2 or not mask.size:
        return False
    found = np.asarray(mask)
    return bool((found == found[:1]).all())


def is_held(masks: Mapping[Path, Any], path: Path) -> bool:
    """Tell whether a parameter has a mask, its own or that of all it is in."""
    return path in masks or any(masks.get(path[:i]) is False for i in range(len(path)))


def trains(masks: Mapping[Path, Any], path: Path, like: Any) -> Any:
    """Return the bool array that tells where a parameter trains, or None if all of it does.

    Args:
        masks: What `masks_by_path` returns. False for a whole subtree is of all that is in it.
        path: The parameter's.
        like: An array of the parameter's shape.

    Raises:
        TypeError, ValueError: The mask does not fit the parameter.
    """
    found = _trains(masks, path, like)
    return None if found is None else _compat.laid_out_as(found, like)


def _trains(masks: Mapping[Path, Any], path: Path, like: Any) -> Any:
    mask = masks.get(path)
    if mask is None:
        frozen = any(masks.get(path[:i]) is False for i in range(len(path)))
        return jnp.zeros(like.shape, bool) if frozen else None
    name = ".".join(path) or "the parameter"
    if mask is False:
        return jnp.zeros(like.shape, bool)
    if isinstance(mask, Mask):
        if len(like.shape) != 2:
            frozen_checks.matrix(name, tuple(like.shape))
        kind = lowering.resolve(mask, (like.shape[0], like.shape[1]))
        return jnp.broadcast_to(kind.mask(like), like.shape)
    if isinstance(mask, Rows):
        mask = jnp.broadcast_to(jnp.asarray(mask.rows)[:, None], (len(mask.rows), *like.shape[-1:]))
    mask = mask if is_framework_array(mask) else jnp.asarray(mask)
    frozen_checks.bool_of_shape(name, str(mask.dtype), tuple(mask.shape), tuple(like.shape))
    return jnp.broadcast_to(jnp.asarray(mask), like.shape)


def keep(tree: Any, where: Callable[[Path, Any], Any], frozen: Callable[[Path, Any], Any]) -> Any:
    """Return a pytree like the parameters, with something else where a parameter is frozen.

    Args:
        tree: Parameters, or updates of them.
        where: Called with a path and its leaf: what `trains` returns.
        frozen: Called with a path and its leaf: what to put there.
    """

    def choose(keys: Any, leaf: Any) -> Any:
        path = path_of(keys)
        mask = where(path, leaf) if is_framework_array(leaf) else None
        return leaf if mask is None else jnp.where(mask, leaf, frozen(path, leaf))

    return jax.tree_util.tree_map_with_path(choose, tree)
