"""A map of weights: what is paired and what is not, whether the values are equal, and loading either way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.models.weights.jax_side import JaxTree, jax_tree
from parity.models.weights.pairs import WeightPair
from parity.models.weights.torch_side import TorchTree
from parity.models.weights.tree import BUFFER, Leaf, View
from parity.models.weights.unequal import Unequal, compared


@dataclass(frozen=True)
class Ambiguous:
    """A weight of torch that could be several of JAX, or be laid out in several ways.

    Attributes:
        torch: The weight.
        candidates: What it could be: layers of JAX, or rules.
        text: Why that is open.
    """

    torch: str
    candidates: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.torch}: one of {', '.join(self.candidates)}? {self.text}; say it with a parity.Rule"


@dataclass(frozen=True)
class Unpaired:
    """Weights without a counterpart.

    Attributes:
        torch: Parameters and running statistics of torch that are paired with nothing.
        jax: The same of JAX.
        torch_buffers: Buffers of torch that JAX does not have: what one side computes (positions, masks, counters).
        jax_buffers: The same of JAX.
        reasons: By name, why, where that is known.
    """

    torch: tuple[str, ...] = ()
    jax: tuple[str, ...] = ()
    torch_buffers: tuple[str, ...] = ()
    jax_buffers: tuple[str, ...] = ()
    reasons: Mapping[str, str] = ()  # type: ignore[assignment]

    @classmethod
    def of(
        cls,
        torch: Mapping[str, Leaf],
        jax: Mapping[str, Leaf],
        names: set[str],
        paths: set[str],
        reasons: Mapping[str, str],
    ) -> Unpaired:
        ours = [leaf for name, leaf in torch.items() if name not in names]
        theirs = [leaf for path, leaf in jax.items() if path not in paths]
        return cls(
            tuple(leaf.name for leaf in ours if leaf.kind != BUFFER),
            tuple(leaf.name for leaf in theirs if leaf.kind != BUFFER),
            tuple(leaf.name for leaf in ours if leaf.kind == BUFFER),
            tuple(leaf.name for leaf in theirs if leaf.kind == BUFFER),
            {name: reason for name, reason in reasons.items() if name not in names | paths},
        )

    def __bool__(self) -> bool:
        return bool(self.torch or self.jax)

    def lines(self) -> list[str]:
        made = []
        for side, other, names in (("torch", "JAX", self.torch), ("JAX", "torch", self.jax)):
            for name in names:
                if self.reasons.get(name) == AMBIGUOUS:
                    continue
                reason = self.reasons.get(name, f"{other} has no weight that could be it")
                made.append(f"only in {side}: {name}: {reason}")
        return made


@dataclass(frozen=True, repr=False)
class WeightMap:
    """Which weight of a torch model is which of its JAX port.

    Attributes:
        pairs: The pairs, in torch's order.
        unpaired: What has no counterpart.
        unequal: Pairs whose values differ, with how: see `Unequal`.
        ambiguous: What could not be told: see `Ambiguous`.
        notes: What is no error and worth knowing: other dtypes, weights that are tied on one side only.
    """

    pairs: tuple[WeightPair, ...]
    unpaired: Unpaired = Unpaired()
    unequal: tuple[Unequal, ...] = ()
    ambiguous: tuple[Ambiguous, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        torch: TorchTree,
        jax: JaxTree,
        pairs: Sequence[WeightPair],
        ambiguous: Sequence[Ambiguous],
        unpaired: Unpaired,
    ) -> WeightMap:
        """Return the map of pairs, with what their values say."""
        unequal = compared(pairs, torch, jax)
        return cls(tuple(pairs), unpaired, tuple(unequal), tuple(ambiguous), tuple(_notes(pairs, torch, jax)))

    @property
    def ok(self) -> bool:
        """Whether every weight is paired and every pair is equal."""
        return not (self.unpaired or self.unequal or self.ambiguous)

    def pair(self, name: str) -> WeightPair:
        """Return the pair of a torch name or a JAX path.

        Raises:
            KeyError: There is none.
        """
        for pair in self.pairs:
            if name in pair.torch or name in pair.jax:
                return pair
        raise KeyError(f"{name!r} is in no pair of the map")

    def check(self, torch_model: Any, jax_model: Any) -> tuple[Unequal, ...]:
        """Compare the values of two models by this map, and return the pairs that differ.

        Raises:
            ValueError: A weight of the map is not there, or has another shape.
        """
        return self.checked(TorchTree(torch_model), jax_tree(jax_model))

    def checked(self, torch: TorchTree, jax: JaxTree) -> tuple[Unequal, ...]:
        """Do the same for the weights of two models that are read already."""
        self._fit(torch, jax)
        return tuple(compared(self.pairs, torch, jax))

    def load_into_jax(self, torch_model: Any, jax_model: Any, *, partial: bool = False) -> Any:
        """Return the JAX model with torch's values, in its own dtypes; the JAX model that is given is not changed.

        Args:
            torch_model: The torch model.
            jax_model: The JAX model.
            partial: Load what is paired even where something is not.

        Raises:
            ValueError: The map leaves weights unpaired or ambiguous, or does not fit the models.
        """
        torch, jax = self._trees(torch_model, jax_model)
        self._complete(torch, jax, partial)
        values = torch.weights()
        made = {path: jax.weights()[path].copy() for path in {path for pair in self.pairs for path in pair.jax}}
        for pair in self.pairs:
            for view, value in zip(pair.jax_views, pair.to_jax(values).values(), strict=True):
                _write(view, made[view.name], value)
        return jax.replace(made)

    def load_into_torch(self, jax_model: Any, torch_model: Any, *, partial: bool = False) -> Any:
        """Write JAX's values into the torch model, in place, as `load_state_dict` does, and return it.

        Raises:
            ValueError: The map leaves weights unpaired or ambiguous, does not fit the models, or two JAX weights that
                are one in torch differ. Nothing is written then.
        """
        torch, jax = self._trees(torch_model, jax_model)
        self._complete(torch, jax, partial)
        values, own = jax.weights(), torch.weights()
        made = {name: own[name].copy() for name in {name for pair in self.pairs for name in pair.torch}}
        written: dict[str, WeightPair] = {}
        for pair in self.pairs:
            for view, value in zip(pair.torch_views, pair.to_torch(values).values(), strict=True):
                key, part = str(view), view.of(made[view.name])
                before = written.setdefault(key, pair)
                if before is not pair and not np.array_equal(part, value, equal_nan=True):
                    raise ValueError(
                        f"{view} is one weight in torch and two in JAX, {before.jax[0]} and {pair.jax[0]}, whose values"
                        " differ: make them equal, or leave one out of the map"
                    )
                _write(view, made[view.name], value)
        torch.write(made)
        return torch_model

    def save(self, path: str | Path) -> None:
        """Write the pairs to a TOML file.

        Raises:
            ValueError: A pair is by a function, which no file can hold.
        """
        from parity.models.weights.files import save

        save(self.pairs, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> WeightMap:
        """Read a map from a TOML file. `check` compares the values of two models by it.

        Raises:
            ValueError: The file is no map of weights.
        """
        from parity.models.weights.files import load

        return cls(tuple(load(Path(path))))

    def _trees(self, torch_model: Any, jax_model: Any) -> tuple[TorchTree, JaxTree]:
        torch, jax = TorchTree(torch_model), jax_tree(jax_model)
        self._fit(torch, jax)
        return torch, jax

    def _fit(self, torch: TorchTree, jax: JaxTree) -> None:
        for pair in self.pairs:
            for side, names, leaves in (("torch", pair.torch, torch.leaves), ("JAX", pair.jax, jax.leaves)):
                for name in names:
                    if name not in leaves:
                        raise ValueError(f"the map names {name!r}, which the {side} model does not have")
            try:
                shapes = [np.empty(torch.leaves[view.name].shape, np.int8) for view in pair.torch_views]
                parts = tuple(view.of(array).shape for view, array in zip(pair.torch_views, shapes, strict=True))
                part = pair.jax_views[0].of(np.empty(jax.leaves[pair.jax[0]].shape, np.int8)).shape
            except IndexError:
                parts, part = (), ()
            if parts != pair.torch_shapes or part != pair.jax_shape:
                raise ValueError(
                    f"the map does not fit: {pair!r} is of shapes {pair.torch_shapes} and {pair.jax_shape}, the models"
                    f" have {[torch.leaves[name].shape for name in pair.torch]} and {jax.leaves[pair.jax[0]].shape}"
                )

    def _complete(self, torch: TorchTree, jax: JaxTree, partial: bool) -> None:
        # The models may have more weights than those that the map was made of, and a map from a file lists none.
        names, paths = ({name for pair in self.pairs for name in getattr(pair, side)} for side in ("torch", "jax"))
        new = {*torch.leaves, *jax.leaves} - {*self.unpaired.torch, *self.unpaired.jax}
        reasons = dict.fromkeys(new, "the map does not name it") | dict(self.unpaired.reasons)
        found = Unpaired.of(torch.leaves, jax.leaves, names, paths, reasons)
        lost = [name for name in self.unpaired.torch if name not in found.torch]
        lines = [*map(str, self.ambiguous), *replace(found, torch=(*found.torch, *lost)).lines()]
        if lines and not partial:
            more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
            raise ValueError(
                f"loading: expected every weight to be paired; {'; '.join(lines[:SHOWN])}{more}. Give rules, or"
                " partial=True to load what is paired"
            )

    def __repr__(self) -> str:
        return f"WeightMap({len(self.pairs)} pairs, {self.summary()})"

    def summary(self) -> str:
        counts = (
            (len(self.unpaired.torch), "only in torch"),
            (len(self.unpaired.jax), "only in JAX"),
            (len(self.ambiguous), "ambiguous"),
            (len(self.unequal), "unequal"),
        )
        return ", ".join(f"{count} {what}" for count, what in counts if count) or "all paired and equal"

    def __str__(self) -> str:
        from parity.models.weights.table import table

        return table(self)


AMBIGUOUS = "ambiguous"
"""The reason why a weight is not paired that is in `WeightMap.ambiguous`, where its candidates are."""
SHOWN = 6
"""Weights that a message lists before it counts the rest."""


def _write(view: View, array: np.ndarray, value: np.ndarray) -> None:
    shape = view.of(array).shape
    if shape != value.shape:
        raise ValueError(f"a weight's part: expected shape {shape}, got {value.shape}")
    view.put(array, value)


def _notes(pairs: Iterable[WeightPair], torch: TorchTree, jax: JaxTree) -> list[str]:
    dtypes: dict[tuple[str, str], list[str]] = {}
    homes: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for pair in pairs:
        kinds = torch.leaves[pair.torch[0]].dtype, jax.leaves[pair.jax[0]].dtype
        if kinds[0] != kinds[1]:
            dtypes.setdefault(kinds, []).append(pair.torch[0])
        for view in pair.torch_views:
            homes.setdefault(str(view), set()).update(map(str, pair.jax_views))
        for view in pair.jax_views:
            names.setdefault(str(view), set()).update(pair.torch)
    made = [
        f"{len(found)} weight{'s are' if len(found) > 1 else ' is'} {ours} in torch and {theirs} in JAX: {found[0]}"
        + (", ..." if len(found) > 1 else "")
        for (ours, theirs), found in dtypes.items()
    ]
    for name, paths in homes.items():
        if len(paths) > 1:
            made.append(f"{name} is one weight in torch (tied) and {len(paths)} in JAX: {', '.join(sorted(paths))}")
    for path, ours in names.items():
        if len(ours) > 1 and not any(
            pair.transform.name == "sum" for pair in pairs if path in map(str, pair.jax_views)
        ):
            made.append(f"{path} is one weight in JAX and {len(ours)} in torch: {', '.join(sorted(ours))}")
    return made
