"""Positions along one axis: what a user may write for them, and their canonical form (contract S1)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskedlinear_core.arrays import dtype_name, is_framework_array, read, views, visible
from maskedlinear_core.checks import mask as mask_checks


@dataclass(frozen=True, eq=False)
class Index:
    """Positions along one axis.

    Attributes:
        values: A slice, an int64 NumPy vector, or a traced vector (of integers or bools) of a framework.
        length: The length of the bool vector that the positions were read from; None for other forms.
        views: The NumPy vector as arrays of frameworks (see `arrays.register_viewer`).
    """

    values: Any
    length: int | None = None
    views: dict[str, Any] = field(default_factory=dict)

    @property
    def is_slice(self) -> bool:
        """Whether this is a slice. Asks for views first: torch's compiler cannot always touch a NumPy vector."""
        return not self.views and isinstance(self.values, slice)

    @property
    def is_traced(self) -> bool:
        """Whether the positions cannot be read now."""
        return not self.views and not self.is_slice and self._known() is None

    @property
    def is_vector(self) -> bool:
        """Whether the positions are one vector. Only those of stacked masks are not."""
        return len(getattr(self.values, "shape", ())) == 1

    @property
    def is_traced_bool(self) -> bool:
        """Whether this is a bool vector that cannot be read now, so that the number of its positions is unknown."""
        return self.is_traced and dtype_name(self.values) == "bool"

    @property
    def leaves(self) -> tuple[Any, ...]:
        """What varies without recompilation: the vector of positions, if there is one."""
        return () if self.is_slice else (self.values,)

    @property
    def static(self) -> Hashable:
        """What does not vary without recompilation."""
        if isinstance(self.values, slice):
            return self.values.start, self.values.stop, self.values.step
        return self.length

    def with_leaves(self, leaves: tuple[Any, ...]) -> Index:
        """Return the index with another vector of positions, unchecked (for pytrees)."""
        return Index(leaves[0], self.length) if leaves else self

    def positions(self, kind: str, size: int) -> np.ndarray:
        """Return the canonical positions: int64, within [0, size), sorted, each once.

        Args:
            kind: Name of the mask kind, for messages.
            size: Number of features along the axis.

        Raises:
            IndexError: A position lies outside of [-size, size).
            ValueError: The index was a bool vector of another length than `size`.

        Example:
            >>> as_index("columns", [-1, 0, 0]).positions("columns", 4)
            array([0, 3])
        """
        if isinstance(self.values, slice):
            return np.sort(np.arange(size)[self.values])
        if self.length is not None:
            mask_checks.bool_length(kind, self.length, size)
        values = self._known()
        assert values is not None, "callers ask is_traced first"
        mask_checks.index_rank(kind, values.shape)
        if values.dtype == np.bool_:
            mask_checks.bool_length(kind, values.size, size)
            return np.flatnonzero(values)
        if values.dtype.kind == "f" or values.dtype.name == "bfloat16":
            values = values.astype(np.float64)
            whole = np.rint(values)
            mask_checks.float_positions(
                kind, dtype_name(self.values), size, float(np.abs(whole - values).max(initial=0))
            )
            values = whole
        if values.size:
            mask_checks.index_range(kind, int(values.min()), int(values.max()), size)
        values = values.astype(np.int64)
        return np.unique(np.where(values < 0, values + size, values))

    def says_the_same(self, other: Index) -> bool:
        """Tell whether two readable indices select the same, as far as can be told without the axis' size."""
        if isinstance(self.values, slice) or isinstance(other.values, slice):
            return isinstance(self.values, slice) and isinstance(other.values, slice) and self.values == other.values
        mine, theirs = self._known(), other._known()
        assert mine is not None
        assert theirs is not None, "callers ask is_traced first"
        mine, theirs = [np.rint(one) if one.dtype.kind == "f" else one for one in (mine, theirs)]
        return self.length == other.length and np.array_equal(np.unique(mine), np.unique(theirs))

    def _known(self) -> np.ndarray | None:
        # Leaves of a pytree come back as a framework's arrays, and for a while as anything at all.
        if isinstance(self.values, np.ndarray):
            return self.values
        return read(self.values) if is_framework_array(self.values) else None

    def __getstate__(self) -> tuple[Any, int | None]:
        # Without the views: a pickled mask must be readable where that framework is absent.
        return self.values, self.length

    def __setstate__(self, state: tuple[Any, int | None]) -> None:
        values, length = state
        values = values.copy() if isinstance(values, np.ndarray) else values  # read-only or not, by how it was pickled
        seen = views(values) if isinstance(values, np.ndarray) else {}
        for name, value in (("values", values), ("length", length), ("views", seen)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """Return the index as it would be written, long ones shortened."""
        if isinstance(self.values, slice):
            return repr(self.values)
        if not is_framework_array(self.values):
            return f"<{self.values!r}>"
        values = self._known()
        if values is None or values.ndim != 1:
            return f"<traced {dtype_name(self.values)} of shape {tuple(self.values.shape)}>"
        listed = (np.flatnonzero(values) if values.dtype == np.bool_ else values).tolist()
        if len(listed) <= 8:
            return repr(listed)
        return f"[{', '.join(map(repr, listed[:3]))}, ..., {listed[-1]!r}] ({len(listed)} positions)"


def as_index(kind: str, value: Any) -> Index:
    """Turn what a user may write for an index into an `Index`.

    Args:
        kind: Name of the mask kind, for messages.
        value: Sequence of ints, integer vector of any framework, slice, or bool vector.

    Raises:
        TypeError: It is none of these, or not of integers.
        ValueError: It is not one-dimensional.

    Example:
        >>> as_index("columns", [True, False, True])
        [0, 2]
        >>> as_index("columns", range(20))
        [0, 1, 2, ..., 19] (20 positions)
    """
    if isinstance(value, slice):
        mask_checks.slice_bounds(kind, value)
        return Index(value)
    value = visible(value)
    if is_framework_array(value):
        if tuple(value.shape) != (0,):  # the default dtype of an empty array is a float
            mask_checks.index_dtype(kind, dtype_name(value))
        mask_checks.index_rank(kind, tuple(value.shape))
        values = read(value)
        if values is None:
            return Index(value)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        values = mask_checks.index_sequence(kind, value)
        mask_checks.index_dtype(kind, values.dtype.name)
        mask_checks.index_rank(kind, values.shape)
    else:
        mask_checks.refuse_index(kind, value)
    if values.size and values.dtype == np.uint64:
        mask_checks.index_size(kind, int(values.max()))
    numbers = np.flatnonzero(values) if values.dtype == np.bool_ else values.astype(np.int64)
    return Index(numbers, values.size if values.dtype == np.bool_ else None, views(numbers))
