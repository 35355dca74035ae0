"""Faults in what a pair supplies (answers, majorants, numbers, frozen entries): the cell reports them as such."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class Fault(Exception):
    """Something that a pair brings raises, or is of another kind than it must be: the cell fails with these words."""


def ask(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a pair's own function gives.

    Args:
        what: What the function is, for the message.
        function: The function.
        *arguments: Its arguments.

    Raises:
        Fault: It raises.

    Example:
        >>> ask("the oracle", lambda x: 1 / x, 0)
        Traceback (most recent call last):
        parity.operator.faults.Fault: the oracle raised ZeroDivisionError: division by zero
    """
    try:
        return function(*arguments)
    except Exception as error:
        raise Fault(f"{what} raised {type(error).__name__}: {error}") from error


def ask_tree(what: str, function: Callable[..., Any], *arguments: Any) -> dict[str, np.ndarray]:
    """Return the arrays by name of output that a pair's own function gives.

    Raises:
        Fault: It raises, or returns something else.
    """
    found = ask(what, function, *arguments)
    if not isinstance(found, Mapping):
        raise Fault(f"{what}: expected a dict of arrays by name of output, got {type(found).__name__}")
    return {name: np.asarray(value) for name, value in found.items()}
