"""The variables of masked layers for Flax NNX: what is carried along and never trained (contract S8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from flax import nnx

from maskedlinear_core import masks
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import packed as packed_checks


class Positions(nnx.Variable[Any]):
    """Positions of a mask: carried along, never trained."""


class ValuesPositions(Positions):
    """Positions of packed values: these would be written elsewhere if the positions alone changed."""

    def set_value(self, value: Any, *, index: Any = None) -> None:
        """Refuse other positions than these.

        Raises:
            TypeError: Always, for other positions.
        """
        if index is None and isinstance(value, masks.Mask) and value == self.get_value():
            return
        convert_checks.refuse_positions()


class Frozen(nnx.Variable[Any]):
    """The constant matrix of a packed layer: carried along, never trained."""


class Whole(nnx.Variable[Any]):
    """The whole matrix or bias of a packed layer, as a plain layer's variable: what is set goes to the layer."""

    __slots__ = ("_source",)

    @classmethod
    def of(cls, name: str, value: Any, read: Callable[[], tuple[Any, ...]], write: Callable[[Any], None]) -> Self:
        """Return the whole of a layer, put together of the arrays that `read` returns now; `write` takes it apart."""
        whole = cls(value, write=write)
        # No metadata: a copy in a pytree is compared by that.
        object.__setattr__(whole, "_source", (name, read, read()))
        return whole

    def set_value(self, value: Any, **keywords: Any) -> None:
        """Set all of it, or a part (`layer.kernel[...] = ...`).

        Raises:
            RuntimeError: The layer has changed since this was read; it is left as it is now.
        """
        name, read, seen = getattr(self, "_source", ("", tuple, ()))
        if any(now is not before for now, before in zip(read(), seen, strict=True)):
            packed_checks.refuse_stale_write(name)
        super().set_value(value, **keywords)
        self.get_metadata("write")(self.get_value())
        object.__setattr__(self, "_source", (name, read, read()))

    def update_from_state(self, variable_state: nnx.Variable[Any]) -> None:
        """Take over the value of another variable, as `nnx.update` does with the state of a plain layer."""
        self.set_value(variable_state.get_value())


class FrozenParam(Frozen):
    """A parameter that learns no more, and may again: what `freeze_others` makes of an `nnx.Param`."""

    def back(self) -> nnx.Param[Any]:
        """Return the parameter that this was."""
        return nnx.Param(self.get_value(), **self.get_metadata())
