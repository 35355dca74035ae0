"""Calls of the modules of a Flax NNX model: each class's `__call__` is replaced while the model runs."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.models.capture.call import Call
from parity.models.capture.recorder import Recorder
from parity.signatures import parameters_of

METHODS = ("__call__", "attend")
"""What is a module's function: `attend` is an embedding used as the head."""

PATH = "_parity_path"


class NnxModel:
    """A clone of an NNX model, in a mode and a dtype: the user's own is not touched.

    Args:
        model: The user's.
        mode: "eval" or "train"; None leaves each module as it is.
        double: Whether floats become float64.
        native: The dtype of torch's model: where a module says it, it becomes float64 as well.
    """

    def __init__(self, model: nnx.Module, mode: str | None, *, double: bool, native: str = "float32") -> None:
        self.model = nnx.clone(model)
        if mode is not None:
            _set_mode(self.model, mode)
        if mode == "train":
            _without_dropout(self.model)
        if double:
            widen(self.model, native)
        # A text is no state, so it stays with a module that a transformation takes apart and builds anew.
        self.modules: dict[str, Any] = {}
        for path, module in nnx.iter_modules(self.model):
            name = ".".join(map(str, path))
            if not hasattr(module, PATH):
                with contextlib.suppress(AttributeError, TypeError, ValueError):
                    object.__setattr__(module, PATH, name)
                self.modules[name] = module

    def capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
        """Run the model and return the calls of its modules, in the order in which they began."""
        recorder = Recorder()
        with jax.disable_jit(), _patched({type(module) for module in self.modules.values()}, recorder):
            nnx.clone(self.model)(*args, **kwargs)
        return recorder.calls()


def _without_dropout(model: nnx.Module) -> None:
    """Turn dropout off, as in the torch model: the frameworks draw other random numbers."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Dropout):
            module.deterministic = True


@contextlib.contextmanager
def _patched(classes: set[type], recorder: Recorder) -> Iterator[None]:
    own: list[tuple[type, str, Any]] = []
    missing = object()
    try:
        for cls in classes:
            for name in METHODS:
                if hasattr(cls, name) and callable(getattr(cls, name)) and not issubclass(cls, nnx.List | nnx.Dict):
                    own.append((cls, name, cls.__dict__.get(name, missing)))
                    setattr(cls, name, _recording(getattr(cls, name), recorder, name))
        yield
    finally:
        for cls, name, before in reversed(own):
            if before is missing:
                delattr(cls, name)
            else:
                setattr(cls, name, before)


def _recording(original: Any, recorder: Recorder, method: str) -> Any:
    original = inspect.unwrap(original, stop=lambda f: not hasattr(f, "_parity_original"))
    original = getattr(original, "_parity_original", original)
    names = _parameter_names(original)

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        path = getattr(self, PATH, None)
        if path is None or any(one.module is self for one in recorder.stack):
            return original(self, *args, **kwargs)  # made while the model runs, or a class calls its base's method
        graph, state = nnx.split(self)
        leaves, treedef = jax.tree.flatten(state)

        def rebuild(values: list[Any]) -> Any:
            module = nnx.merge(graph, jax.tree.unflatten(treedef, values))
            return functools.partial(original, module)

        return recorder.call(
            path, self, functools.partial(original, self), args, kwargs, (leaves, rebuild), names, method
        )  # fmt: skip

    call._parity_original = original  # type: ignore[attr-defined]
    return call


def _parameter_names(function: Any) -> list[str]:
    return [one.name for one in parameters_of(function)][1:]


def _set_mode(model: nnx.Module, mode: str) -> None:
    if mode == "train":
        model.train()
    else:
        model.eval()


def widen(model: nnx.Module, native: str) -> None:
    """Turn floats of a model into float64, and the dtypes that its modules compute in."""
    state = nnx.state(model)
    nnx.update(model, jax.tree.map(_double, state))
    for _, module in nnx.iter_modules(model):
        for name, value in list(vars(module).items()):
            if is_float_dtype(value, native):
                with contextlib.suppress(AttributeError, TypeError, ValueError):
                    setattr(module, name, jnp.float64)


def _double(value: Any) -> Any:
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.asarray(value, jnp.float64)
    return value


def is_float_dtype(value: Any, native: str) -> bool:
    """Return whether a value names the dtype of floats that a model is in, as modules keep it."""
    if isinstance(value, str) or value is None:
        return False
    try:
        return isinstance(value, np.dtype | type(jnp.float32) | type) and jnp.dtype(value).name in ("float32", native)
    except TypeError:
        return False


def made(model: Any, mode: str, *, double: bool, mapped: bool, native: str) -> NnxModel:
    """Return a copy of a model that can be captured; it takes batches."""
    return NnxModel(model, mode, double=double, native=native)
