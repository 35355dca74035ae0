"""Sums over the workers that share a batch: exponents by a maximum, integers by a sum, so their number does not show.

Cost per step and layer, beside the (O I p + O) numbers of 4 bytes of a plain all-reduce of gradients: the
maxima of the columns of g and x, 4 bytes each, and two float64 partial sums for each gradient entry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskedlinear_torch.integer_products import Operand


def synchronize(group: Any, left: Operand, right: Operand) -> tuple[Operand, Operand, int]:
    """Return two operands that are contracted over the batch, with the exponents of all of it, and its size K."""
    if group is None:
        return left, right, left.values.shape[0]
    (left, right), terms = _synchronize(group, left, right)
    return left, right, terms


def synchronize_one(group: Any, x: Operand) -> tuple[list[Operand], int]:
    """Return an operand that is summed over the batch, as `synchronize` does."""
    return ([x], x.values.shape[0]) if group is None else _synchronize(group, x)


def add_up(group: Any, parts: list[Tensor]) -> list[Tensor]:
    """Return the sums of exact partial sums over the workers; they are exact, in whatever order."""
    if group is None:
        return parts
    together = torch.stack(parts)
    torch.distributed.all_reduce(together, group=group)
    return list(together.unbind())


def _synchronize(group: Any, *operands: Operand) -> tuple[list[Operand], int]:
    rows = torch.tensor([operands[0].values.shape[0]], device=operands[0].values.device)
    torch.distributed.all_reduce(rows, group=group)
    # NaN is not ordered, and a maximum may lose it: the bits are, and NaN is beyond all numbers there.
    found_max = torch.cat([x.vector_max.abs().view(torch.int32).flatten() for x in operands])
    torch.distributed.all_reduce(found_max, op=torch.distributed.ReduceOp.MAX, group=group)
    parts = found_max.view(torch.float32).split([x.vector_max.numel() for x in operands])
    found = [
        Operand(x.values, vector_max.reshape(x.vector_max.shape)) for x, vector_max in zip(operands, parts, strict=True)
    ]
    return found, int(rows.item())
