"""What a call of ours costs the host beyond the plain layer's, in torch. Twin of jax_overhead.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import maskedlinear_torch as mt
from benchmarks import timing

SIDE = 8
"""A size at which products cost nothing, so that time is the host's."""
SAMPLE = 4e-3
SECONDS, QUICK_SECONDS = 12.0, 3.0
ROUNDS = (6, 51)
MASKS = {
    "columns": mt.columns([1, 3]),
    "rows": mt.rows([1, 3]),
    "submatrix": mt.submatrix([1, 3], [0, 5]),
    "blocks": mt.blocks(np.eye(4, dtype=bool), (2, 2)),
    "elements": mt.elements(np.eye(SIDE, dtype=bool)),
}
TARGETS = {"forward": 15.0, "backward": 30.0}
"""Microseconds."""


def measure(device: str, quick: bool) -> list[dict[str, Any]]:
    """Return microseconds beyond `F.linear` in forward, and in backward alone, for each kind and form.

    The modules are compared with `nn.Linear`, the function with `F.linear`. A backward's time is that of
    forward and backward less that of the forward in the same round.

    Args:
        device: "cpu" or "cuda".
        quick: Measure shortly.
    """
    x, w, g = (torch.ones(SIDE, SIDE, device=device) for _ in range(3))
    b = torch.ones(SIDE, device=device)
    leaves = [x.requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    linear = torch.nn.Linear(SIDE, SIDE, device=device)
    layers: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
        "module": (partial(linear, x), [x, *linear.parameters()]),
        "function": (partial(F.linear, x, w, b), leaves),
    }
    for kind, mask in MASKS.items():
        for form, cls in (("masked", mt.MaskedLinear), ("packed", mt.PackedLinear)):
            layer = cls.from_linear(torch.nn.Linear(SIDE, SIDE, device=device), grad_mask=mask)
            learned = [one for one in layer.parameters() if one.requires_grad]
            layers[f"{kind}/{form}"] = partial(layer, x), [x, *learned]
        layers[f"{kind}/function"] = partial(mt.masked_linear, x, w, b, grad_mask=mask), leaves
    programs: dict[str, Callable[[], object]] = {}
    for name, (forward, inputs) in layers.items():
        programs[f"{name} forward"] = forward
        programs[f"{name} both"] = partial(_both, forward, inputs, g)
    samples = timing.interleave(
        programs, seconds=QUICK_SECONDS if quick else SECONDS, rounds=ROUNDS, least=SAMPLE
    )  # fmt: skip
    micros = {name: 1e6 * np.array(times) for name, times in samples.items()}
    found = []
    for name in layers:
        if "/" not in name:
            continue
        plain = "function" if name.endswith("/function") else "module"
        there = micros[f"{name} forward"] - micros[f"{plain} forward"]
        back = micros[f"{name} both"] - micros[f"{plain} both"] - there
        for what, values in (("forward", there), ("backward", back)):
            value = timing.median(list(values))
            found.append({
                "id": f"torch/host overhead/{name}/{what}", "target": f"host overhead, {what}, microseconds",
                "value": [value.median, value.low, value.high], "at most": TARGETS[what],
            })  # fmt: skip
    return found


def _both(forward: Callable[[], Tensor], inputs: list[Tensor], g: Tensor) -> None:
    torch.autograd.grad(forward(), inputs, g)
