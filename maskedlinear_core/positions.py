"""The canonical form of a mask, and the cheapest one that says what a bool array says (contract S1, S6)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from maskedlinear_core.checks import packed as packed_checks

Shape = tuple[int, int]

SMALLEST_BLOCK = 64
"""Blocks of fewer elements are left to elements: gathering them costs more than the dense product saves."""

SPARSE = 1024
"""Elements that are one in so many or fewer get one dot product each instead of a share of the dense product.

Measured at 1024 x 1024 on a CPU: torch gains from one in 512 on (3.8 times at batch 2048), JAX from one in 1024.
"""


SPARSE_IN_PIECES = 200
"""The same where torch's eager code on a CPU sums over pieces of the batch: one dot product each from here on.

Measured with one thread, at 384 x 384 to 1024 x 1024 and batch 64 to 2048: a dot product each takes 0.2 to 0.5 of the
dense product's time where one in 256 is wanted, 0.4 to 0.8 at one in 200, and as long at one in 100 (other work
beside it).
"""


SAMPLED = 2**17
"""Numbers of a piece then: half a MB of float32, which stay in a core's own cache. Larger pieces take longer."""


MANY = 1 / 3
"""Blocks that are more than this share of a weight are taken from the dense product, made half at a time.

Measured at batch 2048, 1024 x 1024, blocks of 64 x 64, two threads of a CPU: block by block a share p of 0.4 costs 0.9
of the dense product in torch and 1.4 in JAX; a half 1.2 in torch, three quarters 2.7.
"""


LARGEST = 2**30
"""Weights of as many elements or more have no flat positions of single elements: these are 32-bit numbers in JAX."""


class Unread(NamedTuple):
    """Traced positions along an axis: they have no values yet, and the compiled program canonicalizes them itself.

    Attributes:
        name: Name of the mask kind, for messages.
        index: The traced index.
        size: Size of the axis.
    """

    name: str
    index: Any
    size: int


class Positions(NamedTuple):
    """The canonical form of a mask for one weight shape: what the twins compute with.

    `kind` names the class of each twin that computes it (their `kinds/`). Of a traced mask the arrays are `Unread`.

    kind "submatrix": arrays = (rows, columns), each sorted int64 or None for all of the axis.
    kind "blocks": arrays = (flat block numbers,), with the block shape and the shape of the grid.
    kind "elements": arrays = (bool array of the weight's shape,).
    kind "entries": arrays = (flat positions, row by row,): elements where they are few or packed.
    """

    kind: str
    arrays: tuple[Any, ...]
    grid_shape: Shape = (0, 0)
    block_shape: Shape = (0, 0)


def submatrix(rows: np.ndarray | None, columns: np.ndarray | None, shape: Shape) -> Positions:
    """Return rows crossed with columns; None is all of an axis.

    All of an axis becomes None: no gather. An empty selection of rows becomes an empty selection of columns, so
    that a frozen layer keeps nothing of its input, however its mask was written.
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
    if array.all():
        return all_or_nothing(True)
    few = np.count_nonzero(array) * SPARSE <= array.size < LARGEST
    return entries(array) if few else Positions("elements", (array,))


def entries(array: np.ndarray) -> Positions:
    """Return single elements by their flat positions."""
    return Positions("entries", (np.flatnonzero(array),))


def packed(positions: Positions) -> Positions:
    """Return the form whose arrays say how many positions there are, in the order of packed values (contract S7).

    Raises:
        ValueError: Elements of a weight that is too large for them.
    """
    if positions.kind != "elements":
        return positions
    array = _first(positions)
    packed_checks.elements_fit(array.size, LARGEST)
    return entries(array)


def unpacked(positions: Positions) -> Positions:
    """Return the form that is cheapest where the gradient has the weight's shape: many blocks are elements.

    Example:
        >>> unpacked(Positions("blocks", (np.array([0]),), (1, 2), (1, 2))).arrays
        (array([[ True,  True, False, False]]),)
    """
    if positions.kind != "blocks" or not are_many(_first(positions).size, positions.grid_shape):
        return positions
    (rows, columns), (height, width) = positions.grid_shape, positions.block_shape
    return elements(to_array(positions, (rows * height, columns * width)))


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
    some = array[::height, ::width]
    return blocks(np.flatnonzero(some), (some.shape[0], some.shape[1]), (height, width))


def row_chunks(rows: int) -> list[tuple[int, int]]:
    """Return the ranges of rows, two halves, in which a dense product is made before the wanted entries are taken.

    So no array has the size of a weight of two rows or more. Smaller parts cost more: quarters of 1024 x 1024 at
    batch 2048 take 1.13 times as long as the whole product in torch on a CPU, halves 1.05 times; and each takes a
    compiler its time.

    Example:
        >>> row_chunks(5), row_chunks(1)
        ([(0, 3), (3, 5)], [(0, 1)])
    """
    half = max(-(-rows // 2), 1)
    return [(start, min(start + half, rows)) for start in range(0, rows, half)]


CACHED = 2**19
"""Numbers that a product over blocks gathers at a time: 2 MB of float32, which stay in a CPU's cache.

Measured at batch 2048, 1024 x 1024, one block of 64 x 64 in ten, one thread: the product costs 0.03 to 0.06 of the
dense step so, and 0.08 to 0.13 gathered as a whole (other work beside it).
"""


WHOLE = 2**18
"""Up to so many numbers of a weight, 1 MB of float32, a dense product whose entries are taken is made as a whole."""


LEAST_CHUNK = 128
"""Rows of a batch that are never cut: of fewer a product makes too little."""


def are_many(count: int, grid_shape: Shape) -> bool:
    """Tell whether `count` blocks of a grid are cheaper by the dense product.

    Example:
        >>> are_many(64, (16, 16)), are_many(128, (16, 16))
        (False, True)
    """
    return count > MANY * grid_shape[0] * grid_shape[1]


def batch_chunk(count: int, block_shape: Shape) -> int:
    """Return how many rows of a batch to gather at a time, so that the pieces of `count` blocks stay in cache.

    Example:
        >>> batch_chunk(26, (64, 64)), batch_chunk(4000, (64, 64))
        (157, 128)
    """
    return max(CACHED // max(count * sum(block_shape), 1), LEAST_CHUNK)


GATHERED = 2**24
"""Up to so many numbers, 64 MB of float32, rows and columns of all blocks are gathered at once."""


def blocks_at_once(batch: int, grid_shape: Shape, block_shape: Shape) -> int:
    """Return for how many blocks at once to gather from a batch: the copies shall not be larger than its arrays.

    Example:
        >>> blocks_at_once(8192, (64, 64), (64, 64)), blocks_at_once(16, (64, 64), (64, 64))
        (64, 8192)
    """
    come_in = grid_shape[0] * block_shape[0] + grid_shape[1] * block_shape[1]
    return max(max(batch * come_in, GATHERED) // max(batch * sum(block_shape), 1), 1)


def to_array(positions: Positions, shape: Shape) -> np.ndarray:
    """Return the bool array that positions stand for."""
    if positions.kind == "elements":
        return _first(positions).copy()
    if positions.kind == "entries":
        array = np.zeros(shape, np.bool_)
        array.flat[_first(positions)] = True
        return array
    if positions.kind == "blocks":
        return np.kron(grid(positions), np.ones(positions.block_shape, np.bool_))
    rows, columns = (np.arange(n) if a is None else a for a, n in zip(positions.arrays, shape, strict=True))
    array = np.zeros(shape, np.bool_)
    array[np.ix_(rows, columns)] = True
    return array


def grid(positions: Positions) -> np.ndarray:
    """Return the bool grid of blocks: True for a trainable one."""
    array = np.zeros(positions.grid_shape, np.bool_)
    array.flat[_first(positions)] = True
    return array


def _first(positions: Positions) -> np.ndarray:
    array = positions.arrays[0]
    assert array is not None, "only a submatrix leaves an axis out"
    return array


def _period(array: np.ndarray) -> int:
    # The largest block height: it divides every row at which the pattern changes, and the number of rows.
    changes = 1 + np.flatnonzero((array[1:] != array[:-1]).any(axis=1))
    return int(np.gcd.reduce(np.append(changes, array.shape[0])))
