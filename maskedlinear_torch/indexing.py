"""Reading and writing at positions: what the kinds of mask (kinds/) are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from maskedlinear_core import positions
from maskedlinear_torch import _compat

SMALL = 4096
"""Up to so many numbers the host's time counts, and one call that takes them one by one costs less than two."""


def take(tensor: Tensor, index: Tensor, dim: int, *, is_canonical: bool) -> Tensor:
    """Return `tensor[index]` along `dim`. What is beyond the axis, as traced positions can be, reads zero."""
    if not is_canonical:
        shape = list(tensor.shape)
        shape[dim] = 1
        tensor = torch.cat([tensor, tensor.new_zeros(shape)], dim)
    return tensor.index_select(dim, index)


def put(values: Tensor, index: Tensor, dim: int, size: int, *, is_canonical: bool) -> Tensor:
    """Return zeros with `values` at `index` along `dim`; an index equal to the size is dropped."""
    if _compat.is_distributed(values):
        # Linear along `dim`: each device does its part, as long as the parts are not cut there.
        local = lambda values, index: put(values, index, dim, size, is_canonical=is_canonical)  # noqa: E731
        return _compat.on_each_device(local, values, index, dim)
    shape = [*values.shape]
    shape[dim] = size if is_canonical else size + 1
    zeros = values.new_zeros(shape)
    if _compat.in_functorch_transform():
        written = _scatter(zeros, values, index, dim)
    elif _is_scattered(values, dim):
        written = zeros.scatter_(dim, index.expand(values.shape), values)
    else:
        written = zeros.index_copy_(dim, index, values)
    return written if is_canonical else written.narrow(dim, 0, size)


def write(tensor: Tensor, values: Tensor, index: Tensor, dim: int, *, is_canonical: bool) -> Tensor:
    """Return a copy of `tensor` with `values` at `index` along `dim`; an index equal to the size is dropped."""
    if not is_canonical:
        shape = list(tensor.shape)
        shape[dim] = 1
        padded = torch.cat([tensor, tensor.new_zeros(shape)], dim)
        return write(padded, values, index, dim, is_canonical=True).narrow(dim, 0, tensor.shape[dim])
    if _compat.in_functorch_transform():
        return _scatter(tensor, values, index, dim)
    if _is_scattered(values, dim):
        return tensor.scatter(dim, index.expand(values.shape), values)
    return tensor.index_copy(dim, index, values)


def write_into(tensor: Tensor, values: Tensor, index: Tensor, dim: int) -> None:
    """Write `values` at `index` along `dim`, in place: what is not written is not moved."""
    if _is_scattered(values, dim):
        tensor.scatter_(dim, index.expand(values.shape), values)
    else:
        tensor.index_copy_(dim, index, values)


def bounds(numbers: Tensor, rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    """Return ranges of rows, each with the range of the sorted numbers in it: (start, stop, first, last)."""
    chunks = positions.row_chunks(rows)
    ends = torch.tensor([stop * columns for _, stop in chunks], device=numbers.device)
    lasts = torch.searchsorted(numbers, ends).tolist()
    return [(*chunk, first, last) for chunk, first, last in zip(chunks, [0, *lasts], lasts, strict=False)]


def within(numbers: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Tell which numbers are in [first, last), and each as counted from first: any that is in there, of the others."""
    inside = (numbers >= first) & (numbers < last)
    return inside, (numbers - first).clamp(0, last - first - 1)


def fill_blocks(
    matrix: Tensor, values: Tensor, grid_shape: tuple[int, int], block_shape: tuple[int, int], ys: Tensor, xs: Tensor
) -> Tensor:
    """Write blocks in place: what is not written is not moved."""
    (y, x), (h, w) = grid_shape, block_shape
    matrix.view(y, h, x, w).transpose(1, 2).index_put_((ys, xs), values)
    return matrix


def fill_crossings(matrix: Tensor, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Write a submatrix in place."""
    # Many numbers are scattered in a quarter of the time that index_put takes; few cost the host more so.
    if not SMALL < values.numel() <= matrix.numel() // 4:  # nor do positions take more bytes than half of the weight
        return matrix.index_put_((rows[:, None], columns), values)
    numbers = rows[:, None] * matrix.shape[1] + columns
    matrix.view(matrix.numel()).scatter_(0, numbers.view(numbers.numel()), values.reshape(values.numel()))
    return matrix


def _is_scattered(values: Tensor, dim: int) -> bool:
    # Along the last axis a CPU scatters a number in a quarter of the time that index_copy takes for it.
    return (
        dim in (-1, values.dim() - 1) and values.numel() > SMALL and values.is_cpu and not torch.compiler.is_compiling()
    )


def _scatter(tensor: Tensor, values: Tensor, index: Tensor, dim: int) -> Tensor:
    # vmap has no rule for index_copy, and none for writing batched values in place.
    dims = [1] * values.dim()
    dims[dim] = -1
    return tensor.scatter(dim, index.reshape(dims).expand(values.shape), values)


def can_write_in_place(tensor: Tensor) -> bool:
    """Tell whether a tensor may be written in place: a plain one, in eager code that nothing differentiates."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_dynamo_compiling()
        or _compat.in_transform()
        or _compat.is_batched_by_autograd(tensor)
        or _compat.is_distributed(tensor)
    )
