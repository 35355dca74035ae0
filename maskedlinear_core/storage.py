"""Masks and packed values in one file, without the matrix they belong to (SPEC S7).

The file is a safetensors file: no pickle, readable by other tools. Per layer it holds the values, the bias and
the positions in their shortest form; the matrix is known by the fingerprint of its frozen entries.

    <layer>.values      as packed, in their dtype (bfloat16 as the 16-bit integers of its bits, as NumPy has none)
    <layer>.bias        (out_features,), if there is one
    <layer>.bias_mask   bits, eight to a byte, if there is one
    <layer>.rows, .columns, .blocks    sorted positions, in the shortest unsigned integer
    <layer>.entries     elements: bits, eight to a byte, or gaps between positions, whichever is shorter
    metadata            "maskedlinear": JSON of the version, the checksum of the file, and of every layer its kind,
                        shapes, dtypes and fingerprint
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskedlinear_core import masks, positions
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.checks.storage import StorageError as StorageError
from maskedlinear_core.masks import Mask

FORMAT = "maskedlinear"
VERSION = 1

_BLANK = "0" * 64
# As it stands in the file: JSON in a string of JSON.
_CHECKSUM = re.compile(rb'\\"checksum\\":\\"([0-9a-f]{64})\\"')
_SIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
_IN_FILE = {"float32": "<f4", "float64": "<f8", "bfloat16": "<u2", "float16": "<f2"}
_LONGEST_GAP = 255


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
        shape: Of the weight (out_features, in_features).
        weight_dtype: Of the weight.
        fingerprint: Of its frozen entries (see `fingerprint`).
        values: The packed values.
        bias: The bias, or None.
        bias_mask: Bool (out_features,), or None.
    """

    form: str
    mask: Mask
    shape: tuple[int, int]
    weight_dtype: str
    fingerprint: str
    values: Numbers
    bias: Numbers | None
    bias_mask: np.ndarray | None


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
    """Check that a stored layer belongs to a layer of a model.

    Args:
        name: Of the layer.
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
    if fingerprint(matrix, stored.mask) != stored.fingerprint:
        storage_checks.refuse_layer(name, "the frozen entries that the values were trained over", "others")


def write(path: str | os.PathLike[str], layers: Mapping[str, Stored]) -> int:
    """Write layers to a file, wholly or not at all.

    Args:
        path: Where to.
        layers: By name.

    Returns:
        The size of the file in bytes.

    Raises:
        ImportError: safetensors is missing.
    """
    tensors: dict[str, np.ndarray] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        found = positions.packed(layer.mask.canonical(layer.shape))
        described[name] = {
            "form": layer.form,
            "kind": found.kind,
            "shape": layer.shape,
            "grid_shape": found.grid_shape,
            "block_shape": found.block_shape,
            "weight_dtype": layer.weight_dtype,
            "values_dtype": layer.values.dtype,
            "fingerprint": layer.fingerprint,
        }
        tensors[f"{name}.values"] = _floats(layer.values)
        if layer.bias is not None:
            tensors[f"{name}.bias"] = _floats(layer.bias)
        if layer.bias_mask is not None:
            tensors[f"{name}.bias_mask"] = np.packbits(layer.bias_mask)
        for part, array in _position_arrays(found, layer.shape).items():
            tensors[f"{name}.{part}"] = array
    # One key: safetensors does not keep the order of several, and equal layers make equal files.
    about = {"version": VERSION, "checksum": _BLANK, "layers": described}
    data = _safetensors().save(tensors, {FORMAT: json.dumps(about, separators=(",", ":"))})
    assert len(_CHECKSUM.findall(data)) == 1, "safetensors wrote the metadata otherwise than expected"
    data = data.replace(_BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)
    _replace_file(path, data)
    return len(data)


def read(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """Read the layers of a file.

    Args:
        path: Of a file that `write` made.

    Returns:
        Layers by name.

    Raises:
        StorageError: The file is damaged, truncated, foreign, of a later version, or contradicts itself. It is a
            ValueError.
        OSError: The file cannot be read.
        ImportError: safetensors is missing.
    """
    with open(path, "rb") as file:
        data = file.read()
    _check_sum(data)
    with _refusing_all_but_storage_errors():
        tensors = _safetensors().load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"][FORMAT])
        storage_checks.version(about["version"], VERSION)
        layers = {name: _layer(name, entry, tensors) for name, entry in about["layers"].items()}
    storage_checks.all_used(sorted(tensors))
    return layers


def _layer(name: str, entry: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> Stored:
    height, width = (int(size) for size in entry["shape"])
    shape = height, width
    mask = _mask(name, entry, shape, tensors)
    weight_dtype = entry["weight_dtype"]
    expected = _values_shape(positions.packed(mask.canonical(shape)), shape)
    values = _numbers(f"{name}.values", tensors.pop(f"{name}.values"), entry["values_dtype"], expected)
    found = tensors.pop(f"{name}.bias", None)
    bias = None if found is None else _numbers(f"{name}.bias", found, weight_dtype, (height,))
    bias_bits = tensors.pop(f"{name}.bias_mask", None)
    if bias_bits is not None:
        storage_checks.same(f"the type of {name}.bias_mask", _type(bias_bits), ("uint8", (-(-height // 8),)))
    trains = None if bias_bits is None else np.unpackbits(bias_bits, count=height).astype(bool)
    if values.dtype != weight_dtype and (values.dtype, _SIZES.get(weight_dtype)) != ("float32", 2):
        storage_checks.refuse(f"{name} has values of {values.dtype} over a weight of {weight_dtype}")
    if entry["form"] not in ("packed", "masked"):
        storage_checks.refuse(f"{name} has the form {entry['form']!r}")
    return Stored(entry["form"], mask, shape, weight_dtype, str(entry["fingerprint"]), values, bias, trains)


def _mask(name: str, entry: Mapping[str, Any], shape: tuple[int, int], tensors: dict[str, Any]) -> Mask:
    def index(part: str) -> Any:
        found = tensors.pop(f"{name}.{part}", None)
        return slice(None) if found is None else found.astype(np.int64)

    kind = entry["kind"]
    if kind == "submatrix":
        rows, columns = index("rows"), index("columns")
        mask: Mask = masks.Submatrix(rows, columns)
    elif kind == "blocks":
        (y, x), (h, w) = entry["grid_shape"], entry["block_shape"]
        grid = np.zeros((int(y), int(x)), np.bool_)
        grid.flat[index("blocks")] = True
        mask = masks.Blocks(grid, (int(h), int(w)))
    elif kind == "entries":
        mask = masks.Entries(_entries(tensors.pop(f"{name}.entries"), shape), shape)
    else:
        storage_checks.refuse(f"{name} has a mask of kind {kind!r}")
    return mask.packed(shape)


def _position_arrays(found: positions.Positions, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    if found.kind == "submatrix":
        named = zip(("rows", "columns"), found.arrays, shape, strict=True)
        return {name: _shortest(array, size) for name, array, size in named if array is not None}
    (array,) = found.arrays
    assert array is not None
    if found.kind == "blocks":
        return {"blocks": _shortest(array, found.grid_shape[0] * found.grid_shape[1])}
    gaps = _gaps(array)
    bits = np.zeros(shape, np.bool_)
    bits.flat[array] = True
    packed = np.packbits(bits)
    # Told apart by their dtype when they are read: gaps are unsigned, bits are signed.
    return {"entries": gaps if gaps.size <= packed.size else packed.view(np.int8)}


def _gaps(array: np.ndarray) -> np.ndarray:
    # How many positions are passed over before each: 255 stands for 255 of them and goes on.
    steps = np.diff(array, prepend=-1) - 1
    ends = np.cumsum(steps // _LONGEST_GAP + 1) - 1
    gaps = np.full(int(ends[-1]) + 1, _LONGEST_GAP, np.uint8)
    gaps[ends] = steps % _LONGEST_GAP
    return gaps


def _entries(stored: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if stored.dtype == np.int8:
        return np.flatnonzero(np.unpackbits(stored.view(np.uint8), count=shape[0] * shape[1]))
    ends = stored != _LONGEST_GAP
    return np.cumsum(stored.astype(np.int64))[ends] + np.arange(np.count_nonzero(ends))


def _values_shape(found: positions.Positions, shape: tuple[int, int]) -> tuple[int, ...]:
    sizes = tuple(size if array is None else array.size for array, size in zip(found.arrays, shape, strict=False))
    return (sizes[0], *found.block_shape) if found.kind == "blocks" else sizes


def _shortest(array: np.ndarray, size: int) -> np.ndarray:
    return array.astype(np.min_scalar_type(max(size - 1, 0)))


def _floats(numbers: Numbers) -> np.ndarray:
    return np.ascontiguousarray(numbers.bits).view(_IN_FILE[numbers.dtype])


def _numbers(name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Numbers:
    storage_checks.same(f"the type of {name}", _type(array), (np.dtype(_IN_FILE[dtype]).name, shape))
    return Numbers(array.view(f"u{array.itemsize}").copy(), dtype)


def _type(array: np.ndarray) -> tuple[str, tuple[int, ...]]:
    return array.dtype.name, tuple(array.shape)


def _check_sum(data: bytes) -> None:
    found = list(_CHECKSUM.finditer(data))
    if len(found) != 1:
        storage_checks.refuse("it has no checksum of this format: it is truncated, or another kind of file")
    start, stop = found[0].span(1)
    blank = data[:start] + _BLANK.encode() + data[stop:]
    if hashlib.sha256(blank).hexdigest().encode() != found[0][1]:
        storage_checks.refuse("its checksum is wrong: it is damaged or truncated")


@contextlib.contextmanager
def _refusing_all_but_storage_errors() -> Iterator[None]:
    # The checksum was right, so this is not damage but another writer: whatever it wrote, the answer is one error.
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        storage_checks.refuse(f"it contradicts itself ({type(error).__name__}: {error})")


def _replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    target = os.path.abspath(path)
    handle, partial = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".maskedlinear-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def _safetensors() -> Any:
    try:
        from safetensors import numpy as safetensors
    except ImportError as error:
        raise ImportError("storing masked layers needs safetensors: pip install 'maskedlinear[storage]'") from error
    return safetensors
