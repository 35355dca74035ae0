"""Whole columns or whole rows of the weight."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from maskedlinear_core import positions
from maskedlinear_core.indices import Index, as_index
from maskedlinear_core.masks.base import Mask, unchecked
from maskedlinear_core.positions import Positions, Shape, Unread


class Lines(Mask):
    """Whole lines of the weight along one axis: what columns and rows have in common."""

    kind: str
    axis: int

    def __init__(self, index: Any) -> None:
        self.index: Index = as_index(self.kind, index)

    @property
    def leaves(self) -> tuple[Any, ...]:
        return self.index.leaves

    @property
    def static(self) -> Hashable:
        return self.index.static

    def with_leaves(self, leaves: tuple[Any, ...]) -> Lines:
        return unchecked(type(self), index=self.index.with_leaves(leaves))

    @property
    def is_traced(self) -> bool:
        return self.index.is_traced

    def traced(self, shape: Shape) -> Positions | None:
        if self.index.is_traced_bool:
            return None
        arrays: list[Unread | None] = [None, None]
        arrays[self.axis] = self._unread(shape)
        return Positions("submatrix", tuple(arrays))

    def traced_array(self, shape: Shape, trace: Any) -> Any:
        line = trace.line(self._unread(shape))
        return trace.spread(line if self.axis == 1 else line[:, None], shape)

    def _unread(self, shape: Shape) -> Unread:
        return Unread(self.kind, self.index, shape[self.axis])

    def _same(self, other: Lines) -> bool:
        return self.index.says_the_same(other.index)

    def __repr__(self) -> str:
        return f"{self.kind}({self.index!r})"


class Columns(Lines):
    """Whole columns of the weight: input features."""

    kind = "columns"
    axis = 1

    def _canonical(self, shape: Shape) -> Positions:
        return positions.submatrix(None, self.index.positions(self.kind, shape[self.axis]), shape)


class Rows(Lines):
    """Whole rows of the weight: output features."""

    kind = "rows"
    axis = 0

    def _canonical(self, shape: Shape) -> Positions:
        return positions.submatrix(self.index.positions(self.kind, shape[self.axis]), None, shape)
