"""The names of the parameters of a user's function."""

from __future__ import annotations

import inspect
import sys
from typing import Any


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """Return the parameters of a function, or none where it does not tell.

    From Python 3.14 on annotations are evaluated when they are asked for: names that are imported under
    `TYPE_CHECKING` alone would end in a NameError. They are not needed here.

    Example:
        >>> [one.name for one in parameters_of(lambda x, scale=2: x * scale)], parameters_of(print.__self__)
        (['x', 'scale'], [])
    """
    try:
        if sys.version_info >= (3, 14):
            import annotationlib

            told = inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
        else:
            told = inspect.signature(function)
    except (TypeError, ValueError):
        return []
    return list(told.parameters.values())


def positional(function: Any) -> list[str]:
    """Return the names of the parameters that can be given by position.

    Example:
        >>> positional(lambda x, *more, scale=2: x)
        ['x']
    """
    return [one.name for one in parameters_of(function) if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
