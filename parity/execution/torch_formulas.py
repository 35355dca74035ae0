"""Formulas of operators of torch, for operators that differ from them on numbers at the edge of the range.

A term of zero times a number that does not exist (padding, a neighbour beyond the border) is left out: computed, it
would be NaN if the other number is infinite. A factor that underflows is not computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


def _exp(x: torch.Tensor) -> torch.Tensor:
    if not x.is_complex():
        raise NotImplementedError("a real exp has no parts")
    size, turn = torch.exp(x.real), x.imag
    return torch.complex(
        torch.where(turn == 0, size, size * torch.cos(turn)), torch.where(turn == 0, turn, size * torch.sin(turn))
    )


def _gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    if approximate != "none":
        raise NotImplementedError("the formula of tanh loses nothing")
    return x * 0.5 * torch.special.erfc(-x * math.sqrt(0.5))


def _gelu_backward(gradient: torch.Tensor, x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    if approximate != "none":
        raise NotImplementedError("the formula of tanh loses nothing")
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return gradient * (0.5 * torch.special.erfc(-x * math.sqrt(0.5)) + x * density)


def _group_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, n: int, channels: int, size: int,
    groups: int, eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    grouped = x.reshape(n, groups, -1)
    variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
    root = torch.rsqrt(variance + eps)
    out = ((grouped - mean) * root).reshape(n, channels, size)
    out = out if weight is None else out * weight.reshape(channels, 1)
    out = out if bias is None else out + bias.reshape(channels, 1)
    return out.reshape(x.shape), mean.reshape(n, groups), root.reshape(n, groups)


def _convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> torch.Tensor:  # fmt: skip
    axes = list(zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True))
    if transposed:
        shape = [
            (size - 1) * by - 2 * pad + step * (kernel - 1) + 1 + more for size, kernel, by, pad, step, more in axes
        ]
        out = _to_large(x, weight, shape, stride, padding, dilation, groups)
    else:
        shape = [(n + 2 * pad - step * (kernel - 1) - 1) // by + 1 for n, kernel, by, pad, step, _ in axes]
        out = _to_small(x, weight, shape, stride, padding, dilation, groups)
    return out if bias is None else out + bias.reshape(-1, *[1] * len(axes))


def _convolution_backward(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: Sequence[int] | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
    geometry = stride, padding, dilation, groups
    by_x = by_weight = by_bias = None
    if wanted[0]:
        by_x = (_to_small if transposed else _to_large)(g, weight, x.shape[2:], *geometry)
    if wanted[1]:
        small, large = (x, g) if transposed else (g, x)
        by_weight = weight.new_zeros(groups, weight.shape[0] // groups, *weight.shape[1:])
        few, many = _of_groups(small, groups), _of_groups(large, groups)
        for place, inside, taken in _places(
            large.shape[2:], small.shape[2:], weight.shape[2:], stride, padding, dilation
        ):
            by_weight[place] += torch.einsum("ngo...,ngi...->goi", few[inside], many[taken])
        by_weight = by_weight.reshape(weight.shape)
    if wanted[2]:
        by_bias = g.sum([0, *range(2, g.ndim)])
    return by_x, by_weight, by_bias


def _to_small(
    large: torch.Tensor, weight: torch.Tensor, shape: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> torch.Tensor:  # fmt: skip
    """Return the convolution of an array by a weight of shape (channels out, channels in of a group, *kernel)."""
    out = large.new_zeros(large.shape[0], groups, weight.shape[0] // groups, *shape)
    many, parts = _of_groups(large, groups), weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    for place, inside, taken in _places(large.shape[2:], shape, weight.shape[2:], stride, padding, dilation):
        out[inside] += torch.einsum("ngi...,goi->ngo...", many[taken], parts[place])
    return out.reshape(large.shape[0], weight.shape[0], *shape)


def _to_large(
    small: torch.Tensor, weight: torch.Tensor, shape: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> torch.Tensor:  # fmt: skip
    """Return what `_to_small` is transposed: from arrays of its results' shape to arrays that it takes."""
    out = small.new_zeros(small.shape[0], groups, weight.shape[1], *shape)
    few, parts = _of_groups(small, groups), weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    for place, inside, taken in _places(shape, small.shape[2:], weight.shape[2:], stride, padding, dilation):
        out[taken] += torch.einsum("ngo...,goi->ngi...", few[inside], parts[place])
    return out.reshape(small.shape[0], groups * weight.shape[1], *shape)


def _places(
    large: Sequence[int], small: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Iterator[tuple[Any, Any, Any]]:  # fmt: skip
    """Give the index of each place of a kernel, and the parts of the small and of the large array that meet there."""
    axes = list(zip(large, small, stride, padding, dilation, strict=True))
    for place in itertools.product(*map(range, kernel)):
        inside: list[Any] = [...]
        taken: list[Any] = [...]
        for at, (size, many, by, pad, step) in zip(place, axes, strict=True):
            first, last = max(0, -((at * step - pad) // by)), min(many, (size - 1 + pad - at * step) // by + 1)
            inside.append(slice(first, max(first, last)))
            start = first * by + at * step - pad
            taken.append(slice(start, start + max(0, last - first) * by, by))
        yield (..., *place), tuple(inside), tuple(taken)


def _of_groups(array: torch.Tensor, groups: int) -> torch.Tensor:
    return array.reshape(array.shape[0], groups, array.shape[1] // groups, *array.shape[2:])


def _resize(name: str) -> Callable[..., torch.Tensor]:
    """Return a resize, axis by axis, in which terms of weight zero are left out.

    At a border torch reads a neighbour as well, with weight zero: times infinity this is NaN.
    """
    operator = getattr(torch.ops.aten, name)

    def resized(x: torch.Tensor, sizes: Sequence[int], corners: bool, *scales: float | None) -> torch.Tensor:
        if bool(torch.isfinite(x).all()):
            raise NotImplementedError("zero times a number is zero")
        out, count = x, len(sizes)
        for axis, wanted in enumerate(sizes):
            # Of each unit vector, along this axis. Two wide along the others: of an image that is one pixel wide,
            # torch's antialias gives one number for all rows.
            size, wide = x.shape[2 + axis], [2] * count
            basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *_put(size, axis, [1] * count))
            basis = basis.expand(size, 1, *_put(size, axis, wide)).contiguous()
            scale = _put(scales[axis] if scales else None, axis, [None] * count)
            weights = operator(basis, _put(wanted, axis, wide), corners, *scale).movedim(2 + axis, 1)
            weights = weights.reshape(size, wanted, -1)[..., 0]
            rows = out.movedim(2 + axis, -1)
            terms = (torch.where(row != 0, rows[..., at, None] * row, 0) for at, row in enumerate(weights))
            out = sum(terms, start=rows.new_zeros(*rows.shape[:-1], wanted)).movedim(-1, 2 + axis)
        return out

    return resized


def _put(value: Any, at: int, into: list[Any]) -> list[Any]:
    return [*into[:at], value, *into[at + 1 :]]


_RESIZES = """
upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
_upsample_bicubic2d_aa
"""

FORMULAS: dict[str, Callable[..., Any]] = {
    **{name: _resize(name) for name in _RESIZES.split()},
    "_safe_softmax": torch.softmax,  # a number for a row that is -inf all through
    "exp": _exp,  # of complex infinities C's rules leave out what is infinity times the sine of infinity
    "gelu": _gelu,  # 1 + erf(x / sqrt(2)) is zero from x = -8 on, and infinity times it NaN
    "gelu_backward": _gelu_backward,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "native_group_norm": _group_norm,  # x a + b, with infinity taken from infinity where a weight is infinite
}
"""Operators that do otherwise than their formula where numbers are at the edge, and the formula."""
