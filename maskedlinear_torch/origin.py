"""Whether the frozen entries of a layer are those that it was made with (SPEC S8).

A file of what learned goes over the matrix that a layer was made with. Decay and averages move all frozen entries
alike, so some of them tell. Where another mask freezes what has learned before, that is no part of the first matrix
either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskedlinear_torch import _compat

_SAMPLE = 1024
"""So many entries of a matrix are remembered."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Origin:
    """What is remembered of the matrix of a layer.

    Args:
        layer: A masked or packed layer, with its masks.
        moved: Whether its frozen entries are others than at first already.
    """

    @torch.no_grad()
    def __init__(self, layer: Any, *, moved: bool = False) -> None:
        self.moved = moved
        self._some: Tensor | None = None
        self._learned: Tensor | None = None
        matrix = _readable(layer)
        if matrix is None:
            return
        places, upright = _places(matrix), _upright(layer, matrix)
        trains = _upright(layer, layer._kind.mask(upright).expand(upright.shape))
        self._some, self._frozen = _bits(matrix[places]).cpu(), ~trains[places].cpu()
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
        now = _bits(matrix[_places(matrix)]).cpu()
        if now.dtype == self._some.dtype and now.shape == self._some.shape:  # else another matrix, or a cast one
            self.moved = bool((self._frozen & (now != self._some)).any())
            if other_mask and not self.moved:
                self.moved = self._has_learned(layer, matrix)
        return self.moved

    def learned_elsewhere(self) -> None:
        """Know that the trainable entries are not those of the first matrix: they were loaded."""
        self._learned = None

    def _has_learned(self, layer: Any, matrix: Tensor) -> bool:
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


def _places(matrix: Tensor) -> tuple[Tensor, Tensor]:
    # In all rows and columns alike: multiples of a number that has no factor in common with most sizes.
    height, width = matrix.shape
    count = min(_SAMPLE, height * width)
    flat = torch.arange(count, device=matrix.device) * 7919 % max(height * width, 1)
    if count == height * width:
        flat = torch.arange(count, device=matrix.device)
    return flat // max(width, 1), flat % max(width, 1)


def _upright(layer: Any, matrix: Tensor) -> Tensor:
    return matrix.t() if layer._is_turned and not layer._is_packed else matrix


@torch.no_grad()
def _checksum(layer: Any, matrix: Tensor) -> Tensor:
    trained = layer._kind.pack(_upright(layer, matrix))
    return _bits(trained.contiguous()).sum(dtype=torch.int64).cpu()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.element_size()])
