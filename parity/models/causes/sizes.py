"""A convolution whose output has another size: by another stride, another padding, another dilation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parity.records import Diagnosis

SETTINGS = ("stride", "padding", "kernel_size", "dilation")
STRIDES = range(1, 9)


def diagnose(judgement: Any) -> Diagnosis | None:
    """Return the stride or the padding that gives JAX's size, where one of them does; or None.

    Args:
        judgement: Of the module: `.pair` with both calls, and `.call`.
    """
    torch_call, jax_call = (calls[judgement.call] for calls in (judgement.pair.torch_calls, judgement.pair.jax_calls))
    module, image = torch_call.module, next((leaf.value for leaf in torch_call.inputs if leaf.is_float), None)
    known: list[Any] = [getattr(module, name, None) for name in SETTINGS]
    stride, padding, kernel, dilation = known
    if image is None or not all(isinstance(one, tuple) for one in known) or len(jax_call.outputs) != 1:
        return None
    (output,) = jax_call.outputs.values()
    rank = len(kernel)
    if output.ndim != image.ndim or image.ndim != rank + 2:
        return None
    size = output.shape[1:-1] if output.shape[-1] == getattr(module, "out_channels", None) else output.shape[2:]
    given = image.shape[2:]
    for number in STRIDES:
        if number != stride[0] and _size(given, kernel, (number,) * rank, padding, dilation) == size:
            return _told("stride", f"a stride of {stride[0]}", f"one of {number}")
    for number in range(max(kernel)):
        if number != padding[0] and _size(given, kernel, stride, (number,) * rank, dilation) == size:
            return _told("padding", f"a padding of {padding[0]} on either side", f"one of {number}")
    return None


def _size(
    given: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Return the size of a convolution's output.

    Example:
        >>> _size((8, 8), (3, 3), (2, 2), (1, 1), (1, 1))
        (4, 4)
    """
    each = zip(given, kernel, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each)


def _told(cause: str, mine: str, theirs: str) -> Diagnosis:
    text = f"Likely: {mine} in torch where JAX has {theirs}: it gives the size that JAX's output has."
    return Diagnosis(cause, text, f"Give both layers one {cause}.")
