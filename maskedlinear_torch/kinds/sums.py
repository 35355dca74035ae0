"""How the kinds multiply and add: shapes, dtypes, and what may be computed in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from maskedlinear_torch import _compat
from maskedlinear_torch.indexing import can_write_in_place


def flat(tensor: Tensor) -> Tensor:
    """Return (*B, F) as (B, F). The size is given in full: -1 is ambiguous where F is 0."""
    return tensor if tensor.dim() == 2 else tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def can_sum_in_pieces(g: Tensor) -> bool:
    """Tell whether a sum over the batch may be made in pieces that stay in a CPU's cache.

    It may in plain eager code, where the batch is a number, unless partial sums would be rounded to 16 bits.
    """
    return (
        g.is_cpu
        and g.dtype in (torch.float32, torch.float64)
        and can_write_in_place(g)
        and not (torch.compiler.is_compiling() or _compat.in_dispatch_mode())
    )


def widened(tensor: Tensor) -> Tensor:
    """Return 16-bit numbers in float32, in which a dense product sums them, and int8 in int32."""
    if tensor.dtype == torch.int8:
        return tensor.to(torch.int32)
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return a matrix product; digits of 8 bits (integer_products.py) have one of their own."""
    return _compat.int8_product(a, b) if a.dtype == torch.int8 else a @ b


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of a product of such numbers."""
    return torch.int32 if tensor.dtype == torch.int8 else tensor.dtype
