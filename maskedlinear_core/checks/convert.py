"""Whole models (SPEC S8, S10)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
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


def refuse_computed(name: str) -> NoReturn:
    """Refuse a layer whose weight or bias is no parameter but made from others before each forward.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        f"mask_linears: {name or 'the model itself'}: expected a weight and bias that are parameters, got one computed "
        "from others (spectral norm, pruning); make it permanent first (e.g. torch.nn.utils.prune.remove), or leave "
        "the layer out"
    )


def by_name(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the parts of a model by dotted name, each under a name of its own.

    Raises:
        ValueError: Two have one name.
    """
    found: dict[str, Any] = {}
    for name, part in pairs:
        if name in found:
            raise ValueError(
                f"expected a name of its own for each part of the model, got {name!r} twice; "
                "a key with a dot in it reads like two keys: rename it"
            )
        found[name] = part
    return found
