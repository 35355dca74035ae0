"""The products that the rule is written on: the framework's own, or reproducible ones (contract S2, S9)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskedlinear_torch import integer_products, reproducible_products
from maskedlinear_torch.kinds import FULL, Kind
from maskedlinear_torch.kinds.sums import flat
from maskedlinear_torch.reproducible_products import Arithmetic, Operands


def as_learned(matrix: Tensor, input: Tensor) -> Tensor:
    """Return a matrix for a product of which no gradient is recorded, as one that requires a gradient where that tells.

    Of an input of three axes that does not lie in one piece, torch makes one product where the weight requires a
    gradient, as the plain layer's does, and otherwise a batch of them, whose bits may differ.
    """
    if input.is_nested or input.layout is not torch.strided:
        return matrix
    in_one_piece = input.is_contiguous() and 1 not in input.shape
    return matrix if in_one_piece or torch.compiler.is_compiling() else matrix.detach().requires_grad_()


@dataclass(frozen=True)
class NativeProducts:
    """The framework's own products and their derivatives."""

    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.linear(x, w, b)

    def input_grad(self, g: Tensor, w: Tensor) -> Tensor:
        return g @ w

    def weight_grad(
        self, kind: Kind, g: Tensor, kept: Tensor, row_max: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        return kind.weight_grad(g, kept)

    def apply(self, kind: Kind, x: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
        return kind.apply(kind.gather_input(x), values, shape[0])

    def sum_batch(self, g: Tensor) -> Tensor:
        return flat(g).sum(0)

    def expand_batch(self, b: Tensor, x: Tensor) -> Tensor:
        return b.expand(*x.shape[:-1], *b.shape)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def row_max(self, x: Tensor, kept: Tensor) -> Tensor | None:
        """Return what the derivatives of a product need of a row of which not all is kept: nothing."""
        return None


@dataclass(frozen=True)
class ReproducibleProducts(Arithmetic):
    """Every product as exact integers, rounded as contract S9 says."""

    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        shape = (w.shape[0], w.shape[1])
        product = reproducible_products.Apply(self, torch.float32, shape, is_cut=False)
        y = reproducible_products.evaluate(product, Operands(x, w, None), FULL)
        if b is not None:
            y = reproducible_products.canonicalize(y + self.expand_batch(b, x).float())
        return y.to(x.dtype)

    def input_grad(self, g: Tensor, w: Tensor) -> Tensor:
        shape = (w.shape[0], w.shape[1])
        return reproducible_products.evaluate(
            reproducible_products.InputGrad(self, g.dtype, shape), Operands(g, w, None), FULL
        )

    def weight_grad(
        self, kind: Kind, g: Tensor, kept: Tensor, row_max: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        return reproducible_products.evaluate(
            reproducible_products.WeightGrad(self, g.dtype, shape), Operands(g, kept, row_max), kind
        )

    def apply(self, kind: Kind, x: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
        product = reproducible_products.Apply(self, x.dtype, shape, is_cut=False)
        return reproducible_products.evaluate(product, Operands(x, values, None), kind)

    def sum_batch(self, g: Tensor) -> Tensor:
        return reproducible_products.sum_batch(self, g)

    def expand_batch(self, b: Tensor, x: Tensor) -> Tensor:
        return reproducible_products.expand_batch(self, b, x.shape[:-1])

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return reproducible_products.canonicalize(a + b)

    def row_max(self, x: Tensor, kept: Tensor) -> Tensor | None:
        """Return the largest magnitudes of the rows of which not all is kept."""
        return None if kept is x else integer_products.largest(x.float(), -1)


Products = NativeProducts | ReproducibleProducts
NATIVE = NativeProducts()
