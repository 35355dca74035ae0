"""Blocks of a grid over the weight."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from maskedlinear_core import positions
from maskedlinear_core.arrays import is_framework_array, read, visible
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.indices import Index, as_index
from maskedlinear_core.masks.base import Mask, unchecked
from maskedlinear_core.positions import Positions, Shape, Unread


class Blocks(Mask):
    """Whole blocks of a regular grid laid over the weight."""

    def __init__(self, grid: Any, block_shape: Any) -> None:
        if not is_framework_array(grid) and not isinstance(grid, list | tuple):
            mask_checks.refuse_bool_matrix("blocks", "grid", grid)
        values = read(visible(grid))
        if values is None:
            mask_checks.traced_blocks()
        mask_checks.bool_matrix("blocks", "grid", values.shape, values.dtype.name)
        self.block_shape: Shape = mask_checks.block_shape(block_shape)
        self.grid_shape: Shape = (values.shape[0], values.shape[1])
        self.numbers: Index = as_index("blocks", np.flatnonzero(values))  # the trainable blocks, row by row

    @property
    def shape(self) -> Shape:
        return self.grid_shape[0] * self.block_shape[0], self.grid_shape[1] * self.block_shape[1]

    @property
    def leaves(self) -> tuple[Any, ...]:
        return self.numbers.leaves

    @property
    def static(self) -> Hashable:
        return self.grid_shape, self.block_shape

    def with_leaves(self, leaves: tuple[Any, ...]) -> Blocks:
        return unchecked(
            Blocks, numbers=self.numbers.with_leaves(leaves), grid_shape=self.grid_shape, block_shape=self.block_shape
        )

    @property
    def is_traced(self) -> bool:
        return self.numbers.is_traced

    @property
    def grid(self) -> np.ndarray:
        """The bool grid: True for a trainable block."""
        grid = np.zeros(self.grid_shape, np.bool_)
        grid.flat[self._numbers()] = True
        return grid

    def _numbers(self) -> np.ndarray:
        return self.numbers.positions("blocks", self.grid_shape[0] * self.grid_shape[1])

    def _canonical(self, shape: Shape) -> Positions:
        mask_checks.mask_shape("blocks", self.shape, shape)
        return positions.blocks(self._numbers(), self.grid_shape, self.block_shape)

    def traced(self, shape: Shape) -> Positions | None:
        mask_checks.mask_shape("blocks", self.shape, shape)
        numbers = Unread("blocks", self.numbers, self.grid_shape[0] * self.grid_shape[1])
        return Positions("blocks", (numbers,), self.grid_shape, self.block_shape)

    def __repr__(self) -> str:
        if self.numbers.is_traced or not self.numbers.is_vector:
            return f"blocks({self.numbers!r} of {self.grid_shape}, {self.block_shape})"
        total = self.grid_shape[0] * self.grid_shape[1]
        return f"blocks({self._numbers().size} of {total} in a grid of {self.grid_shape}, {self.block_shape})"
