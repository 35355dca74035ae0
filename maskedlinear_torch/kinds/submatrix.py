"""Columns, rows and their crossings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from maskedlinear_core.positions import Positions
from maskedlinear_torch.indexing import can_write_in_place, fill_crossings, put, take, write, write_into
from maskedlinear_torch.kinds.base import Kind, Shape
from maskedlinear_torch.kinds.sums import dot, flat


@dataclass(frozen=True, eq=False)
class Submatrix(Kind, name="submatrix"):
    """Columns, rows and their crossings; None = all of the axis."""

    rows: Tensor | None
    columns: Tensor | None
    is_canonical: bool

    @classmethod
    def from_positions(cls, found: Positions, arrays: Sequence[Any], shape: Shape, *, is_canonical: bool) -> Self:
        rows, columns = arrays
        return cls(rows, columns, is_canonical)

    @property
    def arrays(self) -> tuple[Tensor | None, ...]:
        return self.rows, self.columns

    def with_arrays(self, arrays: Sequence[Any]) -> Self:
        rows, columns = arrays
        return type(self)(rows, columns, self.is_canonical)

    def gather_input(self, x: Tensor) -> Tensor:
        return x if self.columns is None else take(x, self.columns, -1, is_canonical=self.is_canonical)

    def scatter_input(self, kept: Tensor, in_features: int) -> Tensor:
        return self._put(kept, self.columns, -1, in_features)

    def weight_grad(self, g: Tensor, kept: Tensor) -> Tensor:
        g = g if self.rows is None else take(g, self.rows, -1, is_canonical=self.is_canonical)
        left, right = (g if g.dim() == 2 else flat(g)).t(), kept if kept.dim() == 2 else flat(kept)
        return dot(left, right) if left.dtype == torch.int8 else left @ right  # each call costs time

    def to_dense(self, values: Tensor, shape: Shape) -> Tensor:
        if (
            self.rows is not None
            and self.columns is not None
            and self.is_canonical
            and values.is_cpu
            and can_write_in_place(values)
        ):
            return fill_crossings(values.new_zeros(shape), values, self.rows, self.columns)
        values = (
            values if self.columns is None else put(values, self.columns, 1, shape[1], is_canonical=self.is_canonical)
        )
        return values if self.rows is None else put(values, self.rows, 0, shape[0], is_canonical=self.is_canonical)

    def pack(self, weight: Tensor) -> Tensor:
        return self._take(self._take(weight, self.rows, 0), self.columns, 1)

    def merge_into(self, weight: Tensor, values: Tensor) -> Tensor:
        if (
            self.rows is not None
            and self.columns is not None
            and self.is_canonical
            and weight.is_cpu
            and can_write_in_place(weight)
        ):
            matrix = weight.clone(memory_format=torch.contiguous_format)
            return fill_crossings(matrix, values, self.rows, self.columns)
        if self.columns is not None:
            some = weight if self.rows is None else take(weight, self.rows, 0, is_canonical=self.is_canonical)
            values = write(some, values, self.columns, 1, is_canonical=self.is_canonical)
        return values if self.rows is None else write(weight, values, self.rows, 0, is_canonical=self.is_canonical)

    def overwrite(self, weight: Tensor, values: Tensor) -> bool:
        if not self.is_canonical:
            return False
        if self.rows is not None and self.columns is not None:
            if not weight.is_contiguous():
                return False
            fill_crossings(weight, values, self.rows, self.columns)
        elif self.columns is not None:
            write_into(weight, values, self.columns, 1)
        elif self.rows is not None:
            write_into(weight, values, self.rows, 0)
        else:
            weight.copy_(values)
        return True

    def apply(self, kept: Tensor, values: Tensor, out_features: int) -> Tensor:
        return self._put(dot(kept, values.t()), self.rows, -1, out_features)

    def input_grad(self, g: Tensor, values: Tensor, in_features: int) -> Tensor:
        return dot(self._take(g, self.rows, -1), values)

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        return shape[0] if self.rows is None else self.rows.shape[0], shape[
            1
        ] if self.columns is None else self.columns.shape[0]

    def mask(self, weight: Tensor) -> Tensor:
        rows = None if self.rows is None else self._line(weight, self.rows, 0)[:, None]
        columns = None if self.columns is None else self._line(weight, self.columns, 1)[None]
        if rows is None or columns is None:
            whole = torch.ones((1, 1), dtype=torch.bool, device=weight.device) if columns is None else columns
            return whole if rows is None else rows
        return rows & columns

    def _line(self, weight: Tensor, index: Tensor, dim: int) -> Tensor:
        return self._put(torch.ones_like(index, dtype=torch.bool), index, 0, weight.shape[dim])

    def _take(self, tensor: Tensor, index: Tensor | None, dim: int) -> Tensor:
        return tensor if index is None else take(tensor, index, dim, is_canonical=self.is_canonical)

    def _put(self, values: Tensor, index: Tensor | None, dim: int, size: int) -> Tensor:
        return values if index is None else put(values, index, dim, size, is_canonical=self.is_canonical)


FULL = Submatrix(None, None, is_canonical=True)
"""All of a weight."""
