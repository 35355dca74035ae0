"""What a gradient mask is: the kinds, their algebra and their canonical form (SPEC S1).

True means everywhere: the gradient flows, this position is trainable.

A mask says *which* positions; the shape of the weight is given where it is needed. Its positions
may be traced (values not known yet, as under `jax.jit`): then only a twin can apply it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from maskedlinear_core import positions
from maskedlinear_core.arrays import dtype_name, is_framework_array, read, views, visible
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.indices import as_index
from maskedlinear_core.positions import Positions, Shape, Unread


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

    def to_array(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the mask as a bool array of the weight's shape.

        Args:
            shape: The weight's shape (out_features, in_features).

        Raises:
            IndexError: A position lies outside of the weight.
            ValueError: The mask has a shape of its own and it is another one.
            TypeError: The mask is traced.

        Example:
            >>> Columns([0, -1]).to_array((2, 3))
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
            >>> Columns([0, 1]).density((3, 8))
            0.25
        """
        array = self.to_array(shape)
        return float(np.count_nonzero(array)) / array.size if array.size else 0.0

    def canonical(self, shape: tuple[int, ...]) -> Positions:
        """Return the sorted, checked positions for a weight of that shape; remembered per shape.

        Raises:
            IndexError, ValueError, TypeError: As `to_array`.

        Example:
            >>> Columns([2, 0, 0]).canonical((4, 3)).arrays
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

        That makes a mask of elements fit to be traced in packed form (SPEC S7): under jit and compile the
        values of a bool array, and so the number of its elements, cannot be known.

        Raises:
            IndexError, ValueError, TypeError: As `to_array`.

        Example:
            >>> Columns([2, 0, 0]).packed((4, 3))
            columns([0, 2])
            >>> Elements([[True, False], [False, True]]).packed((2, 2)).leaves
            (array([0, 3]),)
        """
        size = mask_checks.weight_shape(shape)
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


class Lines(Mask):
    """Whole lines of the weight along one axis: what columns and rows have in common."""

    kind: str
    axis: int

    def __init__(self, index: Any) -> None:
        self.index = as_index(self.kind, index)

    @property
    def leaves(self) -> tuple[Any, ...]:
        return self.index.leaves

    @property
    def static(self) -> Hashable:
        return self.index.static

    def with_leaves(self, leaves: tuple[Any, ...]) -> Lines:
        return _unchecked(type(self), index=self.index.with_leaves(leaves))

    @property
    def is_traced(self) -> bool:
        return self.index.is_traced

    def traced(self, shape: Shape) -> Positions | None:
        if self.index.is_traced_bool:
            return None
        arrays: list[Unread | None] = [None, None]
        arrays[self.axis] = self._unread(shape)
        return Positions("submatrix", tuple(arrays))

    def traced_array(self, shape: Shape, trace: Any) -> Any:
        line = trace.line(self._unread(shape))
        return trace.spread(line if self.axis == 1 else line[:, None], shape)

    def _unread(self, shape: Shape) -> Unread:
        return Unread(self.kind, self.index, shape[self.axis])

    def _same(self, other: Lines) -> bool:
        return self.index.says_the_same(other.index)

    def __repr__(self) -> str:
        return f"{self.kind}({self.index!r})"


class Columns(Lines):
    """Whole columns of the weight: input features."""

    kind = "columns"
    axis = 1

    def _canonical(self, shape: Shape) -> Positions:
        return positions.submatrix(None, self.index.positions(self.kind, shape[self.axis]), shape)


class Rows(Lines):
    """Whole rows of the weight: output features."""

    kind = "rows"
    axis = 0

    def _canonical(self, shape: Shape) -> Positions:
        return positions.submatrix(self.index.positions(self.kind, shape[self.axis]), None, shape)


class Submatrix(Mask):
    """The crossings of some rows with some columns."""

    def __init__(self, rows: Any, columns: Any) -> None:
        self.rows = as_index("submatrix rows", rows)
        self.columns = as_index("submatrix columns", columns)

    @property
    def leaves(self) -> tuple[Any, ...]:
        return self.rows.leaves + self.columns.leaves

    @property
    def static(self) -> Hashable:
        return self.rows.static, self.columns.static

    def with_leaves(self, leaves: tuple[Any, ...]) -> Submatrix:
        count = 0 if self.rows.is_slice else 1
        rows, columns = self.rows.with_leaves(leaves[:count]), self.columns.with_leaves(leaves[count:])
        return _unchecked(Submatrix, rows=rows, columns=columns)

    @property
    def is_traced(self) -> bool:
        return self.rows.is_traced or self.columns.is_traced

    def _canonical(self, shape: Shape) -> Positions:
        rows = self.rows.positions("submatrix rows", shape[0])
        columns = self.columns.positions("submatrix columns", shape[1])
        return positions.submatrix(rows, columns, shape)

    def traced(self, shape: Shape) -> Positions | None:
        if self.rows.is_traced_bool or self.columns.is_traced_bool:
            return None
        return Positions("submatrix", self._unread(shape))

    def traced_array(self, shape: Shape, trace: Any) -> Any:
        rows, columns = map(trace.line, self._unread(shape))
        return rows[:, None] & columns

    def _unread(self, shape: Shape) -> tuple[Unread, Unread]:
        rows = Unread("submatrix rows", self.rows, shape[0])
        return rows, Unread("submatrix columns", self.columns, shape[1])

    def _same(self, other: Submatrix) -> bool:
        return self.rows.says_the_same(other.rows) and self.columns.says_the_same(other.columns)

    def __repr__(self) -> str:
        return f"submatrix({self.rows!r}, {self.columns!r})"


class Blocks(Mask):
    """Whole blocks of a regular grid laid over the weight."""

    def __init__(self, grid: Any, block_shape: Any) -> None:
        if not is_framework_array(grid) and not isinstance(grid, list | tuple):
            mask_checks.refuse_bool_matrix("blocks", "grid", grid)
        values = read(visible(grid))
        if values is None:
            mask_checks.traced_blocks()
        mask_checks.bool_matrix("blocks", "grid", values.shape, values.dtype.name)
        self.block_shape = mask_checks.block_shape(block_shape)
        self.grid_shape: Shape = (values.shape[0], values.shape[1])
        self.numbers = as_index("blocks", np.flatnonzero(values))  # the trainable blocks, row by row

    @property
    def shape(self) -> Shape:
        return self.grid_shape[0] * self.block_shape[0], self.grid_shape[1] * self.block_shape[1]

    @property
    def leaves(self) -> tuple[Any, ...]:
        return self.numbers.leaves

    @property
    def static(self) -> Hashable:
        return self.grid_shape, self.block_shape

    def with_leaves(self, leaves: tuple[Any, ...]) -> Blocks:
        return _unchecked(
            Blocks, numbers=self.numbers.with_leaves(leaves), grid_shape=self.grid_shape, block_shape=self.block_shape
        )

    @property
    def is_traced(self) -> bool:
        return self.numbers.is_traced

    @property
    def grid(self) -> np.ndarray:
        """The bool grid: True for a trainable block."""
        grid = np.zeros(self.grid_shape, np.bool_)
        grid.flat[self._numbers()] = True
        return grid

    def _numbers(self) -> np.ndarray:
        return self.numbers.positions("blocks", self.grid_shape[0] * self.grid_shape[1])

    def _canonical(self, shape: Shape) -> Positions:
        mask_checks.mask_shape("blocks", self.shape, shape)
        return positions.blocks(self._numbers(), self.grid_shape, self.block_shape)

    def traced(self, shape: Shape) -> Positions | None:
        mask_checks.mask_shape("blocks", self.shape, shape)
        numbers = Unread("blocks", self.numbers, self.grid_shape[0] * self.grid_shape[1])
        return Positions("blocks", (numbers,), self.grid_shape, self.block_shape)

    def __repr__(self) -> str:
        if self.numbers.is_traced or not self.numbers.is_vector:
            return f"blocks({self.numbers!r} of {self.grid_shape}, {self.block_shape})"
        total = self.grid_shape[0] * self.grid_shape[1]
        return f"blocks({self._numbers().size} of {total} in a grid of {self.grid_shape}, {self.block_shape})"


class Elements(Mask):
    """Single elements: a bool array of the weight's shape."""

    def __init__(self, array: Any) -> None:
        if not is_framework_array(array) and not isinstance(array, list | tuple):
            mask_checks.refuse_bool_matrix("elements", "array", array)
        array = visible(array)
        values = array if is_framework_array(array) else np.asarray(array)
        mask_checks.bool_matrix("elements", "array", tuple(values.shape), dtype_name(values))
        known = read(values)
        self.array: Any = values if known is None else known.copy()
        self.views: dict[str, Any] = {} if known is None else views(self.array)

    @property
    def shape(self) -> Shape:
        # A view where there is one: torch's compiler can read the shape of that, and not of a NumPy array.
        array = next(iter(self.views.values())) if self.views else self.array
        return array.shape[0], array.shape[1]

    @property
    def leaves(self) -> tuple[Any, ...]:
        return (self.array,)

    def with_leaves(self, leaves: tuple[Any, ...]) -> Elements:
        return _unchecked(Elements, array=leaves[0], views={})

    @property
    def is_traced(self) -> bool:
        return not self.views and self._known() is None

    def _canonical(self, shape: Shape) -> Positions:
        mask_checks.mask_shape("elements", self.shape, shape)
        known = self._known()
        assert known is not None, "canonical asks is_traced first"
        return positions.elements(known)

    def traced_array(self, shape: Shape, trace: Any) -> Any:
        mask_checks.mask_shape("elements", self.shape, shape)
        return trace.array(self.array, self.views)

    def _known(self) -> np.ndarray | None:
        # Leaves of a pytree come back as a framework's arrays, and for a while as anything at all.
        if isinstance(self.array, np.ndarray):
            return self.array
        return read(self.array) if is_framework_array(self.array) else None

    def __getstate__(self) -> dict[str, Any]:
        # Without the views: a pickled mask must be readable where that framework is absent.
        return {"array": self.array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        array = state["array"]  # read-only or not, by how it was pickled
        self.array = array.copy() if isinstance(array, np.ndarray) else array
        self.views = views(self.array) if isinstance(self.array, np.ndarray) else {}

    def __repr__(self) -> str:
        if not is_framework_array(self.array):
            return f"elements(<{self.array!r}>)"
        known = self._known()
        if known is None or known.ndim != 2:
            return f"elements(<traced bool of shape {tuple(self.array.shape)}>)"
        return f"elements({np.count_nonzero(known)} of {known.size} in a weight of {self.shape})"


class Entries(Mask):
    """Single elements by their flat positions, row by row: what `packed` makes of elements."""

    def __init__(self, index: Any, shape: Shape) -> None:
        self.index = as_index("entries", index)
        self._shape = shape

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def leaves(self) -> tuple[Any, ...]:
        return self.index.leaves

    @property
    def static(self) -> Hashable:
        return self._shape, self.index.static

    def with_leaves(self, leaves: tuple[Any, ...]) -> Entries:
        return _unchecked(Entries, index=self.index.with_leaves(leaves), _shape=self._shape)

    @property
    def is_traced(self) -> bool:
        return self.index.is_traced

    def _canonical(self, shape: Shape) -> Positions:
        mask_checks.mask_shape("entries", self._shape, shape)
        array = np.zeros(shape, np.bool_)
        array.flat[self.index.positions("entries", array.size)] = True
        return positions.elements(array)

    def traced(self, shape: Shape) -> Positions | None:
        mask_checks.mask_shape("entries", self._shape, shape)
        return Positions("entries", (Unread("entries", self.index, shape[0] * shape[1]),))

    def __repr__(self) -> str:
        if self.index.is_traced or not self.index.is_vector:
            return f"elements({self.index!r} in a weight of {self._shape})"
        size = self._shape[0] * self._shape[1]
        return f"elements({self.index.positions('entries', size).size} of {size} in a weight of {self._shape})"


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
        return _unchecked(type(self), masks=tuple(leaves))

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


_KINDS: list[type[Mask]] = []
_LISTENERS: list[Callable[[type[Mask]], None]] = []


def register(kind: type[Mask]) -> type[Mask]:
    """Make a class of mask known to the frameworks, which may have to be told of it (as pytrees)."""
    _KINDS.append(kind)
    for listener in _LISTENERS:
        listener(kind)
    return kind


def on_register(listener: Callable[[type[Mask]], None]) -> None:
    """Tell a framework of every class of mask: those there are, and those to come."""
    _LISTENERS.append(listener)
    for kind in _KINDS:
        listener(kind)


for _kind in (Columns, Rows, Submatrix, Blocks, Elements, Entries, Complement, Union, Intersection):
    register(_kind)


def _unchecked(kind: type[Any], **attributes: Any) -> Any:
    # Pytrees are rebuilt with placeholders for leaves: nothing may be checked or read here.
    mask = object.__new__(kind)
    mask.__dict__.update(attributes)
    return mask
