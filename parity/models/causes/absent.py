"""Weights that only one side has: a bias that the port dropped."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from parity.models.causes.context import Context
from parity.records import Diagnosis

NEUTRAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "gamma": 1.0, "beta": 0.0}
"""What a weight must be to do nothing."""


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield a proved dropped weight: with it neutral in torch the two agree."""
    names = [name for name in context.pair.unpaired if name.rpartition(".")[2] in NEUTRAL]
    for group in [*([name] for name in names), names] if len(names) > 1 else [names] if names else []:
        last = group[0].rpartition(".")[2]
        weights = {
            name: torch.full(context.pair.torch_weights[name].shape, NEUTRAL[name.rpartition(".")[2]]).double()
            for name in group
        }
        if context.agree(lambda *arrays, w=weights: context.pair.torch_function(w, *arrays)):
            what = "bias" if last in ("bias", "beta") else last
            yield Diagnosis(
                f"{what} dropped",
                f"{' and '.join(group)} is missing in JAX; with {NEUTRAL[last]:g} in its place in torch the two agree.",
                f"Build the JAX module with {'use_bias=True' if what == 'bias' else 'a ' + what}, and load {group[0]}.",
            )
            return
