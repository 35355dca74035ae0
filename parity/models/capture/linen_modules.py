"""Calls of the modules of a Flax Linen model, seen by its interceptor of methods."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from parity.models.capture.call import Call
from parity.models.capture.nnx_modules import METHODS, is_float_dtype
from parity.models.capture.recorder import Recorder


class LinenModel:
    """A Linen module with its variables, in a dtype.

    Args:
        module: The module.
        variables: "params" and other collections.
        mode: "eval" or "train": Linen's modules are told by arguments, so it changes nothing here.
        double: Whether floats become float64.
        native: The dtype of torch's model: where the module says it, it becomes float64 as well.
    """

    def __init__(
        self, module: nn.Module, variables: Mapping[str, Any], mode: str, *, double: bool, native: str = "float32"
    ) -> None:
        self.variables = dict(jax.tree.map(_double, variables) if double else variables)
        self.module = _widened(module, native) if double else module
        self.variables.setdefault("params", {})
        self.modules: dict[str, Any] = {}

    def capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
        """Run the model and return the calls of its modules, in the order in which they began."""
        recorder = Recorder()

        def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if context.method_name not in METHODS or any(one.module is module for one in recorder.stack):
                return function(*args, **kwargs)
            leaves, treedef = jax.tree.flatten(_held(module))
            alone, method = module.clone(parent=None, name=None), context.method_name

            def rebuild(values: list[Any]) -> Any:
                variables = jax.tree.unflatten(treedef, values)

                def run(*args: Any, **kwargs: Any) -> Any:
                    return _applied(alone, variables, args, kwargs, method=method)

                return run

            path = ".".join(module.path)
            names = _names(module, method)
            return recorder.call(path, module, function, args, kwargs, (leaves, rebuild), names, method)

        with jax.disable_jit(), nn.intercept_methods(intercept):
            _applied(self.module, self.variables, args, kwargs)
        return recorder.calls()


def _held(module: Any) -> dict[str, Any]:
    """Return a module's variables, with those of modules that it was given and that stand beside it: an RNN's cell.

    A copy that runs alone has such a module under its own name, or, where Linen counted, under the field's; and in it
    what that was given in its turn, as in `Residual(PreNorm(Attention()))`.
    """
    found = {name: dict(values) for name, values in module.variables.items()}
    for one in dataclasses.fields(module):
        if one.name == "parent":
            continue
        for field, given in _given(one.name, getattr(module, one.name, None)):
            if given.scope and given.parent is not module:
                for name, values in _held(given).items():
                    found[name] = {given.name: values, field: values} | found.get(name, {})
    return found


def _given(name: str, value: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a field, each with the name that a copy gives it: `fn`, or `layers_0` of a list."""
    if isinstance(value, nn.Module):
        yield name, value
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _given(f"{name}_{number}", one)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _given(f"{name}_{key}", one)


def of_apply(module: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the keys of random numbers, and the keywords of the module itself.

    `rngs`, `mutable` and `capture_intermediates` are taken by `apply`, unless the module has a parameter of that name.
    """
    taken = inspect.signature(type(module).__call__).parameters
    given = {name: kwargs[name] for name in ("rngs", "mutable", "capture_intermediates") if name in kwargs}
    given = {name: value for name, value in given.items() if name not in taken}
    rngs = given.get("rngs")
    rngs = rngs if isinstance(rngs, Mapping) else {} if rngs is None else {"default": rngs, "dropout": rngs}
    keys = {name: jnp.asarray(key) for name, key in rngs.items()}
    return {"dropout": jax.random.key(0), **keys}, {name: kwargs[name] for name in kwargs if name not in given}


def _applied(module: Any, variables: Any, args: Any, kwargs: Any, **options: Any) -> Any:
    # Statistics may be written, though nobody reads what was; random numbers are the same at every run.
    mutable = [name for name in variables if name != "params"]
    rngs, kwargs = of_apply(module, kwargs) if "method" not in options else ({"dropout": jax.random.key(0)}, kwargs)
    double = any(jnp.result_type(leaf) == jnp.float64 for leaf in jax.tree.leaves(variables))
    with nn.intercept_methods(_carry) if double else contextlib.nullcontext():
        out, _ = module.apply(variables, *args, mutable=mutable, rngs=rngs, **options, **kwargs)
    return out


def _carry(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Let an RNN's cell begin in float64: its state has `param_dtype`, and a traced scan refuses two types."""
    cell = getattr(context.module, "cell", None)
    if isinstance(cell, nn.RNNCellBase) and hasattr(cell, "param_dtype"):
        object.__setattr__(cell, "param_dtype", jnp.float64)  # of the copy that `apply` made
    return function(*args, **kwargs)


def _names(module: Any, method: str) -> list[str]:
    code = getattr(getattr(type(module), method), "__wrapped__", getattr(type(module), method)).__code__
    return list(code.co_varnames[1 : code.co_argcount])


def _widened(module: nn.Module, native: str) -> nn.Module:
    fields = {
        one.name: jnp.float64
        for one in dataclasses.fields(module)
        if one.init and one.name in ("dtype", "param_dtype") and is_float_dtype(getattr(module, one.name, None), native)
    }
    return module.clone(**fields) if fields else module


def _double(value: Any) -> Any:
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.asarray(value, jnp.float64)
    return value


def made(model: Any, mode: str, *, double: bool, mapped: bool, native: str) -> LinenModel:
    """Return a pair `(module, variables)` that can be captured; it takes batches."""
    module, variables = model
    return LinenModel(module, variables, mode, double=double, native=native)
