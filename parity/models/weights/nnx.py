"""The weights of a Flax NNX module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from parity.models import _compat
from parity.models.weights.jax_side import JaxTree, extends
from parity.models.weights.tree import BUFFER, PARAMETER, STATISTIC, Leaf, Parts

FLAGS = ("transpose_kernel", "feature_group_count", "num_heads", "in_features", "out_features", "features")


def reads(model: Any) -> bool:
    """Return whether a model is a Flax NNX module."""
    return extends(model, "flax.nnx", "Module")


def read(model: Any) -> JaxTree:
    """Return the weights of the module; a variable that two names share is there once, with its other names."""
    from flax import nnx

    variables: dict[str, Any] = {}
    leaves: dict[str, Leaf] = {}
    seen: dict[int, str] = {}
    aliases: dict[str, list[Parts]] = {}
    for parts, variable, owner in _variables(model, (), None, set()):
        if isinstance(variable, nnx.RngState):
            continue
        path = ".".join(str(part) for part in parts)
        if id(variable) in seen:
            aliases[seen[id(variable)]].append(parts)
            continue
        seen[id(variable)] = path
        aliases[path] = []
        variables[path] = variable
        kind = (
            PARAMETER
            if isinstance(variable, nnx.Param)
            else STATISTIC
            if isinstance(variable, nnx.BatchStat)
            else BUFFER
        )
        value = variable.get_value()
        leaves[path] = Leaf(path, parts, tuple(value.shape), str(value.dtype), kind, _layer(owner), _flags(owner))
    for path, others in aliases.items():
        leaves[path] = leaves[path].tied(others, [".".join(map(str, other)) for other in others])

    def replace(values: Mapping[str, Any]) -> Any:
        clone = nnx.clone(model)
        _order_as(clone, model, set())
        for path, value in values.items():
            variable = clone
            for part in leaves[path].parts:
                variable = variable[part] if isinstance(part, int) else _child(variable, part)
            variable.set_value(value)
        return clone

    arrays = {path: variable.get_value() for path, variable in variables.items()}
    return JaxTree(model, "nnx", leaves, arrays, replace, ordered=True)


def _variables(node: Any, parts: Parts, owner: Any, above: set[int]) -> Iterator[tuple[Parts, Any, Any]]:
    """Yield every variable with its path and the module that owns it, in order of definition."""
    from flax import nnx

    if isinstance(node, nnx.Variable):
        if hasattr(node.get_value(), "shape"):
            yield parts, node, owner
        return
    if id(node) in above:
        return
    inside = above | {id(node)}
    if isinstance(node, nnx.List | list | tuple):
        for index, child in enumerate(node):
            yield from _variables(child, (*parts, index), node, inside)
    elif isinstance(node, Mapping):
        for key in node:
            yield from _variables(node[key], (*parts, key), node, inside)
    elif isinstance(node, nnx.Module | nnx.Object):
        for key, child in _compat.nnx_attributes(node).items():
            yield from _variables(child, (*parts, key), node, inside)


def _order_as(made: Any, model: Any, seen: set[int]) -> None:
    """Put the attributes of a clone in the order of definition, which Flax's clones lose."""
    from flax import nnx

    if id(made) in seen:
        return
    seen.add(id(made))
    if isinstance(model, nnx.List | list | tuple):
        for one, other in zip(made, model, strict=True):
            _order_as(one, other, seen)
    elif isinstance(model, Mapping):
        for key in model:
            _order_as(made[key], model[key], seen)
    elif isinstance(model, nnx.Module | nnx.Object):
        held = vars(made)
        ordered = {key: held[key] for key in vars(model) if key in held} | held
        held.clear()
        held.update(ordered)
        for key, child in _compat.nnx_attributes(model).items():
            _order_as(held[key], child, seen)


def _child(node: Any, name: str) -> Any:
    return node[name] if isinstance(node, Mapping) else getattr(node, name)


def _layer(owner: Any) -> str:
    for base in type(owner).__mro__:
        if base.__module__.startswith("flax.nnx.nn."):
            return str(base.__name__)
    return ""


def _flags(owner: Any) -> dict[str, Any]:
    return {key: getattr(owner, key) for key in FLAGS if hasattr(owner, key)}
