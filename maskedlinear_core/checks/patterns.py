"""Patterns of layer names that are of no use, each mistake in its own words (contract S8, S10)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any


class LeftOut(UserWarning):
    """Layers that a wildcard matched and that stay as they were; `left` tells why, by dotted name."""

    def __init__(self, left: Mapping[str, str]) -> None:
        self.left: dict[str, str] = dict(left)
        listed = "; ".join(f"{name or 'the model itself'}: {why}" for name, why in self.left.items())
        super().__init__(
            f"mask_linears left {len(self.left)} of the layers that the patterns match as they were: {listed}. "
            "Map them to None to leave them without this warning, or pass strict=True to refuse"
        )


def reason(error: Exception) -> str:
    """Return what an error of one layer says, without its beginning.

    Example:
        >>> reason(ValueError("mask_linears: head: expected a weight of its own"))
        'expected a weight of its own'
    """
    return str(error).partition(": ")[2].partition(": ")[2]


_OTHER_KINDS = re.compile(r"(Lazy)?Conv(Transpose)?(\dd)?|\w*(RNN|GRU|LSTM)(Cell|Layer)?|SimpleCell|Bilinear|Einsum")
"""Classes of torch, Flax and Equinox that have a weight to be masked and are no linear layers."""


def of_other_kinds(
    masks: Mapping[str, Any],
    parts: Collection[str],
    others: Mapping[str, str],
    is_wild: Callable[[str], bool],
    *,
    strict: bool,
) -> dict[str, str]:
    """Return why convolutions and recurrent layers that a wildcard matches stay as they are, by dotted name.

    Raises:
        TypeError: There is one, and `strict` is True.
    """
    kinds = {name: kind for name, kind in others.items() if name and _OTHER_KINDS.fullmatch(kind)}
    found = {}
    for name, kind in kinds.items():
        pattern = next((one for one in masks if fnmatchcase(name, one)), None)
        holds_layers = any(one.startswith(f"{name}.") for one in (*kinds, *parts))
        if pattern is not None and is_wild(pattern) and masks[pattern] is not None and not holds_layers:
            found[name] = f"expected a linear layer, got {kind}; mask its weight by masked_parameter"
    if found and strict:
        name, why = next(iter(found.items()))
        raise TypeError(f"mask_linears: {name}: {why}, or map it to None")
    return found


def all_used(
    unused: list[str],
    parts: Mapping[str, Any],
    pattern_of: Mapping[str, str | None],
    others: Callable[[], Mapping[str, str]],
    left: Collection[str] = (),
) -> None:
    """Check that every pattern was of use.

    Args:
        unused: Patterns that gave no layer its mask.
        parts: Layers by dotted name.
        pattern_of: The pattern that counted, by name.
        others: Gives the class of each other part of the model, by dotted name.
        left: Patterns of what shall stay as it is: these may match convolutions and recurrent layers.

    Raises:
        ValueError: Some pattern was not; a sentence for each.
    """
    elsewhere = dict(others()) if unused else {}
    of_others = [name for name, kind in elsewhere.items() if name and _OTHER_KINDS.fullmatch(kind)]
    unused = [one for one in unused if not (one in left and any(fnmatchcase(name, one) for name in of_others))]
    if unused:
        raise ValueError("mask_linears: " + "; ".join(_why(one, parts, pattern_of, elsewhere) for one in unused))


def _why(
    pattern: str, parts: Mapping[str, Any], pattern_of: Mapping[str, str | None], others: Mapping[str, str]
) -> str:
    matched = [name for name in parts if fnmatchcase(name, pattern)]
    if matched:
        before = pattern_of.get(matched[0])
        return (
            f"expected every pattern to match a layer that no pattern before it did, got {pattern!r} after {before!r}, "
            f"which matches {_some(matched)} too; put the narrower pattern first"
        )
    if not parts:
        held = sorted({kind for name, kind in others.items() if name})
        return (
            f"expected a model with layers that can be masked for pattern {pattern!r}, got none"
            f"{f' among its {_some(held)}' if held else ''}; check that this is the model, or convert it by hand"
        )
    for name, kind in others.items():
        inside = [one for one in parts if one.startswith(f"{name}.")]
        if name and fnmatchcase(name, pattern) and inside:
            return (
                f"expected pattern {pattern!r} to match layers, got the {kind} that holds {_some(inside)}; "
                f"write {pattern + '.*'!r}"
            )
    elsewhere = [name for name in others if name and fnmatchcase(name, pattern)]
    if elsewhere:
        return (
            f"expected pattern {pattern!r} to match linear layers or embeddings, got {elsewhere[0]!r}, a "
            f"{others[elsewhere[0]]}; the model's layers are: {_some(list(parts))}; for any other parameter there is "
            "masked_parameter"
        )
    owner = pattern.rpartition(".")[0]
    if pattern.rpartition(".")[2] in _PARAMETERS and any(fnmatchcase(name, owner) for name in parts):
        return f"expected the name of a layer, got that of its parameter, {pattern!r}; write {owner!r}"
    return f"expected every pattern to match a layer, got {pattern!r}; {_nearest(pattern, list(parts))}"


_PARAMETERS = ("weight", "bias", "kernel", "embedding", "values")


def _nearest(pattern: str, names: list[str]) -> str:
    listed = f"the model's linear layers are: {_some(names)}"
    longer = [name for name in names if fnmatchcase(name, f"*.{pattern}")]
    if longer:
        return f"{listed}; {longer[0]!r} ends so: did you mean {'*.' + pattern!r}?"
    shorter = [name for name in names if name and fnmatchcase(pattern, f"*.{name}")]
    if shorter:
        return f"{listed}; did you mean {shorter[0]!r}, without what is before it?"
    spelled = {name.lower(): name for name in names}
    wanted = pattern.lower().replace("/", ".").replace("['", ".").replace("']", "").lstrip(".")
    close = difflib.get_close_matches(wanted, spelled, n=1, cutoff=0.5)
    return f"{listed}; did you mean {spelled[close[0]]!r}?" if close else listed


def _some(names: list[str]) -> str:
    return ", ".join(name or "the model itself" for name in names[:6]) + (", ..." if len(names) > 6 else "")
