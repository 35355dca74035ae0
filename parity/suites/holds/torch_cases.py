"""Masked layers of torch, held, under each optimizer and each of its implementations, and in CUDA graphs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import maskedlinear_torch as mt
from maskedlinear_core.masks import Mask
from parity.suites.holds.cases import DECAY, IN, OUT, STEPS, Case, Hold, data, judge, masks

TORCH: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": DECAY},
    "AdamW": {"lr": 1e-2, "weight_decay": DECAY},
    "Adam": {"lr": 1e-2, "weight_decay": DECAY, "amsgrad": True},
    "NAdam": {"lr": 1e-2, "weight_decay": DECAY},
    "RMSprop": {"lr": 1e-2, "weight_decay": DECAY, "momentum": 0.9},
    "Adagrad": {"lr": 1e-2, "weight_decay": DECAY},
    "Adadelta": {"weight_decay": DECAY},
    "Muon": {"lr": 1e-2, "weight_decay": DECAY},
}
"""Optimizers of torch, each with a decay that moves frozen entries where nothing holds them."""
IMPLEMENTATIONS: tuple[dict[str, bool], ...] = (
    {}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"capturable": True},
)  # fmt: skip


def cases(device: str, hold: Hold = mt.hold_frozen) -> Iterator[tuple[str, Case]]:
    """Yield the cases by name: optimizers in each of their implementations, and of both types of weights.

    Args:
        device: "cpu" or "cuda".
        hold: Takes an optimizer and a model.
    """
    x, y = (torch.from_numpy(one).to(device) for one in data())

    def layer(mask: Mask, dtype: Any) -> Any:
        return mt.MaskedLinear(IN, OUT, bias=False, grad_mask=mask, seed=0).to(device, dtype)

    def numbers(weight: Any) -> np.ndarray:
        return weight.detach().float().cpu().numpy().copy()

    def trained(mask: Mask, name: str, more: dict[str, bool], dtype: Any, cast: Any = None) -> None:
        one = layer(mask, dtype)
        before = numbers(one.weight)
        optimizer = getattr(torch.optim, name)(list(one.parameters()), **TORCH[name], **more)
        hold(optimizer, one)
        scaler = torch.amp.GradScaler(device, enabled=cast is torch.float16)
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast(device, dtype=cast, enabled=cast is not None):
                loss = (one(x.to(dtype)).float() - y).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        judge(before, numbers(one.weight), mask)

    def graphed(mask: Mask, *, packed: bool) -> None:
        one = layer(mask, torch.float32)
        before = numbers(one.weight)
        model = mt.PackedLinear.from_linear(one, grad_mask=mask) if packed else one
        learn = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(learn, lr=1e-2, weight_decay=0.0 if packed else 0.1, capturable=True)
        if not packed:
            hold(optimizer, model)

        def step() -> Any:
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # the fourth step, the captured one, is one that would ask for drifts
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad()
        with torch.cuda.graph(graph):
            loss = step()
        graph.replay()
        first = float(loss.detach())
        for _ in range(20):
            graph.replay()
        assert float(loss.detach()) < first, "the replays do not learn"
        judge(before, numbers(model.weight), mask)

    for name, more, (kind, mask) in itertools.product(TORCH, IMPLEMENTATIONS, masks().items()):
        try:
            getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(2, 2, device=device))], **more)
        except (TypeError, RuntimeError):
            continue  # it has no such implementation here
        if "capturable" in more and device == "cpu":
            continue
        if name == "Adagrad" and "fused" in more and device == "cuda":
            continue  # torch has it on CPUs alone, and says so in the step
        how = next(iter(f"{key}={value}" for key, value in more.items()), "by default")
        yield f"{name}, {how}, {kind}", lambda a=(mask, name, more, torch.float32): trained(*a)  # type: ignore[misc]
    for (kind, mask), dtype in itertools.product(masks().items(), (torch.bfloat16, torch.float16)):
        yield f"autocast {dtype}, {kind}", lambda a=(mask, "AdamW", {}, torch.float32, dtype): trained(*a)  # type: ignore[misc]
    for kind, mask in masks().items():
        yield f"weights of bfloat16, {kind}", lambda a=(mask, "AdamW", {}, torch.bfloat16): trained(*a)  # type: ignore[misc]
        if device == "cuda":
            yield f"a CUDA graph of a held step, {kind}", lambda mask=mask: graphed(mask, packed=False)  # type: ignore[misc]
            yield f"a CUDA graph of a packed step, {kind}", lambda mask=mask: graphed(mask, packed=True)  # type: ignore[misc]
