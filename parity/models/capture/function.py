"""A function of a pytree of weights: it has no modules, so there is one call, of the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from parity.models.capture.call import Call
from parity.models.capture.recorder import Recorder, over_batch
from parity.signatures import parameters_of


class FunctionModel:
    """A function `(params, *inputs)` with its params, in a dtype.

    Args:
        function: The function.
        params: A pytree of arrays.
        double: Whether floats become float64.
        mapped: Whether the function takes one example, and is mapped over the first axis of its inputs.
    """

    def __init__(self, function: Callable[..., Any], params: Any, *, double: bool, mapped: bool = False) -> None:
        self.function = function
        self.params = jax.tree.map(_double, params) if double else params
        self.mapped = mapped
        self.modules: dict[str, Any] = {}

    def capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
        """Run the function and return its call."""
        recorder = Recorder()
        leaves, treedef = jax.tree.flatten(self.params)

        def rebuild(values: list[Any]) -> Any:
            whole = functools.partial(self.function, jax.tree.unflatten(treedef, values))
            return functools.partial(_over_batch, whole) if self.mapped else whole

        whole = rebuild(leaves)
        with jax.disable_jit():
            recorder.call("", self.function, whole, args, kwargs, (leaves, rebuild), _names(self.function))
        return recorder.calls()


def _over_batch(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return over_batch(function, args, kwargs)


def _names(function: Any) -> list[str]:
    return [one.name for one in parameters_of(function)][1:]


def _double(value: Any) -> Any:
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.asarray(value, jnp.float64)
    return value


def made(model: Any, mode: str, *, double: bool, mapped: bool, native: str) -> FunctionModel:
    """Return a pair `(function, params)` that can be captured."""
    function, params = model
    return FunctionModel(function, params, double=double, mapped=mapped)
