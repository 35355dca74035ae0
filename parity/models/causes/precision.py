"""Arithmetic in a lower type on one side: casts on the way, and weights that were rounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from parity.explanation import proof
from parity.models.causes.context import Context
from parity.models.causes.naming import FIXES, named
from parity.records import Diagnosis

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield a proved lower type: in float64 throughout, with the same rounded weights, the two agree."""
    at = context.bench
    if at is None:
        return
    found = proof.lower_type(at)
    if found is not None:
        yield named(found)
        return
    held = [
        (str(one.dtype), _multiset(one)) for one in getattr(at.programs["jax"], "held", ()) if str(one.dtype) in TYPES
    ]
    if not held:
        yield from _stored(context)
        return
    weights = {}
    for name, value in context.pair.torch_weights.items():
        for dtype, numbers in held:
            lower = torch.from_numpy(np.array(value, np.float32)).to(TYPES[dtype]).double()
            if _multiset(lower.numpy()) == numbers:
                weights[name] = lower
    dtypes = " and ".join(sorted({dtype for dtype, _ in held}))
    if weights and context.agree(lambda *arrays: context.pair.torch_function(weights, *arrays)):
        yield Diagnosis(
            "lower precision",
            f"JAX computes in {dtypes} here ({', '.join(list(weights)[:4])}); with these rounded to it in torch "
            "the two agree in float64.",
            FIXES["lower precision"],
        )


def _stored(context: Context) -> Iterator[Diagnosis]:
    """Yield weights that JAX keeps in 16 bits (param_dtype): torch's, rounded to that, give the same."""
    kept = {_multiset(one) for one in context.pair.jax_state if one.dtype.kind == "f"}
    for dtype, lower in TYPES.items():
        weights = {}
        for name, value in context.pair.torch_weights.items():
            if value.dtype.kind == "f" and value.size:
                rounded = torch.from_numpy(np.array(value, np.float32)).to(lower).double()
                if _multiset(rounded.numpy()) in kept and not np.array_equal(rounded.numpy(), value):
                    weights[name] = rounded
        if weights and context.agree(lambda *arrays, w=weights: context.pair.torch_function(w, *arrays)):
            yield Diagnosis(
                "lower precision",
                f"JAX keeps {', '.join(list(weights)[:4])} in {dtype}, torch in more; with these rounded to it in "
                "torch the two agree in float64.",
                "Keep the weights of both in one type: param_dtype of Flax's layers, model.to(dtype) in torch.",
            )
            return


def _multiset(values: Any) -> bytes:
    return np.sort(np.asarray(values, np.float32).ravel()).tobytes()
