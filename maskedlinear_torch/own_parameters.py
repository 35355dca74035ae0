"""The parameters of a layer whose weight is computed from them (contract S8)."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from maskedlinear_core.checks import packed as packed_checks

_COMPUTED_FROM = ("orig", "mask", "g", "v", "u")
"""How pruning, weight norm and spectral norm call what they compute a parameter from."""

_OWN = ("values", "base", "bias", "bias_values", "bias_base")
"""Names of a layer's own; a user's `gate_v` beside a `gate` computes nothing."""


class OwnParameters(dict[str, Any]):
    """The parameters of a module by name, without those that it computes: who takes these out is told so.

    `torch.nn.utils.weight_norm` and `spectral_norm` take a parameter out, and put others there that it is computed
    from.

    Args:
        layer: The layer's class, for messages.
        computed: The names that the layer computes.
        parameters: Its parameters.
    """

    def __init__(self, layer: str, computed: tuple[str, ...], parameters: Mapping[str, Any]) -> None:
        super().__init__(parameters)
        self.layer, self.computed = layer, computed
        self._taken: dict[str, Any] = {}

    def __missing__(self, name: str) -> Any:
        """Refuse to give a parameter that is computed."""
        self._refuse(name)
        raise KeyError(name)

    def __delitem__(self, name: str) -> None:
        """Take a parameter out."""
        if name not in self:
            self._refuse(name)
        if self.get(name) is not None:
            self._taken[name] = weakref.ref(self[name]), list(self)
        super().__delitem__(name)

    def check(self, name: str) -> None:
        """Refuse a parameter from which another one would be computed, which is put back if it was taken out.

        Raises:
            TypeError: It is one such.
        """
        stem, _, suffix = name.rpartition("_")
        if suffix not in _COMPUTED_FROM or name in self or stem not in {*self.computed, *_OWN}:
            return
        self.put_back(stem)
        packed_checks.refuse_computed(self.layer, stem)

    def taken(self, names: tuple[str, ...]) -> str | None:
        """Return which of some parameters was taken out last, if any was."""
        return next((name for name in reversed(self._taken) if name in names and name not in self), None)

    def put_back(self, name: str) -> None:
        """Put a parameter back that was taken out, in the place that it had: optimizers go by the order."""
        taken, order = self._taken.pop(name, (lambda: None, []))
        parameter = taken()
        if parameter is not None and name not in self:
            known = {**self, name: parameter}
            self.clear()
            self.update({one: known[one] for one in sorted(known, key=[*order, *known].index)})

    def __reduce__(self) -> Any:
        """Return what a copy is made of."""
        return OwnParameters, (self.layer, self.computed, dict(self))

    def _refuse(self, name: str) -> None:
        if name in self.computed:
            packed_checks.refuse_computed(self.layer, name)
