"""`python -m benchmarks.held_steps`: a training step of a whole model, held by `hold_frozen` and not, side by side.

A stack of two-layer perceptrons with residuals, of 10.6 million numbers at the usual size, batch 512. Each round
times one step of both models, in turn the one first and the other; the figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import maskedlinear_torch as mt

SHARE, BLOCK = 0.1, 32
KINDS = ("columns", "rows", "blocks", "elements")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-4),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, weight_decay=0.01),
    "Muon": lambda p: torch.optim.Muon([one for one in p if one.dim() == 2], lr=1e-4),
}
LIMIT = 1.05


class Perceptron(nn.Module):
    """x + W2 gelu(W1 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like x."""
        return x + self.down(nn.functional.gelu(self.up(x)))


def mask_of(kind: str, shape: tuple[int, int]) -> Any:
    """Return a mask of one in ten positions, evenly spread or drawn."""
    every = round(1 / SHARE)
    if kind == "columns":
        return mt.columns(range(0, shape[1], every))
    if kind == "rows":
        return mt.rows(range(0, shape[0], every))
    draw = torch.Generator().manual_seed(0)
    if kind == "blocks":
        return mt.blocks(torch.rand(shape[0] // BLOCK, shape[1] // BLOCK, generator=draw) < SHARE, (BLOCK, BLOCK))
    return mt.elements(torch.rand(shape, generator=draw) < SHARE)


def model_of(kind: str, width: int, depth: int) -> nn.Module:
    """Return a model whose linear layers all have a mask of that kind."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Perceptron(width) for _ in range(depth)])
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            mt.mask_linears(model, {name: mask_of(kind, (layer.out_features, layer.in_features))})
    return model


def measure(kind: str, optimizer: str, *, width: int, depth: int, batch: int, rounds: int) -> dict[str, Any]:
    """Time held and unheld steps in turn.

    Returns:
        `numbers` of the model; `unheld` and `held`, the medians of the seconds of a step; `ratio`, the median of the
        rounds' ratios; `low` and `high`, the quarter and three quarters of them.
    """
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(1))
    sides = []
    for held in (False, True):
        model = model_of(kind, width, depth)
        stepper = OPTIMIZERS[optimizer](model.parameters())
        if held:
            mt.hold_frozen(stepper, model)
        sides.append((model, stepper))
    seconds: list[list[float]] = [[], []]
    for number in range(rounds + 2):
        for side in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter()
            _step(*sides[side], x)
            if number > 1:  # the first steps make the optimizers' states
                seconds[side].append(time.perf_counter() - begun)
    ratios = sorted(held / unheld for unheld, held in zip(*seconds, strict=True))
    return {
        "kind": kind, "optimizer": optimizer, "numbers": sum(p.numel() for p in sides[0][0].parameters()),
        "unheld": statistics.median(seconds[0]), "held": statistics.median(seconds[1]),
        "ratio": statistics.median(ratios), "low": ratios[len(ratios) // 4], "high": ratios[3 * len(ratios) // 4],
    }  # fmt: skip


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def main(arguments: Sequence[str]) -> int:
    """Print a line for each kind and optimizer; the exit status is 1 if one is above the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.held_steps", description=__doc__)
    parser.add_argument("--kind", action="append", choices=KINDS, help="repeatable; default: all")
    parser.add_argument("--optimizer", action="append", choices=OPTIMIZERS, help="repeatable; default: all but Muon")
    for name, value in (("width", 384), ("depth", 9), ("batch", 512), ("rounds", 40)):
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    given = parser.parse_args(arguments)
    sizes = {name: getattr(given, name) for name in ("width", "depth", "batch", "rounds")}
    worst = 0.0
    for optimizer in given.optimizer or [name for name in OPTIMIZERS if name != "Muon"]:
        for kind in given.kind or KINDS:
            row = measure(kind, optimizer, **sizes)
            worst = max(worst, row["ratio"])
            print(
                f"{optimizer}, {kind}: {row['numbers'] / 1e6:.1f} M numbers, held {row['held'] * 1e3:.1f} ms, unheld"
                f" {row['unheld'] * 1e3:.1f} ms, ratio {row['ratio']:.3f} (half of the rounds {row['low']:.3f} to"
                f" {row['high']:.3f})"
            )
    print(f"worst ratio {worst:.3f}, limit {LIMIT}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
