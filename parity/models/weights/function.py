"""The weights of a function of a pytree: `(function, params)`, as Haiku and hand-written models have them.

A function without `params` holds its own weights, which cannot be read. It counts as one without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from parity.models.weights.jax_side import JaxTree, extends
from parity.models.weights.tree import Leaf, Parts


def reads(model: Any) -> bool:
    """Return whether a model is a function beside a pytree, or a function alone."""
    return (isinstance(model, tuple) and len(model) == 2 and callable(model[0])) or is_alone(model)


def is_alone(model: Any) -> bool:
    """Return whether a model is a function that holds its own weights: no class, and no module of a library.

    Example:
        >>> is_alone(lambda x: x), is_alone(dict), is_alone((lambda params, x: x, {}))
        (True, False, False)
    """
    modules = (("flax.linen", "Module"), ("torch.nn", "Module"), ("haiku", "Module"))
    return callable(model) and not isinstance(model, type) and not any(extends(model, *one) for one in modules)


def read(model: Any) -> JaxTree:
    """Return the weights of `(function, params)`."""
    if is_alone(model):
        alone = model
        model = (lambda params, *inputs, **named: alone(*inputs, **named)), {}
        return JaxTree(model, "function", {}, {}, lambda values: model, ordered=True)
    function, params = model
    entries, rebuild, ordered = flat(params)
    if not entries:
        raise ValueError("a function of a pytree: expected (function, params) with arrays in params, got none")
    leaves = {path: Leaf(path, parts, tuple(value.shape), str(value.dtype)) for path, (parts, value) in entries.items()}
    arrays = {path: value for path, (_, value) in entries.items()}
    return JaxTree(model, "function", leaves, arrays, lambda values: (function, rebuild(values)), ordered=ordered)


Entries = dict[str, tuple[Parts, Any]]


def flat(tree: Any) -> tuple[Entries, Callable[[Mapping[str, Any]], Any], bool]:
    """Return the arrays of a pytree by path, how to rebuild it with others, and whether its order means something.

    JAX sorts the keys of a dict. Here they come as they were put in; where they are sorted, that order says nothing.

    Example:
        >>> import numpy as np
        >>> entries, rebuild, ordered = flat({"b": {"w": np.zeros(2)}, "a": [np.ones(3)]})
        >>> list(entries), ordered
        (['b.w', 'a.0'], True)
        >>> rebuild({"b.w": np.ones(2)})["b"]["w"]
        array([1., 1.])
    """
    import jax

    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    rows = []
    for position, (keys, value) in enumerate(found):
        if hasattr(value, "shape") and hasattr(value, "dtype") and not _is_key(value):
            rows.append((_places(tree, keys, position), tuple(_part(key) for key in keys), value))
    rows.sort(key=lambda row: row[0])
    entries = {".".join(str(part) for part in parts): (parts, value) for _, parts, value in rows}

    def rebuild(values: Mapping[str, Any]) -> Any:
        def change(keys: Any, value: Any) -> Any:
            return values.get(".".join(str(_part(key)) for key in keys), value)

        return _in_order(jax.tree_util.tree_map_with_path(change, tree), tree)

    return entries, rebuild, not _is_sorted(tree)


def _part(key: Any) -> str | int:
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            value = getattr(key, name)
            return value if isinstance(value, int) else str(value)
    return str(key)


def _places(tree: Any, keys: Any, position: int) -> tuple[int, ...]:
    """Return the places of a leaf among the entries of each container on its way."""
    places = []
    for key in keys:
        if isinstance(tree, Mapping):
            places.append(list(tree).index(key.key))
            tree = tree[key.key]
        elif isinstance(tree, list | tuple) and hasattr(key, "idx"):
            places.append(key.idx)
            tree = tree[key.idx]
        else:
            places.append(position)
            tree = getattr(tree, str(_part(key)), None)
    return tuple(places)


def _in_order(made: Any, tree: Any) -> Any:
    """Put the keys of a tree that JAX made of another in the order of that one: it may be all that tells two apart."""
    if made is not tree and isinstance(tree, Mapping):
        values = {key: _in_order(made[key], value) for key, value in tree.items()}
        if isinstance(made, dict):
            made.clear()
            made.update(values)
        elif extends(made, "flax.core", "FrozenDict"):
            return type(made)(values)
    elif made is not tree and isinstance(tree, list | tuple):
        for one, other in zip(made, tree, strict=True):
            _in_order(one, other)
    return made


def _is_sorted(tree: Any) -> bool:
    """Return whether every dict of the tree has its keys in sorted order, as JAX's own functions return them."""
    if isinstance(tree, Mapping):
        keys = [str(key) for key in tree]
        return keys == sorted(keys) and all(_is_sorted(value) for value in tree.values())
    if isinstance(tree, list | tuple):
        return all(_is_sorted(value) for value in tree)
    return True


def _is_key(value: Any) -> bool:
    return str(value.dtype).startswith("key<")
