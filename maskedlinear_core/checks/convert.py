"""Whole models (SPEC S8, S10)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn


def mapping(masks: Any) -> None:
    """Check that masks come by pattern.

    Raises:
        TypeError: They do not.
    """
    if not isinstance(masks, Mapping) or not all(isinstance(pattern, str) for pattern in masks):
        raise TypeError(
            f"mask_linears: expected masks as a dict of pattern: mask, got {type(masks).__name__}; "
            'e.g. {"encoder.*.query": columns([0])}'
        )


@contextlib.contextmanager
def naming(layer: str) -> Iterator[None]:
    """Put a layer's name before the message of a mask that does not fit it."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(f"mask_linears: {layer or 'the model itself'}: {error}") from None


def all_used(unused: list[str], layers: list[str]) -> None:
    """Check that every pattern was of use.

    Raises:
        ValueError: One was not.
    """
    if unused:
        shown = ", ".join(layers[:6]) + (", ..." if len(layers) > 6 else "")
        raise ValueError(
            f"mask_linears: expected every pattern to match a linear layer that no pattern before it did, got "
            f"{', '.join(map(repr, unused))}; the model's linear layers are: {shown or 'none'}"
        )


def refuse_model(expected: str, value: object) -> NoReturn:
    """Refuse what is no model.

    Raises:
        TypeError: Always.
    """
    raise TypeError(f"mask_linears: expected {expected}, got {type(value).__name__}; pass the model itself")


def refuse_tied(name: str, others: list[str]) -> NoReturn:
    """Refuse a weight that something else uses too.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"mask_linears: {name}: expected a weight of its own, got one tied to {', '.join(others)}; "
        "untie them first, leave the layer out, or give tied linear layers one mask with packed=False"
    )


def refuse_subclass(name: str, value: object) -> NoReturn:
    """Refuse a layer whose forward is not that of the plain one.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        f"mask_linears: {name}: expected a plain linear layer, got {type(value).__name__}, whose forward may be "
        "another; convert it by hand or leave it out of the pattern"
    )
