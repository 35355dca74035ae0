"""The inputs of two models, as each framework takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.operator.args import Args

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments and keywords, whose arrays are NumPy's."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of two models that do not take the same ones.

    Each side is what `compare_models` takes as `inputs` where both take the same: a tuple of positional arguments, a
    dict of keywords, or a `parity.Args`.

    Args:
        torch: For the torch model.
        jax: For the JAX model.

    Example:
        >>> image = np.zeros((2, 3, 8, 8), np.float32)
        >>> Inputs(torch=(image,), jax=(image.transpose(0, 2, 3, 1),)).jax[0].shape
        (2, 8, 8, 3)
    """

    torch: Any
    jax: Any


def of_both(inputs: Any) -> tuple[Call, Call]:
    """Return the arguments of the torch model and of the JAX model, with arrays of NumPy.

    Raises:
        TypeError: The inputs are of no kind that is known, or hold no array.
        ValueError: An array holds NaN.
    """
    if isinstance(inputs, Inputs):
        return _arguments(inputs.torch, "inputs.torch"), _arguments(inputs.jax, "inputs.jax")
    return _arguments(inputs, "inputs"), _arguments(inputs, "inputs")


def _arguments(given: Any, what: str) -> Call:
    if isinstance(given, Args):
        args, kwargs = given.positional, given.keywords
    elif isinstance(given, Mapping):
        wrong = [key for key in given if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{what}: expected a dict of keywords, got the key {wrong[0]!r}, which is no text")
        args, kwargs = (), dict(given)
    elif isinstance(given, tuple | list):
        args, kwargs = tuple(given), {}
    elif is_array(given):
        args, kwargs = (given,), {}
    else:
        raise TypeError(
            f"{what}: expected a tuple of arrays, a dict of keywords, parity.Args or parity.models.Inputs, "
            f"got {type(given).__name__}"
        )
    args, kwargs = tuple(_host(one) for one in args), {name: _host(one) for name, one in kwargs.items()}
    arrays = [leaf for one in (*args, *kwargs.values()) for leaf in _leaves(one) if isinstance(leaf, np.ndarray)]
    if not arrays:
        raise TypeError(f"{what}: expected at least one array, got none")
    for array in arrays:
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ValueError(f"{what}: expected numbers, got NaN in the array of shape {list(array.shape)}")
    return args, kwargs


def is_array(value: Any) -> bool:
    """Return whether a value is an array of NumPy, torch or JAX."""
    return isinstance(value, np.ndarray | np.generic) or (hasattr(value, "__array__") and hasattr(value, "shape"))


def to_host(value: Any) -> np.ndarray:
    """Return an array of any framework as one of NumPy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return np.array(value.numpy())
    return np.asarray(value)


def _host(value: Any) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_host(part) for part in value)
    if isinstance(value, Mapping):
        return {name: _host(part) for name, part in value.items()}
    return to_host(value) if is_array(value) and not _is_key(value) else value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    return [value]


def _is_key(value: Any) -> bool:
    """Return whether a value is JAX's key of random numbers, of a dtype of its own: no array of NumPy can be one."""
    return str(getattr(value, "dtype", "")).startswith("key<")
