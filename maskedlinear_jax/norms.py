"""Masked layers inside a norm that recomputes their weight: their frozen entries cannot be held (contract S8)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any

from maskedlinear_core.checks import frozen as frozen_checks


def codes_of(functions: Iterable[Any]) -> frozenset[CodeType]:
    """Return the code objects of functions, by which their calls are known.

    Example:
        >>> len(codes_of([codes_of]))
        1
    """
    unwrapped = [inspect.unwrap(function) for function in functions]
    return frozenset(function.__code__ for function in unwrapped if hasattr(function, "__code__"))


def refuse_inside(
    codes: frozenset[CodeType], layer: Any, name: str, remedy: str, is_normed: Callable[[dict[str, Any]], bool]
) -> None:
    """Refuse to compute inside of a call of some functions: a layer does not know what lies around it.

    Args:
        codes: Codes of these functions.
        layer: The layer, whose class the message names.
        name: Name of what is computed.
        remedy: What makes it a parameter.
        is_normed: Tells from the variables of such a call whether it is of this layer, and not of one beside it.

    Raises:
        ValueError: One of them is being called.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in codes and is_normed(frame.f_locals):
            frozen_checks.refuse_computed("the layer", name, type(layer).__name__, remedy)
        frame = frame.f_back
