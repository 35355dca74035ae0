"""The canonical form of a mask, and the cheapest one that says what a bool array says (SPEC S1, S6)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Shape = tuple[int, int]

SMALLEST_BLOCK = 64
"""Blocks of fewer elements are left to elements: gathering them costs more than the dense product saves."""


class Positions(NamedTuple):
    """The canonical form of a mask for one weight shape: what the twins compute with.

    kind "submatrix": arrays = (rows, columns), each sorted int64 or None for all of the axis.
    kind "blocks": arrays = (flat block numbers,), with the block shape and the shape of the grid.
    kind "elements": arrays = (bool array of the weight's shape,).
    """

    kind: str
    arrays: tuple[np.ndarray | None, ...]
    grid_shape: Shape = (0, 0)
    block_shape: Shape = (0, 0)


def submatrix(rows: np.ndarray | None, columns: np.ndarray | None, shape: Shape) -> Positions:
    """Return rows crossed with columns; None is all of an axis.

    All of an axis becomes None: no gather. Nothing of the rows is said as nothing of the columns, so that a
    frozen layer keeps nothing of its input whichever way it was written.
    """
    if rows is not None and rows.size == shape[0]:
        rows = None
    if columns is not None and columns.size == shape[1]:
        columns = None
    if (rows is not None and rows.size == 0) or (columns is not None and columns.size == 0):
        return all_or_nothing(False)
    return Positions("submatrix", (rows, columns))


def blocks(numbers: np.ndarray, grid_shape: Shape, block_shape: Shape) -> Positions:
    """Return blocks by their sorted flat numbers."""
    if numbers.size == 0 or numbers.size == grid_shape[0] * grid_shape[1]:
        return all_or_nothing(numbers.size > 0)
    return Positions("blocks", (numbers,), grid_shape, block_shape)


def elements(array: np.ndarray) -> Positions:
    """Return single elements."""
    if not array.any():
        return all_or_nothing(False)
    return all_or_nothing(True) if array.all() else Positions("elements", (array,))


def all_or_nothing(everything: bool) -> Positions:
    """Return every position, or none."""
    return Positions("submatrix", (None, None if everything else np.zeros(0, np.int64)))


def cheapest(array: np.ndarray) -> Positions:
    """Return the cheapest form of a bool array: lines or a submatrix, blocks of `SMALLEST_BLOCK` or more, elements."""
    rows: np.ndarray = np.any(array, axis=1)
    columns: np.ndarray = np.any(array, axis=0)
    if np.array_equal(array, np.outer(rows, columns)):
        return submatrix(np.flatnonzero(rows), np.flatnonzero(columns), (array.shape[0], array.shape[1]))
    height, width = _period(array), _period(array.T)
    if height * width < SMALLEST_BLOCK:
        return elements(array)
    grid = array[::height, ::width]
    return blocks(np.flatnonzero(grid), (grid.shape[0], grid.shape[1]), (height, width))


def to_array(positions: Positions, shape: Shape) -> np.ndarray:
    """Return the bool array that positions stand for."""
    if positions.kind == "elements":
        (array,) = positions.arrays
        assert array is not None
        return array.copy()
    if positions.kind == "blocks":
        (numbers,) = positions.arrays
        assert numbers is not None
        grid = np.zeros(positions.grid_shape, np.bool_)
        grid.flat[numbers] = True
        return np.kron(grid, np.ones(positions.block_shape, np.bool_))
    rows, columns = (np.arange(n) if a is None else a for a, n in zip(positions.arrays, shape, strict=True))
    array = np.zeros(shape, np.bool_)
    array[np.ix_(rows, columns)] = True
    return array


def _period(array: np.ndarray) -> int:
    # The largest block height: it divides every row at which the pattern changes, and the number of rows.
    changes = 1 + np.flatnonzero((array[1:] != array[:-1]).any(axis=1))
    return int(np.gcd.reduce(np.append(changes, array.shape[0])))
