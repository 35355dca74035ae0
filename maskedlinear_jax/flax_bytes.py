"""Pytree layers in `flax.serialization`: `to_bytes`, `to_state_dict` and their inverses.

Flax has a register of what it stores. It is told when the first layer is made after it was imported, which is never
done here.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp

from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.masks import Mask

_MASKS = "masks"
_untold: list[type] = []


def _named(node: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(node)
    }


def _to_state(node: Any) -> dict[str, Any]:
    # Of masks their kinds, for positions of another kind may be as many.
    nodes = jax.tree.leaves(node, is_leaf=lambda one: isinstance(one, Mask))
    return {_MASKS: ",".join(type(one).__name__ for one in nodes if isinstance(one, Mask))} | _named(node)


def _from_state(node: Any, state: dict[str, Any]) -> Any:
    own = _to_state(node)
    wanted, got = ({name: getattr(one, "shape", one) for name, one in side.items()} for side in (own, state))
    if wanted != got:
        storage_checks.refuse_state(type(node).__name__, wanted, got)
    leaves = [
        jnp.asarray(state[name]) if isinstance(one, jax.Array) else state[name] for name, one in _named(node).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(node), leaves)


def store(*kinds: type) -> None:
    """Let Flax store layers of these classes, their leaves by name: now, or once it is imported."""
    _untold.extend(kinds)
    tell()


def tell() -> None:
    """Tell Flax what it does not know yet, if it is imported (called wherever JAX makes a layer)."""
    if _untold and (register := getattr(sys.modules.get("flax.serialization"), "register_serialization_state", None)):
        while _untold:
            register(_untold.pop(), _to_state, _from_state, override=True)
