"""Ports whose modules wrap modules that they are given, and stacks whose layers one module holds in lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import linen
from torch import nn

from tests.model_ports.fault import Fault, Port
from tests.model_ports.strangers.loading import floats, loaded, seeded

WIDTH, HEADS = 16, 2


class TorchNormed(nn.Module):
    """A layer with a norm before it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(WIDTH), layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(self.norm(x))


class TorchAttention(nn.Module):
    """Attention by one fused projection, whose heads are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.mixed_weights = nn.Parameter(torch.randn(HEADS, HEADS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, -1))
        a = torch.softmax(q @ k.mT * (WIDTH // HEADS) ** -0.5, -1)
        a = torch.einsum("bhij,hg->bgij", a, self.mixed_weights)
        return self.to_out((a @ v).transpose(1, 2).flatten(2))


class TorchWrapped(nn.Module):
    """Two blocks of wrapped layers, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleList([
                TorchNormed(TorchAttention()),
                TorchNormed(nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))),
            ])
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for attention, mlp in self.blocks:
            x = attention(x) + x
            x = mlp(x) + x
        return self.head(x.mean(1))


class Residual(linen.Module):
    """What a layer returns and what went in."""

    fn: Callable[..., Any]

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fn(x) + x


class Normed(linen.Module):
    """A layer with a norm before it."""

    fn: Callable[..., Any]
    epsilon: float = 1e-5

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fn(linen.LayerNorm(epsilon=self.epsilon)(x))


class Attention(linen.Module):
    """The attention, with names that Linen counted."""

    scale: float = (WIDTH // HEADS) ** -0.5
    turned: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mixed = self.param("mixed_weights", linen.initializers.normal(), (HEADS, HEADS))
        parts = jnp.split(linen.Dense(3 * WIDTH, use_bias=False)(x), 3, -1)
        q, k, v = (part.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3) for part in parts)
        a = linen.softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.scale)
        a = jnp.einsum("bhij,gh->bgij" if self.turned else "bhij,hg->bgij", a, mixed)
        out = jnp.einsum("bhij,bhjd->bhid", a, v).transpose(0, 2, 1, 3)
        return linen.Dense(WIDTH)(out.reshape(x.shape))


class Mlp(linen.Module):
    """The MLP."""

    approximate: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.gelu(linen.Dense(24)(x), approximate=self.approximate)
        return linen.Dense(WIDTH)(x)


class Wrapped(linen.Module):
    """The port: modules are made first and handed to what wraps them."""

    epsilon: float = 1e-5
    approximate: bool = False
    scale: float = (WIDTH // HEADS) ** -0.5
    turned: bool = False
    pool: str = "mean"

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        head = linen.Sequential([linen.LayerNorm(epsilon=1e-5), linen.Dense(5)])
        x = linen.Dense(WIDTH)(x)
        blocks = [
            (Residual(Normed(Attention(self.scale, self.turned), self.epsilon)),
             Residual(Normed(Mlp(self.approximate), self.epsilon)))
            for _ in range(2)
        ]  # fmt: skip
        for attention, mlp in blocks:
            x = mlp(attention(x))
        return head(x.mean(1) if self.pool == "mean" else x[:, 0])


def wrapped(**options: Any) -> Any:
    """Return the port with its variables, sorted by name as a tree that was mapped is."""
    made = Wrapped(**options)
    variables = made.init(jax.random.key(0), jnp.ones((2, 5, 6)))
    return made, jax.tree.map(lambda leaf: leaf, variables)


class TorchWaves(nn.Module):
    """Dilated convolutions with gates, residuals and skips; all layers lie in lists of the model itself."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 1)
        self.gated = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2**k) for k in range(layers))
        self.residual = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(layers))
        self.skipped = nn.ModuleList(nn.Conv1d(8, 6, 1) for _ in range(layers))
        self.last = nn.Conv1d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.first(x), torch.zeros(())
        for k, (gated, residual, skipped) in enumerate(zip(self.gated, self.residual, self.skipped, strict=True)):
            a, b = gated(F.pad(x, (2**k, 0))).chunk(2, 1)
            h = torch.tanh(a) * torch.sigmoid(b)
            total = total + skipped(h)
            x = x + residual(h)
        return self.last(F.relu(total + 0.1 * x[:, :6]))


class Waves(linen.Module):
    """The port, of (examples, times, channels)."""

    residual: bool = True
    skips: bool = True
    exchanged: bool = False
    dilated: bool = True

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, total = linen.Conv(8, (1,), name="first")(x), 0.0
        for k in range(4):
            hole = 2**k if self.dilated else 1
            gate = linen.Conv(16, (2,), kernel_dilation=hole, padding="VALID", name=f"gated_{k}")
            a, b = jnp.split(gate(jnp.pad(x, ((0, 0), (hole, 0), (0, 0)))), 2, -1)
            a, b = (b, a) if self.exchanged else (a, b)
            h = jnp.tanh(a) * jax.nn.sigmoid(b)
            s = linen.Conv(6, (1,), name=f"skipped_{k}")(h)
            total = total + s if self.skips else s
            made = linen.Conv(8, (1,), name=f"residual_{k}")(h)
            x = x + made if self.residual else made
        return linen.Conv(4, (1,), name="last")(linen.relu(total + 0.1 * x[..., :6]))


def waves(**options: Any) -> Any:
    """Return the port with its variables."""
    made = Waves(**options)
    return made, made.init(jax.random.key(0), jnp.ones((2, 20, 3)))


def _signal(seed: int) -> Any:
    from parity.models import Inputs

    (x,) = floats(2, 3, 20)(seed)
    return Inputs(torch=(x,), jax=(x.transpose(0, 2, 1),))


PORTS = (
    Port("wrapped", seeded(TorchWrapped), loaded(wrapped), floats(2, 5, 6), (
        Fault("eps", {"epsilon": 1e-6}, r"blocks\.0\.0\.norm", "eps"),
        Fault("gelu by tanh", {"approximate": True}, r"blocks\.0\.1\.fn", "approximate"),
        Fault("no scale", {"scale": 1.0}, r"blocks\.0\.0\.fn", "scale"),
        Fault("heads mixed the other way", {"turned": True}, r"blocks\.0\.0\.fn", "transposed|axes|arrangement|order"),
        Fault("the first pooled", {"pool": "first"}, "", "pool"),
    )),
    Port("waves", seeded(TorchWaves), loaded(waves), _signal, (
        Fault("residuals left out", {"residual": False}, "", "residual|term"),
        Fault("skips left out", {"skips": False}, "", "residual|term"),
        Fault("gate and filter exchanged", {"exchanged": True}, "", "gate|exchanged|order|activation"),
        Fault("no holes", {"dilated": False}, r"(gated\.1)?", "dilation|hole"),
    )),
)  # fmt: skip
"""The ports with their faults."""
