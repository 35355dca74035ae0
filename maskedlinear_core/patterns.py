"""Which layers of a model get which mask (SPEC S8)."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from maskedlinear_core import constructors
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.masks import Mask


def choose(
    layers: Mapping[str, Any], masks: Mapping[str, Any], shape_of: Mapping[str, tuple[int, int]]
) -> dict[str, Mask]:
    """Return the mask of each layer that gets one.

    Args:
        layers: Linear layers by dotted name, "" for the model itself.
        masks: By pattern (`fnmatch`: * ? [...]): a mask, a bool array, or a callable(name, layer) that returns one,
            or None to leave the layer as it is. The first pattern that matches a name counts.
        shape_of: The shape of each weight (out_features, in_features).

    Raises:
        TypeError: `masks` is no mapping, or a mask is none.
        ValueError: A pattern matches no layer, or a mask does not fit its layer; the name is given.
        IndexError: A mask has a position outside of its layer's weight; the name is given.

    Example:
        >>> choose({"a.q": 0, "a.k": 1}, {"*.q": constructors.rows([0])}, {"a.q": (2, 3), "a.k": (2, 3)})
        {'a.q': rows([0])}
    """
    convert_checks.mapping(masks)
    unused, chosen = set(masks), {}
    for name, layer in layers.items():
        pattern = next((pattern for pattern in masks if fnmatchcase(name, pattern)), None)
        if pattern is None:
            continue
        unused.discard(pattern)
        given = masks[pattern]
        given = given(name, layer) if callable(given) and not isinstance(given, Mask) else given
        if given is None:
            continue
        mask = constructors.as_mask(given)
        with convert_checks.naming(name):
            mask.canonical(shape_of[name])
        chosen[name] = mask
    # A pattern that an earlier one has overtaken everywhere is as useless as one that matches nothing.
    convert_checks.all_used(sorted(unused), sorted(layers))
    return chosen
