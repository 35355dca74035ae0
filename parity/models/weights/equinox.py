"""The weights of an Equinox module, or of `(module, state)` where running statistics are in a `State`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from parity.models.weights.jax_side import JaxTree, extends
from parity.models.weights.tree import BUFFER, PARAMETER, STATISTIC, Leaf, Parts

STATE_NAMES = {"ema_state_index": ("mean", "var"), "batch_state_index": ("mean", "var")}
"""What Equinox's layers keep in a `State`, by the field of the layer: the names of the parts."""
FLAGS = ("groups", "num_heads")


def reads(model: Any) -> bool:
    """Return whether a model is an Equinox module, or one beside its state."""
    if isinstance(model, tuple):
        return len(model) == 2 and extends(model[0], "equinox", "Module") and extends(model[1], "equinox", "State")
    return extends(model, "equinox", "Module")


def read(model: Any) -> JaxTree:
    """Return the weights of the module, in order of its fields; a shared weight is there once, with its other name."""
    import equinox as eqx
    import jax

    module, state = model if isinstance(model, tuple) else (model, None)
    leaves: dict[str, Leaf] = {}
    arrays: dict[str, Any] = {}
    indices: dict[str, tuple[Any, int]] = {}
    found, _ = jax.tree_util.tree_flatten_with_path(module, is_leaf=_is_index)
    for keys, value in found:
        parts = tuple(_part(key) for key in keys)
        owner = _at(module, parts[:-1])
        if _is_index(value):
            for position, name in enumerate(STATE_NAMES.get(str(parts[-1]), ()) if state is not None else ()):
                inner = (*parts[:-1], name)
                path = "state." + _text(inner)
                array = state.get(value)[position]
                indices[path] = (value, position)
                arrays[path] = array
                leaves[path] = Leaf(
                    path, inner, tuple(array.shape), str(array.dtype), STATISTIC, _layer(owner), _flags(owner)
                )
        elif eqx.is_array(value):
            path = _text(parts)
            kind = PARAMETER if eqx.is_inexact_array(value) else BUFFER
            arrays[path] = value
            leaves[path] = Leaf(path, parts, tuple(value.shape), str(value.dtype), kind, _layer(owner), _flags(owner))
    for path, other in _shared(module, arrays).items():
        leaves[path] = leaves[path].tied([other], [_text(other)])

    def replace(values: Mapping[str, Any]) -> Any:
        def change(keys: Any, value: Any) -> Any:
            return values.get(_text(tuple(_part(key) for key in keys)), value)

        changed = jax.tree_util.tree_map_with_path(change, module, is_leaf=_is_index)
        if state is None:
            return changed
        made = jax.tree_util.tree_map(lambda value: value, state)  # set() spends the state that it is called on
        for path, (index, position) in indices.items():
            if path in values:
                entry = list(made.get(index))
                entry[position] = values[path]
                made = made.set(index, tuple(entry))
        return changed, made

    return JaxTree(model, "equinox", leaves, arrays, replace, ordered=True)


def _is_index(value: Any) -> bool:
    return extends(value, "equinox", "StateIndex")


def _part(key: Any) -> str | int:
    for name in ("name", "idx", "key"):
        if hasattr(key, name):
            value = getattr(key, name)
            return value if isinstance(value, int) else str(value)
    return str(key)


def _text(parts: Parts) -> str:
    return ".".join(str(part) for part in parts)


def _at(node: Any, parts: Sequence[Any]) -> Any:
    for part in parts:
        node = node[part] if isinstance(node, Mapping | list | tuple) else getattr(node, str(part), None)
    return node


def _layer(owner: Any) -> str:
    for base in type(owner).__mro__:
        if base.__module__.startswith("equinox.nn."):
            return str(base.__name__)
    return ""


def _flags(owner: Any) -> dict[str, Any]:
    return {key: getattr(owner, key) for key in FLAGS if hasattr(owner, key)}


def _shared(module: Any, arrays: Mapping[str, Any]) -> dict[str, Parts]:
    """Return the second name of each weight that an `eqx.nn.Shared` ties, by its first."""
    import equinox as eqx
    import jax

    names = {id(array): path for path, array in arrays.items()}
    tied: dict[str, Parts] = {}

    def is_shared(value: Any) -> bool:
        return isinstance(value, eqx.nn.Shared)

    for keys, shared in jax.tree_util.tree_flatten_with_path(module, is_leaf=is_shared)[0]:
        if not is_shared(shared):
            continue
        prefix = tuple(_part(key) for key in keys)
        source, node = shared.get(shared.pytree), shared.where(shared.pytree)
        inner, _ = jax.tree_util.tree_flatten_with_path(shared.pytree, is_leaf=functools.partial(operator.is_, node))
        for path, value in inner:
            if value is node and id(source) in names:
                tied[names[id(source)]] = (*prefix, "pytree", *(_part(key) for key in path))
    return tied
