"""The weights of a Flax Linen model: a module beside its variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.models.weights.function import flat
from parity.models.weights.jax_side import JaxTree, extends
from parity.models.weights.tree import BUFFER, PARAMETER, STATISTIC, Leaf, Parts

COLLECTIONS = {"params": PARAMETER, "batch_stats": STATISTIC}


def reads(model: Any) -> bool:
    """Return whether a model is a Linen module beside its variables."""
    return isinstance(model, tuple) and len(model) == 2 and extends(model[0], "flax.linen", "Module")


def read(model: Any) -> JaxTree:
    """Return the weights of `(module, variables)`; paths begin with the collection, as in `variables["params"]`."""
    module, variables = model
    if not isinstance(variables, Mapping):
        raise TypeError(f"a Linen model: expected (module, variables), a dict of collections, got {type(variables)}")
    if "params" not in variables:
        raise ValueError(
            "a Linen model: expected variables with the collection 'params', as module.init returns them, got"
            f" {', '.join(map(repr, variables))}; write (module, {{'params': params}})"
        )
    entries, rebuild, ordered = flat(variables)
    leaves = {
        path: Leaf(
            path,
            parts[1:],
            tuple(value.shape),
            str(value.dtype),
            COLLECTIONS.get(str(parts[0]), BUFFER),
            flags={"flax": True},
        )
        for path, (parts, value) in entries.items()
    }
    arrays = {path: value for path, (_, value) in entries.items()}
    return JaxTree(model, "linen", leaves, arrays, lambda values: (module, rebuild(values)), ordered=ordered)


def as_called(tree: JaxTree, args: Any, kwargs: Any) -> JaxTree:
    """Return the tree in the order in which the modules are called: JAX sorts the keys of a dict that it maps.

    Args:
        tree: Of a Linen model.
        args: What the model is called with, and so are the others.
        kwargs: By keyword.
    """
    import jax
    from flax import linen

    from parity.models.capture.linen_modules import of_apply

    module, variables = tree.model
    order: dict[Parts, int] = {}

    def note(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        order.setdefault(tuple(context.module.path), len(order))
        return function(*args, **kwargs)

    rngs, kwargs = of_apply(module, kwargs)
    mutable = [name for name in variables if name != "params"]
    with linen.intercept_methods(note):
        jax.eval_shape(lambda values: module.apply(values, *args, rngs=rngs, mutable=mutable, **kwargs), variables)

    def place(path: str) -> list[int]:
        parts = tuple(str(part) for part in tree.leaves[path].parts)
        return [order.get(parts[:depth], len(order)) for depth in range(1, len(parts))]

    leaves = {path: tree.leaves[path] for path in sorted(tree.leaves, key=place)}
    return JaxTree(tree.model, tree.framework, leaves, tree.arrays, tree.with_arrays, ordered=True)
