"""What both sides have: weights by name, with the layer that owns each, and views into a part of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Parts = tuple[str | int, ...]
"""A path taken apart: names, and the indices of lists."""

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


Step = tuple[str, int, int, int]
"""("index", axis, i, 0): entry i of an axis. ("rows", axis, a, b): entries a to b. ("group", axis, i, n): with the axis
regrouped as (groups, n, rest), entry i of n in each group; the number of groups is in the view."""


@dataclass(frozen=True)
class View:
    """A whole weight, or a part of one: a row block of a fused weight, one layer of a stacked weight.

    Example:
        >>> fused = np.arange(6.0).reshape(6, 1)
        >>> View("in_proj_weight", (("rows", 0, 2, 4),)).of(fused).ravel()
        array([2., 3.])
    """

    name: str
    steps: tuple[Step, ...] = ()

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the part of the array that this view means: a NumPy view, so that writing to it writes there."""
        for what, axis, first, last in self.steps:
            before: tuple[Any, ...] = (slice(None),) * axis
            if what == "index":
                array = array[(*before, first)]
            elif what == "rows":
                array = array[(*before, slice(first, last))]
            else:
                raise ValueError(f"a view: expected a step 'index' or 'rows', got {what!r}")
        return array

    def then(self, *steps: Step) -> View:
        return View(self.name, (*self.steps, *steps))

    @property
    def index(self) -> int | None:
        """Which layer of a stacked weight this is, or None."""
        return next((first for what, _, first, _ in self.steps if what == "index"), None)

    def __str__(self) -> str:
        text = self.name
        for what, axis, first, last in self.steps:
            entry = str(first) if what == "index" else f"{first}:{last}"
            text += "[" + ":, " * axis + entry + "]"
        return text


def to_numpy(array: Any) -> np.ndarray:
    """Return a JAX array or NumPy array on the host; types that NumPy lacks (bfloat16) as float32."""
    value = np.asarray(array)
    return value.astype(np.float32) if value.dtype.kind == "V" or value.dtype.name in LOW else value


LOW = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})
