"""Ports of a diffusion transformer, graph and dilated convolutions, a radiance field, a decoder of queries."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from parity.models import Inputs
from tests.model_ports.fault import Fault, Port
from tests.model_ports.strangers.loading import floats, loaded, seeded


class TorchDit(nn.Module):
    """A block whose norms are shifted and scaled by the time, with gates."""

    def __init__(self) -> None:
        super().__init__()
        self.t1, self.t2 = nn.Linear(8, 16), nn.Linear(16, 16)
        self.norm1 = nn.LayerNorm(16, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(16, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj, self.ada = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 96)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        angles = t[:, None] * torch.exp(-np.log(10000.0) * torch.arange(4).to(t) / 4)
        c = self.t2(F.silu(self.t1(torch.cat([angles.cos(), angles.sin()], -1))))
        parts = self.ada(F.silu(c))[:, None].chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        h = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        x = x + gate1 * self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


class EqxDit(eqx.Module):
    """The port, of a batch by `vmap`."""

    t1: eqx.nn.Linear
    t2: eqx.nn.Linear
    qkv: eqx.nn.Linear
    proj: eqx.nn.Linear
    ada: eqx.nn.Linear
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear
    how: dict[str, Any] = eqx.field(static=True)

    def __init__(self, key: jax.Array, **how: Any) -> None:
        sizes = {"t1": (8, 16), "t2": (16, 16), "qkv": (16, 48), "proj": (16, 16), "ada": (16, 96), "fc1": (16, 32),
                 "fc2": (32, 16)}  # fmt: skip
        for (name, size), one in zip(sizes.items(), jax.random.split(key, 7), strict=True):
            setattr(self, name, eqx.nn.Linear(*size, key=one))
        self.how = {"period": 10000.0, "sine first": False, "one": 1.0, "scale first": False, "gated": True,
                    "act": True, "approximate": True} | how  # fmt: skip

    def single(self, x: jax.Array, t: jax.Array) -> jax.Array:
        how = self.how
        angles = t * jnp.exp(-jnp.log(how["period"]) * jnp.arange(4) / 4)
        parts = [jnp.sin(angles), jnp.cos(angles)] if how["sine first"] else [jnp.cos(angles), jnp.sin(angles)]
        c = self.t2(jax.nn.silu(self.t1(jnp.concatenate(parts))))
        a, b, gate1, d, e, gate2 = jnp.split(self.ada(jax.nn.silu(c) if how["act"] else c), 6)
        (scale1, shift1), (scale2, shift2) = ((a, b), (d, e)) if how["scale first"] else ((b, a), (e, d))

        def normed(x: jax.Array) -> jax.Array:
            return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)

        h = normed(x) * (how["one"] + scale1) + shift1
        q, k, v = jax.vmap(self.qkv)(h).reshape(-1, 3, 2, 8).transpose(1, 0, 2, 3)
        h = jax.vmap(self.proj)(jax.nn.dot_product_attention(q, k, v).reshape(-1, 16))
        x = x + (gate1 * h if how["gated"] else h)
        h = jax.vmap(self.fc1)(normed(x) * (how["one"] + scale2) + shift2)
        return x + gate2 * jax.vmap(self.fc2)(jax.nn.gelu(h, approximate=how["approximate"]))

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(self.single)(x, t)


def _timed(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return (*floats(2, 5, 16)(seed), np.array([3.0, 250.0], np.float32))


class TorchGcn(nn.Module):
    """Two graph convolutions, normed by the roots of the degrees, with loops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Linear(5, 8, bias=False), nn.Linear(8, 3, bias=False)
        self.bias1, self.bias2 = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        a = adjacency + torch.eye(len(adjacency), dtype=adjacency.dtype)
        root = a.sum(1).pow(-0.5)
        a = root[:, None] * a * root
        x = F.relu(a @ self.conv1(x) + self.bias1)
        return F.log_softmax(a @ self.conv2(x) + self.bias2, dim=1)


def gcn(model: Any, *, loops: float = 1.0, by_rows: bool = False, turned: bool = False, act: Any = jax.nn.relu,
        axis: int = 1, logs: bool = True) -> Any:  # fmt: skip
    """Return a function of a dict of matrices, and the dict."""

    def function(params: dict[str, jax.Array], x: jax.Array, adjacency: jax.Array) -> jax.Array:
        a = adjacency + loops * jnp.eye(adjacency.shape[0], dtype=adjacency.dtype)
        a = a.T if turned else a
        degree = jnp.sum(a, axis=1)
        a = a / degree[:, None] if by_rows else a / jnp.sqrt(degree[:, None] * degree[None, :])
        x = act(a @ (x @ params["w1"]) + params["b1"])
        x = a @ (x @ params["w2"]) + params["b2"]
        return (jax.nn.log_softmax if logs else jax.nn.softmax)(x, axis=axis)

    w = {name: jnp.asarray(value.numpy()) for name, value in model.state_dict().items()}
    return function, {"w1": w["conv1.weight"].T, "b1": w["bias1"], "w2": w["conv2.weight"].T, "b2": w["bias2"]}


def _graph(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((6, 5)).astype(np.float32), (rng.random((6, 6)) < 0.5).astype(np.float32)


class TorchField(nn.Module):
    """A radiance field: places as sines and cosines, a skip connection, a density and colours."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(27, 16), nn.Linear(16, 16), nn.Linear(43, 16)])
        self.sigma, self.rgb = nn.Linear(16, 1), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x] + [f(np.pi * 2.0**k * x) for k in range(4) for f in (torch.sin, torch.cos)]
        e = torch.cat(parts, -1)
        h = F.relu(self.layers[1](F.relu(self.layers[0](e))))
        h = F.relu(self.layers[2](torch.cat([e, h], -1)))
        return torch.cat([torch.sigmoid(self.rgb(h)), F.softplus(self.sigma(h) - 1)], -1)


def field(model: Any, *, pi: float = np.pi, apart: bool = False, skip_first: bool = True, dense: Any = jax.nn.softplus,
          shift: float = 1.0, colours_first: bool = True, base: float = 2.0) -> Any:  # fmt: skip
    """Return a function of a list of layers, and the list."""

    def function(params: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
        linear = lambda at, x: x @ params[at][0] + params[at][1]  # noqa: E731
        waves = [(f, pi * base**k) for k in range(4) for f in (jnp.sin, jnp.cos)]
        if apart:
            waves = waves[::2] + waves[1::2]
        e = jnp.concatenate([x, *(f(scale * x) for f, scale in waves)], -1)
        h = jax.nn.relu(linear(1, jax.nn.relu(linear(0, e))))
        h = jax.nn.relu(linear(2, jnp.concatenate([e, h] if skip_first else [h, e], -1)))
        out = [jax.nn.sigmoid(linear(4, h)), dense(linear(3, h) - shift)]
        return jnp.concatenate(out if colours_first else out[::-1], -1)

    layers = [*model.layers, model.sigma, model.rgb]
    return function, [(jnp.asarray(one.weight.detach().numpy().T), jnp.asarray(one.bias.detach())) for one in layers]


class TorchWave(nn.Module):
    """Causal convolutions with holes, gated, with residual and skip sums."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 6, 1)
        self.filters = nn.ModuleList(nn.Conv1d(6, 6, 2, dilation=2**k) for k in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(6, 6, 2, dilation=2**k) for k in range(3))
        self.residuals, self.skips = (nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(3)) for _ in range(2))
        self.end = nn.Conv1d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.start(x), 0.0
        for k in range(3):
            padded = F.pad(x, (2**k, 0))
            h = torch.tanh(self.filters[k](padded)) * torch.sigmoid(self.gates[k](padded))
            total, x = total + self.skips[k](h), x + self.residuals[k](h)
        return self.end(F.relu(total))


class NnxWave(nnx.Module):
    """The port, with channels last."""

    def __init__(self, rngs: nnx.Rngs, *, holes=2, padding="CAUSAL", exchanged=False, act=jnp.tanh, residual=True,
                 before=True) -> None:  # fmt: skip
        conv = lambda i, o, n=1, d=1: nnx.Conv(i, o, (n,), kernel_dilation=d, padding=padding, rngs=rngs)  # noqa: E731
        self.start, self.end = conv(1, 6), conv(6, 4)
        self.filters, self.gates = (nnx.List([conv(6, 6, 2, holes**k) for k in range(3)]) for _ in range(2))
        self.residuals, self.skips = (nnx.List([conv(6, 6) for _ in range(3)]) for _ in range(2))
        self.exchanged, self.act, self.residual, self.before = exchanged, act, residual, before

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.start(x)
        total = jnp.zeros_like(x)
        for f, g, r, s in zip(self.filters, self.gates, self.residuals, self.skips, strict=True):
            f, g = (g, f) if self.exchanged else (f, g)
            h = self.act(f(x)) * jax.nn.sigmoid(g(x))
            total = total + s(h)
            x = x + r(h) if self.residual else r(h)
        return self.end(jax.nn.relu(total) if self.before else total)


def _waves(seed: int) -> Inputs:
    (x,) = floats(2, 1, 12)(seed)
    return Inputs(torch=(x,), jax=(x.transpose(0, 2, 1),))


class TorchQueries(nn.Module):
    """A decoder layer of learned queries: places are added to queries and keys, not to values."""

    def __init__(self) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(4, 16)
        self.self_attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.linear1, self.linear2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, memory: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        where = self.query_embed.weight.expand(len(memory), -1, -1)
        x = torch.zeros_like(where)
        x = self.norm1(x + self.self_attn(x + where, x + where, x, need_weights=False)[0])
        a = self.cross_attn(x + where, memory + places, memory, need_weights=False)[0]
        x = self.norm2(x + a)
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class NnxQueries(nnx.Module):
    """The port."""

    def __init__(self, rngs: nnx.Rngs, *, keys=True, values=False, act=jax.nn.relu, eps=1e-5, first=False) -> None:
        self.queries = nnx.Embed(4, 16, rngs=rngs)
        self.self_attn, self.cross_attn = (nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs) for _ in range(2))
        self.norm1, self.norm2, self.norm3 = (nnx.LayerNorm(16, epsilon=eps, rngs=rngs) for _ in range(3))
        self.linear1, self.linear2 = nnx.Linear(16, 24, rngs=rngs), nnx.Linear(24, 16, rngs=rngs)
        self.keys, self.values, self.act, self.first = keys, values, act, first

    def __call__(self, memory: jax.Array, places: jax.Array) -> jax.Array:
        where = jnp.broadcast_to(self.queries.embedding[...], (memory.shape[0], 4, 16))
        x = jnp.zeros_like(where)
        x = self.norm1(x + self.self_attn(x + where, x + where, x + where if self.values else x))
        x = self.norm2(x + self.cross_attn(x + where, memory + places if self.keys else memory, memory))
        return self.norm3(x + self.linear2(self.act(self.linear1(x))))


PORTS = (
    Port("dit", seeded(TorchDit), loaded(lambda **o: EqxDit(jax.random.key(0), **o)), _timed, (
        Fault("period of the times", {"period": 1000.0}, "", "rope|period|constant|base|angles"),
        Fault("sine first", {"sine first": True}, "", "order|exchanged|parts|concat"),
        Fault("scale without one", {"one": 0.0}, "", "constant|term"),
        Fault("scale before shift", {"scale first": True}, "", "order|exchanged|parts"),
        Fault("gate left out", {"gated": False}, "", "factor left out"),
        Fault("activation of the condition left out", {"act": False}, "", "activation|term"),
        Fault("gelu exact", {"approximate": False}, "", "approximate"),
    )),
    Port("gcn", seeded(TorchGcn), gcn, _graph, (
        Fault("no loops", {"loops": 0.0}, "", "constant|term"),
        Fault("normed by rows", {"by_rows": True}, "", "formula|constant|norm|root|axes|axis"),
        Fault("edges turned", {"turned": True}, "", "transposed|axes"),
        Fault("elu", {"act": jax.nn.elu}, "", "activation"),
        Fault("softmax along the nodes", {"axis": 0}, "", "dim|axis"),
        Fault("softmax without logarithm", {"logs": False}, "", "formula|log|activation"),
    )),
    Port("radiance field", seeded(TorchField), field, floats(7, 3), (
        Fault("without pi", {"pi": 1.0}, "", "constant|angles|base"),
        Fault("sines before cosines", {"apart": True}, "", "order|parts|arrangement|exchanged"),
        Fault("skip last", {"skip_first": False}, "", "order|parts|exchanged"),
        Fault("relu for softplus", {"dense": jax.nn.relu}, "", "activation"),
        Fault("shift of the density", {"shift": 10.0}, "", "constant"),
        Fault("density first", {"colours_first": False}, "", "order|parts|exchanged"),
        Fault("frequencies by 1.5", {"base": 1.5}, "", "constant|angles|base"),
    )),
    Port("dilated", seeded(TorchWave), loaded(lambda **o: NnxWave(nnx.Rngs(0), **o)), _waves, (
        Fault("no holes", {"holes": 1}, "", "dilation"),
        Fault("SAME", {"padding": "SAME"}, r"filters\.0|gates\.0|", "padding|causal"),
        Fault("filter and gate exchanged", {"exchanged": True}, r"|filters\.0|gates\.0", "exchanged"),
        Fault("relu for tanh", {"act": jax.nn.relu}, "", "activation"),
        Fault("residual left out", {"residual": False}, "", "residual"),
        Fault("no activation at the end", {"before": False}, "", "activation|term"),
    )),
    Port("queries", seeded(TorchQueries), loaded(lambda **o: NnxQueries(nnx.Rngs(0), **o)),
         lambda seed: (*floats(2, 6, 16)(seed), *floats(2, 6, 16)(seed + 1)), (
        Fault("keys without places", {"keys": False}, "", "term"),
        Fault("places in values too", {"values": True}, "", "term|operand"),
        Fault("gelu", {"act": jax.nn.gelu}, "", "activation"),
        Fault("eps", {"eps": 1e-6}, "norm1", "eps"),
    )),
)  # fmt: skip
