"""Everything that learned in one file, without the matrices it was trained over (contract S7, S8).

The file is a safetensors file: no pickle, readable by other tools. Per layer it holds the values, the bias and
the positions in their shortest form; the matrix is known by the fingerprint of its frozen entries, or held as well.

    <layer>.values      as packed, in their dtype (bfloat16 as the 16-bit integers of its bits, as NumPy has none)
    <layer>.bias        (out_features,), if there is one
    <layer>.bias_mask   bits, eight to a byte, if there is one
    <layer>.rows, .columns, .blocks    sorted positions, in the shortest unsigned integer
    <layer>.entries     elements: bits, eight to a byte, or gaps between positions, whichever is shorter
    <layer>.base        (out_features, in_features), the matrix itself, if that was asked for
    =<name>             what else learns: parameters and buffers of the model, whole
    metadata            "maskedlinear": JSON of the version, the checksum of the file, and of every layer its kind,
                        shapes, dtypes and fingerprint, and the dtypes of what else learns
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maskedlinear_core import masks, positions
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.checks.storage import StorageError as StorageError
from maskedlinear_core.masks import Mask
from maskedlinear_core.stored import Contents, Numbers, Stored, fingerprint

FORMAT = "maskedlinear"
VERSION = 2
"""The second version holds what else learns, and bases. The first is read too."""

LARGEST_HEADER = 2**21
"""Bytes of a header, if that is more than a sixteenth of the file."""

LARGEST_GRID = 2**25
"""Blocks of a grid: it takes a byte for each, however few of them learn."""

LARGEST_SIZE = 2**31
"""Features of a layer."""

_BLANK = "0" * 64
# As it stands in the file: JSON in a string of JSON.
_CHECKSUM = re.compile(rb'\\"checksum\\":\\"([0-9a-f]{64})\\"')
_SIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
_IN_FILE = {"float32": "<f4", "float64": "<f8", "bfloat16": "<u2", "float16": "<f2"}
_IN_FILE |= {"bool": "?", "int8": "i1", "uint8": "u1", "int16": "<i2", "int32": "<i4", "int64": "<i8"}
_LONGEST_GAP = 255

DTYPES = sorted(_IN_FILE)
"""What can be stored."""


def to_bytes(contents: Contents) -> bytes:
    """Return what a file of these contents holds. Equal contents give equal bytes.

    Raises:
        ImportError: safetensors is missing.
    """
    tensors: dict[str, np.ndarray] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, layer in contents.layers.items():
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
        if layer.base is not None:
            tensors[f"{name}.base"] = _floats(layer.base)
        for part, array in _position_arrays(found, layer.shape).items():
            tensors[f"{name}.{part}"] = array
    for name, numbers in contents.others.items():
        storage_checks.dtype(name, numbers.dtype, DTYPES)
        tensors[f"={name}"] = _floats(numbers)
    # One key: safetensors does not keep the order of several, and equal layers make equal files.
    others = {name: numbers.dtype for name, numbers in contents.others.items()}
    about = {"version": VERSION, "checksum": _BLANK, "layers": described, "others": others}
    data = _safetensors().save(tensors, {FORMAT: json.dumps(about, separators=(",", ":"))})
    assert len(_CHECKSUM.findall(data)) == 1, "safetensors wrote the metadata otherwise than expected"
    storage_checks.names_fit(int.from_bytes(data[:8], "little"), max(LARGEST_HEADER, len(data) // 16))
    return data.replace(_BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def from_bytes(data: bytes) -> Contents:
    """Return the contents of a file.

    Sizes are checked against each other before anything is made of them.

    Args:
        data: What `to_bytes` gave.

    Raises:
        StorageError: It is damaged, truncated, foreign, of a later version, or contradicts itself. It is a
            ValueError.
        ImportError: safetensors is missing.
    """
    _check_sum(data)
    with _refusing_all_but_storage_errors():
        length = int.from_bytes(data[:8], "little")
        if length > min(len(data) - 8, max(LARGEST_HEADER, len(data) // 16)):
            storage_checks.refuse(f"it says that its header has {length} bytes")
        header = json.loads(data[8 : 8 + length])
        about = json.loads(header["__metadata__"][FORMAT])
        storage_checks.version(about["version"], VERSION)
        for name, entry in about["layers"].items():
            _check_sizes(name, entry, header)
        tensors = _safetensors().load(data)
        layers = {name: _layer(name, entry, tensors) for name, entry in about["layers"].items()}
        others = {name: _other(name, dtype, tensors) for name, dtype in about.get("others", {}).items()}
    storage_checks.all_used(sorted(tensors))
    return Contents(layers, others)


def _check_sizes(name: str, entry: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    # As many values as the positions say, of a weight that has them: before a mask is made.
    def count(part: str, otherwise: int) -> int:
        found = header.get(f"{name}.{part}")
        return otherwise if found is None else math.prod(found["shape"])

    shape = [operator.index(size) for size in entry["shape"]]
    storage_checks.same(f"the rank of {name}", len(shape), 2)
    if not all(0 <= size < LARGEST_SIZE for size in shape):
        storage_checks.refuse(f"{name} has a weight of shape {tuple(shape)}")
    expected: tuple[int, ...] | None = None
    if entry["kind"] == "submatrix":
        expected = count("rows", shape[0]), count("columns", shape[1])
    elif entry["kind"] == "blocks":
        grid, block = entry["grid_shape"], entry["block_shape"]
        storage_checks.same(f"the grid of {name}", [a * b for a, b in zip(grid, block, strict=True)], shape)
        if grid[0] * grid[1] > LARGEST_GRID:
            storage_checks.refuse(f"{name} has a grid of {grid[0]} by {grid[1]} blocks")
        expected = count("blocks", 0), block[0], block[1]
    elif header[f"{name}.entries"]["dtype"] == "I8":  # bits; gaps tell their own count
        storage_checks.same(f"the bits of {name}", count("entries", 0), -(-shape[0] * shape[1] // 8))
    if expected is not None:
        storage_checks.same(f"the shape of {name}.values", header[f"{name}.values"]["shape"], list(expected))


def _other(name: str, dtype: str, tensors: dict[str, np.ndarray]) -> Numbers:
    array = tensors.pop(f"={name}")
    return _numbers(name, array, dtype, array.shape)


def _layer(name: str, entry: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> Stored:
    height, width = (int(size) for size in entry["shape"])
    shape = height, width
    mask = _mask(name, entry, shape, tensors)
    weight_dtype = entry["weight_dtype"]
    if isinstance(mask, masks.Entries):
        expected: tuple[int, ...] = mask.index.values.shape
    else:
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
    matrix = tensors.pop(f"{name}.base", None)
    base = None if matrix is None else _numbers(f"{name}.base", matrix, weight_dtype, shape)
    if base is not None:
        storage_checks.same(f"the fingerprint of {name}", fingerprint(base, mask), entry["fingerprint"])
    if entry["form"] not in ("packed", "masked"):
        storage_checks.refuse(f"{name} has the form {entry['form']!r}")
    return Stored(entry["form"], mask, shape, weight_dtype, str(entry["fingerprint"]), values, bias, trains, base)


def _mask(name: str, entry: Mapping[str, Any], shape: tuple[int, int], tensors: dict[str, Any]) -> Mask:
    def index(part: str) -> Any:
        found = tensors.pop(f"{name}.{part}", None)
        return None if found is None else found.astype(np.int64)

    kind = entry["kind"]
    if kind == "submatrix":
        rows, columns = index("rows"), index("columns")
        if rows is not None and columns is not None:
            mask: Mask = masks.Submatrix(rows, columns)
        elif rows is not None:
            mask = masks.Rows(rows)
        else:
            mask = masks.Columns(slice(None) if columns is None else columns)
    elif kind == "blocks":
        (y, x), (h, w) = entry["grid_shape"], entry["block_shape"]
        grid = np.zeros((int(y), int(x)), np.bool_)
        grid.flat[index("blocks")] = True
        mask = masks.Blocks(grid, (int(h), int(w)))
    elif kind == "entries":
        # Not `packed`: that would look at each entry of the weight.
        numbers = _entries(tensors.pop(f"{name}.entries"), shape)
        if not 0 < numbers.size < shape[0] * shape[1] or numbers[-1] >= shape[0] * shape[1]:
            storage_checks.refuse(f"{name} has positions that do not fit a weight of shape {shape}")
        return masks.Entries(numbers, shape)
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
    bits = numbers.bits
    return np.ascontiguousarray(bits).reshape(bits.shape).view(_IN_FILE[numbers.dtype])


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


def _safetensors() -> Any:
    try:
        from safetensors import numpy as safetensors
    except ImportError as error:
        raise ImportError("storing masked layers needs safetensors: pip install 'maskedlinear[storage]'") from error
    return safetensors
