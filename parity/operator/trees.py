"""Nested dicts, lists and tuples of arrays, of either framework: taken apart into leaves, and put together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its path, dict entries sorted by key; None has no leaf.

    Example:
        >>> list(leaves({"b": [1, 2], "a": 3}, "x"))
        [("x['a']", 3), ("x['b'][0]", 1), ("x['b'][1]", 2)]
    """
    if tree is None:
        return
    if isinstance(tree, dict):
        for key in sorted(tree, key=str):
            yield from leaves(tree[key], f"{path}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for number, part in enumerate(tree):
            yield from leaves(part, f"{path}[{number}]")
    else:
        yield path, tree


def rebuild(tree: Any, values: Iterator[Any]) -> Any:
    """Return a tree of the same structure with other leaves, taken from an iterator.

    Example:
        >>> rebuild({"b": [1, 2], "a": 3}, iter("xyz"))
        {'a': 'x', 'b': ['y', 'z']}
    """
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: rebuild(tree[key], values) for key in sorted(tree, key=str)}
    if isinstance(tree, list | tuple):
        parts = [rebuild(part, values) for part in tree]
        if hasattr(tree, "_make"):
            return tree._make(parts)
        return parts if isinstance(tree, list) else tuple(parts)
    return next(values)


def is_float(leaf: Any) -> bool:
    """Return whether a NumPy array is differentiated."""
    return leaf.dtype.kind == "f" or str(leaf.dtype) == "bfloat16"
