"""Reading the weights or gradients of a model by layer, whatever holds them (contract S14)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from maskedlinear_core.arrays import is_framework_array
from maskedlinear_core.checks import selection as selection_checks

Leaves = Iterable[tuple[tuple[str, ...], Any]]
Arrays = dict[str, Any]

_MODELS: list[tuple[type, Callable[[Any, str], Arrays]]] = []
_FLATTENERS: list[Callable[[Any], Leaves]] = []

OWN_NAMES = ("weight", "kernel", "embedding")
"""What layers call their weight: no part of the layer's name."""


def register_model_reader(model_type: type, reader: Callable[[Any, str], Arrays]) -> None:
    """Teach the core to read a model.

    Args:
        model_type: The framework's class of models.
        reader: Takes a model and "weight" or "gradient"; returns the arrays (out_features, in_features) by layer name.
    """
    _MODELS.append((model_type, reader))


def register_flattener(flattener: Callable[[Any], Leaves]) -> None:
    """Teach the core a framework's trees: a function that returns the leaves of one with their paths."""
    _FLATTENERS.append(flattener)


def is_model(value: Any) -> bool:
    """Tell whether a value is a model that a reader is registered for.

    Example:
        >>> is_model({"a": 1})
        False
    """
    return any(isinstance(value, kind) for kind, _ in _MODELS)


def is_variable(value: Any) -> bool:
    """Tell whether a value is a variable of Flax, without importing that.

    Example:
        >>> is_variable(3)
        False
    """
    return any(base.__module__.startswith("flax.nnx") and base.__name__ == "Variable" for base in type(value).__mro__)


def layers_of(tree: Any, what: str = "weight") -> Arrays:
    """Return the arrays of a model or a tree by layer name, each (out_features, in_features).

    Args:
        tree: A model; arrays by name; or a tree of arrays. Of a tree leaves with two axes count. A leaf by the name
            of `kernel` is one of Flax, (in_features, out_features).
        what: "weight" or "gradient", of a model that has both.

    Raises:
        TypeError: A Flax variable in a list, or in a dict under the name of its layer: its axes are not known.
        ValueError: Two layers of one name.

    Example:
        >>> import numpy as np
        >>> {name: array.shape for name, array in layers_of({"a": {"kernel": np.ones((2, 3))}}).items()}
        {'a': (3, 2)}
    """
    for kind, reader in _MODELS:
        if isinstance(tree, kind):
            return reader(tree, what)
    if isinstance(tree, Mapping) and not any(_has_parts(one) or _own(str(name)) for name, one in tree.items()):
        return {str(name): one for name, one in tree.items()}
    found: Arrays = {}
    for path, leaf in _leaves(tree, ()):
        leaf_value = leaf.get_value() if is_variable(leaf) else leaf
        if not is_framework_array(leaf_value) or len(leaf_value.shape) != 2:
            continue
        own = path[-1] if path and path[-1] in OWN_NAMES else None
        name = ".".join(path[:-1] if own else path)
        if name in found:
            selection_checks.refuse_names(name)
        found[name] = leaf_value.T if own == "kernel" else leaf_value
    return found


def _has_parts(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple) or is_variable(value):
        return True
    return not is_framework_array(value) and any(True for flatten in _FLATTENERS for path, _ in flatten(value) if path)


def _own(name: str) -> bool:
    return name.rpartition(".")[2] in OWN_NAMES


def _refuse_variable(name: object, value: Any) -> None:
    # By no name of Flax's own: whose axes nobody can tell.
    if is_variable(value) and len(value.shape) == 2:
        selection_checks.refuse_variable(str(name), tuple(value.shape))


def _leaves(tree: Any, path: tuple[str, ...]) -> Leaves:
    # Dicts in the order that they are written in, which jax.tree would sort.
    if isinstance(tree, Mapping):
        for name, child in tree.items():
            if isinstance(tree, dict) and not _own(str(name)):
                _refuse_variable(name, child)
            yield from _leaves(child, (*path, *str(name).split(".")))
    elif isinstance(tree, list | tuple) and not hasattr(tree, "_fields"):
        for number, child in enumerate(tree):
            _refuse_variable(number, child)
            yield from _leaves(child, (*path, str(number)))
    elif is_framework_array(tree) or is_variable(tree) or tree is None or not _FLATTENERS:
        yield path, tree
    else:
        for flattener in _FLATTENERS:
            for inner, leaf in flattener(tree):
                yield (*path, *inner), leaf
