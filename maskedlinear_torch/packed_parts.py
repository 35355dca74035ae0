"""The weight and the bias of a packed layer as what is written to: writes go to what learns and to what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from maskedlinear_torch import _compat, rule
from maskedlinear_torch.tensors import Merged, as_bits

if TYPE_CHECKING:
    from maskedlinear_torch.packed_module import PackedLinear


class Weight(NamedTuple):
    """The weight of a layer, as what is written to (`tensors.Whole`)."""

    layer: PackedLinear

    def is_of(self, layer: Any) -> bool:
        """Tell whether it is a part of that very layer."""
        return layer is self.layer

    def versions(self) -> tuple[Any, ...]:
        """Return what changes when the weight does."""
        base, values, mask = self.layer.base, self.layer.values, self.layer._mask
        return id(base), _compat.version(base), id(values), _compat.version(values), id(mask)

    @torch.no_grad()
    def write(self, whole: Tensor) -> None:
        """Let the weight be `whole`; values of a wider dtype are rounded only where they differ from it."""
        layer = self.layer
        if _compat.is_distributed(layer.base):
            taken = rule.placed(layer._positions(), layer.base).pack(whole)
            layer.base.copy_(whole)
            layer.values.copy_(taken.to(layer.values.dtype))
            return
        taken = layer._positions().pack(whole)
        same = as_bits(taken) == as_bits(layer.values.to(taken.dtype))
        layer.base.copy_(whole)
        layer.values.copy_(torch.where(same, layer.values, taken.to(layer.values.dtype)))

    def learn(self, learns: bool) -> None:
        """Let the values require a gradient, or not."""
        self.layer.values.requires_grad_(learns)


class Bias(NamedTuple):
    """The bias of a layer, as what is written to (`tensors.Whole`)."""

    layer: PackedLinear

    def is_of(self, layer: Any) -> bool:
        """Tell whether it is a part of that very layer."""
        return layer is self.layer

    def versions(self) -> tuple[Any, ...]:
        """Return what changes when the bias does."""
        parts = self.layer.bias_base, self.layer.bias_values
        return tuple([None if part is None else (id(part), _compat.version(part)) for part in parts])

    @torch.no_grad()
    def write(self, whole: Tensor) -> None:
        """Let the bias be `whole`."""
        layer = self.layer
        assert layer.bias_values is not None, "asked for only where there is a bias"
        if layer.bias_base is None:
            layer.bias_values.copy_(whole)
        else:
            layer.bias_base.copy_(whole)
            index = layer._bias_index()
            index = _compat.replicate_like(whole)(index) if _compat.is_distributed(whole) else index
            layer.bias_values.copy_(whole.index_select(0, index))

    def learn(self, learns: bool) -> None:
        """Let the bias require a gradient, or not."""
        assert self.layer.bias_values is not None, "asked for only where there is a bias"
        self.layer.bias_values.requires_grad_(learns)


def seen(read: Callable[[], Any], part: Weight | Bias, name: str) -> Any:
    """Return the weight or the bias of a layer as what can be written to.

    Args:
        read: What puts it together.
        part: What writes go to.
        name: What it is called, for messages.
    """
    # Only eager code on real numbers writes in place.
    if torch.compiler.is_dynamo_compiling() or _compat.in_transform() or _compat.in_tracing_mode():
        return read()
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():  # a tensor made there does not count its writes
            whole = read()
    else:
        whole = read()
    if _compat.is_distributed(whole) or whole.is_meta or type(whole) is not Tensor or whole.is_inference():
        return whole
    return Merged.of(whole, part, name)
