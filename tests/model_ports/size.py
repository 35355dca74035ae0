"""What a comparison of a large model takes: `python -m tests.model_ports.size [--width 768 --layers 12 --words 30522]`.

The model is an encoder of BERT's size with norms first, and its port to Flax NNX. Prints the seconds of this process
and of the clock, and the memory: of the two models, and the most beside them.
"""

from __future__ import annotations

import argparse
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

import parity


class Layer(nn.Module):
    """Attention by a fused projection, and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        a = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
        x = x + self.out(a.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """The torch model."""

    def __init__(self, width: int, layers: int, words: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Layer(width, width // 64) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class JaxLayer(nnx.Module):
    """The same in Flax."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, *, approximate: bool) -> None:
        self.heads, self.approximate = heads, approximate
        self.norm1, self.norm2 = (nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.qkv, self.out = nnx.Linear(width, 3 * width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = jnp.split(self.qkv(self.norm1(x)), 3, -1)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)
        scores = jnp.einsum("bqhc,bkhc->bhqk", q, k) / q.shape[-1] ** 0.5
        a = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores), v)
        x = x + self.out(a.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm2(x)), approximate=self.approximate))


class JaxEncoder(nnx.Module):
    """The port."""

    def __init__(self, width: int, layers: int, words: int, rngs: nnx.Rngs, *, approximate: bool) -> None:
        self.embed = nnx.Embed(words, width, rngs=rngs)
        self.layers = nnx.List(JaxLayer(width, width // 64, rngs, approximate=approximate) for _ in range(layers))
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def resident() -> float:
    """Return the memory that this process has now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Peak:
    """The most memory that the process has while it is open, looked at 20 times a second."""

    def __enter__(self) -> Peak:
        self.most, self._open = resident(), True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while self._open:
            self.most = max(self.most, resident())
            time.sleep(0.05)

    def __exit__(self, *_: Any) -> None:
        self._open = False
        self._thread.join()


def main(arguments: list[str] | None = None) -> int:
    """Compare, and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m tests.model_ports.size", description=__doc__)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--words", type=int, default=30522)
    parser.add_argument("--shape", type=int, nargs=2, default=(2, 64), help="examples and words")
    parser.add_argument("--fault", action="store_true", help="GELU is approximated in the port")
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = Encoder(asked.width, asked.layers, asked.words)
    port = JaxEncoder(asked.width, asked.layers, asked.words, nnx.Rngs(0), approximate=asked.fault)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    ids = np.random.default_rng(0).integers(0, asked.words, asked.shape)
    millions = sum(value.numel() for value in model.parameters()) / 1e6
    size = 2 * 4 * millions * 1e6 / 2**20
    before, cpu, clock = resident(), time.process_time(), time.perf_counter()
    with Peak() as peak:
        report = parity.compare_models(model, port, (ids,))
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    print(str(report).splitlines()[0])
    print(f"{len(report.gradients)} gradients, {sum(one.verdict == 'differs' for one in report.gradients)} differ")
    beside = peak.most - before
    print(f"{millions:.0f} M parameters, {torch.get_num_threads()} threads: {cpu:.0f} s of the process, {clock:.0f} s")
    each = size / 2
    print(f"{beside:.0f} MiB beside both models, {each:.0f} MiB each in float32: {beside / each:.1f} times one of them")
    return int(report.ok == asked.fault)


if __name__ == "__main__":
    sys.exit(main())
