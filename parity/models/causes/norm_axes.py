"""A layer norm over other axes: over the last where torch has the last two, or over all of an example."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Operation
from parity.explanation.substitution import Change
from parity.models.causes.context import Context
from parity.records import Diagnosis

NAME = "native_layer_norm"
FIX = "Normalize over the same axes: normalized_shape in torch, reduction_axes in Flax, shape in Equinox."


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield other axes that are proved: of all norms of a module, or of one."""
    at = context.bench
    steps = [step for step in at.programs["torch"].steps if step.name == NAME] if at is not None else []
    groups = [steps, *([step] for step in steps if len(steps) > 1)] if steps else []
    claims: list[Claim] = []
    for group in groups:
        o = group[0].operands
        rank = len(o["input"].shape)
        own = tuple(range(rank - len(o["normalized_shape"]), rank))
        for axes in (a for count in range(1, rank) for a in itertools.combinations(range(1, rank), count) if a != own):
            change = Change("torch", {step.key: partial(_over, axes=axes) for step in group})
            claims.append(
                Claim(
                    change, "normalization axes", f"a norm over the axes {_said(own)}", f"one over {_said(axes)}", FIX
                )
            )
    if (found := context.first(claims)) is not None:
        yield found


def _said(axes: tuple[int, ...]) -> str:
    return " and ".join(map(str, axes))


def _over(operation: Operation, axes: tuple[int, ...]) -> Any:
    import torch

    o = operation.operands
    result, x = operation.compute(o), o["input"]
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    made = (x - mean) * torch.rsqrt(variance + o["eps"])
    made = made if o.get("weight") is None else made * o["weight"]
    return (made if o.get("bias") is None else made + o["bias"], *result[1:])
