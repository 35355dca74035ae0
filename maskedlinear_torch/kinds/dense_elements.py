"""Single elements among zeros, as the dense product gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from maskedlinear_core.positions import Positions
from maskedlinear_torch.indexing import can_write_in_place
from maskedlinear_torch.kinds.base import Kind, Shape
from maskedlinear_torch.kinds.sums import dot, flat


@dataclass(frozen=True, eq=False)
class DenseElements(Kind, name="elements"):
    """Single elements: M itself, (O, I). Packed here means: among zeros, as the dense product gives them."""

    wanted: Tensor

    @classmethod
    def from_positions(cls, found: Positions, arrays: Sequence[Any], shape: Shape, *, is_canonical: bool) -> Self:
        (wanted,) = arrays
        return cls(wanted)

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        return (self.wanted,)

    def with_arrays(self, arrays: Sequence[Any]) -> Self:
        (wanted,) = arrays
        return type(self)(wanted)

    def weight_grad(self, g: Tensor, kept: Tensor) -> Tensor:
        dense = dot(flat(g).t(), flat(kept))
        if not can_write_in_place(dense):
            return torch.where(self.wanted, dense, 0)
        # In place: no second gradient of the weight's size. As whole numbers: times one keeps every bit, times
        # zero is +0.0 whatever it was, and `where` takes eight times as long on a CPU.
        dense.view(_INTEGERS[dense.element_size()]).mul_(self.wanted)
        return dense

    def to_dense(self, values: Tensor, shape: Shape) -> Tensor:
        return values

    def pack(self, weight: Tensor) -> Tensor:
        return torch.where(self.wanted, weight, 0)

    def mask_values(self, values: Tensor) -> Tensor:
        return torch.where(self.wanted, values, 0)

    def apply(self, kept: Tensor, values: Tensor, out_features: int) -> Tensor:
        return dot(kept, values.t())

    def input_grad(self, g: Tensor, values: Tensor, in_features: int) -> Tensor:
        return dot(g, values)

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def mask(self, weight: Tensor) -> Tensor:
        return self.wanted


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers of as many bytes."""
