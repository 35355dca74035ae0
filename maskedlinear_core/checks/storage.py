"""Stored layers (SPEC S7, S10)."""

from __future__ import annotations

from typing import Any, NoReturn


class StorageError(ValueError):
    """A file that does not hold what it should; nothing was changed."""


def refuse(why: str) -> NoReturn:
    """Refuse a file.

    Raises:
        StorageError: Always.
    """
    raise StorageError(f"stored layers: expected a file that save_packed wrote, but {why}; nothing was changed")


def version(number: Any, newest: int) -> None:
    """Check a file's version.

    Raises:
        StorageError: It is another.
    """
    if number != newest:
        raise StorageError(
            f"stored layers: expected version {newest}, got {number!r}; update maskedlinear to read this file"
        )


def same(what: str, got: Any, expected: Any) -> None:
    """Check that a file agrees with itself.

    Raises:
        StorageError: It does not.
    """
    if got != expected:
        refuse(f"{what} is {got}, expected {expected}")


def all_used(left: list[str]) -> None:
    """Check that a file holds nothing that belongs to no layer.

    Raises:
        StorageError: It does.
    """
    if left:
        refuse(f"it holds {', '.join(left[:3])}, which belongs to no layer")


def refuse_layer(name: str, expected: str, got: str) -> NoReturn:
    """Refuse to load a stored layer into a model.

    Raises:
        StorageError: Always.
    """
    raise StorageError(
        f"stored layers: {name or 'the layer'}: expected {expected}, got {got}; load into the model that the values "
        "were trained on. Nothing was changed"
    )


def refuse_empty() -> NoReturn:
    """Refuse to store a model that has no masked layer.

    Raises:
        ValueError: Always.
    """
    raise ValueError("save_packed: expected a model with masked or packed layers, got none; convert it first")
