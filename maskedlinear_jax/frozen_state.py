"""What an optimizer keeps of frozen entries stays as it was, whatever its values (contract S8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maskedlinear_jax import _compat
from maskedlinear_jax.early_hold import Output, run_held
from maskedlinear_jax.frozen_entries import Path, is_held, path_of, trains

_OF_NOW = ("params",)
"""What a state calls the parameters of the step itself (`optax.lbfgs`): zeros at first, which are not to be kept."""


def update_and_keep(
    update: Callable[..., Any], masks: Mapping[Path, Any], given: tuple[Any, Any, Any], extra: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Return what an optimizer's update returns, its state with the old values where a parameter is frozen.

    A leaf of the state belongs to the parameter whose path its own ends with. If it has the parameter's shape, it is
    kept entry by entry. Nothing else is touched. Compiled code puts the old values back as early as it can.

    Args:
        update: The optimizer's function.
        masks: What `masks_by_path` returns.
        given: Updates, state and parameters.
        extra: What else the function takes, by name.
    """
    leaves, tree = jax.tree.flatten(given)
    arrays = [number for number, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    state = given[1]
    if not any(_compat.is_tracer(leaf) for leaf in leaves):
        moved, after = update(*given, **extra)
        outputs = _outputs(masks, moved, after, state)[len(jax.tree.leaves(moved)) :]
        kept = [one.hold(leaf) if one.hold else leaf for one, leaf in zip(outputs, jax.tree.leaves(after), strict=True)]
        return moved, jax.tree.unflatten(jax.tree.structure(after), kept)

    def call(traced: list[Any]) -> Any:
        filled = list(leaves)
        for number, leaf in zip(arrays, traced, strict=True):
            filled[number] = leaf
        return update(*jax.tree.unflatten(tree, filled), **extra)

    inputs = [leaves[number] for number in arrays]
    program, (moved, after) = jax.make_jaxpr(call, return_shape=True)(inputs)
    found = run_held(program, inputs, _outputs(masks, moved, after, state))
    result: tuple[Any, Any] = jax.tree.unflatten(jax.tree.structure((moved, after)), found)
    return result


def _outputs(masks: Mapping[Path, Any], moved: Any, after: Any, before: Any) -> list[Output]:
    # Of each leaf of the updates and of the state: whose it is, and what puts back where that is frozen.
    named = [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(moved)[0]]
    found = [Output(path if is_held(masks, path) else None, None) for path, _ in named]
    first = moved.fast if hasattr(moved, "fast") and hasattr(moved, "slow") else moved  # optax.LookaheadParams
    shapes = {
        path_of(keys): leaf.shape
        for keys, leaf in jax.tree_util.tree_flatten_with_path(first)[0]
        if hasattr(leaf, "shape") and is_held(masks, path_of(keys))
    }

    def add(keys: Any, new: Any, old: Any) -> None:
        path, shape = path_of(keys), getattr(new, "shape", None)
        owner = next((path[i:] for i in range(len(path) + 1) if path[i:] in shapes), None)
        kind = None if owner is None else path[: len(path) - len(owner)][-1:]
        if owner is None or not shape or shape != shapes[owner] or kind == _OF_NOW:
            found.append(Output(None, None))
        else:
            found.append(Output(owner, lambda leaf: jnp.where(trains(masks, owner, leaf), leaf, old)))

    jax.tree_util.tree_map_with_path(add, after, before)
    return found
