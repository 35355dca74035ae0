"""Which layers of a model get which mask (contract S8)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from maskedlinear_core import constructors
from maskedlinear_core.arrays import dtype_name, to_numpy
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.checks import patterns as pattern_checks
from maskedlinear_core.checks.patterns import LeftOut as LeftOut
from maskedlinear_core.masks import Mask

Shape = tuple[int, int]


def _nothing_wrong() -> None:
    pass


@dataclass(frozen=True)
class Part:
    """A layer of a model that may get a mask.

    Attributes:
        layer: The layer, as a callable that makes masks sees it.
        shape: Shape of its weight (out_features, in_features); of an embedding (tokens, features).
        check: Raises a TypeError or ValueError that says why this very layer cannot be converted.
        is_embedding: An embedding is only converted by a pattern that matches no linear layer.
        has_bias: Whether a bias mask is possible.
    """

    layer: Any
    shape: Shape
    check: Callable[[], None] = _nothing_wrong
    is_embedding: bool = False
    has_bias: bool = True


@dataclass
class Choice:
    """What `choose` found.

    Attributes:
        masks: The mask of each layer that gets one, by dotted name.
        left: Why a layer that a wildcard matched stays as it is, by dotted name.
    """

    masks: dict[str, Mask]
    left: dict[str, str] = field(default_factory=dict)


def choose(
    parts: Mapping[str, Part],
    masks: Mapping[str, Any],
    *,
    strict: bool = False,
    check_tied: Callable[[str, Mapping[str, Mask]], None] | None = None,
    others: Callable[[], Mapping[str, str]] = dict,
) -> Choice:
    """Return the mask of each layer that gets one, and what a wildcard matched and could not convert.

    A layer that cannot be converted is refused where a pattern without wildcards names it, where `strict` is
    True, and where its pattern converts nothing else. Otherwise it is left, and a `LeftOut` warning lists it. It
    lists convolutions and recurrent layers that a wildcard matches, too; these alone are no reason to warn.

    Args:
        parts: Layers by dotted name, "" for the model itself.
        masks: By pattern (`fnmatch`: * ? [...]): a mask, a bool array, or a callable(name, layer) that returns one,
            or None to leave the layer as it is. The first pattern that matches a name counts.
        strict: Refuse what would be left, convolutions and recurrent layers too.
        check_tied: Raises if a layer shares its weight in a way that these masks do not allow.
        others: Gives the class of every other part of the model by dotted name, for messages.

    Raises:
        TypeError: `masks` is no mapping, a mask is none, or a layer cannot be converted.
        ValueError: A pattern is of no use, or a mask does not fit its layer; the name is given.
        IndexError: A mask has a position outside of its layer's weight; the name is given.

    Example:
        >>> parts = {"a.q": Part(0, (2, 3)), "a.k": Part(1, (2, 3))}
        >>> choose(parts, {"*.q": constructors.rows([0])}).masks
        {'a.q': rows([0])}
    """
    convert_checks.mapping("masks", masks)
    pattern_of = _assign(parts, masks)
    used, chosen = set(pattern_of.values()), {}
    errors: dict[str, Exception] = {}
    for name, pattern in pattern_of.items():
        given = masks[pattern]
        given = given(name, parts[name].layer) if callable(given) and not isinstance(given, Mask) else given
        if given is None:
            continue
        mask = constructors.as_mask(given)
        try:
            parts[name].check()
        except (TypeError, ValueError) as error:
            errors[name] = error
            continue
        with convert_checks.naming(name):
            mask.canonical(parts[name].shape)
        chosen[name] = mask
    _drop_tied(chosen, errors, check_tied)
    for name, found in errors.items():
        pattern = pattern_of[name]
        if strict or not is_wild(pattern) or not any(pattern_of[other] == pattern for other in chosen):
            raise found
    # A pattern that an earlier one has overtaken everywhere is as useless as one that matches nothing.
    stay = [one for one in masks if masks[one] is None]
    pattern_checks.all_used([one for one in masks if one not in used], parts, pattern_of, others, stay)
    left = {name: pattern_checks.reason(found) for name, found in errors.items()}
    if strict or left:
        left |= pattern_checks.of_other_kinds(masks, parts, others(), is_wild, strict=strict)
    if left:
        warnings.warn(LeftOut(left), stacklevel=4)
    return Choice(chosen, left)


def choose_bias_masks(
    parts: Mapping[str, Part], chosen: Mapping[str, Mask], bias_masks: Mapping[str, Any] | None
) -> dict[str, np.ndarray | None]:
    """Return the bias mask of each layer that gets a mask; None where all of the bias trains.

    Args:
        parts: As for `choose`.
        chosen: The layers that get a mask.
        bias_masks: By pattern: a bool vector (out_features,), or None. The first pattern that matches counts.

    Raises:
        TypeError, ValueError: A bias mask that does not fit, or a pattern that matches no layer that gets a mask.

    Example:
        >>> parts = {"q": Part(0, (2, 3))}
        >>> choose_bias_masks(parts, {"q": constructors.rows([0])}, {"q": np.array([True, False])})
        {'q': array([ True, False])}
    """
    if bias_masks is None:
        return dict.fromkeys(chosen)
    convert_checks.mapping("bias_masks", bias_masks)
    converted = {name: parts[name] for name in chosen}
    pattern_of = {
        name: next((one for one in bias_masks if fnmatchcase(name, one)), None) for name in converted
    }  # fmt: skip
    used = set(pattern_of.values())
    pattern_checks.all_used([one for one in bias_masks if one not in used], converted, pattern_of, dict)
    found: dict[str, np.ndarray | None] = {}
    for name, pattern in pattern_of.items():
        given = None if pattern is None else bias_masks[pattern]
        if given is None or (pattern is not None and is_wild(pattern) and not parts[name].has_bias):
            found[name] = None
            continue
        with convert_checks.naming(name):
            values = constructors.as_bias_mask(given)
            shape = tuple(values.shape)
            module_checks.module_bias_mask(parts[name].has_bias, shape, dtype_name(values), parts[name].shape[0])
        found[name] = to_numpy(values).copy()
    return found


def is_wild(pattern: str) -> bool:
    """Tell whether a pattern may match more than the one name that it spells.

    Example:
        >>> is_wild("layers.*"), is_wild("layers.0")
        (True, False)
    """
    return any(letter in pattern for letter in "*?[")


def _assign(parts: Mapping[str, Part], masks: Mapping[str, Any]) -> dict[str, str]:
    # The pattern of each layer. One that also matches linear layers is not meant for embeddings.
    linears = [name for name, part in parts.items() if not part.is_embedding]
    for_embeddings = [one for one in masks if not any(fnmatchcase(name, one) for name in linears)]
    found = {}
    for name, part in parts.items():
        candidates = for_embeddings if part.is_embedding else masks
        pattern = next((one for one in candidates if fnmatchcase(name, one)), None)
        if pattern is not None:
            found[name] = pattern
    return found


def _drop_tied(chosen: dict[str, Mask], errors: dict[str, Exception], check_tied: Any) -> None:
    # Leaving one of two tied layers may leave the other with a tie that is not allowed: until nothing changes.
    changed = check_tied is not None
    while changed:
        changed = False
        for name in list(chosen):
            try:
                check_tied(name, chosen)
            except (TypeError, ValueError) as error:
                errors[name] = error
                del chosen[name]
                changed = True
