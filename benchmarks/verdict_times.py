"""`python -m benchmarks.verdict_times`: how long `parity.compare` takes, beside the script that people write instead.

Each figure is of a process of its own, timed from when the frameworks (with torch's compiler) are loaded: the first
verdict, the whole of `compare`, and a second one in the same process. The script runs both functions once and prints
the largest difference; what is compared are the two whole commands, imports included: that of `compare` is one more
process, which loads nothing ahead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """A pair of functions and what its verdict may cost.

    Args:
        make: Gives the torch function, the JAX function and the inputs.
        first: Seconds that the first `compare` of a process may take.
        later: Seconds of a second one, or None where none is asked.
        ratio: What the whole command may take beside the script's, or None.
        options: Of `compare`.
    """

    make: Callable[[], tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]]
    first: float
    later: float | None = None
    ratio: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


FIRST_VERDICT = 1.5
"""Seconds until the first verdict may be on screen."""


def _drawn(*shapes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(0)
    return tuple(draw.standard_normal(shape).astype(np.float32) for shape in shapes)


def _silu() -> Any:
    import jax
    import torch

    return torch.nn.functional.silu, jax.nn.silu, _drawn((8,))


def _layer_norm() -> Any:
    import jax.numpy as jnp
    import torch

    def normalised(sqrt: Callable[..., Any]) -> Callable[..., Any]:
        def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
            centred = x - x.mean(-1)[..., None]
            return centred / sqrt((centred**2).mean(-1)[..., None] + 1e-5) * weight + bias

        return layer_norm

    return normalised(torch.sqrt), normalised(jnp.sqrt), _drawn((4, 16), (16,), (16,))


def _mlp() -> Any:
    import jax
    import torch

    return (
        lambda x, up, down: torch.nn.functional.gelu(x @ up) @ down,
        lambda x, up, down: jax.nn.gelu(x @ up, approximate=False) @ down,
        _drawn((4, 8), (8, 16), (16, 8)),
    )


def _product() -> Any:
    import jax.numpy as jnp
    import torch

    return torch.matmul, jnp.matmul, _drawn((1024, 1024), (1024, 1024))


ROWS = {
    "silu": Row(_silu, first=5, later=3, ratio=6),
    "layer norm by hand": Row(_layer_norm, first=8),
    "perceptron with gelu": Row(_mlp, first=15, ratio=6),
    "matmul 1024 x 1024, forward, eager": Row(
        _product, first=3, options={"transforms": ["forward"], "worlds": ["jax-eager"]}
    ),
}


def _once(row: Row) -> dict[str, float]:
    """Compare as a command does that does nothing else."""
    import parity

    report = parity.compare(*row.make(), **row.options)
    return {"ok": float(report.ok)}


def _compared(row: Row) -> dict[str, float]:
    import jax.numpy as jnp
    import torch

    import parity

    jnp.zeros(1).block_until_ready()  # starts the backend
    torch.compile(torch.neg)(torch.zeros(1))  # loads the compiler
    found: dict[str, float] = {}
    for name in ("first", "later"):
        torch_fn, jax_fn, inputs = row.make()
        seen: list[float] = []
        began = time.perf_counter()

        def noted(_: Any, seen: list[float] = seen) -> None:
            seen.append(time.perf_counter())

        report = parity.compare(torch_fn, jax_fn, inputs, progress=noted, **row.options)
        found[name] = time.perf_counter() - began
        found.setdefault("verdict", seen[0] - began)
        if not report.ok:
            raise SystemExit(f"the two should be the same function, and are called: {report}")
    return found


def _written_by_hand(row: Row) -> dict[str, float]:
    import torch

    torch_fn, jax_fn, inputs = row.make()
    there = torch_fn(*map(torch.from_numpy, inputs)).numpy()
    return {"difference": float(abs(there - np.asarray(jax_fn(*inputs))).max())}


ONE = {"parity": _compared, "once": _once, "hand": _written_by_hand}
"""What a process of its own may do with a pair."""


def _in_a_process(name: str, what: str) -> tuple[dict[str, float], float]:
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "benchmarks.verdict_times",
        "--only",
        name,
        "--one",
        what,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - began


def main(arguments: Sequence[str]) -> int:
    """Print a line for each pair; the exit status is 1 if one takes longer than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict_times", description=__doc__)
    parser.add_argument("--only", action="append", choices=ROWS, help="repeatable; default: all")
    parser.add_argument("--one", choices=ONE, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        row = ROWS[given.only[0]]
        print(json.dumps(ONE[given.one](row)))
        return 0
    missed = 0
    for name in given.only or ROWS:
        row = ROWS[name]
        times, _ = _in_a_process(name, "parity")
        _, whole = _in_a_process(name, "once")
        _, by_hand = _in_a_process(name, "hand")
        ratio = whole / by_hand
        asked = [
            ("first verdict", times["verdict"], FIRST_VERDICT), ("whole", times["first"], row.first),
            ("whole, later", times["later"], row.later), ("beside the script", ratio, row.ratio),
        ]  # fmt: skip
        said = [
            f"{what} {value:.2f}" + ("" if limit is None else f" (at most {limit:g}{', missed' * (value > limit)})")
            for what, value, limit in asked
        ]
        missed += sum(limit is not None and value > limit for _, value, limit in asked)
        print(f"{name}: {'; '.join(said)}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
