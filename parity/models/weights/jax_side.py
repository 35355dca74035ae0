"""The weights of a JAX model by path: one class for Flax NNX, Flax Linen, Equinox and functions of a pytree."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity.models.inputs import Call
from parity.models.weights.tree import PARAMETER, Leaf, to_numpy


class JaxTree:
    """The weights of a JAX model.

    Attributes:
        model: The model, as the user gave it.
        framework: "nnx", "linen", "equinox" or "function".
        leaves: Every weight by path, in order of definition where the framework keeps it.
        ordered: Whether that order is the order of definition throughout (dicts that are sorted have none).
        arrays: The JAX arrays, by path.
    """

    def __init__(
        self,
        model: Any,
        framework: str,
        leaves: dict[str, Leaf],
        arrays: Mapping[str, Any],
        replace: Callable[[Mapping[str, Any]], Any],
        *,
        ordered: bool,
    ) -> None:
        self.model = model
        self.framework = framework
        self.leaves = leaves
        self.arrays = arrays
        self.ordered = ordered
        self._replace = replace

    @property
    def kinds(self) -> dict[str, str]:
        """Return what each weight is: "parameter", "statistic" or "buffer"."""
        return {path: leaf.kind for path, leaf in self.leaves.items()}

    def weights(self) -> dict[str, np.ndarray]:
        """Return every weight as an array on the host; bfloat16 as float32."""
        return {path: to_numpy(array) for path, array in self.arrays.items()}

    def replace(self, values: Mapping[str, Any], *, double: bool = False) -> Any:
        """Return the model with other values at some paths, in the dtypes of its own; the user's model is unchanged.

        Args:
            values: By path.
            double: Whether parameters of float32 become float64 at once: in memory they are never both.

        Raises:
            KeyError: A path is not there.
            ValueError: A shape does not fit.
        """
        import jax.numpy as jnp

        made = {}
        for path, value in values.items():
            if path not in self.leaves:
                raise KeyError(f"the JAX model has no weight {path!r}")
            if tuple(np.shape(value)) != self.leaves[path].shape:
                raise ValueError(f"{path}: expected shape {self.leaves[path].shape}, got {tuple(np.shape(value))}")
            # What is no parameter may lie in a state that keeps its types, as Equinox's does: it is cast with the rest.
            wide = double and self.leaves[path].kind == PARAMETER and self.arrays[path].dtype == jnp.float32
            made[path] = jnp.asarray(value, dtype=jnp.float64 if wide else self.arrays[path].dtype)
        return self._replace(made)

    def with_arrays(self, arrays: Mapping[str, Any]) -> Any:
        """Return the model with these arrays at some paths as they are, traced ones included: no check, no cast."""
        return self._replace(arrays)


FRAMEWORKS = ("nnx", "linen", "equinox", "function")
"""Modules of this package that each read one kind of model, in the order in which they are asked."""


def jax_tree(model: Any) -> JaxTree:
    """Return the weights of a JAX model.

    Args:
        model: A Flax NNX module; an Equinox module, or `(module, state)`; a Flax Linen pair `(module, variables)`;
            a function of a pytree `(function, params)`; or a function that holds its own weights.

    Raises:
        TypeError: It is none of these.
        ValueError: Its weights are shapes without numbers.

    Example:
        >>> tree = jax_tree((lambda params, x: x @ params["w"], {"w": np.zeros((3, 2))}))
        >>> tree.framework, tree.leaves["w"].shape
        ('function', (3, 2))
    """
    for name in FRAMEWORKS:
        reader = importlib.import_module(f"parity.models.weights.{name}")
        if reader.reads(model):
            made = reader.read(model)
            assert isinstance(made, JaxTree)
            if empty := [path for path, one in made.arrays.items() if type(one).__name__ == "ShapeDtypeStruct"]:
                raise ValueError(
                    f"the JAX model: expected weights with numbers, got a shape alone in {empty[0]}: make the model"
                    " outside of eval_shape"
                )
            return made
    raise TypeError(
        "the JAX model: expected a Flax NNX module, an Equinox module, (Equinox module, state), (Linen module,"
        f" variables), (function, params) or a function that holds its weights, got {described(model)}"
    )


def in_call_order(jax: JaxTree, inputs: Call) -> JaxTree:
    """Return the weights of a Linen model whose variables were sorted in the order in which its modules run."""
    if jax.framework != "linen" or jax.ordered:
        return jax
    from parity.models.weights.linen import as_called

    try:
        return as_called(jax, *inputs)
    except Exception:  # that it does not run is said where it is to run
        return jax


def described(model: Any) -> str:
    """Return what a model is, for a message."""
    if isinstance(model, type):
        return f"the class {model.__name__}: pass an instance"
    if extends(model, "flax.linen", "Module"):
        return f"{type(model).__name__} of Linen alone: pass (module, variables)"
    if isinstance(model, tuple):
        return "a tuple of " + ", ".join(type(part).__name__ for part in model)
    return f"{type(model).__module__}.{type(model).__qualname__}"


def extends(value: Any, package: str, name: str) -> bool:
    """Return whether a value is an instance of a framework's class, without importing the framework."""
    return any(
        base.__name__ == name and base.__module__.split(".")[: package.count(".") + 1] == package.split(".")
        for base in type(value).__mro__
    )
