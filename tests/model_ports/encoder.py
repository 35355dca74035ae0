"""An encoder as BERT has it, in torch, and its port to Equinox with stacked, scanned layers and switches for faults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WORDS, PLACES, KINDS, WIDTH, HEADS, HIDDEN, LAYERS, LABELS = 29, 12, 2, 24, 3, 40, 3, 5
EPS = 1e-12
GELU = partial(jax.nn.gelu, approximate=False)


class SelfAttention(nn.Module):
    """Attention over words that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (one(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (self.query, self.key, self.value))
        scores = (q @ k.mT / (WIDTH // HEADS) ** 0.5).masked_fill(~mask[:, None, None], -1e9)
        return self.out((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer with norms last."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.attention_norm = SelfAttention(), nn.LayerNorm(WIDTH, EPS)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.output_norm(x + self.down(F.gelu(self.up(x))))


class Embeddings(nn.Module):
    """Words, positions and token types."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(WORDS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.kind, self.norm = nn.Embedding(KINDS, WIDTH), nn.LayerNorm(WIDTH, EPS)

    def forward(self, ids: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        return self.norm(self.word(ids) + self.position(torch.arange(ids.shape[1])) + self.kind(kinds))


class Encoder(nn.Module):
    """The model: token ids, types and a mask (batch, time) to logits of words and a label of the first word."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.pooler, self.label = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, LABELS)
        self.head = nn.Linear(WIDTH, WORDS)
        self.head.weight = self.embeddings.word.weight

    def forward(self, ids: torch.Tensor, kinds: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embeddings(ids, kinds)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x), self.label(torch.tanh(self.pooler(x[:, 0])))


def torch_model(seed: int) -> Encoder:
    """Return the model of a seed."""
    torch.manual_seed(seed)
    return Encoder().eval()


def inputs(seed: int) -> tuple[np.ndarray, ...]:
    """Return ids, token types and a mask whose second row has padding."""
    rng = np.random.default_rng(seed)
    mask = np.arange(9) < np.array([[9], [6]])
    return rng.integers(0, WORDS, (2, 9)), rng.integers(0, KINDS, (2, 9)), mask


@dataclass(frozen=True)
class Options:
    """What the port is built with; the defaults are right."""

    eps: float = EPS
    embed_eps: float = EPS
    activation: Any = GELU
    inverted: bool = False  # True masks
    fill: float = -1e9
    of_queries: bool = False  # the mask along queries
    scale: float = (WIDTH // HEADS) ** -0.5
    channels_first: bool = False  # heads split as (channel, head)
    axis: int = -1  # of the softmax
    out_bias: bool = True
    offset: int = 0  # of positions
    kinds: bool = True
    pre_norm: bool = False
    residual: bool = True  # around the MLP
    doubled: bool = False  # the residual added twice
    pool: str = "first"
    pool_activation: Any = jnp.tanh
    dtype: Any = None  # of the MLP
    dropout: float = 0.0
    shared: bool = False
    untied: bool = False
    transposed: bool = False  # the attention's output matrix
    exchanged: bool = False  # q and k
    unordered: bool = False  # layers stacked from the last to the first
    head_bias: bool = True


class PortAttention(eqx.Module):
    """Attention of the port, of one sequence."""

    q: eqx.nn.Linear
    k: eqx.nn.Linear
    v: eqx.nn.Linear
    o: eqx.nn.Linear
    options: Options = eqx.field(static=True)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        o = self.options

        def split(linear: eqx.nn.Linear) -> jax.Array:
            y = jax.vmap(linear)(x)
            if o.channels_first:
                return y.reshape(len(x), -1, HEADS).transpose(2, 0, 1)
            return y.reshape(len(x), HEADS, -1).transpose(1, 0, 2)

        q, k, v = split(self.q), split(self.k), split(self.v)
        seen = ~mask if o.inverted else mask
        seen = seen[None, :, None] if o.of_queries else seen[None, None, :]
        scores = jnp.where(seen, q @ k.mT * o.scale, o.fill)
        mixed = (jax.nn.softmax(scores, o.axis) @ v).transpose(1, 0, 2).reshape(len(x), -1)
        return jax.vmap(self.o)(mixed)


class PortLayer(eqx.Module):
    """A layer of the port."""

    attention: PortAttention
    norm1: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    norm2: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    options: Options = eqx.field(static=True)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        o = self.options
        if o.pre_norm:
            x = x + self.attention(jax.vmap(self.norm1)(x), mask)
            return x + self.mlp(jax.vmap(self.norm2)(x))
        x = jax.vmap(self.norm1)(
            x + self.dropout(self.attention(x, mask), key=jax.random.key(0), inference=not o.dropout)
        )
        y = self.mlp(x)
        return jax.vmap(self.norm2)(x + y + o.doubled * x if o.residual else y)

    def mlp(self, x: jax.Array) -> jax.Array:
        """The two products, and what is between."""
        up, down = self.up, self.down
        if self.options.dtype is not None:
            up, down, low = jax.tree.map(lambda a: a.astype(self.options.dtype), (up, down, x))
            return jax.vmap(down)(self.options.activation(jax.vmap(up)(low))).astype(x.dtype)
        return jax.vmap(down)(self.options.activation(jax.vmap(up)(x)))


class PortEncoder(eqx.Module):
    """The port."""

    word: eqx.nn.Embedding
    position: eqx.nn.Embedding
    kind: eqx.nn.Embedding
    embed_norm: eqx.nn.LayerNorm
    layers: PortLayer
    pooler: eqx.nn.Linear
    label: eqx.nn.Linear
    head: jax.Array | None
    head_bias: jax.Array | None
    options: Options = eqx.field(static=True)

    def __call__(self, ids: jax.Array, kinds: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(self.one)(ids, kinds, mask)

    def one(self, ids: jax.Array, kinds: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One sequence."""
        o = self.options
        x = jax.vmap(self.word)(ids) + jax.vmap(self.position)(jnp.arange(len(ids)) + o.offset)
        if o.kinds:
            x = x + jax.vmap(self.kind)(kinds)
        x = jax.vmap(self.embed_norm)(x)
        stacked, static = eqx.partition(self.layers, eqx.is_array)
        if o.shared:
            stacked = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), stacked)

        def turn(x: jax.Array, layer: PortLayer) -> tuple[jax.Array, None]:
            return eqx.combine(layer, static)(x, mask), None

        x, _ = jax.lax.scan(turn, x, stacked)
        logits = x @ (self.word.weight if self.head is None else self.head).T
        if self.head_bias is not None:
            logits = logits + self.head_bias
        pooled = {"first": lambda: x[0], "mean": lambda: x.mean(0), "last": lambda: x[-1]}[o.pool]()
        return logits, self.label(o.pool_activation(self.pooler(pooled)))


def jax_model(model: Encoder, **wrong: Any) -> PortEncoder:
    """Return the port with the weights of a model, and what is wrong in it."""
    options = replace(Options(), **wrong)
    state = {name: jnp.asarray(value.detach().numpy()) for name, value in model.state_dict().items()}

    def linear(name: str, out: int, into: int, bias: bool = True, transposed: bool = False) -> eqx.nn.Linear:
        made = eqx.nn.Linear(into, out, use_bias=bias, key=jax.random.key(0))
        weight = state[f"{name}.weight"]
        made = eqx.tree_at(lambda m: m.weight, made, weight.T if transposed else weight)
        return eqx.tree_at(lambda m: m.bias, made, state[f"{name}.bias"]) if bias else made

    def norm(name: str, eps: float) -> eqx.nn.LayerNorm:
        made = eqx.nn.LayerNorm(WIDTH, eps)
        return eqx.tree_at(lambda m: (m.weight, m.bias), made, (state[f"{name}.weight"], state[f"{name}.bias"]))

    def embedding(name: str) -> eqx.nn.Embedding:
        return eqx.nn.Embedding(weight=state[f"{name}.weight"])

    def layer(i: int) -> PortLayer:
        at = f"layers.{i}"
        q, k = ("key", "query") if options.exchanged else ("query", "key")
        attention = PortAttention(
            linear(f"{at}.attention.{q}", WIDTH, WIDTH),
            linear(f"{at}.attention.{k}", WIDTH, WIDTH),
            linear(f"{at}.attention.value", WIDTH, WIDTH),
            linear(f"{at}.attention.out", WIDTH, WIDTH, options.out_bias, options.transposed),
            options,
        )
        return PortLayer(
            attention,
            norm(f"{at}.attention_norm", options.eps),
            linear(f"{at}.up", HIDDEN, WIDTH),
            linear(f"{at}.down", WIDTH, HIDDEN),
            norm(f"{at}.output_norm", options.eps),
            eqx.nn.Dropout(options.dropout),
            options,
        )

    made = [layer(i) for i in range(LAYERS)]
    made = made[::-1] if options.unordered else made
    layers = jax.tree.map(lambda *parts: jnp.stack(parts) if eqx.is_array(parts[0]) else parts[0], *made)
    return PortEncoder(
        embedding("embeddings.word"),
        embedding("embeddings.position"),
        embedding("embeddings.kind"),
        norm("embeddings.norm", options.embed_eps),
        layers,
        linear("pooler", WIDTH, WIDTH),
        linear("label", LABELS, WIDTH),
        jax.random.normal(jax.random.key(1), (WORDS, WIDTH)) if options.untied else None,
        state["head.bias"] if options.head_bias else None,
        options,
    )
