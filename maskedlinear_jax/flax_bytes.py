"""Pytree layers in `flax.serialization`: `to_bytes`, `to_state_dict` and their inverses (needs Flax)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization

from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.masks import Mask
from maskedlinear_jax.constant import Constant
from maskedlinear_jax.embedding import MaskedEmbedding, PackedEmbedding
from maskedlinear_jax.module import MaskedLinear
from maskedlinear_jax.packed_module import PackedLinear

_MASKS = "masks"


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


def register() -> None:
    """Let Flax store the layers of this package: their leaves by name."""
    for kind in (MaskedLinear, PackedLinear, MaskedEmbedding, PackedEmbedding, Constant):
        serialization.register_serialization_state(kind, _to_state, _from_state, override=True)
