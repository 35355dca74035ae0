"""Constant arrays of a pytree, stored as their bits: code that selects parameters by dtype does not select them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskedlinear_jax.bits import as_bits


@jax.tree_util.register_pytree_with_keys_class
class Constant:
    """An array, or a part of a model with all of its arrays, that learns no more.

    Its leaves are unsigned integers: `partition`, `equinox.is_inexact_array`, `jax.grad` and optimizers pass it by.
    It is used as what it holds: in arithmetic and in `jax.numpy`, by its attributes, and by calling it. `value` is
    what it holds.

    Example:
        >>> scale = Constant(jnp.array([1.0, 2.0]))
        >>> (scale * jnp.ones(2)).tolist(), scale.shape, [leaf.dtype.name for leaf in jax.tree.leaves(scale)]
        ([1.0, 2.0], (2,), ['uint32'])
    """

    def __init__(self, value: Any) -> None:
        leaves, structure = jax.tree.flatten(value)
        self._leaves = tuple(_to_bits(leaf) for leaf in leaves)
        self._static = structure, tuple(jnp.dtype(one.dtype).name if is_float(one) else None for one in leaves)

    @property
    def value(self) -> Any:
        """What this holds."""
        structure, dtypes = self._static
        leaves = [
            one if dtype is None else jax.lax.bitcast_convert_type(one, jnp.dtype(dtype))
            for one, dtype in zip(self._leaves, dtypes, strict=True)
        ]
        return jax.tree.unflatten(structure, leaves)

    def __jax_array__(self) -> Array:
        """Return the array, for `jax.numpy`."""
        return jnp.asarray(self.value)

    def __array__(self, *args: Any, **keywords: Any) -> np.ndarray:
        """Return the array, for NumPy."""
        return np.asarray(self.value, *args, **keywords)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Call the part of a model that this holds."""
        return self.value(*args, **keywords)

    def __getitem__(self, index: Any) -> Any:
        """Return a part of the array."""
        return self.value[index]

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of what this holds."""
        if name.startswith("__") or name in ("_leaves", "_static"):
            raise AttributeError(name)
        return getattr(self.value, name)

    def __repr__(self) -> str:
        return f"Constant({self.value!r})" if all(map(_is_readable, self._leaves)) else "Constant(...)"

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        """Return the leaves with their names (for pytrees)."""
        return tuple((jax.tree_util.SequenceKey(i), leaf) for i, leaf in enumerate(self._leaves)), self._static

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Return the leaves (for pytrees)."""
        return self._leaves, self._static

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: Any) -> Constant:
        """Return the same with other leaves, unchecked (for pytrees)."""
        made = object.__new__(cls)
        made._leaves, made._static = tuple(leaves), static
        return made


def _operator(name: str) -> Any:
    def apply(self: Constant, *others: Any) -> Any:
        return getattr(self.__jax_array__(), name)(*others)

    apply.__name__, apply.__qualname__ = name, f"Constant.{name}"
    return apply


for _name in ("add", "sub", "mul", "matmul", "truediv", "pow"):
    for _written in (f"__{_name}__", f"__r{_name}__"):
        setattr(Constant, _written, _operator(_written))
for _name in ("__neg__", "__abs__", "__len__", "__lt__", "__le__", "__gt__", "__ge__"):
    setattr(Constant, _name, _operator(_name))


def is_float(leaf: Any) -> bool:
    """Tell whether a leaf is an array that could learn.

    Example:
        >>> is_float(jnp.ones(2)), is_float(jnp.arange(2)), is_float(1.0)
        (True, False, False)
    """
    return isinstance(leaf, Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _to_bits(leaf: Any) -> Any:
    if not is_float(leaf):
        return leaf
    return as_bits(jnp.asarray(leaf))


def _is_readable(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and not isinstance(leaf, jax.core.Tracer)
