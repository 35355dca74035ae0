"""Arrays that both modules hold and none of them learns: a table of positions that the port makes otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from parity.models.causes.context import Context
from parity.records import Diagnosis

MOST = 20
"""How many arrays are tried."""


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield a proved buffer of other numbers: with JAX's in torch the two agree."""
    held = context.pair.jax_state
    buffers = {
        name: value
        for name, value in context.pair.torch_buffers.items()
        if value.numel() > 1 and (name in context.pair.unpaired or name not in context.pair.torch_weights)
    }
    tried = 0
    for name, value in buffers.items():
        mine = value.numpy()
        for array in held:
            if array.shape != mine.shape or array.dtype.kind != mine.dtype.kind or np.array_equal(array, mine):
                continue
            tried += 1
            if tried > MOST or context.late:
                return
            weights = {name: torch.from_numpy(array.astype(mine.dtype))}
            if context.agree(lambda *arrays, w=weights: context.pair.torch_function(w, *arrays)):
                text = (
                    f"{name} holds other numbers in JAX, {int((array != mine).sum())} of {mine.size}; with JAX's in "
                    "torch the two agree."
                )
                yield Diagnosis("buffer: other numbers", text, f"Make {name} in JAX as torch does, or load torch's.")
                return
