"""Nested dicts, lists, tuples and dataclasses of arrays, of either framework: flattened, and rebuilt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

SCALARS = (bool, int, float, complex)

FIELDS = "\0"
"""In the mark of a named tuple, before its fields: no text and no key has it, as repr escapes it."""


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its path, dict entries sorted by key; None has no leaf.

    Example:
        >>> list(leaves({"b": [1, 2], "a": 3}, "x"))
        [("x['a']", 3), ("x['b'][0]", 1), ("x['b'][1]", 2)]
    """
    if tree is None:
        return
    parts = _parts(tree, path)
    if parts is None:
        yield path, tree
    else:
        for inner, part in parts:
            yield from leaves(part, inner)


def rebuild(tree: Any, values: Iterator[Any]) -> Any:
    """Return a tree of the same structure with other leaves, taken from an iterator.

    Example:
        >>> rebuild({"b": [1, 2], "a": 3}, iter("xyz"))
        {'a': 'x', 'b': ['y', 'z']}
    """
    return rebuilder(tree)(values)


def rebuilder(tree: Any, is_given: Callable[[Any], bool] = lambda leaf: True) -> Callable[[Iterator[Any]], Any]:
    """Return a function that makes a tree of the same structure from an iterator of its leaves.

    What the tree is made of is looked up now, so that torch.compile can trace the function.

    Args:
        tree: Nested dicts, lists, tuples and dataclasses.
        is_given: Which leaves come from the iterator; the others stay.

    Example:
        >>> rebuilder({"b": [1, "s"], "a": 3}, lambda leaf: leaf != "s")(iter("xy"))
        {'a': 'x', 'b': ['y', 's']}
    """
    if tree is None:
        return lambda values: None
    if isinstance(tree, Mapping):
        entries = [(key, rebuilder(tree[key], is_given)) for key in sorted(tree, key=str)]
        return lambda values: {key: make(values) for key, make in entries}
    if _is_record(tree):
        fields = [(one.name, rebuilder(getattr(tree, one.name), is_given)) for one in dataclasses.fields(tree)]
        return lambda values: dataclasses.replace(tree, **{name: make(values) for name, make in fields})
    if isinstance(tree, list | tuple):
        parts = [rebuilder(part, is_given) for part in tree]
        if isinstance(tree, list):
            return lambda values: [make(values) for make in parts]
        if hasattr(tree, "_make"):
            return lambda values: tree._make([make(values) for make in parts])
        return lambda values: tuple([make(values) for make in parts])
    return next if is_given(tree) else lambda values: tree


def outputs(tree: Any, path: str = "output") -> dict[str, Any]:
    """Return what a function returned as leaves by path, with a mark, of None, for what is no array but counts.

    Lists and tuples are alike; dicts and dataclasses are alike, and a field of a dataclass that is None is not there.
    None elsewhere, text, and what is empty must be the same on both sides: it is part of the name. The fields of a
    named tuple are marked, and must be the same where both sides have a named tuple (`fields`).

    Raises:
        TypeError: Something is neither.

    Example:
        >>> outputs((1.5, None, {}, {"a": "sum", 0: 2}))
        {'output[0]': 1.5, 'output[1] is None': None, 'output[2] is {}': None, 'output[3][key 0]': 2, "output[3]['a'] is 'sum'": None}
    """  # noqa: E501 # the example is one line
    if tree is None:
        return {f"{path} is None": None}
    if isinstance(tree, str | bytes):
        return {f"{path} is {tree!r}": None}
    parts = _parts(tree, path)
    if parts is None:
        if isinstance(tree, SCALARS) or (hasattr(tree, "dtype") and hasattr(tree, "shape")):
            return {path: tree}
        raise TypeError(
            f"{path}: expected arrays, numbers, text, None, or dicts, lists, tuples and dataclasses of them, got "
            f"{type(tree).__module__}.{type(tree).__name__}: return what of it is to be compared"
        )
    if not parts:
        empty = "{}" if isinstance(tree, Mapping) or _is_record(tree) else "()"
        return {f"{path} is {empty}": None}
    made: dict[str, Any] = {}
    named = getattr(tree, "_fields", None) if isinstance(tree, tuple) else None
    if named:
        made[f"{path}{FIELDS}{', '.join(named)}"] = None
    for inner, part in parts:
        made |= outputs(part, inner)
    return made


def fields(marks: Iterable[str]) -> dict[str, str]:
    """Return the fields of named tuples by path, from the marks of outputs.

    Example:
        >>> from collections import namedtuple
        >>> fields(outputs(namedtuple("Parts", "a b")(1.5, 2.5)))
        {'output': 'a, b'}
    """
    return {path: names for path, found, names in (mark.partition(FIELDS) for mark in marks) if found}


def _parts(tree: Any, path: str) -> list[tuple[str, Any]] | None:
    """Return the parts of a tree with their paths, or None of a leaf."""
    if isinstance(tree, Mapping):
        # Not tree.items(): the order of keys is no part of what a function returns.
        return [(f"{path}[{_key(key)}]", tree[key]) for key in sorted(tree, key=str)]
    if _is_record(tree):
        fields = sorted(field.name for field in dataclasses.fields(tree))
        return [(f"{path}[{name!r}]", getattr(tree, name)) for name in fields if getattr(tree, name) is not None]
    if isinstance(tree, list | tuple):
        return [(f"{path}[{number}]", part) for number, part in enumerate(tree)]
    return None


def _key(key: Any) -> str:
    # {0: x} is no list.
    return repr(key) if isinstance(key, str) else f"key {key!r}"


def _is_record(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type) and not hasattr(tree, "dtype")


def is_float(leaf: Any) -> bool:
    """Return whether a NumPy array is differentiated: real or complex numbers."""
    return leaf.dtype.kind in "fc" or str(leaf.dtype) == "bfloat16"
