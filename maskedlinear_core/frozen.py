"""Proof that frozen entries stayed as they were, bit for bit (contract S8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from maskedlinear_core.arrays import dtype_name, is_framework_array, to_numpy
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_core.masks import Mask


class FrozenMoved(AssertionError):
    """A frozen entry changed; `moved` tells how many did, by name."""

    def __init__(self, text: str, moved: dict[str, int]) -> None:
        super().__init__(text)
        self.moved = moved

    def __reduce__(self) -> tuple[type[Self], tuple[str, dict[str, int]]]:
        """Be copied, and sent to another process: `args` is the text alone."""
        return type(self), (str(self), self.moved)


def assert_same_bits(before: Mapping[str, Any], after: Mapping[str, Any], masks: Mapping[str, Any]) -> int:
    """Raise unless every frozen entry has the bits it had.

    Args:
        before: Arrays by name.
        after: Arrays by name.
        masks: What trains, by name: a mask or bool array for a weight, a bool vector for a bias, None for all of
            it. Names that are not there are wholly frozen.

    Returns:
        How many frozen entries were compared.

    Raises:
        FrozenMoved: Some entry changed, or the dtype of an array with frozen entries did; the text names each array,
            how many entries and the first one.
        ValueError: The names or shapes differ, or nothing at all is frozen.

    Example:
        >>> from maskedlinear_core import columns
        >>> w = np.ones((2, 2), np.float32)
        >>> assert_same_bits({"w": w}, {"w": w + np.float32([0, 1])}, {"w": columns([1])})
        2
    """
    frozen_checks.same_names(set(before), set(after), set(masks))
    compared, moved, texts = 0, {}, []
    for name in sorted(before):
        for side in (before, after):
            frozen_checks.is_array(name, side[name])
        old, new = to_numpy(before[name]), to_numpy(after[name])
        frozen_checks.same_shape(name, old.shape, new.shape)
        still = _frozen(name, masks.get(name, False), old.shape)
        compared += int(np.count_nonzero(still))
        dtypes = dtype_name(before[name]), dtype_name(after[name])
        if dtypes[0] != dtypes[1]:
            if still.any():
                moved[name] = int(np.count_nonzero(still))
                texts.append(f"{name}: {moved[name]} frozen entries of dtype {dtypes[0]} are {dtypes[1]} now")
            continue
        changed = still & _differ(old, new)
        if changed.any():
            first = tuple(int(i) for i in np.argwhere(changed)[0])
            moved[name] = int(np.count_nonzero(changed))
            texts.append(
                f"{name}: {moved[name]} of {np.count_nonzero(still)} frozen entries moved, "
                f"first {list(first)} from {old[first].item()!r} to {new[first].item()!r}"
            )
    if moved:
        raise FrozenMoved("; ".join(texts), moved)
    if not compared:
        frozen_checks.refuse_nothing_frozen()
    return compared


def _frozen(name: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    if mask is None:
        return np.zeros(shape, np.bool_)
    if mask is False:
        return np.ones(shape, np.bool_)
    if isinstance(mask, Mask):
        return ~mask.to_array(shape)
    trains = to_numpy(mask) if is_framework_array(mask) else np.asarray(mask)
    frozen_checks.bool_of_shape(name, trains.dtype.name, trains.shape, shape)
    return ~np.broadcast_to(trains, shape)


def _differ(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    if old.dtype.kind == "c":
        return _differ(old.real, new.real) | _differ(old.imag, new.imag)
    return _bits(old) != _bits(new)


def _bits(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array).reshape(array.shape)  # it gives a scalar an axis
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "f" else array
