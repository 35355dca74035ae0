"""The small problem that every version must solve: integers, so that all answers are exact, and the golden hashes."""

import hashlib

import numpy as np

O, I = 4, 6
NAMES = ("columns", "rows", "submatrix", "blocks", "elements")

GOLDEN = {"forward": "662d7c48ec0b", "gradient": "c3bc0aee95a0"}
"""SHA-256, first 12 digits, of the reproducible answers at `normal()`, in every version of either framework."""


def masks(twin):
    """Return a mask of each kind by name, made by the functions of a twin."""
    made = (
        twin.columns([0, 3]), twin.rows([1, 2]), twin.submatrix([1], [0, 2]),
        twin.blocks(np.eye(2, dtype=bool), (2, 3)), twin.elements(np.arange(O * I).reshape(O, I) % 3 == 0),
    )  # fmt: skip
    return dict(zip(NAMES, made, strict=True))


def integers():
    """Return x (8, I), w (O, I) and b (O,): small integers in float32."""
    x, w = (np.random.default_rng(seed).integers(-3, 4, shape) for seed, shape in enumerate(((8, I), (O, I))))
    return x.astype(np.float32), w.astype(np.float32), np.arange(float(O), dtype=np.float32)


def normal():
    """Return x (8, I) and w (O, I): normal numbers in float32."""
    rng = np.random.default_rng(7)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in ((8, I), (O, I)))


def digest(arrays):
    """Return the first digits of the SHA-256 of some arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:12]
