"""Names of torch and JAX that are not public; tests/test_private_names.py holds them to what they are needed for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def decomposition_of(operator: Any) -> Callable[..., Any] | None:
    """Return the function that computes one of torch's operators of simpler ones, or None where torch knows none."""
    from torch._decomp import decomposition_table

    return decomposition_table.get(operator)


def file_names(equation: Any) -> list[str]:
    """Return the files of the code that made an equation of a jaxpr, from where it was made to where it was called."""
    traceback = equation.source_info.traceback
    return [] if traceback is None else [frame.file_name for frame in traceback.frames]
