"""The matrix of a packed layer with the values in their places, kept from one call to the next (contract S7).

While the values are the same, nothing is written. When they have changed, and nobody else holds the matrix, the new
values are written into it; else a new one is made. So a graph of autograd that waits for its backward keeps the matrix
of its own forward. It takes the memory of one matrix and of the values, beside the layer's own.
"""

from __future__ import annotations

import operator
import sys
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskedlinear_torch import _compat, rule
from maskedlinear_torch.kinds import Kind
from maskedlinear_torch.tensors import Constant, as_bits, holds_same_bits


class KeptMatrix(NamedTuple):
    """A matrix with values in their places, and what it was made of.

    The values are compared bit by bit, since writes through `.data` leave no trace. A base has a count of its writes,
    and tells when its memory was handed out in a way that hides them. A dispatch mode (a user's, such as one that adds
    noise) may have changed what was written: what was made under it is not read without it.
    """

    matrix: Tensor
    base: Constant
    memory: Tensor
    version: int
    bits: Tensor
    assigned: int
    heights: torch.Size
    widths: torch.Size
    modes: tuple[weakref.ref[Any], ...] = ()

    def is_of(self, base: Constant, values: nn.Parameter) -> bool:
        """Tell whether this is the matrix of these."""
        return (
            self._is_over(base)
            and holds_same_bits(values, self.bits)
            and (not self.modes or self.is_readable())  # asked only where there are modes: each call costs
        )

    def serves(self, layer: Any, input: Tensor) -> bool:
        """Tell at a glance whether a call of its layer is an ordinary one, and nothing has changed since the last.

        It asks in few steps what a call asks else one by one; a small product takes no longer than those. Never true
        where they would find a fault, or anything but this matrix. Not for compilers.
        """
        own, dtype = layer._parameters, input.dtype
        base, values, bias = own.get("base"), own.get("values"), own.get("bias_values", layer)
        return (
            base is self.base
            and not (base.has_aliases or self.modes or _compat.is_watched())
            and base.assigned == self.assigned
            and _compat.writes(base) == self.version
            and base.data_ptr() == self.memory.data_ptr()
            and dtype is self.matrix.dtype
            and input.is_cpu
            and input.layout is torch.strided
            and not input.is_nested
            and input.shape[-1:] == self.widths
            and (bias is None or _is_bias(bias, dtype, self.heights))
            and layer._bias_array is None
            and all(map(operator.is_, layer._buffers.values(), layer._stand_ins))
            and type(values) is nn.Parameter
            and values.is_cpu
            and holds_same_bits(values, self.bits)
        )

    def is_readable(self) -> bool:
        """Tell whether it was made without a mode, or under the modes that are on."""
        return not self.modes or [mode() for mode in self.modes] == list(_compat.dispatch_modes())

    def _is_over(self, base: Constant) -> bool:
        return (
            base is self.base
            and base.assigned == self.assigned
            and _compat.writes(base) == self.version
            and base.data_ptr() == self.memory.data_ptr()
        )

    @staticmethod
    def can_be_kept(base: Tensor, values: Tensor) -> bool:
        """Tell whether it can be proved later what a matrix was made of: in eager code, on a CPU."""
        return not (
            torch.compiler.is_dynamo_compiling()
            or _compat.in_transform()
            or _compat.in_tracing_mode()
            or not (type(base) is Constant and base.is_cpu and not base.has_aliases)
            or not (type(values) is nn.Parameter and values.is_cpu)
        )

    @staticmethod
    @torch.no_grad()
    def of(kind: Kind, base: Constant, values: nn.Parameter) -> KeptMatrix | None:
        """Return a new one, or None where a mode makes other tensors of it, or writes to the base are not counted."""
        if base.is_inference():
            return None
        with torch.inference_mode(False):  # a matrix made there could not be saved for a later backward
            # The old memory is kept, so that no new one can have its address.
            memory, version, bits = base.detach(), _compat.writes(base), as_bits(values).contiguous().clone()
            matrix = rule.weight_view(kind, bits.view(values.dtype), memory) if bits.numel() else memory
            if not type(matrix) is type(bits) is Tensor:
                return None
            if _compat.viewed(matrix) is not None:  # which holds what it is a view of: it would never be held once
                like = matrix.shape, matrix.stride()
                matrix = matrix.new_empty(0).set_(matrix.untyped_storage(), matrix.storage_offset(), *like)
        heights, widths = base.shape[:1], base.shape[1:]
        return KeptMatrix(matrix, base, memory, version, bits, base.assigned, heights, widths)


def _is_bias(bias: Any, dtype: torch.dtype, shape: torch.Size) -> bool:
    return type(bias) is nn.Parameter and bias.is_cpu and bias.dtype is dtype and bias.shape == shape


def renewed(layer: Any, kind: Kind, base: Constant, values: nn.Parameter) -> KeptMatrix | None:
    """Return the matrix of a layer whose values or base changed, and keep it: the old one, if nobody else holds it."""
    # Taken out of the layer first: from here on no other thread can come by it, and who has it is counted.
    kept: KeptMatrix | None = layer.__dict__.pop("_kept", None)
    if not (
        kept is not None
        and sys.getrefcount(kept) <= _ALONE
        and sys.getrefcount(kept.matrix) <= _ALONE
        and _compat.is_held_once(kept.matrix)
        and kept.is_readable()
        and kept._is_over(base)
        and _overwrite(kept, kind, values)
    ):
        kept = KeptMatrix.of(kind, base, values)
    if kept is not None and (modes := _compat.dispatch_modes()):
        kept = kept._replace(modes=tuple(map(weakref.ref, modes)))
    layer.__dict__["_kept"] = kept
    return kept


_ALONE = 2
"""References to what one name or tuple holds, as `sys.getrefcount` counts them: that one, and its own argument."""


@torch.no_grad()
def _overwrite(kept: KeptMatrix, kind: Kind, values: nn.Parameter) -> bool:
    # As one read of the values, which another thread may be writing.
    matrix, bits = kept.matrix, as_bits(values)
    if not bits.numel() or bits.shape != kept.bits.shape or bits.dtype != kept.bits.dtype:
        return False
    kept.bits.copy_(bits)
    return kind.overwrite(matrix, kept.bits.view(values.dtype).to(matrix.dtype))
