"""From any mask to its kind, with the positions as arrays (contract S1): read where they can be, traced where not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskedlinear_core import masks, positions
from maskedlinear_core.checks import mask as mask_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.indices import Index
from maskedlinear_torch import _compat
from maskedlinear_torch.indexing import put
from maskedlinear_torch.kinds import DenseElements, Kind, Shape


def resolve(mask: masks.Mask, shape: Shape, device: torch.device, *, packed: bool = False) -> Kind:
    """Return the kind of a mask, with its positions, for a weight of that shape.

    Args:
        mask: Any mask; its positions may be traced.
        shape: (out_features, in_features).
        device: Where the positions shall be.
        packed: Whether values are packed (contract S7): then the arrays must tell how many positions there are.

    Raises:
        IndexError, ValueError: As `Mask.to_array`, for positions that can be read.
        TypeError: Packed, and how many positions there are cannot be known now.
    """
    # Dynamo would run the NumPy code on tensors: to it all positions are traced.
    traces = torch.compiler.is_dynamo_compiling()
    key = (shape, device, packed)
    if not traces:
        remembered = mask.memo.get(key)
        if remembered is not None and not _compat.in_dispatch_mode():
            return remembered
    if traces or mask.is_traced:
        kind = _resolve_traced(mask, shape, device)
        if packed and isinstance(kind, DenseElements):
            packed_checks.refuse_traced(repr(mask))
        return kind
    found = mask.canonical(shape)
    found = positions.packed(found) if packed else positions.unpacked(found)
    with torch.inference_mode(False):  # what is made there could not be saved for a later backward
        arrays = [None if array is None else torch.tensor(array, device=device) for array in found.arrays]
        kind = Kind.by_name[found.kind].from_positions(found, arrays, shape, is_canonical=True)
    if not (_compat.in_functorch_transform() or _compat.in_dispatch_mode()):  # there it may be no plain tensor
        mask.memo[key] = kind
    return kind


def _resolve_traced(mask: masks.Mask, shape: Shape, device: torch.device) -> Kind:
    trace = _Trace(device)
    found = mask.traced(shape)
    # How many positions a traced bool vector selects is unknown, so it can only be priced as elements.
    return DenseElements(mask.traced_array(shape, trace)) if found is None else trace.kind(found, shape)


@dataclass(frozen=True)
class _Trace:
    """What a traced mask is made of (`Mask.traced_array`)."""

    device: torch.device

    def kind(self, found: positions.Positions, shape: Shape) -> Kind:
        arrays = [unread and _by_number(unread.name, unread.index, unread.size, self.device) for unread in found.arrays]
        return Kind.by_name[found.kind].from_positions(found, arrays, shape, is_canonical=False)

    def dense(self, found: positions.Positions, shape: Shape) -> Tensor:
        return self.kind(found, shape).mask(torch.empty(shape, device=self.device))

    def line(self, unread: positions.Unread) -> Tensor:
        name, index, size = unread
        if index.is_traced_bool:
            mask_checks.bool_length(name, index.values.shape[0], size)
            return torch.as_tensor(index.values, device=self.device)
        numbers = _by_number(name, index, size, self.device)
        return put(torch.ones_like(numbers, dtype=torch.bool), numbers, 0, size, is_canonical=False)

    def spread(self, array: Tensor, shape: Shape) -> Tensor:
        return array.expand(shape)

    def array(self, values: Any, views: dict[str, Any]) -> Tensor:
        return torch.as_tensor(views["torch"] if views else values, device=self.device)


def _by_number(name: str, index: Index, size: int, device: torch.device) -> Tensor:
    """Return positions in [0, size], sorted, where a duplicate or a position out of range is `size`."""
    if index.length is not None:
        mask_checks.bool_length(name, index.length, size)
    if index.views:  # first: Dynamo cannot guard a NumPy array that it meets inside a torch.func transform
        numbers = index.views["torch"].to(device)
    elif isinstance(index.values, slice):
        return torch.tensor(sorted(range(*index.values.indices(size))), dtype=torch.long, device=device)
    else:
        numbers = torch.as_tensor(index.values, device=device).long()
    numbers = torch.where(numbers < 0, numbers + size, numbers)
    numbers = torch.where((numbers < 0) | (numbers >= size), size, numbers)
    turn = torch.arange(numbers.shape[0], device=device)
    # One of several equal positions wins, whichever: they read and write the same.
    winner = put(turn, numbers, 0, size + 1, is_canonical=True)
    return torch.where(winner.index_select(0, numbers) == turn, numbers, size).sort().values


def read(tensor: Tensor) -> np.ndarray | None:
    """Return the values of a tensor as NumPy, or None if it is traced (the core's reader for torch)."""
    if torch.compiler.is_dynamo_compiling():
        return None
    try:
        tensor = (tensor.detach() if tensor.requires_grad else tensor).cpu()
        return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    except RuntimeError:  # a batched, fake or meta tensor has no storage to read
        return None


def as_tensor(value: Any) -> Any:
    """Return a sequence or a NumPy array as a tensor, anything else as it is (for masks written in compiled code)."""
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, list | tuple | range):
        return torch.tensor(list(value), dtype=None if len(value) else torch.long)
    return value


def bools(values: Any, device: torch.device) -> Tensor:
    """Return a bool vector of any framework as a tensor of its own: the caller's may change before the backward."""
    if isinstance(values, Tensor):
        return values.to(device)
    return (
        torch.as_tensor(values, device=device)
        if torch.compiler.is_dynamo_compiling()
        else torch.tensor(np.asarray(values), device=device)
    )
