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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskedlinear_core import files, masks, positions
from maskedlinear_core.arrays import to_numpy
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.checks.storage import StorageError as StorageError
from maskedlinear_core.masks import Mask

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


def read(source: Any) -> dict[str, Stored]:
    """Return the layers of a file, by name: see `from_bytes` and `files.read`.

    Raises:
        StorageError: As `from_bytes`.
        OSError: The file cannot be read.
    """
    return dict(from_bytes(files.read(source)).layers)


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
