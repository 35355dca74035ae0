"""What the reproducible precision gains and costs: its error beside that of native products, and its time.

Errors are in units in the last place of the exact result, which is worked out from exact products (a product of
two float32 is a float64) by an exactly rounded sum (`math.fsum`). Times are of forward and backward, as ratios to
the framework's own float32 layer, taken round by round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from maskedlinear_core import columns, elements
from parity.suites.masked_linear import numbers
from parity.suites.masked_linear.grid import world_of

TERMS, ROWS = 1024, 48
KINDS = ("normal", "uniform", "same sign", "exponents 6", "exponents 20", "heavy tails", "large features", "outliers",
         "cancelling", "outlier against zero")  # fmt: skip
MORE_BITS = 43
SHAPE, QUICK_SHAPE = (4096, 2048, 2048), (512, 512, 512)
ROUNDS = 7


def errors(seed: int = 0) -> dict[str, dict[str, float]]:
    """Return mean errors in ulp, by kind of data and by how the product was computed.

    Args:
        seed: Seed of the numbers.
    """
    found = {}
    for kind in KINDS:
        x, w = _data(kind, seed)
        exact = np.array([[math.fsum(a.astype(np.float64) * b) for b in w] for a in x])
        ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
        products = {
            "torch": world_of("torch").product(x, w, "native"),
            "JAX": world_of("jax").product(x, w, "native"),
            "reproducible": world_of("torch").product(x, w, "reproducible"),
            f"bits={MORE_BITS}": world_of("torch").product(x, w, "reproducible", MORE_BITS),
        }
        found[kind] = {name: float(np.mean(np.abs(y - exact) / ulp)) for name, y in products.items()}
    return found


def _data(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(seed))
    special = kind == "outlier against zero"
    x, w = (numbers.KINDS["normal" if special else kind](rng, (ROWS, TERMS)) for _ in range(2))
    if special:  # an outlier of x that reaches no output
        x[:, 0], w[:, 0] = 2.0**14, 0.0
    return x.astype(np.float32), w.astype(np.float32)


def times(
    shape: tuple[int, int, int], rounds: int = ROUNDS, progress: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Return times of forward and backward of the reproducible layer over the framework's plain one.

    Args:
        shape: Batch, out_features, in_features.
        rounds: Every layer is timed once a round; a ratio is the median over the rounds.
        progress: Called after each round of each framework.
    """
    _, out_features, in_features = shape
    masks = {
        "all": columns(slice(None)),
        "columns, 1 in 10": columns(range(0, in_features, 10)),
        "elements, 1 in 10": elements(np.random.default_rng(0).random((out_features, in_features)) < 0.1),
    }
    found = []
    for framework, worlds in (("torch", ("eager", "compiled")), ("jax", ("jit",))):
        world = world_of(framework)
        plain = world.step(shape, None, "native", "eager" if framework == "torch" else "jit")
        layers = {
            (how, name): world.step(shape, mask, "reproducible", how) for how in worlds for name, mask in masks.items()
        }
        for run in (plain, *layers.values()):
            run()
        ratios: dict[Any, list[float]] = {key: [] for key in layers}
        seconds = []
        for _ in range(rounds):
            seconds.append(_time(plain))
            for key, run in layers.items():
                ratios[key].append(_time(run) / seconds[-1])
            progress()
        for (how, name), values in ratios.items():
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            found.append({
                "world": f"{framework} {how}", "mask": name, "ratio": float(middle),
                "quartiles": [float(low), float(high)],
                "plain seconds": float(np.median(seconds)),
            })  # fmt: skip
        products = world.two_products(shape)
        products()
        low, middle, high = np.quantile([_time(products) / _time(plain) for _ in range(rounds)], [0.25, 0.5, 0.75])
        found.append({
            "world": framework, "mask": "two float64 products each, alone", "ratio": float(middle),
            "quartiles": [float(low), float(high)], "plain seconds": float(np.median(seconds)),
        })  # fmt: skip
    return found


def _time(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def show(seen: dict[str, Any], console: Console) -> None:
    """Print both tables."""
    table = Table(title=f"mean error in ulp, sums of {TERMS} terms", title_justify="left")
    names = next(iter(seen["errors"].values()))
    for column in ("data", *names):
        table.add_column(column, justify="left" if column == "data" else "right")
    for kind, row in seen["errors"].items():
        table.add_row(kind, *(f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in row.values()))
    console.print(table)
    table = Table(title=f"forward and backward over the plain float32 layer, {seen['shape']}", title_justify="left")
    for column in ("world", "mask", "ratio", "quartiles"):
        table.add_column(column, justify="left" if column in ("world", "mask") else "right")
    for row in seen["times"]:
        low, high = row["quartiles"]
        table.add_row(row["world"], row["mask"], f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}")
    console.print(table)
