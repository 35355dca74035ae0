"""What modules that can be held share: how their parameters are saved, loaded, set and copied (contract S8)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from maskedlinear_core.checks import module as module_checks
from maskedlinear_torch import steps
from maskedlinear_torch.frozen_entries import Held, Places
from maskedlinear_torch.tensors import check_dense

_NOTED = "noted by a quantizer"


def call_in_graph(module: nn.Module, proxy: torch.fx.Proxy, *inputs: Any, **keywords: Any) -> Any:
    """Record the call of a module as one step of a graph, as `torch.fx.symbolic_trace` does for torch's own modules."""
    tracer: Any = proxy.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (proxy, *inputs), keywords)


class HeldModule(nn.Module):
    """A module of whose own parameters a part may be held by `hold_frozen`."""

    _held: Held | None = None

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """Make a module that optimizers of held layers know of; copies are made so, too."""
        layer = super().__new__(cls)
        steps.made(layer)
        return layer

    @property
    def qconfig(self) -> Any:
        """What `torch.ao.quantization` notes at each module of a model that it quantizes."""
        if _NOTED not in self.__dict__:
            raise AttributeError("qconfig")
        return self.__dict__[_NOTED]

    @qconfig.setter
    def qconfig(self, qconfig: Any) -> None:
        warnings.warn(module_checks.not_quantized(type(self).__name__), stacklevel=2)
        self.__dict__[_NOTED] = qconfig

    @qconfig.deleter
    def qconfig(self) -> None:
        del self.__dict__[_NOTED]

    def _held_names(self) -> tuple[str, ...]:
        """Return the names of the parameters of which a part may be frozen."""
        raise NotImplementedError

    def _places(self) -> dict[str, Places]:
        """Return where these parameters train, for those of which a part is frozen."""
        raise NotImplementedError

    def _move_positions(self) -> None:
        """Say the positions anew, where the parameters are now, and hold what these are now."""
        if self._held is not None:
            self._held.renew(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Positions are moved by saying them anew: on the meta device they would have no values.
        was_meta = any(one.is_meta for one in self.parameters(recurse=False))
        if self._held is not None:
            self._held.restore(self)
        super()._apply(fn, recurse)
        self._move_positions()
        if self._held is not None and was_meta:
            self._held.wait()
        return self

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter. If it is held, the new one's values are from now on: it was set on purpose."""
        if param is not None:
            check_dense(type(self).__name__, **{name: param})
        super().register_parameter(name, param)
        if self._held is not None and name in self._held.entries:
            self._held.renew(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy; that of a held module is held."""
        super().__setstate__(state)
        if self._held is not None:
            steps.join(self)

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse `torch.jit.script`, which would compile the layer's Python."""
        module_checks.refuse_script(type(self).__name__)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._held is not None:
            self._held.restore(self)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:
        # What is loaded is what is held from now on.
        super()._load_from_state_dict(*args, **keywords)
        if self._held is not None:
            self._held.renew(self)
