"""What the cases of both frameworks share: masks, numbers, and the judgement of a weight that was trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from maskedlinear_core.masks import Mask

OUT, IN, BATCH, STEPS, BLOCK = 64, 96, 32, 4, 8
DECAY = 1.0
"""Of weights: times a rate of 0.01 it moves numbers of 16 bits, too, where nothing holds them."""
Case = Callable[[], None]
Hold = Callable[..., Any]


def masks() -> dict[str, Mask]:
    """Return a mask of each kind.

    Example:
        >>> list(masks())
        ['columns', 'rows', 'blocks', 'elements']
    """
    from maskedlinear_core import blocks, columns, elements, rows

    draw = np.random.default_rng(0)
    return {
        "columns": columns([1, 5, 40]),
        "rows": rows([0, 9]),
        "blocks": blocks(draw.random((OUT // BLOCK, IN // BLOCK)) < 0.2, (BLOCK, BLOCK)),
        "elements": elements(draw.random((OUT, IN)) < 0.03),
    }


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs [BATCH, IN] and what the outputs [BATCH, OUT] shall be, in float32."""
    draw = np.random.default_rng(1)
    return draw.standard_normal((BATCH, IN), np.float32), draw.standard_normal((BATCH, OUT), np.float32)


def judge(before: np.ndarray, after: np.ndarray, mask: Mask) -> None:
    """Compare a weight with what it was.

    Raises:
        AssertionError: A frozen entry moved, or nothing learned.
    """
    trains = mask.to_array((OUT, IN))
    moved = before.view(np.uint32) != after.view(np.uint32)
    assert not (moved & ~trains).any(), f"{int((moved & ~trains).sum())} frozen entries moved"
    assert (moved & trains).any(), "nothing learned"


def tried(case: Case) -> str:
    """Return what a case raised, or nothing.

    Example:
        >>> tried(lambda: None), tried(lambda: 1 / 0)
        ('', 'ZeroDivisionError: division by zero')
    """
    try:
        case()
    except Exception as error:  # whatever it is, the other cases run
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return ""
