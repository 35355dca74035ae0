"""Inputs of convolutions that one side pads outside of the layer, and the other inside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.models.capture.call import Call
from parity.models.matching import rearranged, relative_distance


def fitted(torch_call: Call, jax_call: Call) -> Call | None:
    """Return torch's call with its image as JAX's layer takes it, padded with zeros or without them, or None.

    JAX's layer gets zeros around the image where torch's adds them itself; it gets none where torch's were added before
    and it adds them itself. What is left out must be zero.
    """
    padding = getattr(torch_call.module, "padding", None)
    image = next((leaf for leaf in torch_call.inputs if leaf.is_float), None)
    target = next((leaf.value for leaf in jax_call.inputs if leaf.is_float), None)
    plain = "Conv" in torch_call.class_name and "Transpose" not in torch_call.class_name
    if not plain or image is None or target is None or not isinstance(padding, tuple):
        return None
    value = image.value
    if value.ndim != target.ndim or value.ndim != len(padding) + 2 or len(value) != len(target):
        return None
    last = target.shape[-1] == value.shape[1]
    more = [
        there - here
        for here, there in zip(value.shape[2:], target.shape[1:-1] if last else target.shape[2:], strict=True)
    ]
    if more == [2 * one for one in padding] and getattr(torch_call.module, "padding_mode", "") == "zeros":
        made = np.pad(value, [(0, 0), (0, 0), *((one, one) for one in padding)])
    elif any(more) and all(one <= 0 for one in more):
        for axis, less in enumerate(more, 2):
            starts = [at for at in range(1 - less) if _only_zeros(value, axis, at, value.shape[axis] + less)]
            if not starts:
                return None
            cut = [value.take(range(at, at + value.shape[axis] + less), axis) for at in starts]
            value = min(cut, key=lambda one: _distance(one, target))
        made = value
    else:
        return None
    leaves = [replace(leaf, value=made) if leaf is image else leaf for leaf in torch_call.inputs]
    return replace(torch_call, inputs=leaves)


def _only_zeros(value: np.ndarray, axis: int, start: int, size: int) -> bool:
    """Return whether an array is zero outside of a part along an axis."""
    before, after = value.take(range(start), axis), value.take(range(start + size, value.shape[axis]), axis)
    return not (before.any() or after.any())


def _distance(value: np.ndarray, target: np.ndarray) -> float:
    made = rearranged(value, target.shape)
    return min((relative_distance(one, target) for one in made), default=np.inf)
