"""Arrays of what learns, by name, that clients send and a server averages; and marks of the positions they are of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from maskedlinear_core import positions
from maskedlinear_core.arrays import to_numpy
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.masks import Mask

_STEPS = 2**8
"""In so many steps from 0 to 1 is what tells positions apart: bfloat16 holds each, and the average of equal ones."""


def positions_mark(mask: Mask, shape: tuple[int, int], bias_mask: np.ndarray | None) -> np.ndarray:
    """Return what tells the positions of a layer's learned arrays apart, for dicts of arrays that are averaged.

    Args:
        mask: Mask of the weight.
        shape: Shape of the weight (out_features, in_features).
        bias_mask: Bool (out_features,), or None for all of the bias.

    Returns:
        Eight float32 numbers from 0 to 1, made from the positions' SHA-256. The average of equal ones is the same.

    Example:
        >>> from maskedlinear_core import columns
        >>> positions_mark(columns([1]), (2, 4), None).tolist() == positions_mark(columns([2]), (2, 4), None).tolist()
        False
    """
    found = positions.packed(mask.canonical(shape))
    trains = np.ones(shape[0], np.bool_) if bias_mask is None else bias_mask
    head = json.dumps([found.kind, list(shape), list(found.grid_shape), list(found.block_shape)]).encode()
    return _mark([head, *(b"-" if one is None else one.astype("<i8").tobytes() for one in (*found.arrays, trains))])


def parts_mark(trains: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return what tells the positions of whole parameters apart: as `positions_mark`.

    Args:
        trains: By parameter, a bool array of its shape.

    Example:
        >>> one, other = np.array([True, False]), np.array([False, True])
        >>> parts_mark({"weight": one}).tolist() == parts_mark({"weight": other}).tolist()
        False
    """
    named = {name: np.asarray(trains[name], np.bool_) for name in sorted(trains)}
    head = json.dumps([[name, list(array.shape)] for name, array in named.items()]).encode()
    return _mark([head, *(np.packbits(array).tobytes() for array in named.values())])


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken, for a layer may have an array of its own by that name.

    Example:
        >>> free_name("positions", ["positions"])
        'positions_'
    """
    while name in taken:
        name += "_"
    return name


def sent(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return arrays that came by name as NumPy's, without those that hold no number: what is wholly frozen.

    Example:
        >>> sent({"values": [[1.0]], "bias": []})
        {'values': array([[1.]])}
    """
    read = {}
    for name, array in arrays.items():
        array = array.detach() if hasattr(array, "detach") else array
        read[name] = array if isinstance(array, np.ndarray) else to_numpy(array)
    return {name: array for name, array in read.items() if array.size}


def check_positions(name: str, array: np.ndarray, own: np.ndarray) -> None:
    """Check that learned arrays are of the positions that a layer has: see `positions_mark`.

    Args:
        name: Name of the mark.
        array: The mark that came with the arrays.
        own: The layer's.

    Raises:
        StorageError: They are of others.
    """
    storage_checks.array(name, array.shape, array.dtype.name, own.shape)
    if not np.array_equal(np.rint(array.astype(np.float64) * _STEPS), np.rint(own.astype(np.float64) * _STEPS)):
        storage_checks.refuse_positions(name)


def _mark(parts: list[bytes]) -> np.ndarray:
    digest = hashlib.sha256(b"|".join(parts)).digest()
    return (np.frombuffer(digest[:8], np.uint8) / _STEPS).astype(np.float32)
