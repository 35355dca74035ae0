"""A module that goes through its input the other way round: a recurrent layer that begins at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.substitution import Change
from parity.models.causes.context import Context
from parity.records import Diagnosis

FIX = "Go through axis {axis} in one direction on both sides (reverse=, flip), and give the results in the same order."


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield an axis that is turned round before, and back after: the two agree then."""
    at = context.bench
    if at is None:
        return
    for axis in range(max((leaf.ndim for leaf in at.numbers[0].theta), default=0)):
        for back, said in ((True, "and its results back"), (False, "its results not")):
            found = context.first([_claim(axis, back, said)])
            if found is not None:
                yield found
                return


def _claim(axis: int, back: bool, said: str) -> Claim:
    turn = _turned(axis)
    change = Change(
        "torch",
        inputs=lambda leaves: tuple(map(turn, leaves)),
        outputs=(lambda outputs: {name: turn(value) for name, value in outputs.items()}) if back else None,
    )
    return Claim(
        change, "arrangement: reversed", f"axis {axis} of the input from the first to the last",
        f"it from the last to the first, {said}", FIX.format(axis=axis),
    )  # fmt: skip


def _turned(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    def turn(array: np.ndarray) -> np.ndarray:
        return np.flip(array, axis).copy() if array.ndim > axis and array.shape[axis] > 1 else array

    return turn
