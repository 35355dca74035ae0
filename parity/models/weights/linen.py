"""The weights of a Flax Linen model: a module beside its variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.models.weights.function import flat
from parity.models.weights.jax_side import JaxTree, extends
from parity.models.weights.tree import BUFFER, PARAMETER, STATISTIC, Leaf

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
