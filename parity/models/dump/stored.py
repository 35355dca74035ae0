"""A side of a comparison that ran elsewhere: what `parity.models.sides` has of a model that runs here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.models.capture.call import Call, Outputs
from parity.models.dump.files import Arrays, Dump
from parity.models.inputs import Call as Arguments
from parity.models.sides import NotInFloat64, Setting
from parity.models.taken import INPUT, Elsewhere, Taken


class Tree:
    """The weights of a model that ran elsewhere, as `TorchTree` and `JaxTree` have them."""

    def __init__(self, dump: Dump) -> None:
        self.leaves, self._weights = dump.leaves(), dump.weights
        self.framework, self.ordered = str(dump.meta["framework"]), bool(dump.meta["ordered"])

    def weights(self) -> Arrays:
        """Return every weight, by name."""
        return self._weights


class StoredSide:
    """A model that ran elsewhere.

    Args:
        dump: What was kept of it.
    """

    live = False

    def __init__(self, dump: Dump) -> None:
        self.dump, self.tree, self.model = dump, Tree(dump), None
        self.mapped = bool(dump.meta["mapped"])

    def native(self) -> str:
        """Return the least precise dtype of the parameters."""
        return str(self.dump.meta["native"])

    def dropout(self) -> list[str]:
        """Return the paths of dropout layers that a model in training has."""
        return list(self.dump.meta["dropout"])

    def dropout_of_training(self) -> list[str]:
        """Return nothing: what the model was in when it was dumped is not known."""
        return []

    def elsewhere(self) -> Elsewhere:
        """Return the gradients that were kept.

        Raises:
            ValueError: There are none; the message says why.
        """
        about = self.dump.meta.get("gradients", {})
        if "loss" not in about:
            raise ValueError(about.get("why", "the dump has none: dump the model again"))
        kept, moved = ({name.partition("/")[2]: value for name, value in self.dump.gradients.items()
                        if name.startswith(f"{what}/")} for what in ("gradient", "moved"))  # fmt: skip
        inputs = {name: kept.pop(INPUT + name, None) for name in about["inputs"]}
        weights = {**kept, **dict.fromkeys(about["none"])}
        taken = Taken(weights, inputs, float(about["loss"]))
        return Elsewhere(taken, frozenset(about["trained"]), tuple(about["low"]), moved, int(about["seed"]))

    def perturbed(self, pairs: Any = (), seed: int = 0) -> Arrays:
        """Return the weights of the second run."""
        return self.dump.perturbed

    def calls(
        self,
        inputs: Arguments,
        setting: Setting,
        changed: Mapping[str, np.ndarray] | None,
        wanted: Outputs | None = None,
    ) -> list[Call]:
        """Return the calls of the run that is asked for.

        Raises:
            NotInFloat64: It ran in float32.
            ValueError: It ran in another mode, or in float64 where the other model cannot.
        """
        meta = self.dump.meta
        if setting.mode != meta["mode"]:
            raise ValueError(
                f"the dump is of the mode {meta['mode']!r}, not {setting.mode!r}: dump again, or pass mode"
            )
        if setting.double and not meta["double"]:
            why = meta.get("why_single", "")
            raise NotInFloat64(f"the model that was dumped ran in float32{f': {why}' if why else ''}")
        if meta["double"] and not setting.double:
            raise ValueError(
                f"the dump is of a run in float64, and {setting.why or 'the model here does not run in it'}; "
                "dump again in float32 (--float32)"
            )
        return self.dump.calls[changed is not None]
