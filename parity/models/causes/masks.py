"""Masks that go into a module: turned around in the port, or without effect there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from parity.models.causes.calls import is_mask
from parity.models.causes.context import Context
from parity.records import Diagnosis

FIX = "True keeps in Flax and in jax.nn.dot_product_attention; it drops in nn.MultiheadAttention."


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield proved causes: with a mask among torch's inputs or buffers changed the two agree."""
    for at, array in enumerate(context.pair.arrays):
        if not is_mask(array):
            continue
        lost = "mask: left out", "has no effect in JAX", "without effect"
        other = "Hand the mask on in JAX."
        changes = [
            ("mask polarity", "is read the other way round in JAX", "turned around", 1 - array.astype(np.int64), FIX),
            (*lost, np.zeros_like(array), other),
            (*lost, np.ones_like(array), other),
        ]
        for cause, text, how, values, fix in changes:
            changed = torch.from_numpy(values.astype(array.dtype))

            def run(*arrays: torch.Tensor, at: int = at, changed: torch.Tensor = changed) -> object:
                return context.torch(*(changed if k == at else one for k, one in enumerate(arrays)))

            if context.agree(run):
                yield Diagnosis(
                    cause,
                    f"The mask (input {at}, of shape {list(array.shape)}) {text}; {how} in torch the two agree.",
                    fix,
                )
                return
    for name, buffer in context.pair.torch_buffers.items():
        held = buffer.numpy()
        if not is_mask(held.astype(np.int64)) or not np.isin(held, (0, 1)).all():
            continue
        turned = {name: torch.from_numpy(1 - held.astype(np.int64)).to(buffer.dtype)}
        if context.agree(lambda *arrays, w=turned: context.pair.torch_function(w, *arrays)):
            yield Diagnosis(
                "mask polarity",
                f"The mask {name} is read the other way round in JAX; turned around in torch the two agree.",
                f"Read {name} alike: what it keeps in torch it must keep in JAX.",
            )
            return
