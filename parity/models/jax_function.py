"""A JAX model as a pure function of its weights by path, which is what gradients and training steps are taken of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.models.capture.jax_models import jax_model as jax_side
from parity.models.capture.recorder import has_batch
from parity.models.weights.jax_side import JaxTree, jax_tree
from parity.models.weights.tree import PARAMETER, STATISTIC


class JaxFunction:
    """A JAX model as a pure function of its weights by path.

    Args:
        model: The user's.
        mode: "eval" or "train"; a Linen module is told by its arguments instead.
        double: Whether floats become float64; `jax.enable_x64` is to be on.
        mapped: Whether the model takes one example, and is mapped over the first axis.
        native: The dtype of torch's model.
    """

    def __init__(self, model: Any, mode: str, *, double: bool, mapped: bool = False, native: str = "float32") -> None:
        tree = jax_tree(model)
        framework, model, before = tree.framework, tree.model, tree.arrays
        side: Any = jax_side(framework, model, mode, double=double, mapped=mapped, native=native)
        self.mapped, self.framework = mapped, framework
        self.call = CALLS[framework]
        self.tree: JaxTree = jax_tree(PREPARED[framework](side))
        theirs = {path: str(array.dtype) for path, array in before.items()}
        self.own = [path for path, array in self.parameters.items() if str(array.dtype) != theirs.get(path)]
        """Paths of the parameters whose memory is not the user's: they were cast."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters as they are, by path."""
        return {path: self.tree.arrays[path] for path, leaf in self.tree.leaves.items() if leaf.kind == PARAMETER}

    def __call__(
        self, values: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the outputs, and the running statistics after the call, by path."""
        out, after = self.call(self.tree.with_arrays(values), args, kwargs, self.mapped)
        arrays = jax_tree(after).arrays
        kept = {path: arrays[path] for path, leaf in self.tree.leaves.items() if leaf.kind == STATISTIC}
        return out, kept


def _call_nnx(model: Any, args: Any, kwargs: Any, mapped: bool) -> tuple[Any, Any]:
    return model(*args, **kwargs), model


def _call_linen(model: Any, args: Any, kwargs: Any, mapped: bool) -> tuple[Any, Any]:
    from parity.models.capture.linen_modules import of_apply

    module, variables = model
    mutable = [name for name in variables if name != "params"]
    rngs, kwargs = of_apply(module, kwargs)
    out, changed = module.apply(variables, *args, mutable=mutable, rngs=rngs, **kwargs)
    return out, (module, {**variables, **changed})


def _call_equinox(model: Any, args: Any, kwargs: Any, mapped: bool) -> tuple[Any, Any]:
    if not isinstance(model, tuple):
        return _mapped(model, args, kwargs, mapped=mapped, state=None)[0], model
    module, state = model
    out, after = _mapped(module, args, kwargs, mapped=mapped, state=state)
    return out, (module, after)


def _call_function(model: Any, args: Any, kwargs: Any, mapped: bool) -> tuple[Any, Any]:
    function, params = model
    out, _ = _mapped(lambda *given, **named: function(params, *given, **named), args, kwargs, mapped=mapped, state=None)
    return out, model


CALLS = {"nnx": _call_nnx, "linen": _call_linen, "equinox": _call_equinox, "function": _call_function}
PREPARED: dict[str, Any] = {
    "nnx": lambda side: side.model,
    "linen": lambda side: (side.module, side.variables),
    "equinox": lambda side: side.model if side.state is None else (side.model, side.state),
    "function": lambda side: (side.function, side.params),
}
"""What a model is that is prepared for capture: in the mode and dtype that were asked for."""


def _mapped(function: Any, args: Any, kwargs: Any, *, mapped: bool, state: Any) -> tuple[Any, Any]:
    """Call a function, of one example where `mapped`: a state is the same for all of them, before and after."""

    def whole(*given: Any) -> tuple[Any, Any]:
        changed = list(leaves)
        for at, value in zip(arrays, given, strict=True):
            changed[at] = value
        positional, keywords = jax.tree.unflatten(treedef, changed)
        if state is None:
            return function(*positional, **keywords), None
        out, after = function(*positional, state, **keywords)
        return out, after

    leaves, treedef = jax.tree.flatten((tuple(args), dict(kwargs)))
    arrays = [at for at, leaf in enumerate(leaves) if (has_batch(leaf) if mapped else getattr(leaf, "ndim", 0))]
    given = [leaves[at] for at in arrays]
    if not mapped:
        return whole(*given)
    return jax.vmap(whole, axis_name=_axis_name(function), out_axes=(0, None))(*given)


def _axis_name(module: Any) -> Any:
    """Return the name of the batch's axis that an Equinox model's norms ask for."""
    found = [
        one.axis_name
        for one in jax.tree.leaves(module, is_leaf=lambda value: hasattr(value, "axis_name"))
        if hasattr(one, "axis_name")
    ]
    return found[0] if found else "batch"


def argument_dtype(array: np.ndarray, *, double: bool) -> Any:
    """Return the dtype in which JAX takes an argument: floats wide where `double`, integers as they are without it.

    Example:
        >>> [argument_dtype(one, double=True) for one in (np.ones(2, np.float32), np.arange(2), np.array([2**40]))]
        [dtype('float64'), dtype('int32'), None]
    """
    if array.dtype.kind == "f":
        return np.dtype(np.float64 if double else np.float32)
    short = {"int64": np.int32, "uint64": np.uint32}.get(str(array.dtype))
    if short is None or (array.size and not np.array_equal(array.astype(short), array)):
        return None
    return np.dtype(short)


def device_arrays(tree: Any, *, double: bool) -> Any:
    """Return arguments with JAX arrays in place of NumPy's; floats as float64 where `double`."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        return jnp.asarray(leaf, argument_dtype(leaf, double=double))

    return jax.tree.map(moved, tree)
