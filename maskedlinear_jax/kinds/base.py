"""The interface of every kind of mask: what it keeps of the input, and its packed gradient (contract S1, S6).

Letters: B batch, O out_features, I in_features; x (*B, I) input, g (*B, O) cotangent, W (O, I) weight,
M (O, I) mask, v packed values, V (O, I) the dense matrix of v, zero elsewhere. A kind holds its positions and
what is static about them. The rule (rule.py) is written on its methods alone.

Positions are canonical (sorted, in range, each once) when they could be read. Traced positions are made
so by the program itself: they are sorted, and a duplicate or a position out of range becomes one beyond
the axis, which reads as zero and is never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from jax import Array

from maskedlinear_core.positions import Positions

Shape = tuple[int, int]


class Kind:
    """A set of trainable positions, and how its products are computed.

    A subclass says the name of the form that it computes: `class Blocks(Kind, name="blocks")`.
    """

    by_name: ClassVar[dict[str, type[Kind]]] = {}

    def __init_subclass__(cls, name: str) -> None:
        Kind.by_name[name] = cls

    @classmethod
    def from_positions(cls, found: Positions, arrays: Sequence[Any], shape: Shape, *, is_canonical: bool) -> Self:
        """Return the kind of a form.

        Args:
            found: The form of a mask.
            arrays: Its arrays, as the framework's.
            shape: (out_features, in_features).
            is_canonical: Whether they are sorted, in range, and each once; else they end with what is out of range.
        """
        raise NotImplementedError

    def gather_input(self, x: Array) -> Array:
        """Return what of x the backward needs."""
        return x

    def scatter_input(self, kept: Array, in_features: int) -> Array:
        """Return the transpose of `gather_input`: back to the shape of x, zero where nothing was kept."""
        return kept

    def weight_grad(self, g: Array, kept: Array) -> Array:
        """Return the packed gradient: the wanted entries of g^T x."""
        raise NotImplementedError

    def input_grad(self, g: Array, values: Array, in_features: int) -> Array:
        """Return gather_input(g V)."""
        raise NotImplementedError

    def apply(self, kept: Array, values: Array, out_features: int) -> Array:
        """Return x V^T, of what was kept of x."""
        raise NotImplementedError

    def to_dense(self, values: Array, shape: Shape) -> Array:
        """Return V: packed values among zeros."""
        raise NotImplementedError

    def pack(self, weight: Array) -> Array:
        """Return the packed entries of W: the transpose of `to_dense`."""
        raise NotImplementedError

    def merge_into(self, weight: Array, values: Array) -> Array:
        """Return W with packed values in the place of its entries."""
        raise NotImplementedError

    def mask_values(self, values: Array) -> Array:
        """Return packed values with zero where none is wanted, as `weight_grad` gives them."""
        return values

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return the shape of packed values."""
        raise NotImplementedError

    def mask(self, weight: Array) -> Array:
        """Return M, in a shape that broadcasts to that of the weight."""
        raise NotImplementedError
