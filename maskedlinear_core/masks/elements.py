"""Single weights: as a bool array, or as positions alone."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from maskedlinear_core import positions
from maskedlinear_core.arrays import dtype_name, is_framework_array, read, views, visible
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.indices import Index, as_index
from maskedlinear_core.masks.base import Mask, unchecked
from maskedlinear_core.positions import Positions, Shape, Unread


class Elements(Mask):
    """Single elements: a bool array of the weight's shape."""

    def __init__(self, array: Any) -> None:
        if not is_framework_array(array) and not isinstance(array, list | tuple):
            mask_checks.refuse_bool_matrix("elements", "array", array)
        array = visible(array)
        values = array if is_framework_array(array) else np.asarray(array)
        mask_checks.bool_matrix("elements", "array", tuple(values.shape), dtype_name(values))
        known = read(values)
        self.array: Any = values if known is None else known.copy()
        self.views: dict[str, Any] = {} if known is None else views(self.array)

    @property
    def shape(self) -> Shape:
        # A view where there is one: torch's compiler can read the shape of that, and not of a NumPy array.
        array = next(iter(self.views.values())) if self.views else self.array
        return array.shape[0], array.shape[1]

    @property
    def leaves(self) -> tuple[Any, ...]:
        return (self.array,)

    def with_leaves(self, leaves: tuple[Any, ...]) -> Elements:
        return unchecked(Elements, array=leaves[0], views={})

    @property
    def is_traced(self) -> bool:
        return not self.views and self._known() is None

    def _canonical(self, shape: Shape) -> Positions:
        mask_checks.mask_shape("elements", self.shape, shape)
        known = self._known()
        assert known is not None, "canonical asks is_traced first"
        return positions.elements(known)

    def traced_array(self, shape: Shape, trace: Any) -> Any:
        mask_checks.mask_shape("elements", self.shape, shape)
        return trace.array(self.array, self.views)

    def _known(self) -> np.ndarray | None:
        # Leaves of a pytree come back as a framework's arrays, and for a while as anything at all.
        if isinstance(self.array, np.ndarray):
            return self.array
        return read(self.array) if is_framework_array(self.array) else None

    def __getstate__(self) -> dict[str, Any]:
        # Without the views: a pickled mask must be readable where that framework is absent.
        return {"array": self.array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        array = state["array"]  # read-only or not, by how it was pickled
        self.array = array.copy() if isinstance(array, np.ndarray) else array
        self.views = views(self.array) if isinstance(self.array, np.ndarray) else {}

    def __repr__(self) -> str:
        if not is_framework_array(self.array):
            return f"elements(<{self.array!r}>)"
        known = self._known()
        if known is None or known.ndim != 2:
            return f"elements(<traced bool of shape {tuple(self.array.shape)}>)"
        return f"elements({np.count_nonzero(known)} of {known.size} in a weight of {self.shape})"


class Entries(Mask):
    """Single elements by their flat positions, row by row: what `packed` makes of elements."""

    def __init__(self, index: Any, shape: Shape) -> None:
        self.index: Index = as_index("entries", index)
        self._shape = shape

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def leaves(self) -> tuple[Any, ...]:
        return self.index.leaves

    @property
    def static(self) -> Hashable:
        return self._shape, self.index.static

    def with_leaves(self, leaves: tuple[Any, ...]) -> Entries:
        return unchecked(Entries, index=self.index.with_leaves(leaves), _shape=self._shape)

    @property
    def is_traced(self) -> bool:
        return self.index.is_traced

    def _canonical(self, shape: Shape) -> Positions:
        mask_checks.mask_shape("entries", self._shape, shape)
        array = np.zeros(shape, np.bool_)
        array.flat[self.index.positions("entries", array.size)] = True
        return positions.elements(array)

    def traced(self, shape: Shape) -> Positions | None:
        mask_checks.mask_shape("entries", self._shape, shape)
        return Positions("entries", (Unread("entries", self.index, shape[0] * shape[1]),))

    def __repr__(self) -> str:
        if self.index.is_traced or not self.index.is_vector:
            return f"elements({self.index!r} in a weight of {self._shape})"
        size = self._shape[0] * self._shape[1]
        return f"elements({self.index.positions('entries', size).size} of {size} in a weight of {self._shape})"
