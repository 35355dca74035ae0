"""Calls of the modules of an Equinox model: a copy of the model whose modules are of classes that record."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from parity.models.capture.call import Call
from parity.models.capture.recorder import Recorder, over_batch
from parity.signatures import parameters_of


def _is_dropout(node: Any) -> bool:
    return isinstance(node, eqx.nn.Dropout)


def _without_dropout(node: Any) -> Any:
    """Turn dropout off, as in the torch model: the frameworks draw other random numbers."""
    return eqx.tree_at(lambda one: one.inference, node, True) if _is_dropout(node) else node


class EquinoxModel:
    """An Equinox model, in a mode and a dtype.

    Args:
        model: The user's.
        mode: "eval" or "train".
        double: Whether floats become float64.
        mapped: Whether the model takes one example, and is mapped over the first axis of its inputs.
        state: Of a model that takes a state as its last argument, and returns it beside its output.
    """

    def __init__(
        self, model: eqx.Module, mode: str | None, *, double: bool, mapped: bool = False, state: Any = None
    ) -> None:
        if mode is not None:
            model = eqx.nn.inference_mode(model, value=mode == "eval")
            model = jax.tree.map(_without_dropout, model, is_leaf=_is_dropout)
        self.model = jax.tree.map(_double, model) if double else model
        self.mapped = mapped
        self.state = jax.tree.map(lambda one: _typed(_double(one)), state) if double and state is not None else state
        self.modules = dict(_modules(self.model))

    def capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
        """Run the model and return the calls of its modules, in the order in which they began."""
        recorder = Recorder()
        model = _recording(self.model, "", recorder, {})

        def whole(*args: Any, **kwargs: Any) -> Any:
            if self.state is None:
                return model(*args, **kwargs)
            return model(*args, self.state, **kwargs)[0]

        with jax.disable_jit():
            if self.mapped:
                over_batch(whole, args, kwargs)
            else:
                whole(*args, **kwargs)
        return recorder.calls()


def _modules(tree: Any, path: str = "") -> Any:
    if isinstance(tree, eqx.Module):
        yield path, tree
        for one in dataclasses.fields(tree):
            if one.name in vars(tree):
                yield from _modules(vars(tree)[one.name], f"{path}.{one.name}" if path else one.name)
    elif isinstance(tree, list | tuple):
        for at, part in enumerate(tree):
            yield from _modules(part, f"{path}.{at}" if path else str(at))
    elif isinstance(tree, dict):
        for name, part in tree.items():
            yield from _modules(part, f"{path}.{name}" if path else str(name))


def _recording(tree: Any, path: str, recorder: Recorder, known: dict[int, Any]) -> Any:
    if isinstance(tree, eqx.Module):
        if id(tree) in known:
            return known[id(tree)]  # a module that is used twice is one
        values = dict(vars(tree))
        for one in dataclasses.fields(tree):
            if one.name in values:
                below = f"{path}.{one.name}" if path else one.name
                values[one.name] = _recording(values[one.name], below, recorder, known)
        cls = type(tree)
        made: Any = object.__new__(_class_of(cls, recorder) if _is_called(cls) else cls)
        for name, value in values.items():
            object.__setattr__(made, name, value)
        if _is_called(cls):
            object.__setattr__(made, "parity_path", path)
        known[id(tree)] = made
        return made
    if isinstance(tree, list | tuple):
        parts = [_recording(part, f"{path}.{at}" if path else str(at), recorder, known) for at, part in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if type(tree) is dict:
        return {
            name: _recording(part, f"{path}.{name}" if path else str(name), recorder, known)
            for name, part in tree.items()
        }
    return tree


def _is_called(cls: type) -> bool:
    return callable(getattr(cls, "__call__", None)) and "__call__" in dir(cls)  # noqa: B004 # of the class


def _class_of(cls: type, recorder: Recorder) -> type:
    made: type | None = recorder.__dict__.setdefault("classes", {}).get(cls)
    if made is not None:
        return made
    names = _parameter_names(cls)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(one.module is self for one in recorder.stack):
            return cls.__call__(self, *args, **kwargs)
        arrays, rest = eqx.partition(self, eqx.is_array)
        leaves, treedef = jax.tree.flatten(arrays)

        def rebuild(values: list[Any]) -> Any:
            module = eqx.combine(jax.tree.unflatten(treedef, values), rest)
            return functools.partial(cls.__call__, module)

        return recorder.call(
            self.parity_path, self, functools.partial(cls.__call__, self), args, kwargs, (leaves, rebuild), names
        )

    space = {
        "__annotations__": {"parity_path": str},
        "parity_path": eqx.field(static=True, default=""),
        "__call__": call,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    made = type(cls)(cls.__name__, (cls,), space)
    recorder.__dict__["classes"][cls] = made
    return made


def _parameter_names(cls: Any) -> list[str]:
    return [one.name for one in parameters_of(cls.__call__)][1:]


def _double(value: Any) -> Any:
    if eqx.is_array(value) and jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.asarray(value, jnp.float64)
    return value


def _typed(value: Any) -> Any:
    """Return a counter in the type that it has: as a Python number it would become another where floats are float64."""
    if eqx.is_array(value) and not jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.asarray(np.asarray(value))
    return value


def made(model: Any, mode: str, *, double: bool, mapped: bool, native: str) -> EquinoxModel:
    """Return a copy of a model, or of a pair `(model, state)`, that can be captured."""
    model, state = model if isinstance(model, tuple) else (model, None)
    return EquinoxModel(model, mode, double=double, mapped=mapped, state=state)
