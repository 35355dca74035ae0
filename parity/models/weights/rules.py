"""Rules of the user's own: which weight is which, by patterns over the names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.models.weights.items import Item
from parity.models.weights.layouts import LAYOUTS, layouts_of
from parity.models.weights.pairs import Transform, WeightPair, one_to_one
from parity.models.weights.tree import View
from parity.names import nearest, unknown

TOLD = "told"
Both = tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]


@dataclass(frozen=True)
class Rule:
    """Say which weight of torch is which of JAX.

    Args:
        pattern: Over torch's names. `*` stands for anything, `{i}` for one part of a name, in order of appearance.
        path: JAX's path, with the same holes. `[{i}]` at the end takes that layer of a stacked weight.
        transform: A transform of the table by name ("same", "transpose", "channels last", ...); a pair of functions
            (to JAX, to torch) of one array each; or None: the table decides by the layer and the shapes.

    Raises:
        ValueError: The path has a hole that the pattern lacks, or there is no transform of this name.

    Example:
        >>> import parity
        >>> rule = parity.Rule("encoder.{i}.lin.weight", "blocks.{i}.w", "transpose")
        >>> rule.match("encoder.3.lin.weight")
        'blocks.3.w'
    """

    pattern: str
    path: str
    transform: str | Both | None = None

    def __post_init__(self) -> None:
        if isinstance(self.transform, str) and self.transform not in LAYOUTS:
            raise ValueError(unknown("a rule's transform", self.transform, list(LAYOUTS)))
        holes, filled = set(HOLE.findall(self.pattern)), set(HOLE.findall(self.path))
        if filled - holes or self.path.count("*") > self.pattern.count("*"):
            raise ValueError(
                f"a rule: the path {self.path!r} has holes that the pattern {self.pattern!r} does not fill; both must"
                " name the same {i}, and as many *"
            )

    def match(self, name: str) -> str | None:
        """Return the path for a torch name, or None where the rule does not speak of it."""
        parts = re.split(r"(\*|\{\w+\})", self.pattern)
        seen: set[str] = set()
        made = []
        for part in parts:
            if part == "*":
                made.append("(.*)")
            elif HOLE.fullmatch(part):
                hole = part[1:-1]
                made.append(f"(?P={hole})" if hole in seen else f"(?P<{hole}>[^.]+)")
                seen.add(hole)
            else:
                made.append(re.escape(part))
        found = re.fullmatch("".join(made), name)
        if not found:
            return None
        named = found.groupdict()
        stars = iter(
            group
            for group, place in zip(found.groups(), range(1, 1000), strict=False)
            if place not in found.re.groupindex.values()
        )
        return re.sub(r"\*|\{\w+\}", lambda hole: next(stars) if hole[0] == "*" else named[hole[0][1:-1]], self.path)


HOLE = re.compile(r"\{\w+\}")


class Told(Transform):
    """A pair of functions of the user's own."""

    name = "function"
    computes = True

    def __init__(self, both: Both) -> None:
        self._to_jax, self._to_torch = both

    def to_jax(self, parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        return _fitting(self._to_jax(parts[0]), shape, "to JAX")

    def to_torch(self, array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        return [_fitting(self._to_torch(array), shapes[0], "to torch")]

    def exact(self, parts: Sequence[np.ndarray], array: np.ndarray) -> list[np.ndarray]:
        return self.to_torch(array.astype(np.float64), [parts[0].shape])

    def gradient(self, array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> None:
        return None  # it may scale, and then a gradient scales the other way


def _fitting(made: Any, shape: tuple[int, ...], way: str) -> np.ndarray:
    array = np.asarray(made)
    if array.shape != shape:
        raise ValueError(f"a rule's function {way}: expected shape {shape}, got {array.shape}")
    return array


def told(rules: Sequence[Rule], torch: Mapping[str, Item], jax: Mapping[str, Item]) -> list[WeightPair]:
    """Return the pairs that the rules give; the first rule that speaks of a weight counts.

    Raises:
        TypeError: Something is no rule.
        ValueError: A rule speaks of no weight, its path is not in the JAX model, or the shapes do not fit.
    """
    made: list[WeightPair] = []
    done: set[str] = set()
    if not isinstance(rules, Iterable) or isinstance(rules, str):
        raise TypeError(f"rules: expected a list of parity.Rule, got {rules!r}")
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"rules: expected parity.Rule(pattern, path, transform), got {rule!r}")
        matched = False
        for name, item in torch.items():
            path = rule.match(name)
            if path is None:
                continue
            matched = True
            if name not in done:
                done.add(name)
                made.append(_pair(rule, item, path, jax))
        if not matched:
            raise ValueError(
                f"rule {rule.pattern!r} speaks of no weight of the torch model{nearest(rule.pattern, torch)}"
            )
    return made


def _pair(rule: Rule, item: Item, path: str, jax: Mapping[str, Item]) -> WeightPair:
    base, index = path, None
    if found := re.fullmatch(r"(.+)\[(\d+)\]", path):
        base, index = found[1], int(found[2])
    if base not in jax:
        raise ValueError(f"rule {rule.pattern!r}: the JAX model has no weight {base!r}{nearest(base, jax)}")
    leaf, view = jax[base].leaf, View(base)
    shape = leaf.shape
    if index is not None:
        if not shape or index >= shape[0]:
            raise ValueError(f"rule {rule.pattern!r}: {base} has shape {shape}, and no layer {index}")
        shape, view = shape[1:], view.then(("index", 0, index, 0))
    if rule.transform is not None and not isinstance(rule.transform, str):
        names = item.leaf.name.rpartition(".")[2], base.rpartition(".")[2]
        return WeightPair(
            (item.leaf.name,), (base,), f"{names[1]} = the rule's function of {names[0]}", TOLD, (item.view,), (view,),
            (item.leaf.shape,), shape, Told(rule.transform), item.leaf.kind,
        )  # fmt: skip
    if rule.transform is not None:
        layout = LAYOUTS[rule.transform]
        fitting = [layout] if layout.fits(item.leaf.shape, shape) else []
    else:
        from dataclasses import replace

        role = item.role if item.role != "value" else "weight"
        fitting = [fit.layout for fit in layouts_of(item.leaf, replace(leaf, shape=shape), role=role)]
    if not fitting:
        how = f"by {rule.transform!r}" if rule.transform else "by any layout of the table"
        raise ValueError(
            f"rule {rule.pattern!r}: {item.leaf.name} {item.leaf.shape} does not become {path} {shape} {how}"
        )
    return one_to_one(item.view, view, item.leaf.shape, shape, fitting[0], TOLD, item.leaf.kind)
