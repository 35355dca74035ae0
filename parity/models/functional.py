"""Both models as functions of their weights by name, which is what gradients and training steps are taken of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from parity.models.capture.call import named_leaves
from parity.models.capture.jax_models import jax_model as jax_side
from parity.models.capture.torch_modules import prepared
from parity.models.weights.jax_side import JaxTree, jax_tree
from parity.models.weights.torch_side import TorchTree
from parity.models.weights.tree import PARAMETER, STATISTIC

Arrays = dict[str, np.ndarray]


class TorchFunction:
    """A copy of a torch model, in a mode and a dtype, with its dropout off: the user's own is not touched.

    Args:
        model: The user's.
        mode: "eval" or "train".
        double: Whether floats become float64.
    """

    def __init__(self, model: nn.Module, mode: str, *, double: bool) -> None:
        self.model, self.dtype = prepared(model, mode, double=double)
        self.tree = TorchTree(self.model)

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """The parameters that require a gradient, by name."""
        tensors = {name: self.tree.tensor(name) for name, leaf in self.tree.leaves.items() if leaf.kind == PARAMETER}
        return {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}

    def statistics(self) -> Arrays:
        """Return the running statistics as they are now."""
        return {n: np.array(v) for n, v in self.tree.weights().items() if self.tree.leaves[n].kind == STATISTIC}

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Let the model run, and give its running statistics back as they were."""
        before = self.statistics()
        try:
            yield
        finally:
            self.tree.write(before)

    def tensors(self, tree: Any, *, grad: bool = False) -> Any:
        """Return arguments with tensors in place of arrays; floats require a gradient where `grad`."""
        if isinstance(tree, np.ndarray):
            if tree.dtype.kind != "f":
                return torch.from_numpy(np.array(tree))
            # Cast by NumPy where it can be: what the model computes in is read from torch's operators.
            exact = np.array(tree, np.float64) if self.dtype == torch.float64 else np.array(tree)
            return torch.from_numpy(exact).to(self.dtype).requires_grad_(grad)
        if isinstance(tree, list | tuple):
            return type(tree)(self.tensors(part, grad=grad) for part in tree)
        if isinstance(tree, Mapping):
            return {name: self.tensors(part, grad=grad) for name, part in tree.items()}
        return tree

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self.model(*args, **kwargs)


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
        framework = jax_tree(model).framework
        side: Any = jax_side(framework, model, mode, double=double, mapped=mapped, native=native)
        self.mapped, self.framework = mapped, framework
        self.call = CALLS[framework]
        self.tree: JaxTree = jax_tree(PREPARED[framework](side))

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
    module, variables = model
    mutable = [name for name in variables if name != "params"]
    out, changed = module.apply(variables, *args, mutable=mutable, rngs={"dropout": jax.random.key(0)}, **kwargs)
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
    "equinox": lambda side: side.model if side.state is None else (side.model, jax.tree.map(_typed, side.state)),
    "function": lambda side: (side.function, side.params),
}
"""What a model is that is prepared for capture: in the mode and dtype that were asked for."""


def _typed(value: Any) -> Any:
    """Return a counter in the type that it has: as a Python number it would become another where floats are float64."""
    return value if jnp.issubdtype(value.dtype, jnp.floating) else jnp.asarray(np.asarray(value))


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
    arrays = [at for at, leaf in enumerate(leaves) if getattr(leaf, "ndim", 0)]
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


def output_leaves(tree: Any) -> dict[str, Any]:
    """Return the arrays or tensors of what a model returned, by name."""
    return {name or "output": leaf for name, leaf in named_leaves(tree) if hasattr(leaf, "shape")}


def device_arrays(tree: Any, *, double: bool) -> Any:
    """Return arguments with JAX arrays in place of NumPy's; floats as float64 where `double`."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        return jnp.asarray(leaf, jnp.float64 if double and leaf.dtype.kind == "f" else None)

    return jax.tree.map(moved, tree)
