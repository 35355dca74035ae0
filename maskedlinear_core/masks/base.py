"""What all masks have in common, and their algebra."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskedlinear_core import positions
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.positions import Positions, Shape


class Mask:
    """A set of trainable positions of a weight (out_features, in_features); True = the gradient flows.

    Made by `columns`, `rows`, `submatrix`, `blocks` and `elements`, and combined with `~`, `|` and `&`.
    """

    _memo: dict[Any, Any]

    @property
    def shape(self) -> Shape | None:
        """The only weight shape the mask fits, or None if it fits many."""
        return None

    @property
    def leaves(self) -> tuple[Any, ...]:
        """What varies without recompilation: arrays of positions, and the masks a combination is made of."""
        raise NotImplementedError

    @property
    def static(self) -> Hashable:
        """What does not vary without recompilation, beside the class."""
        return None

    def with_leaves(self, leaves: tuple[Any, ...]) -> Mask:
        """Return a mask of the same kind with other leaves, unchecked (for pytrees)."""
        raise NotImplementedError

    @property
    def is_traced(self) -> bool:
        """Whether some position cannot be read now."""
        raise NotImplementedError

    @property
    def memo(self) -> dict[Any, Any]:
        """What was made of the mask, which never changes: by shape, and by whatever a twin adds. Not copied along."""
        try:
            return self._memo
        except AttributeError:
            self._memo = {}
            return self._memo

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_memo"}

    def to_array(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the mask as a bool array of the weight's shape.

        Args:
            shape: The weight's shape (out_features, in_features).

        Raises:
            IndexError: A position lies outside of the weight.
            ValueError: The mask has a shape of its own and it is another one.
            TypeError: The mask is traced.

        Example:
            >>> from maskedlinear_core import columns
            >>> columns([0, -1]).to_array((2, 3))
            array([[ True, False,  True],
                   [ True, False,  True]])
        """
        size = mask_checks.weight_shape(shape)
        if self.is_traced:
            mask_checks.traced_mask()
        return positions.to_array(self.canonical(size), size)

    def density(self, shape: tuple[int, ...]) -> float:
        """Return the trainable share p of a weight of that shape (0.0 for an empty weight).

        Example:
            >>> from maskedlinear_core import columns
            >>> columns([0, 1]).density((3, 8))
            0.25
        """
        array = self.to_array(shape)
        return float(np.count_nonzero(array)) / array.size if array.size else 0.0

    def canonical(self, shape: tuple[int, ...]) -> Positions:
        """Return the sorted, checked positions for a weight of that shape; remembered per shape.

        Raises:
            IndexError, ValueError, TypeError: As `to_array`.

        Example:
            >>> from maskedlinear_core import columns
            >>> columns([2, 0, 0]).canonical((4, 3)).arrays
            (None, array([0, 2]))
        """
        size = mask_checks.weight_shape(shape)
        if self.is_traced:
            mask_checks.traced_mask()
        if size not in self.memo:
            self.memo[size] = self._canonical(size)
        return self.memo[size]

    def traced(self, shape: Shape) -> Positions | None:
        """Return the form of a traced mask, its arrays `Unread`; None if how many positions it selects is unknown."""
        return None

    def traced_array(self, shape: Shape, trace: Any) -> Any:
        """Return a traced mask as a framework's bool array.

        Args:
            shape: (out_features, in_features).
            trace: The framework's: `line` makes a bool vector of an `Unread`, `spread` broadcasts, `array` takes
                over a bool array, `dense` makes a bool array of a form.
        """
        return trace.dense(self.traced(shape), shape)

    def packed(self, shape: tuple[int, ...]) -> Mask:
        """Return the same positions in the order of packed values, in a form whose leaves tell how many there are.

        That makes a mask of elements fit to be traced in packed form (contract S7): under jit and compile the
        values of a bool array, and so the number of its elements, cannot be known.

        Raises:
            IndexError, ValueError, TypeError: As `to_array`.

        Example:
            >>> from maskedlinear_core import columns
            >>> columns([2, 0, 0]).packed((4, 3))
            columns([0, 2])
            >>> from maskedlinear_core import elements
            >>> elements([[True, False], [False, True]]).packed((2, 2)).leaves
            (array([0, 3]),)
        """
        size = mask_checks.weight_shape(shape)
        from maskedlinear_core.masks import Blocks, Columns, Entries, Rows, Submatrix  # they are made of this class

        found = positions.packed(self.canonical(size))
        if found.kind == "entries":
            return Entries(found.arrays[0], size)
        if found.kind == "blocks":
            return Blocks(positions.grid(found), found.block_shape)
        rows, columns = found.arrays
        if rows is None:
            return Columns(slice(None) if columns is None else columns)
        return Rows(rows) if columns is None else Submatrix(rows, columns)

    def _canonical(self, shape: Shape) -> Positions:
        raise NotImplementedError

    def _same(self, other: Any) -> bool:
        raise NotImplementedError

    def __invert__(self) -> Mask:
        return self.mask if isinstance(self, Complement) else Complement(self)

    def __or__(self, other: object) -> Mask:
        return Union(self, other) if isinstance(other, Mask) else NotImplemented

    def __and__(self, other: object) -> Mask:
        return Intersection(self, other) if isinstance(other, Mask) else NotImplemented

    def __eq__(self, other: object) -> bool:
        """Tell whether both select the same positions; kinds without a shape of their own compare as written."""
        if not isinstance(other, Mask):
            return NotImplemented
        if self.is_traced or other.is_traced:
            return self is other
        if self.shape is not None and other.shape is not None and self.shape != other.shape:
            return False
        shape = self.shape or other.shape
        if shape is None:
            return type(self) is type(other) and self._same(other)
        try:
            return np.array_equal(self.to_array(shape), other.to_array(shape))
        except (IndexError, ValueError):
            return False

    __hash__ = None  # type: ignore[assignment]


class Combination(Mask):
    """A mask made of masks, resolved to the cheapest kind once the weight's shape is known."""

    symbol: str
    combine: Callable[..., Any]

    def __init__(self, *masks: Mask) -> None:
        self.masks = masks
        if len(masks) == 2:
            mask_checks.combined_shapes(masks[0].shape, masks[1].shape)

    @property
    def mask(self) -> Mask:
        """The only operand of a complement."""
        return self.masks[0]

    @property
    def shape(self) -> Shape | None:
        return next((mask.shape for mask in self.masks if mask.shape is not None), None)

    @property
    def leaves(self) -> tuple[Any, ...]:
        return self.masks

    def with_leaves(self, leaves: tuple[Any, ...]) -> Combination:
        return unchecked(type(self), masks=tuple(leaves))

    @property
    def is_traced(self) -> bool:
        return any(mask.is_traced for mask in self.masks)

    def _canonical(self, shape: Shape) -> Positions:
        return positions.cheapest(type(self).combine(*(mask.to_array(shape) for mask in self.masks)))

    def traced_array(self, shape: Shape, trace: Any) -> Any:
        return type(self).combine(*(mask.traced_array(shape, trace) for mask in self.masks))

    def _same(self, other: Combination) -> bool:
        return all(mine == theirs for mine, theirs in zip(self.masks, other.masks, strict=True))

    def __repr__(self) -> str:
        return "(" + f" {self.symbol} ".join(map(repr, self.masks)) + ")"


class Complement(Combination):
    """Every position that the operand does not select."""

    symbol = "~"
    combine = staticmethod(lambda array: ~array)

    def __repr__(self) -> str:
        return f"~{self.mask!r}"


class Union(Combination):
    """Every position that one of the operands selects."""

    symbol = "|"
    combine = staticmethod(lambda left, right: left | right)


class Intersection(Combination):
    """Every position that both operands select."""

    symbol = "&"
    combine = staticmethod(lambda left, right: left & right)


def unchecked(kind: type[Any], **attributes: Any) -> Any:
    """Return a mask with these attributes, as it is."""
    # Pytrees are rebuilt with placeholders for leaves: nothing may be checked or read here.
    mask = object.__new__(kind)
    mask.__dict__.update(attributes)
    return mask


KINDS: list[type[Mask]] = []
"""The classes of mask that there are, for frameworks that must be told of each (as pytrees)."""

_LISTENERS: list[Callable[[type[Mask]], None]] = []


def register(kind: type[Mask]) -> type[Mask]:
    """Make a class of mask known to the frameworks, which may have to be told of it (as pytrees)."""
    KINDS.append(kind)
    for listener in _LISTENERS:
        listener(kind)
    return kind


def on_register(listener: Callable[[type[Mask]], None]) -> None:
    """Tell a framework of every class of mask: those there are, and those to come."""
    _LISTENERS.append(listener)
    for kind in KINDS:
        listener(kind)
