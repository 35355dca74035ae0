"""Weights that a JAX function brings along: arrays, Flax and Equinox modules, pytrees (`parity.operator.brought`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Swap = Callable[..., Any]


class JaxSide:
    """What JAX's objects hold (`brought.Side`)."""

    def holds(self, value: Any) -> bool:
        """Return whether an object is an array of floats, a module of NNX, a bound one of Linen, or a pytree."""
        return _is_float(value) or _is_nnx(value) or _is_bound(value) or _is_tree(value)

    def swapped(self, value: Any, path: str, swap: Swap) -> Any:
        """Return an array, a module or a pytree with other arrays; what is given is not touched."""
        if _is_nnx(value):
            from flax import nnx

            graph, state = nnx.split(value)
            return nnx.merge(graph, _tree(state, path, swap))
        if _is_bound(value):
            module, variables = value.unbind()
            return module.bind(_tree(variables, path, swap))
        return _tree(value, path, swap)

    def numpy(self, array: Any) -> np.ndarray:
        """Return an array as float64."""
        return np.asarray(array).astype(np.float64)

    def array(self, values: np.ndarray, like: Any) -> Any:
        """Return numbers as an array of the dtype of another."""
        return jnp.asarray(values.astype(like.dtype))

    def transposed(self, array: Any, axes: Sequence[int]) -> Any:
        """Return an array with its axes in another order."""
        return jnp.transpose(array, tuple(axes))

    def first_float(self, arguments: Any) -> Any:
        """Return the first array of floats among arguments."""
        return next((one for one in jax.tree.leaves(arguments) if _is_float(one)), None)


def _is_float(value: Any) -> bool:
    return isinstance(value, jax.Array) and bool(jnp.issubdtype(value.dtype, jnp.floating))


def _is_nnx(value: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


def _is_bound(value: Any) -> bool:
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(value, linen.Module) and value.scope is not None


def _is_tree(value: Any) -> bool:
    """Return whether a value is a tree that is no plain list, tuple or dict, and has arrays: an Equinox module."""
    if isinstance(value, list | tuple | dict | jax.Array) or value is None or isinstance(value, type):
        return False
    leaves = jax.tree.leaves(value)
    return any(leaf is not value and _is_float(leaf) for leaf in leaves)


def _tree(tree: Any, path: str, swap: Swap) -> Any:
    def swapped(keys: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(keys, simple=True, separator=".").removesuffix(".value")
        return swap(f"{path}.{name}".strip("."), leaf) if _is_float(leaf) else leaf

    return jax.tree_util.tree_map_with_path(swapped, tree)
