"""What is stored of a model: its masked layers and what else learns, and whether they belong to another model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.masks import Mask


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
