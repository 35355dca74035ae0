"""The entries where some rows and some columns cross."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from maskedlinear_core import positions
from maskedlinear_core.indices import Index, as_index
from maskedlinear_core.masks.base import Mask, unchecked
from maskedlinear_core.positions import Positions, Shape, Unread


class Submatrix(Mask):
    """The entries where some rows and some columns cross."""

    def __init__(self, rows: Any, columns: Any) -> None:
        self.rows: Index = as_index("submatrix rows", rows)
        self.columns: Index = as_index("submatrix columns", columns)

    @property
    def leaves(self) -> tuple[Any, ...]:
        return self.rows.leaves + self.columns.leaves

    @property
    def static(self) -> Hashable:
        return self.rows.static, self.columns.static

    def with_leaves(self, leaves: tuple[Any, ...]) -> Submatrix:
        count = 0 if self.rows.is_slice else 1
        rows, columns = self.rows.with_leaves(leaves[:count]), self.columns.with_leaves(leaves[count:])
        return unchecked(Submatrix, rows=rows, columns=columns)

    @property
    def is_traced(self) -> bool:
        return self.rows.is_traced or self.columns.is_traced

    def _canonical(self, shape: Shape) -> Positions:
        rows = self.rows.positions("submatrix rows", shape[0])
        columns = self.columns.positions("submatrix columns", shape[1])
        return positions.submatrix(rows, columns, shape)

    def traced(self, shape: Shape) -> Positions | None:
        if self.rows.is_traced_bool or self.columns.is_traced_bool:
            return None
        return Positions("submatrix", self._unread(shape))

    def traced_array(self, shape: Shape, trace: Any) -> Any:
        rows, columns = map(trace.line, self._unread(shape))
        return rows[:, None] & columns

    def _unread(self, shape: Shape) -> tuple[Unread, Unread]:
        rows = Unread("submatrix rows", self.rows, shape[0])
        return rows, Unread("submatrix columns", self.columns, shape[1])

    def _same(self, other: Submatrix) -> bool:
        return self.rows.says_the_same(other.rows) and self.columns.says_the_same(other.columns)

    def __repr__(self) -> str:
        return f"submatrix({self.rows!r}, {self.columns!r})"
