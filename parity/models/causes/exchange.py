"""Child modules that stand in each other's place in JAX: gate and up, q and k, one layer for another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from parity.models.causes.context import Context
from parity.records import Diagnosis

MOST = 60
"""How many exchanges are tried."""
BY_VALUES = (
    ". No name says which of these weights is which: if they were loaded by a map, that paired them by the order of "
    "definition, which may be wrong; then say it by rules=[Rule(...)] and load again."
)


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield proved exchanges: with torch's weights exchanged the two agree."""
    tried, held = 0, context.pair.torch_weights
    groups = list(alike(held))
    everywhere = _everywhere(groups, held)
    for changes in (everywhere, *(_changes(group, held) for group in groups), _norms(held)):
        for weights, cause, text, fix in changes:
            tried += 1
            if tried > MOST or context.late:
                return
            tensors = {name: torch.from_numpy(np.array(value, np.float64)) for name, value in weights.items()}
            if context.agree(lambda *arrays, w=tensors: context.pair.torch_function(w, *arrays)):
                if set(weights) <= context.pair.by_order:
                    yield _of_the_map(weights)
                elif set(weights) <= context.pair.by_order | context.pair.by_values:
                    yield Diagnosis(cause, f"Likely: {text}; with that changed in torch the two agree{BY_VALUES}", fix)
                else:
                    yield Diagnosis(cause, f"{text}; with that changed in torch the two agree.", fix)
                return


def _of_the_map(weights: Mapping[str, Any]) -> Diagnosis:
    """Return that the weights may be paired wrongly, where nothing but their order says which is which."""
    names = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in weights))
    return Diagnosis(
        "weights: paired by order",
        f"Likely: {names} are paired with each other's weights of JAX: nothing but the order of definition says which "
        "is which, and the other way round the two agree. Else JAX uses one in the other's place.",
        "Say which weight is which: weights=parity.map_weights(torch_model, jax_model, rules=[Rule(...)]).",
    )


def alike(weights: Mapping[str, np.ndarray]) -> Iterator[list[str]]:
    """Yield modules whose weights have the same names and shapes, by their relative names.

    Example:
        >>> square = np.zeros((2, 2))
        >>> list(alike({"a.weight": square, "b.weight": square, "c.weight": np.zeros(3)}))
        [['a', 'b']]
    """
    owners: dict[str, dict[str, Any]] = {}
    for name, value in weights.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            owners.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = np.shape(value)
    groups: dict[Any, list[str]] = {}
    for owner, shapes in owners.items():
        parent = owner.rpartition(".")[0]
        groups.setdefault((parent, tuple(sorted(shapes.items()))), []).append(owner)
    yield from (group for group in groups.values() if len(group) > 1)


def _norms(weights: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, Any], str, str, str]]:
    """Yield norms in the place of others, wherever these are: a norm that is used at two places."""
    owners: dict[str, dict[str, Any]] = {}
    for name, value in weights.items():
        owner, _, last = name.rpartition(".")
        owners.setdefault(owner, {})[last] = np.shape(value)
    flat = {owner: shapes for owner, shapes in owners.items() if owner and all(len(one) < 2 for one in shapes.values())}
    for a, b in itertools.permutations(flat, 2):
        if flat[a] == flat[b] and a.rpartition(".")[0] != b.rpartition(".")[0]:
            yield (
                {f"{b}.{last}": weights[f"{a}.{last}"] for last in flat[b]},
                "modules shared",
                f"JAX uses {a} in the place of {b} as well",
                f"Use {b} where torch does.",
            )


def _everywhere(
    groups: list[list[str]], weights: Mapping[str, np.ndarray]
) -> Iterator[tuple[dict[str, Any], str, str, str]]:
    """Yield exchanges of two modules in every layer that has them."""
    parents: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        for a, b in itertools.combinations(group, 2):
            parent = a.rpartition(".")[0]
            names = a.rpartition(".")[2], b.rpartition(".")[2]
            if not any(name.isdigit() for name in names):
                parents.setdefault(names, []).append(parent)
    for (a, b), found in parents.items():
        if len(found) < 2:
            continue
        made = {}
        for parent in found:
            start = f"{parent}." if parent else ""
            for to, source in ((a, b), (b, a)):
                inside = f"{start}{source}."
                for name in (one for one in weights if one.startswith(inside)):
                    made[f"{start}{to}.{name[len(inside) :]}"] = weights[name]
        yield (
            made,
            "modules exchanged",
            f"JAX uses {a} where torch uses {b}, and the other way round, in all of {', '.join(found[:4])}",
            f"Exchange {a} and {b} in JAX.",
        )


def _changes(group: list[str], weights: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, Any], str, str, str]]:
    def moved(places: Mapping[str, str]) -> dict[str, Any]:
        return {
            to + name[len(source) :]: weights[name]
            for to, source in places.items()
            for name in weights
            if name.startswith(source + ".")
        }

    numbered = all(one.rpartition(".")[2].isdigit() for one in group)
    if len(group) > 2:
        yield (
            moved(dict.fromkeys(group, group[0])),
            "modules shared",
            f"JAX uses {group[0]} in the place of all of {', '.join(group)}",
            "Call each module in its turn.",
        )
        yield (
            moved(dict(zip(group, reversed(group), strict=True))),
            "layer order" if numbered else "modules exchanged",
            f"JAX runs {', '.join(group)} from the last to the first",
            "Run them from the first to the last.",
        )
    for a, b in itertools.combinations(group, 2):
        yield (
            moved({a: b, b: a}),
            "modules exchanged",
            f"JAX uses {a} where torch uses {b}, and the other way round",
            f"Exchange {a} and {b} in JAX.",
        )
    for a, b in itertools.permutations(group, 2):
        yield (
            moved({b: a}),
            "modules shared",
            f"JAX uses {a} in the place of {b} as well",
            f"Use {b} where torch does.",
        )
