"""What is turned round: a recurrent layer that begins at the end, the kernel of a transposed convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Operation, Step
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
    kernels = context.first(_kernels(at.programs["torch"].steps))
    if kernels is not None:
        yield kernels


def _kernels(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield kernels of transposed convolutions that are turned round, with their channels exchanged where they fit."""
    group = [step for step in steps if step.operands.get("transposed") is True and "weight" in step.operands]
    if not group:
        return
    square = all(np.shape(step.operands["weight"])[0] == np.shape(step.operands["weight"])[1] for step in group)
    for words, flipped, exchanged in (
        ("turned round", True, False),
        ("turned round, in and out exchanged", True, True),
        ("with in and out exchanged", False, True),
    ):
        if exchanged and not square:
            continue

        def other(operation: Operation, flipped: bool = flipped, exchanged: bool = exchanged) -> Any:
            weight = operation.operands["weight"]
            weight = weight.flip(tuple(range(2, weight.ndim))) if flipped else weight
            weight = weight.transpose(0, 1) if exchanged else weight
            return operation.compute({**operation.operands, "weight": weight})

        yield Claim(
            Change("torch", {step.key: other for step in group}),
            "kernel flip",
            "the kernel of a transposed convolution",
            f"it {words}",
            "Pass transpose_kernel=True to Flax's ConvTranspose, with weight.transpose(2, 3, 1, 0) as its kernel; "
            "without it the kernel is flip(weight).transpose(2, 3, 0, 1).",
        )


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
