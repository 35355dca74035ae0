"""`python -m benchmarks.held_steps`: a training step of a whole model, held by `hold_frozen` and not, side by side.

A stack of two-layer perceptrons with residuals, of 10.6 million numbers at the usual size, batch 512. Each round takes
the processor's seconds of one step of both models, in turn the one first and the other; the figure is the median of
the rounds' ratios. In JAX a step is one program, compiled, whose arguments are donated.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import Tensor, nn

import maskedlinear_jax as mj
import maskedlinear_torch as mt

SHARE, FEW, BLOCK = 0.1, 1 / 250, 32
KINDS = ("columns", "rows", "blocks", "elements", "few elements")
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-4, weight_decay=0.01),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-4),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=1e-4, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True),
    "Muon": lambda p: torch.optim.Muon([one for one in p if one.dim() == 2], lr=1e-4),
    "optax.sgd": lambda p: optax.sgd(1e-4),
    "optax.adamw": lambda p: optax.adamw(1e-4),
}
LIMIT = 1.05
Step = Callable[[], None]


class Perceptron(nn.Module):
    """x + W2 gelu(W1 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like x."""
        return x + self.down(nn.functional.gelu(self.up(x)))


def mask_of(kind: str, shape: tuple[int, int], api: Any = mt) -> Any:
    """Return a mask of one in ten positions (few elements: one in 250), evenly spread or drawn."""
    every = round(1 / SHARE)
    if kind == "columns":
        return api.columns(range(0, shape[1], every))
    if kind == "rows":
        return api.rows(range(0, shape[0], every))
    draw = np.random.default_rng(0)
    if kind == "blocks":
        return api.blocks(draw.random((shape[0] // BLOCK, shape[1] // BLOCK)) < SHARE, (BLOCK, BLOCK))
    return api.elements(draw.random(shape) < (FEW if kind == "few elements" else SHARE))


def torch_step(kind: str, optimizer: str, *, held: bool, width: int, depth: int, batch: int) -> tuple[int, Step]:
    """Return how many numbers a torch model has, all of whose linear layers have a mask, and a step of it."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Perceptron(width) for _ in range(depth)])
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            mt.mask_linears(model, {name: mask_of(kind, (layer.out_features, layer.in_features))})
    stepper = OPTIMIZERS[optimizer](model.parameters())
    if held:
        mt.hold_frozen(stepper, model)
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(1))

    def step() -> None:
        stepper.zero_grad()
        model(x).square().mean().backward()
        stepper.step()

    return sum(p.numel() for p in model.parameters()), step


def jax_step(kind: str, optimizer: str, *, held: bool, width: int, depth: int, batch: int) -> tuple[int, Step]:
    """Return the same of a JAX model."""

    def layer(inputs: int, outputs: int) -> mj.MaskedLinear:
        return mj.MaskedLinear(inputs, outputs, grad_mask=mask_of(kind, (outputs, inputs), mj), seed=0)

    model = [(layer(width, 4 * width), layer(4 * width, width)) for _ in range(depth)]
    params, rest = mj.partition(model)
    transform = OPTIMIZERS[optimizer](None)
    if held:
        transform = mj.hold_frozen(transform, model)
    kept = [params, transform.init(params)]
    x = jnp.asarray(np.random.default_rng(1).standard_normal((batch, width)), jnp.float32)

    def loss(params: Any) -> Any:
        y = x
        for up, down in mj.combine(params, rest):
            y = y + down(jax.nn.gelu(up(y)))
        return jnp.square(y).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def move(params: Any, state: Any) -> Any:
        updates, state = transform.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def step() -> None:
        kept[:] = jax.block_until_ready(move(*kept))

    return sum(leaf.size for leaf in jax.tree.leaves(params)), step


def measure(kind: str, optimizer: str, *, rounds: int, **sizes: int) -> dict[str, Any]:
    """Take the processor's time of held and unheld steps in turn.

    Returns:
        `numbers` of the model; `unheld` and `held`, the medians of the seconds of a step; `ratio`, the median of the
        rounds' ratios; `low` and `high`, the quarter and three quarters of them.
    """
    make = jax_step if optimizer.startswith("optax") else torch_step
    (numbers, unheld), (_, held) = (make(kind, optimizer, held=held, **sizes) for held in (False, True))
    seconds: list[list[float]] = [[], []]
    for number in range(rounds + 2):
        for side in (0, 1) if number % 2 else (1, 0):
            begun = time.process_time()
            (held if side else unheld)()
            if number > 1:  # the first steps make the optimizers' states
                seconds[side].append(time.process_time() - begun)
    ratios = sorted(held / unheld for unheld, held in zip(*seconds, strict=True))
    return {
        "kind": kind, "optimizer": optimizer, "numbers": numbers,
        "unheld": statistics.median(seconds[0]), "held": statistics.median(seconds[1]),
        "ratio": statistics.median(ratios), "low": ratios[len(ratios) // 4], "high": ratios[3 * len(ratios) // 4],
    }  # fmt: skip


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
