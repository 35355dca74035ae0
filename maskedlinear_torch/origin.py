"""Whether the frozen entries of a layer are those that it was made with (contract S8).

A file of `save_packed` is loaded over the matrix that a layer was made with. Decay and averages move all frozen
entries, so it is enough to look at some of them. If another mask froze entries that had learned, the matrix has
changed, too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from maskedlinear_torch import _compat

_SAMPLE = 1024
"""So many frozen entries of a matrix are remembered."""

_OF_A_ROW = 8
"""So many of them in one row, where each row has frozen entries of its own."""

_GOLDEN, _SILVER = math.sqrt(5) / 2 - 0.5, math.sqrt(2) - 1
"""How far apart they are, in parts of all: no pattern of rows or columns goes in step with these."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Origin:
    """What is remembered of the matrix of a layer.

    Args:
        layer: A masked or packed layer, with its masks.
        moved: Whether its frozen entries are others than at first already.
        before: What was remembered of the same matrix until now, perhaps in another dtype.
    """

    _first = _last = 0
    """Bytes of an entry of the first matrix, and of the present one; 0 where it had no values yet."""

    @torch.no_grad()
    def __init__(self, layer: Any, *, moved: bool = False, before: Origin | None = None) -> None:
        self.moved = moved
        if before is not None:
            self._first, self._last = before._first, before._last
        self._some: Tensor | None = None
        self._places: tuple[Tensor, ...] = ()
        self._learned: Tensor | None = None
        self._elsewhere = False
        matrix = _readable(layer)
        if matrix is None:
            return
        if matrix.itemsize != self._last < self._first:
            self.moved = True  # cast to fewer bits and on: the first matrix, cast to this dtype, has others
        self._first, self._last = self._first or matrix.itemsize, matrix.itemsize
        upright = _upright(layer, matrix)
        places = _frozen_places(layer._kind.mask(upright), upright.shape)
        self._shape, self._places = upright.shape, tuple([place.to("cpu", torch.int32) for place in places])
        self._some = _bits(upright[places]).cpu()
        if not layer._is_packed:
            self._learned = _checksum(layer, matrix)

    @torch.no_grad()
    def look(self, layer: Any, *, other_mask: bool = False) -> bool:
        """Tell whether frozen entries moved, and remember if they did.

        Args:
            layer: The layer, with the mask that it had until now.
            other_mask: Whether it gets another one: then what has learned counts as well.
        """
        matrix = _readable(layer)
        if self.moved or matrix is None or self._some is None:
            return self.moved
        upright = _upright(layer, matrix)
        if upright.shape == self._shape and upright.itemsize == self._some.itemsize:  # else another, or a cast one
            height, width = [place.to(matrix.device, torch.int64) for place in self._places]
            self.moved = not torch.equal(_bits(upright[height, width]).cpu(), self._some)
            if other_mask and not self.moved:
                self.moved = self._has_learned(layer, matrix)
        return self.moved

    def is_first(self, layer: Any) -> bool:
        """Tell whether the matrix of a layer is the first one still, in what learns too."""
        matrix = _readable(layer)
        return not self.look(layer) and (matrix is None or not self._has_learned(layer, matrix))

    def learned_elsewhere(self) -> None:
        """Know that the trainable entries are not those of the first matrix: they were loaded."""
        self._elsewhere = True

    @torch.no_grad()
    def _has_learned(self, layer: Any, matrix: Tensor) -> bool:
        if self._elsewhere:
            return True
        if layer._is_packed:
            first = layer._kind.pack(matrix)
            return not torch.equal(_bits(first), _bits(layer.values.detach().to(first.dtype)))
        return self._learned is None or not torch.equal(_checksum(layer, matrix), self._learned)


def _readable(layer: Any) -> Tensor | None:
    matrix = layer._home()
    if not isinstance(matrix, Tensor) or matrix.is_meta or _compat.is_distributed(matrix):
        return None
    if torch.compiler.is_compiling() or _compat.in_dispatch_mode() or _compat.in_functorch_transform():
        return None
    if any(one is not None and one.device != matrix.device for one in layer._arrays):
        return None  # in the middle of a move
    return matrix.detach()


def _frozen_places(trains: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    # Rows and columns of frozen entries, spread over all of them.
    frozen, (height, width) = ~trains, shape
    if height * width <= _SAMPLE:
        rows, columns = frozen.expand(shape).nonzero().unbind(1)
        return rows, columns
    rows = frozen.any(1).expand(height).nonzero()[:, 0]
    if frozen.shape != shape:  # all rows or all columns are alike
        columns = frozen.any(0).expand(width).nonzero()[:, 0]
        return rows[_spread(_SAMPLE, _GOLDEN, len(rows), rows)], columns[_spread(_SAMPLE, _SILVER, len(columns), rows)]
    rows = rows[_spread(_SAMPLE // _OF_A_ROW, _GOLDEN, len(rows), rows)]
    counts = frozen[rows].cumsum(1, dtype=torch.int32)
    ranks = _spread(len(rows) * _OF_A_ROW, _SILVER, counts[:, -1:].repeat(1, _OF_A_ROW).flatten(), rows)
    columns = torch.searchsorted(counts, ranks.reshape(len(rows), -1).int() + 1)
    return rows.repeat_interleave(_OF_A_ROW), columns.flatten()


def _spread(count: int, step: float, size: Any, like: Tensor) -> Tensor:
    # Multiples of an irrational number lie evenly between whole ones (Weyl). None where there is nothing to choose of.
    count = 0 if isinstance(size, int) and size == 0 else count
    parts = torch.arange(count, dtype=torch.float64) * step % 1
    return (parts.to(like.device) * size).long()


def _upright(layer: Any, matrix: Tensor) -> Tensor:
    return matrix.t() if layer._home_is_turned else matrix


@torch.no_grad()
def _checksum(layer: Any, matrix: Tensor) -> Tensor:
    trained = layer._kind.pack(_upright(layer, matrix))
    return _bits(trained.contiguous()).sum(dtype=torch.int64).cpu()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.element_size()])
