"""A decoder as Llama and Qwen have it, in torch, and its port to Flax NNX with switches for what may be wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

WORDS, WIDTH, HEADS, GROUPS, CHANNELS, HIDDEN, LAYERS = 37, 32, 4, 2, 8, 48, 2


class RMSNorm(nn.Module):
    """RMS norm with a scale."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def turned(x: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    """Rotate queries or keys (batch, head, time, channel) by their positions."""
    half = x.shape[-1] // 2
    turn = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * base ** (-torch.arange(half, dtype=x.dtype) / half)
    c, s = turn.cos(), turn.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


class Attention(nn.Module):
    """Causal attention with rotary positions and fewer heads of keys than of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * CHANNELS)
        self.k_proj = nn.Linear(WIDTH, GROUPS * CHANNELS)
        self.v_proj = nn.Linear(WIDTH, GROUPS * CHANNELS)
        self.o_proj = nn.Linear(HEADS * CHANNELS, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            one.unflatten(-1, (-1, CHANNELS)).transpose(1, 2)
            for one in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        k, v = (one.repeat_interleave(HEADS // GROUPS, 1) for one in (turned(k), v))
        scores = turned(q) @ k.mT / CHANNELS**0.5
        n = x.shape[1]
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -1e9)
        return self.o_proj((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up_proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down_proj = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A layer with norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(WIDTH), Attention()
        self.mlp_norm, self.mlp = RMSNorm(WIDTH), MLP()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """The model: token ids (batch, time) to logits (batch, time, word)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def torch_model(seed: int) -> Decoder:
    """Return the model of a seed."""
    torch.manual_seed(seed)
    return Decoder().eval()


def inputs(seed: int) -> tuple[np.ndarray, ...]:
    """Return token ids."""
    return (np.random.default_rng(seed).integers(0, WORDS, (2, 7)),)


@dataclass(frozen=True)
class Options:
    """What the port is built with; the defaults are right, and each says what others would do."""

    eps: float = 1e-6
    last_eps: float = 1e-6
    unit_offset: bool = False  # multiply by 1 + weight, as Gemma does
    base: float = 10000.0
    neighbours: bool = False  # rotate pairs of neighbours
    query_offset: int = 0  # positions of queries begin there
    scale: float = CHANNELS**-0.5
    strict: bool = False  # a word does not see itself
    mask: bool = True
    fill: float = -1e9
    tiled: bool = False  # heads of keys repeated as a whole
    activation: Any = jax.nn.silu
    swapped_gate: bool = False
    residual: bool = True
    post_norm: bool = False
    embed_scale: float = 1.0
    query_bias: bool = True
    dtype: Any = None  # of the products in the MLP
    dropout: float = 0.0
    shared: bool = False  # the first layer twice
    untied: bool = False  # a head with weights of its own
    transposed: bool = False  # the query's square matrix
    exchanged: bool = False  # k and v
    heads: bool = False  # o_proj's inputs ordered (channel, head)


class PortNorm(nnx.Module):
    """RMS norm of the port."""

    def __init__(self, eps: float, offset: bool) -> None:
        self.scale = nnx.Param(jnp.ones(WIDTH))
        self.eps, self.offset = eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = 1 + self.scale[...] if self.offset else self.scale[...]
        return scale * (x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.eps))


def rope(x: jax.Array, base: float, neighbours: bool, offset: int = 0) -> jax.Array:
    """Rotate queries or keys (batch, time, head, channel) by their positions."""
    half = x.shape[-1] // 2
    positions = jnp.arange(x.shape[1], dtype=x.dtype) + offset
    turn = positions[:, None, None] * base ** (-jnp.arange(half, dtype=x.dtype) / half)
    c, s = jnp.cos(turn), jnp.sin(turn)
    if neighbours:
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * c - b * s, b * c + a * s], -1).reshape(x.shape)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * c - b * s, b * c + a * s], -1)


class PortAttention(nnx.Module):
    """Attention of the port."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        self.options = options
        self.q_proj = nnx.Linear(WIDTH, HEADS * CHANNELS, use_bias=options.query_bias, rngs=rngs)
        self.k_proj = nnx.Linear(WIDTH, GROUPS * CHANNELS, rngs=rngs)
        self.v_proj = nnx.Linear(WIDTH, GROUPS * CHANNELS, rngs=rngs)
        self.o_proj = nnx.Linear(HEADS * CHANNELS, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        o, (batch, n, _) = self.options, x.shape
        q, k, v = (one.reshape(batch, n, -1, CHANNELS) for one in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        q, k = rope(q, o.base, o.neighbours, o.query_offset), rope(k, o.base, o.neighbours)
        repeat = (
            (lambda a: jnp.tile(a, (1, 1, HEADS // GROUPS, 1)))
            if o.tiled
            else (lambda a: jnp.repeat(a, HEADS // GROUPS, 2))
        )
        scores = jnp.einsum("bqhc,bkhc->bhqk", q, repeat(k)) * o.scale
        if o.mask:
            seen = jnp.tril(jnp.ones((n, n), bool), -1 if o.strict else 0)
            scores = jnp.where(seen, scores, o.fill)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores, -1), repeat(v))
        return self.o_proj(mixed.reshape(batch, n, -1))


class PortMLP(nnx.Module):
    """SwiGLU of the port."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        self.options = options
        more = {"use_bias": False, "dtype": options.dtype, "rngs": rngs}
        self.gate_proj = nnx.Linear(WIDTH, HIDDEN, **more)
        self.up_proj = nnx.Linear(WIDTH, HIDDEN, **more)
        self.down_proj = nnx.Linear(HIDDEN, WIDTH, **more)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.options.swapped_gate:
            gate, up = up, gate
        return self.down_proj(self.options.activation(gate) * up)


class PortLayer(nnx.Module):
    """A layer of the port."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        self.options = options
        self.attn_norm, self.attn = PortNorm(options.eps, options.unit_offset), PortAttention(options, rngs)
        self.mlp_norm, self.mlp = PortNorm(options.eps, options.unit_offset), PortMLP(options, rngs)
        self.dropout = nnx.Dropout(options.dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.options.post_norm:
            x = self.attn_norm(x + self.attn(x))
            return self.mlp_norm(x + self.mlp(x))
        attended = self.dropout(self.attn(self.attn_norm(x)), deterministic=not self.options.dropout)
        x = x + attended if self.options.residual else attended
        return x + self.mlp(self.mlp_norm(x))


class PortDecoder(nnx.Module):
    """The port."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        self.options = options
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.layers = nnx.List([PortLayer(options, rngs) for _ in range(LAYERS)])
        self.norm = PortNorm(options.last_eps, options.unit_offset)
        self.head = nnx.Linear(WIDTH, WORDS, use_bias=False, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed(ids) * self.options.embed_scale
        for layer in [self.layers[0]] * LAYERS if self.options.shared else self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def jax_model(model: Decoder, **wrong: Any) -> PortDecoder:
    """Return the port with the weights of a model, and what is wrong in it."""
    options = replace(Options(), **wrong)
    port = PortDecoder(options, nnx.Rngs(0))
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    port.embed.embedding[...] = jnp.asarray(state["embed.weight"])
    port.norm.scale[...] = jnp.asarray(state["norm.weight"])
    if not options.untied:
        port.head.kernel[...] = jnp.asarray(state["head.weight"].T)
    for i, layer in enumerate(port.layers):
        for norm in ("attn_norm", "mlp_norm"):
            getattr(layer, norm).scale[...] = jnp.asarray(state[f"layers.{i}.{norm}.weight"])
        for part, names in (("attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
            for name in names:
                source = {"k": "v", "v": "k"}.get(name, name) if options.exchanged else name
                prefix = f"layers.{i}.{part}.{source}_proj"
                linear, kernel = getattr(getattr(layer, part), f"{name}_proj"), state[f"{prefix}.weight"].T
                if name == "q" and options.transposed:
                    kernel = kernel.T
                if name == "o" and options.heads:
                    kernel = kernel.reshape(HEADS, CHANNELS, WIDTH).swapaxes(0, 1).reshape(-1, WIDTH)
                linear.kernel[...] = jnp.asarray(kernel)
                if linear.bias is not None:
                    linear.bias[...] = jnp.asarray(state[f"{prefix}.bias"])
    return port
