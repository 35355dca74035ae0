"""10,000 damaged files, by hand: `python tests/damaged_files.py [COUNT] [SEED]`. A slice runs as a test.

Bytes are damaged (the checksum refuses those), and sizes, counts, kinds and tensors behind a right checksum, as another
writer or someone hostile makes them. Each must be refused or agree with itself, and cost little.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import time
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from maskedlinear_core import blocks, columns, elements, rows, storage, submatrix
from maskedlinear_core.storage import StorageError
from maskedlinear_core.stored import Contents, Numbers, Stored, fingerprint

MEMORY, SECONDS = 64 * 2**20, 1.0
SIZES = [-1, 0, 1, 2, 3, 7, 2**16, 2**31 - 1, 2**31, 10**9, 2**40, 2**63, 2**64, 1.5, None, "6", [], True]


def whole(seed: int) -> bytes:
    """Return a right file with a layer of every kind."""
    draw = np.random.default_rng(seed)
    masks = {
        "columns": columns([0, 3]), "rows": rows([2]), "submatrix": submatrix([0, 5], [1, 2]),
        "blocks": blocks(draw.random((2, 4)) < 0.5, (4, 2)), "elements": elements(draw.random((8, 8)) < 0.1),
        "dense": elements(draw.random((8, 8)) < 0.6), "none": columns([]), "all": rows(slice(None)),
    }  # fmt: skip
    layers = {}
    for name, mask in masks.items():
        matrix = Numbers(draw.integers(0, 2**32, (8, 8), dtype=np.uint32), "float32")
        packed = mask.packed((8, 8))
        shape = storage._values_shape(storage.positions.packed(packed.canonical((8, 8))), (8, 8))
        values = Numbers(np.zeros(shape, np.uint32), "float32")
        bias = Numbers(np.zeros(8, np.uint32), "float32")
        print_of = fingerprint(matrix, packed)
        layers[name] = Stored("packed", packed, (8, 8), "float32", print_of, values, bias, np.arange(8) < 4, matrix)
    return storage.to_bytes(Contents(layers, {"norm.weight": bias, "count": Numbers(np.zeros((), np.uint64), "int64")}))


def signed(data: bytes, change: Any) -> bytes:
    """Return a file with its contents changed and a right checksum."""
    length = struct.unpack("<Q", data[:8])[0]
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["maskedlinear"])
    tensors = load(data)
    about["checksum"] = "0" * 64
    change(about, tensors)
    blank = save(tensors, {"maskedlinear": json.dumps(about, separators=(",", ":"))})
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


def damaged(data: bytes, draw: np.random.Generator) -> bytes:
    """Return a file with one to three things wrong."""
    pick = lambda options: options[draw.integers(len(options))]  # noqa: E731
    if draw.random() < 0.3:
        where, size = int(draw.integers(len(data))), int(draw.integers(1, 64))
        cuts = [data[:where], data[:where] + draw.bytes(size) + data[where:], data[:where] + data[where + size :]]
        flip = data[:where] + bytes([data[where] ^ (1 << int(draw.integers(8)))]) + data[where + 1 :]
        return pick([*cuts, flip, data[where:] + data[:where], draw.bytes(size)])

    def change(about: Any, tensors: Any) -> None:
        for _ in range(draw.integers(1, 4)):
            layer = about["layers"].get(pick(sorted(about["layers"])))
            kind = draw.integers(6)
            if kind <= 1:
                layer[pick(["shape", "grid_shape", "block_shape"])] = [pick(SIZES), pick(SIZES)][: draw.integers(1, 3)]
            elif kind == 2:
                layer[pick(sorted(layer))] = pick(["submatrix", "blocks", "entries", "float64", "bfloat16", *SIZES])
            elif kind == 3:
                name = pick(sorted(tensors))
                dtype = pick(["uint8", "int8", "uint16", "float32", "int64", "bool"])
                tensors[name] = np.resize(np.arange(200), int(draw.integers(0, 40))).astype(dtype)
            elif kind == 4:
                tensors.pop(pick(sorted(tensors)))
            else:
                about["others"] = {pick(["norm.weight", "x"]): pick(["float32", "complex64", 3])}

    return signed(data, change)


def try_one(data: bytes) -> tuple[str, float, int]:
    """Return what came of reading a file, the seconds and the bytes that it took."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        contents = storage.from_bytes(data)
    except StorageError:
        outcome = "refused"
    else:
        outcome = "agrees"
        for layer in contents.layers.values():
            assert layer.mask.to_array(layer.shape).sum() == layer.values.bits.size
    taken = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return outcome, taken, peak


def run(count: int, seed: int) -> Counter[str]:
    """Try damaged files; each is refused or agrees with itself, within the memory."""
    draw, data = np.random.default_rng(seed), whole(seed)
    assert try_one(data)[0] == "agrees"
    outcomes: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    for _ in range(count):
        outcome, taken, peak = try_one(damaged(data, draw))
        outcomes[outcome] += 1
        slowest, largest = max(slowest, taken), max(largest, peak)
        assert peak <= MEMORY, f"{peak} bytes"
    outcomes["most kilobytes"], outcomes["most milliseconds"] = largest // 1024, int(slowest * 1e3)
    return outcomes


if __name__ == "__main__":
    print(dict(run(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
