"""The arguments of a call as people write it: arrays and other values, by position and by keyword."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parity.operator import trees
from parity.signatures import positional


class Args:
    """Arguments of both functions: arrays are compared and differentiated, all else is passed as it is.

    Args:
        *positional: Arrays of NumPy, nested dicts, lists and tuples of them, and anything else.
        **keywords: The same, by name.

    Raises:
        ValueError: There is no array.

    Example:
        >>> arguments = Args(np.ones((2, 3)), axis=-1)
        >>> arguments.arrays
        (array([[1., 1., 1.],
               [1., 1., 1.]]),)
        >>> arguments.adapted(np.sum)(np.full((2, 3), 2.0))
        array([6., 6.])
    """

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        self.positional, self.keywords = positional, keywords
        self._leaves = [leaf for _, leaf in trees.leaves((positional, keywords))]
        if not self.arrays:
            raise ValueError("Args: expected at least one NumPy array, got none")
        self._merged = trees.rebuilder((positional, keywords), _is_array)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays, in the order in which the adapted functions take them."""
        return tuple(np.asarray(leaf) for leaf in self._leaves if _is_array(leaf))

    def adapted(self, function: Callable[..., Any]) -> Adapted:
        """Return a function of the arrays alone, which calls another with all arguments."""
        return Adapted(function, self)

    def call(self, function: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
        """Call a function with these arguments, but with other arrays."""
        positional, keywords = self._merged(iter(arrays))
        return function(*positional, **keywords)

    def names(self, function: Callable[..., Any]) -> tuple[str, ...]:
        """Return what the arrays are called in a function, as far as it tells."""
        parameters = positional(function)
        named = [(parameters[i] if i < len(parameters) else f"input{i}", one) for i, one in enumerate(self.positional)]
        named += sorted(self.keywords.items())
        return tuple(path for name, one in named for path, leaf in trees.leaves(one, name) if _is_array(leaf))


class Adapted:
    """A function of arrays alone.

    Attributes:
        names: What the arrays are called.
    """

    def __init__(self, function: Callable[..., Any], arguments: Args) -> None:
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", "pair")
        self.names = arguments.names(function)
        self._arguments = arguments

    def __call__(self, *arrays: Any, **keywords: Any) -> Any:
        """Call the function with all of its arguments."""
        function = self.__wrapped__
        if keywords:
            return self._arguments.call(lambda *given, **named: function(*given, **named, **keywords), arrays)
        return self._arguments.call(function, arrays)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | np.generic)
