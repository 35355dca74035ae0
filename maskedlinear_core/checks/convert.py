"""Whole models (contract S8, S10)."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from maskedlinear_core.checks.words import where

PERMANENT = "make it permanent first (e.g. torch.nn.utils.prune.remove)"
"""What to do about a weight that torch computes."""


def mapping(what: str, masks: Any) -> None:
    """Check that masks come by pattern.

    Raises:
        TypeError: They do not.
    """
    if not isinstance(masks, Mapping) or not all(isinstance(pattern, str) for pattern in masks):
        raise TypeError(
            f"mask_linears: expected {what} as a dict of pattern: mask, got {type(masks).__name__}; "
            'e.g. {"encoder.*.query": columns([0])}'
        )


@contextlib.contextmanager
def naming(layer: str) -> Iterator[None]:
    """Put a layer's name before the message of a mask that does not fit it."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(f"{where(layer)}: {error}") from None


def refuse_model(expected: str, value: object, use: str | None = None, function: str = "mask_linears") -> NoReturn:
    """Refuse what is no model, or a model of another library, for which `use` names the function."""
    what_to_do = "pass the model itself" if use is None else f"use {use}"
    raise TypeError(f"{function}: expected {expected}, got {type(value).__name__}; {what_to_do}")


def refuse_tied(name: str, others: list[str]) -> NoReturn:
    """Refuse a weight that something else uses too."""
    raise ValueError(
        f"{where(name)}: expected a weight of its own, got one tied to {', '.join(others)}; "
        "give all layers that share it one mask (linear layers with packed=False; an embedding and its head in "
        "either form), untie them first, or leave the layer out"
    )


def refuse_subclass(
    name: str, value: object, function: str = "mask_linears", *, expected: str = "a plain linear layer"
) -> NoReturn:
    """Refuse a layer whose forward is not that of the plain one."""
    raise TypeError(
        f"{where(name, function)}: expected {expected}, got {type(value).__name__}, whose forward may "
        "be another; convert it by hand or leave it out of the pattern"
    )


def refuse_own_forward(name: str, value: object) -> NoReturn:
    """Refuse to make a plain layer of a masked one whose forward is another."""
    raise TypeError(
        f"{where(name, 'unmask_linears')}: expected a masked layer of this package, got {type(value).__name__}, whose "
        "forward is its own: a plain layer would not do what it does; replace it by hand, or take it out of the model"
    )


def warn_of_frozen(name: str, old: Any, new: Any, shape: tuple[int, int]) -> None:
    """Warn that entries of a masked layer in JAX learn no more: a file of what learns then has no place for them."""
    if old.is_traced or new.is_traced or any(leaf is None for one in (old, new) for leaf in one.leaves):
        return
    if (old.to_array(shape) & ~new.to_array(shape)).any():
        warnings.warn(
            f"{name or 'the model itself'}: entries that could learn are frozen from now on. A masked layer in JAX "
            "does not know whether they have learned: save it with with_base=True, or its file will not load",
            stacklevel=_of_the_caller(),
        )


def _of_the_caller() -> int:
    """Return the stack level, seen from the function that asks, of the first code that is not of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("maskedlinear_"):
        level, frame = level + 1, frame.f_back
    return level


def refuse_part(layer: str, name: str) -> NoReturn:
    """Refuse a parameter, buffer or module of a user's that has the name of something of the layer's own."""
    raise TypeError(
        f"{layer}: expected the parameters, buffers and modules beside the weight and bias to have names that the "
        f"layer has not, got {name!r}; rename it, it would be lost"
    )


def refuse_beside(names: list[str], value: object) -> NoReturn:
    """Refuse a layer with arrays that its masked form has no place for."""
    raise TypeError(
        f"from_linear: expected a layer of a weight and a bias alone, got {type(value).__name__} with "
        f"{', '.join(names)} too, which would be lost; keep the layer inside of a module of your own that has these"
    )


def refuse_option(name: str, kind: str, option: str, what_to_do: str) -> NoReturn:
    """Refuse a layer that was made with an option that its masked form has not."""
    raise TypeError(f"{where(name)}: expected {kind} without {option}, got one with it; {what_to_do}")


def not_stacked(name: str, axes: int, expected: int) -> None:
    """Check that a layer is one, and no stack of layers.

    Raises:
        ValueError: Its weight has more axes.
    """
    if axes > expected:
        raise ValueError(
            f"{where(name)}: expected one layer, got a stack of them, whose weight has {axes} axes; "
            "mask the layer inside of the function that vmap maps, or stack layers that are masked"
        )


def one_layer(function: str, name: str, stacked: int) -> None:
    """Check that a layer is one, and no stack of layers, whose masks may differ.

    Raises:
        ValueError: It is a stack.
    """
    if stacked:
        raise ValueError(
            f"{where(name, function)}: expected one layer, got a stack of them along {stacked} axes; take one by "
            f"jax.tree.map(lambda leaf: leaf[0], layers), or call {function} inside of the function that vmap maps"
        )


def refuse_positions() -> NoReturn:
    """Refuse other positions for packed values that stay where they are."""
    raise TypeError(
        "positions of a packed layer: expected them to change together with the values, got other positions alone; "
        "set layer.grad_mask, or call layer.repack(mask, optimizer)"
    )


def refuse_foreign_optimizer() -> NoReturn:
    """Refuse an optimizer of a model that does not hold the layer."""
    raise ValueError("repack: expected the model of the optimizer, which holds this layer, got another; pass model=")


def refuse_attention(name: str) -> NoReturn:
    """Refuse to pack projections of keys or values of another size than the queries'."""
    raise TypeError(
        f"mask_linears: {name}: expected packed=False for attention whose keys or values have a size of their own, got "
        "packed=True; mask it in a call of its own with packed=False"
    )


def refuse_computed(name: str, function: str = "mask_linears", remedy: str = PERMANENT) -> NoReturn:
    """Refuse a layer whose weight or bias is no parameter but made from others before each forward.

    Args:
        name: Name of the layer, or nothing for the model itself.
        function: That refuses.
        remedy: What makes the weight a parameter.
    """
    raise TypeError(
        f"{where(name, function)}: expected a weight and bias that are parameters, got one computed "
        f"from others (weight or spectral norm, pruning); {remedy}, or leave the layer out"
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
