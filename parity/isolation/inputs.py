"""The inputs of a cell as text that a report can hold: NumPy's own file format in base64, named by its SHA-256."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np


def pack(leaves: Sequence[Any]) -> str:
    """Return arrays as text.

    Args:
        leaves: Arrays, in the order of the pytree they are the leaves of.

    Example:
        >>> unpack(pack([np.arange(3.0), np.array([True])]))
        [array([0., 1., 2.]), array([ True])]
    """
    file = io.BytesIO()
    np.savez_compressed(file, *[np.asarray(leaf) for leaf in leaves])
    return base64.b64encode(file.getvalue()).decode("ascii")


def unpack(text: str) -> list[np.ndarray]:
    """Return the arrays of `pack`.

    Raises:
        ValueError: The text is not that of `pack`.
    """
    try:
        with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as held:
            return [held[f"arr_{at}"] for at in range(len(held.files))]
    except Exception as error:
        raise ValueError(f"saved inputs: expected a base64 npz file, got {text[:20]!r}...: {error}") from error
