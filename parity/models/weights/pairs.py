"""A pair of weights: what is paired, by which rule, on what evidence, and the values both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parity.models.weights.layouts import LAYOUTS, Layout, described
from parity.models.weights.tree import View


class Transform:
    """What leads from torch's weights to JAX's and back, for a pair. The table's layouts are one kind."""

    name: str
    computes = False
    """Whether it may compute with the numbers, so that what is kept of them was rounded; layouts only move them."""

    def to_jax(self, parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        raise NotImplementedError

    def to_torch(self, array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        raise NotImplementedError

    def exact(self, parts: Sequence[np.ndarray], array: np.ndarray) -> list[np.ndarray]:
        """Return torch's parts in float64 that give JAX's array exactly, which was rounded when it was computed."""
        return list(parts)

    def gradient(self, array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray] | None:
        """Return a gradient of JAX's as torch has it, or None where that is not known: layouts only move numbers."""
        return self.to_torch(array, shapes)


class Laid(Transform):
    """One weight against one, by a layout of the table."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.name = layout.name

    def to_jax(self, parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        return self.layout.to_jax(parts[0], shape)

    def to_torch(self, array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        return [self.layout.to_torch(array, shapes[0])]


class Sum(Transform):
    """Two weights of torch whose sum is one of JAX (`bias_ih + bias_hh`); back: the first is all, the second zero."""

    name = "sum"
    computes = True

    def to_jax(self, parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total.reshape(shape)

    def to_torch(self, array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        return [array.reshape(shapes[0]), *(np.zeros(shape, array.dtype) for shape in shapes[1:])]

    def exact(self, parts: Sequence[np.ndarray], array: np.ndarray) -> list[np.ndarray]:
        first, *rest = (part.astype(np.float64) for part in parts)
        return [array.astype(np.float64).reshape(first.shape) - sum(rest), *rest]

    def gradient(self, array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        return [array.reshape(shape) for shape in shapes]


def transform(name: str) -> Transform:
    """Return a transform by its name, as a saved map has it.

    Raises:
        ValueError: There is none of this name.
    """
    if name == Sum.name:
        return Sum()
    if name not in LAYOUTS:
        from parity.names import unknown

        raise ValueError(unknown("a transform of weights", name, [*LAYOUTS, Sum.name]))
    return Laid(LAYOUTS[name])


@dataclass(frozen=True, repr=False)
class WeightPair:
    """A weight of the torch model and its counterpart in the JAX model, or parts of such.

    Attributes:
        torch: Names on the torch side: one, but for biases that are one sum in JAX.
        jax: Paths on the JAX side.
        rule: The JAX side in terms of the torch side: "kernel = weight.T".
        evidence: Why these two: "name and shape", "shape alone", "order of definition", "equal values" or "told".
        torch_views: Which part of each torch weight (all of it, or rows of a fused one).
        jax_views: Which part of each JAX weight (all of it, one layer of a stack, columns of a fused one).
        torch_shapes: Shapes of the torch parts.
        jax_shape: Shape of the JAX part.
        kind: "parameter", "statistic" or "buffer".
    """

    torch: tuple[str, ...]
    jax: tuple[str, ...]
    rule: str
    evidence: str
    torch_views: tuple[View, ...]
    jax_views: tuple[View, ...]
    torch_shapes: tuple[tuple[int, ...], ...]
    jax_shape: tuple[int, ...]
    transform: Transform
    kind: str = "parameter"

    @property
    def index(self) -> int | None:
        """Which layer of a stacked JAX weight this is, or None where the weight is not stacked."""
        return self.jax_views[0].index

    def torch_parts(self, weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return this pair's parts of the torch weights (or of anything of their shapes, such as gradients)."""
        return [view.of(weights[view.name]) for view in self.torch_views]

    def jax_part(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return this pair's part of the JAX weights (or of anything of their shapes)."""
        return self.jax_views[0].of(weights[self.jax_views[0].name])

    def to_jax(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return torch's values in JAX's layout, by path; of a stacked or fused weight this pair's part."""
        value = self.transform.to_jax(self.torch_parts(weights), self.jax_shape)
        return {view.name: value for view in self.jax_views}

    def to_torch(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return JAX's values in torch's layout, by name; of a fused weight this pair's part."""
        values = self.transform.to_torch(self.jax_part(weights), self.torch_shapes)
        return {view.name: value for view, value in zip(self.torch_views, values, strict=True)}

    def __repr__(self) -> str:
        one = " + ".join(map(str, self.torch_views))
        return f"WeightPair({one} -> {', '.join(map(str, self.jax_views))}: {self.rule}; {self.evidence})"


def one_to_one(
    torch: View,
    jax: View,
    torch_shape: tuple[int, ...],
    jax_shape: tuple[int, ...],
    layout: Layout,
    evidence: str,
    kind: str,
) -> WeightPair:
    """Return the pair of one weight, or part, with one."""
    names = torch.name.rpartition(".")[2], jax.name.rpartition(".")[2]
    return WeightPair(
        (torch.name,),
        (jax.name,),
        described(layout, *names, torch_shape, jax_shape),
        evidence,
        (torch,),
        (jax,),
        (torch_shape,),
        jax_shape,
        Laid(layout),
        kind,
    )
