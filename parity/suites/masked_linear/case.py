"""What a case is, and the masks that several cases have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskedlinear_core.constructors import blocks, elements
from maskedlinear_core.masks import Mask


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        id: Its name.
        mask: The kind of mask, to filter by.
        build: Makes the mask for a weight of shape (O, I); a plain bool array stands for itself.
        adds: What no other case shows.
        out_features: O.
        in_features: I.
        batch: Batch shape.
        bias: Whether there is a bias.
        bias_mask: Which of the bias trains: "all", "some" or "none".
        wide: Whether this is a case of long sums, for the random tier.
        data: For the random tier: "normal", "wide exponents" or "same sign"; for the hard one, of numbers.KINDS.
        core: Whether it runs in every dtype and every world; else in float32 and in the eager worlds.
        hard: Whether this is a case of the hard tier: any data, compared bit for bit in reproducible precision.
        real: Whether this is a case of the real-size tier (real_size.py).
        packed: Whether the layer is computed in packed form (S7): x unpack(W, pack(W))^T + b, as a function of W.
            The derivatives by W, through `pack`, are then those of the masked layer.
        by: What computes the layer: masked_linear (""), or another layer as the same function of x, W and b: W is what
            "masked_parameter" returns, or rows that an "embedding" looks up, and x W^T + b the framework's own. Or
            the layer is "turned" (Conv1D of transformers, LinearGeneral of Flax NNX), or W and b are those of the
            values of "attention" or of "attention's output". Masked or packed.
    """

    id: str
    mask: str
    build: Callable[[tuple[int, int]], Mask | np.ndarray]
    adds: str
    out_features: int = 4
    in_features: int = 6
    batch: tuple[int, ...] = (3,)
    bias: bool = True
    bias_mask: str = "all"
    wide: bool = False
    data: str = "normal"
    core: bool = False
    hard: bool = False
    packed: bool = False
    real: bool = False
    by: str = ""

    @property
    def tier(self) -> str:
        """The tier that its data belong to."""
        return "real-size" if self.real else "hard" if self.hard else "random" if self.wide else "exact"

    @property
    def shape(self) -> tuple[int, int]:
        """The weight's shape (O, I)."""
        return self.out_features, self.in_features

    @property
    def form(self) -> tuple[Any, ...]:
        """All that a program depends on, beside the numbers."""
        return self.build, self.shape, self.batch, self.bias, self.bias_mask, self.packed, self.by


def random_bools(shape: tuple[int, int]) -> np.ndarray:
    """Return a bool array of which two in five are True."""
    return np.random.Generator(np.random.PCG64(7)).random(shape) < 0.4


def one_block_in(step: int, block_shape: tuple[int, int]) -> Callable[[tuple[int, int]], Mask]:
    """Return what makes a mask of blocks along the grid's diagonals; one in two are many."""

    def build(shape: tuple[int, int]) -> Mask:
        grid = np.indices((shape[0] // block_shape[0], shape[1] // block_shape[1])).sum(0) % step == 0
        return blocks(grid, block_shape)

    return build


def few(shape: tuple[int, int]) -> Mask:
    """Return three single elements."""
    array = np.zeros(shape, bool)
    array[[3, 60, 61], [5, 2, 95]] = True
    return elements(array)
