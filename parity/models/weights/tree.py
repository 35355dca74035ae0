"""What both sides have: weights by name, with the layer that owns each, and views into a part of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Parts = tuple[str | int, ...]
"""A path taken apart: names, and the indices of lists."""


def shared_path(paths: Sequence[Parts]) -> Parts:
    """Return the longest path with which all of these begin."""
    length = 0
    while paths and all(len(path) > length and path[length] == paths[0][length] for path in paths):
        length += 1
    return paths[0][:length] if paths else ()


PARAMETER, STATISTIC, BUFFER = "parameter", "statistic", "buffer"


@dataclass(frozen=True)
class Leaf:
    """One weight of a model.

    Attributes:
        name: Its name or path, as the model's user writes it.
        parts: The same, taken apart, without the names of collections.
        shape: Its shape.
        dtype: Its dtype's name.
        kind: "parameter", "statistic" (running statistics) or "buffer".
        layer: The class of the framework's own layer that owns it, or "" where there is none.
        flags: Settings of that layer that decide the layout, for instance `transpose_kernel`.
        aliases: Further names of the same weight, taken apart (tied weights).
        alias_names: The same names, as the user writes them.
    """

    name: str
    parts: Parts
    shape: tuple[int, ...]
    dtype: str
    kind: str = PARAMETER
    layer: str = ""
    flags: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[Parts, ...] = ()
    alias_names: tuple[str, ...] = ()

    def tied(self, others: Sequence[Parts], names: Sequence[str]) -> Leaf:
        """Return this weight with its other names."""
        return replace(self, aliases=tuple(others), alias_names=tuple(names)) if others else self

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


Step = tuple[str, int, int, int] | tuple[str, int, int, int, int]
"""("index", axis, i, 0): entry i of an axis. ("rows", axis, a, b): entries a to b. ("heads", axis, i, n, heads): with
the axis regrouped as (heads, n, size), entry i of n in each head, which GPT-NeoX and BLOOM have; the last step."""


@dataclass(frozen=True)
class View:
    """A whole weight, or a part of one: a row block of a fused weight, the queries of its heads, a layer of a stack.

    Example:
        >>> fused = np.arange(6.0).reshape(6, 1)
        >>> View("in_proj_weight", (("rows", 0, 2, 4),)).of(fused).ravel()
        array([2., 3.])
        >>> View("query_key_value.weight", (("heads", 0, 1, 3, 2),)).of(fused).ravel()
        array([1., 4.])
    """

    name: str
    steps: tuple[Step, ...] = ()

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the part of the array that this view means."""
        for what, axis, first, last, *heads in self.steps:
            before: tuple[Any, ...] = (slice(None),) * axis
            if what == "index":
                array = array[(*before, first)]
            elif what == "rows":
                array = array[(*before, slice(first, last))]
            elif what == "heads":
                shape = array.shape
                part = _by_head(array, axis, last, *heads)[(*before, slice(None), first)]
                array = part.reshape(*shape[:axis], shape[axis] // last, *shape[axis + 1 :])
            else:
                raise ValueError(f"a view: expected a step 'index', 'rows' or 'heads', got {what!r}")
        return array

    def put(self, array: np.ndarray, value: np.ndarray) -> None:
        """Write a value into the part of the array that this view means."""
        if self.steps and self.steps[-1][0] == "heads":
            _, axis, first, last, *heads = self.steps[-1]
            grouped = _by_head(View(self.name, self.steps[:-1]).of(array), axis, last, *heads)
            target = grouped[(slice(None),) * (axis + 1) + (first,)]
            target[...] = value.reshape(target.shape)
        else:
            self.of(array)[...] = value

    def then(self, *steps: Step) -> View:
        return View(self.name, (*self.steps, *steps))

    @property
    def index(self) -> int | None:
        """Which layer of a stacked weight this is, or None."""
        return next((step[2] for step in self.steps if step[0] == "index"), None)

    def __str__(self) -> str:
        text = self.name
        for what, axis, first, last, *heads in self.steps:
            entry = str(first) if what == "index" else f"{first}:{last}"
            if what == "heads":
                entry = f"{first} of {last} in each of {heads[0]} heads"
            text += "[" + ":, " * axis + entry + "]"
        return text


def _by_head(array: np.ndarray, axis: int, parts: int, heads: int) -> np.ndarray:
    """Return an array with an axis regrouped as (heads, parts, size)."""
    shape = array.shape
    return array.reshape(*shape[:axis], heads, parts, shape[axis] // (heads * parts), *shape[axis + 1 :])


def to_numpy(array: Any) -> np.ndarray:
    """Return a JAX array or NumPy array on the host; types that NumPy lacks (bfloat16) as float32."""
    value = np.asarray(array)
    return value.astype(np.float32) if value.dtype.kind == "V" or value.dtype.name in LOW else value


LOW = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})
