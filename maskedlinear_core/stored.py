"""What is stored or sent of a model, and marks that tell whether it belongs to another model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskedlinear_core import positions
from maskedlinear_core.arrays import to_numpy
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.masks import Mask

_STEPS = 2**8
"""In so many steps from 0 to 1 is what tells positions apart: bfloat16 holds each, and the average of equal ones."""


@dataclass(frozen=True)
class Numbers:
    """Floats as their bits, so that every dtype has a NumPy array.

    Attributes:
        bits: Unsigned integers.
        dtype: What they are the bits of: "float32", "float64", "bfloat16" or "float16".
    """

    bits: np.ndarray
    dtype: str


@dataclass(frozen=True)
class Stored:
    """One layer as it is stored.

    Attributes:
        form: "packed" or "masked".
        mask: In packed form (see `Mask.packed`).
        shape: Shape of the weight (out_features, in_features).
        weight_dtype: Dtype of the weight.
        fingerprint: Fingerprint of its frozen entries (see `fingerprint`).
        values: The packed values.
        bias: The bias, or None.
        bias_mask: Bool (out_features,), or None.
        base: The matrix, or None.
    """

    form: str
    mask: Mask
    shape: tuple[int, int]
    weight_dtype: str
    fingerprint: str
    values: Numbers
    bias: Numbers | None
    bias_mask: np.ndarray | None
    base: Numbers | None = None


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        layers: The masked layers, by name.
        others: What else learns: whole parameters and buffers, by name.
    """

    layers: Mapping[str, Stored]
    others: Mapping[str, Numbers] = field(default_factory=dict)


def fingerprint(weight: Numbers, mask: Mask) -> str:
    """Return the SHA-256 of a weight's shape, dtype and frozen entries, in hexadecimal.

    Trainable entries count as zero: a fine-tuned weight has the fingerprint of the one it started from.

    Example:
        >>> from maskedlinear_core import columns
        >>> one, two = (Numbers(np.array([[1, n]], np.uint32), "float32") for n in (5, 7))
        >>> fingerprint(one, columns([1])) == fingerprint(two, columns([1])) != fingerprint(two, columns([0]))
        True
    """
    frozen = np.where(mask.to_array(weight.bits.shape), 0, weight.bits).astype(f"<u{weight.bits.itemsize}")
    head = json.dumps([list(weight.bits.shape), weight.dtype]).encode()
    return hashlib.sha256(head + frozen.tobytes()).hexdigest()


def check_fits(name: str, stored: Stored, matrix: Numbers, *, has_bias: bool) -> None:
    """Check that a stored layer belongs to a layer of a model. One that brings its matrix fits every matrix.

    Args:
        name: Name of the layer.
        stored: What is to be loaded.
        matrix: The layer's weight, or the constant matrix of a packed layer.
        has_bias: Whether the layer has a bias.

    Raises:
        StorageError: Shape, bias, dtype or frozen entries differ.
    """
    shape = tuple(matrix.bits.shape)
    if shape != stored.shape:
        storage_checks.refuse_layer(name, f"a weight of shape {stored.shape}", str(shape))
    if has_bias != (stored.bias is not None):
        storage_checks.refuse_layer(name, *(("no bias", "one") if has_bias else ("a bias", "none")))
    if matrix.dtype != stored.weight_dtype:
        storage_checks.refuse_layer(name, f"a weight of {stored.weight_dtype}", matrix.dtype)
    if stored.base is None and fingerprint(matrix, stored.mask) != stored.fingerprint:
        storage_checks.refuse_base(name)


def renamed(contents: Contents, rename: Any) -> Contents:
    """Return contents by the names that a model has for its parts.

    Args:
        contents: What was stored.
        rename: Stored name: name in the model, of parts or of what they are part of ("encoder" for all in it); or a
            function of a stored name; or None.

    Raises:
        ValueError: A name that is not stored, or two parts that would get one name.

    Example:
        >>> one = Numbers(np.zeros(1, np.uint32), "float32")
        >>> list(renamed(Contents({}, {"encoder.norm": one}), {"encoder": "model.encoder"}).others)
        ['model.encoder.norm']
    """
    if rename is None:
        return contents
    names = [*contents.layers, *contents.others]
    to = renaming(names, rename)
    storage_checks.one_name_each(to)
    layers = {to[name]: layer for name, layer in contents.layers.items()}
    return Contents(layers, {to[name]: numbers for name, numbers in contents.others.items()})


def renaming(names: list[str], rename: Any) -> dict[str, str]:
    """Return for each stored name the one in the model: see `renamed`."""
    if callable(rename):
        return {name: str(rename(name)) for name in names}
    storage_checks.rename(rename)
    used: set[str] = set()
    to: dict[str, str] = {}
    for name in names:
        heads = [head for head in rename if name == head or name.startswith(f"{head}.") or not head]
        head = max(heads, key=len, default=None)
        if head is None:
            to[name] = name
            continue
        used.add(head)
        rest = name[len(head) :].removeprefix(".")
        to[name] = ".".join(filter(None, (rename[head], rest)))
    storage_checks.renamed(names, sorted(set(rename) - used))
    return to


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
