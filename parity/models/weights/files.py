"""A map of weights as a TOML file, which a person can read and change."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parity.models.weights.pairs import WeightPair, transform
from parity.models.weights.tree import Step, View

HEAD = "# Which weight of a torch model is which of its JAX port: parity.WeightMap.load reads this file.\n"
FORMAT = 1


def save(pairs: Sequence[WeightPair], path: Path) -> None:
    """Write pairs to a file."""
    from parity.report.content import write_text

    for pair in pairs:
        if pair.transform.name == "function":
            raise ValueError(f"{pair!r} is by a function of yours, which no file can hold: give the rule again instead")
    write_text(path, HEAD + f"format = {FORMAT}\n" + "".join(map(_entry, pairs)))


def _entry(pair: WeightPair) -> str:
    lines = ["\n[[pair]]"]
    values = {
        "torch": list(pair.torch),
        "jax": list(pair.jax),
        "transform": pair.transform.name,
        "rule": pair.rule,
        "evidence": pair.evidence,
        "kind": pair.kind,
        "torch_shapes": [list(shape) for shape in pair.torch_shapes],
        "jax_shape": list(pair.jax_shape),
    }
    for key, views in (("torch_parts", pair.torch_views), ("jax_parts", pair.jax_views)):
        if any(view.steps for view in views):
            values[key] = [[list(step) for step in view.steps] for view in views]
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def load(path: Path) -> list[WeightPair]:
    """Read pairs from a file."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a map of weights in TOML, got {error}") from None
    if content.get("format") != FORMAT or not isinstance(content.get("pair", []), list):
        raise ValueError(f"{path}: expected a map of weights with format = {FORMAT}, got {content.get('format')!r}")
    return [_pair(entry, f"{path}: pair {number}") for number, entry in enumerate(content.get("pair", []), 1)]


def _pair(entry: Any, where: str) -> WeightPair:
    try:
        torch, jax = tuple(map(str, entry["torch"])), tuple(map(str, entry["jax"]))
        parts = [entry.get(key, [[] for _ in names]) for key, names in (("torch_parts", torch), ("jax_parts", jax))]
        views = [
            tuple(View(name, tuple(map(_step, steps))) for name, steps in zip(names, given, strict=True))
            for names, given in zip((torch, jax), parts, strict=True)
        ]
        if not torch or not jax:
            raise ValueError("no name on one side")
        return WeightPair(
            torch,
            jax,
            str(entry.get("rule", "")),
            str(entry.get("evidence", "told")),
            views[0],
            views[1],
            tuple(tuple(map(int, shape)) for shape in entry["torch_shapes"]),
            tuple(map(int, entry["jax_shape"])),
            transform(entry["transform"]),
            str(entry.get("kind", "parameter")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{where}: expected torch, jax, transform, torch_shapes and jax_shape; {said}") from None


def _step(step: Any) -> Step:
    what, axis, first, last, *heads = step
    if what not in ("index", "rows", "heads") or len(heads) != (what == "heads"):
        raise ValueError(f"a part: expected 'index', 'rows' or 'heads', got {step!r}")
    return (str(what), int(axis), int(first), int(last), *map(int, heads))  # type: ignore[return-value]
