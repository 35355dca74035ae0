"""What is measured: rows as data, and the plan that picks them.

The product of all factors has thousands of rows. The plan varies each factor around base points instead: every kind
of mask with every share at one large shape, then one factor at a time (work, batch, features, a batch of two
dimensions, dtype, compiled, first layer) from `columns` and `elements` with a tenth that learns.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_core.masks import Mask

FRAMEWORKS = ("torch", "jax")
WORKS = ("forward", "forward+backward", "adamw step")
KINDS = ("columns", "rows", "submatrix", "blocks", "elements")
SHARES = (0.01, 0.1, 0.5, 1.0)
DTYPES = ("float32", "bfloat16")
HOWS = {"torch": ("eager", "compiled"), "jax": ("jit", "eager")}
"""The ordinary way to run a step first."""
PLACES = ("inner", "first")

LARGE, LARGER, SMALL = (2048, 1024, 1024), (2048, 2048, 2048), (256, 512, 512)
BATCHES = (1, 32, 512, 8192)
WIDTHS = ((512, 256, 256), (512, 4096, 4096))
FOLDED = (8, 256, 1024, 1024)
"""A batch of two dimensions."""
LOOP = (32, 32, 64)
"""A shape that a loop over entries in Python can do."""


@dataclass(frozen=True)
class Row:
    """One thing to measure.

    Attributes:
        framework: "torch" or "jax".
        work: One of `WORKS`.
        kind: Of mask, one of `KINDS`.
        p: The share that learns, as wanted; `mask_of` tells what it is.
        shape: (*batch, out_features, in_features).
        dtype: "float32" or "bfloat16".
        how: One of `HOWS`.
        place: "inner", or "first": the input needs no gradient.
    """

    framework: str
    work: str
    kind: str
    p: float
    shape: tuple[int, ...]
    dtype: str
    how: str
    place: str

    @property
    def batch(self) -> int:
        """How many vectors go in."""
        return math.prod(self.shape[:-2])

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.shape[-2], self.shape[-1]

    @property
    def is_large(self) -> bool:
        """Whether products, not calls, take the time: from 2^31 multiplications in each."""
        return math.prod(self.shape) >= 2**31

    @property
    def id(self) -> str:
        """Everything about it, for people and for files.

        Example:
            >>> Row("torch", "forward", "rows", 0.1, (32, 256, 512), "float32", "eager", "inner").id
            'torch/forward/rows/0.1/32x256x512/float32/eager/inner'
        """
        shape = "x".join(map(str, self.shape))
        parts = self.framework, self.work, self.kind, f"{self.p:g}", shape, self.dtype, self.how, self.place
        return "/".join(parts)


def plan(
    framework: str, *, quick: bool = False, everything: bool = False, shapes: Sequence[tuple[int, ...]] = ()
) -> list[Row]:
    """Return the rows to measure.

    Args:
        framework: "torch" or "jax".
        quick: A few small rows.
        everything: The product of all factors, hours of it.
        shapes: Measure every kind and share at these instead, (*batch, out_features, in_features).
    """
    how = HOWS[framework][0]

    def row(kind: str = "columns", p: float = 0.1, **changes: object) -> Row:
        usual = Row(framework, "forward+backward", kind, p, LARGE, "float32", how, "inner")
        return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]

    if shapes:
        return [row(kind, p, shape=shape) for shape in shapes for kind in KINDS for p in SHARES]
    if quick:
        small = [row(kind, shape=SMALL) for kind in ("columns", "elements")]
        return [*small, row(shape=(1, 512, 512)), row(shape=SMALL, work="adamw step")]
    found = [row(kind, p) for kind in KINDS for p in SHARES]
    both = ("columns", "elements")
    if everything:
        sizes = [(batch, *size) for batch in BATCHES for size in ((256, 256), (1024, 1024), (4096, 4096))]
        product = itertools.product(KINDS, SHARES, WORKS, [*sizes, FOLDED], DTYPES, HOWS[framework], PLACES)
        found += [
            row(kind, p, work=work, shape=shape, dtype=dtype, how=how, place=place)
            for kind, p, work, shape, dtype, how, place in product
        ]
    found += [row(kind, work=work) for work in ("forward", "adamw step") for kind in both]
    found += [row(kind, shape=(batch, 1024, 1024)) for batch in (1, 32) for kind in KINDS]
    found += [row(kind, shape=(1, 1024, 1024), work="forward") for kind in both]
    found += [row(kind, shape=(512, 1024, 1024)) for kind in both]
    found += [row(shape=(8192, 1024, 1024)), row(shape=LARGER)]
    found += [row(shape=shape) for shape in (*WIDTHS, FOLDED)]
    found += [row(kind, dtype="bfloat16") for kind in ("columns", "rows", "elements")]
    found += [row(kind, place="first") for kind in ("columns", "rows", "elements")]
    found += [row(kind, how=HOWS[framework][1]) for kind in both]
    if framework == "torch":
        found.append(row(shape=LOOP))
    return list(dict.fromkeys(found))


def mask_of(row: Row) -> Mask:
    """Return the mask of a row: positions drawn at random, the same in every run.

    Example:
        >>> mask_of(Row("torch", "forward", "rows", 0.5, (1, 4, 2), "float32", "eager", "inner")).density((4, 2))
        0.5
    """
    (out_features, in_features), p = row.weight_shape, row.p
    rng = np.random.default_rng(0)

    def draw(count: int, share: float) -> np.ndarray:
        return np.sort(rng.choice(count, max(1, round(count * share)), replace=False))

    if row.kind == "columns":
        return columns(draw(in_features, p))
    if row.kind == "rows":
        return rows(draw(out_features, p))
    if row.kind == "submatrix":
        return submatrix(draw(out_features, math.sqrt(p)), draw(in_features, math.sqrt(p)))
    if row.kind == "blocks":
        side = 64 if min(row.weight_shape) >= 512 else 16
        grid = out_features // side, in_features // side
        chosen = np.zeros(math.prod(grid), bool)
        chosen[draw(chosen.size, p)] = True
        return blocks(chosen.reshape(grid), (side, side))
    array = np.zeros(out_features * in_features, bool)
    array[draw(array.size, p)] = True
    return elements(array.reshape(row.weight_shape))
