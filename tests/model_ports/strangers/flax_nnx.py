"""Ports to Flax NNX: attention layers, a U-Net, a vision transformer, recurrent layers, a mixture of experts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.model_ports.fault import Fault, Port
from tests.model_ports.strangers.loading import floats, images, loaded, words


class TorchGemma(nn.Module):
    """Norms whose scale is one plus the weight, and a head that is the embedding."""

    class Norm(nn.Module):
        """Root mean square."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(0.1 * torch.randn(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(29, 16)
        self.input_layernorm, self.gate_proj = self.Norm(16), nn.Linear(16, 24, bias=False)
        self.up_proj, self.down_proj = nn.Linear(16, 24, bias=False), nn.Linear(24, 16, bias=False)
        self.norm = self.Norm(16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids) * 4.0
        h = self.input_layernorm(x)
        x = x + self.down_proj(F.gelu(self.gate_proj(h), approximate="tanh") * self.up_proj(h))
        return 30 * torch.tanh(self.norm(x) @ self.embed_tokens.weight.T / 30)


class NnxGemma(nnx.Module):
    """The port, with its head by `attend`."""

    class Norm(nnx.Module):
        """Root mean square."""

        def __init__(self, width: int, one: float) -> None:
            self.scale, self.one = nnx.Param(jnp.zeros(width)), one

        def __call__(self, x: jax.Array) -> jax.Array:
            var = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
            return x * jax.lax.rsqrt(var + 1e-6) * (self.one + self.scale[...])

    def __init__(self, rngs: nnx.Rngs, *, one=1.0, cap=30.0, scale=4.0, approximate=True) -> None:
        self.embedder = nnx.Embed(29, 16, rngs=rngs)
        self.pre_ffw_norm = self.Norm(16, one)
        self.gate, self.up = (nnx.Linear(16, 24, use_bias=False, rngs=rngs) for _ in range(2))
        self.down, self.final_norm = nnx.Linear(24, 16, use_bias=False, rngs=rngs), self.Norm(16, one)
        self.cap, self.scale, self.approximate = cap, scale, approximate

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedder(tokens) * self.scale
        h = self.pre_ffw_norm(x)
        x += self.down(nnx.gelu(self.gate(h), approximate=self.approximate) * self.up(h))
        return self.cap * jnp.tanh(self.embedder.attend(self.final_norm(x)) / self.cap)


class TorchMha(nn.Module):
    """Torch's own attention layer with a padding mask: True drops."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm = nn.MultiheadAttention(16, 4, batch_first=True), nn.LayerNorm(16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        a, _ = self.attn(x, x, x, key_padding_mask=keep == 0, need_weights=False)
        x = self.norm(x + a)
        return x + self.fc2(F.relu(self.fc1(x)))


class NnxMha(nnx.Module):
    """Flax' own attention layer: True keeps."""

    def __init__(self, rngs: nnx.Rngs, *, inverted=False, eps=1e-5, masked=True) -> None:
        self.attn = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(16, epsilon=eps, use_fast_variance=False, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)
        self.inverted, self.masked = inverted, masked

    def __call__(self, x: jax.Array, keep: jax.Array) -> jax.Array:
        mask = (keep == 0 if self.inverted else keep > 0)[:, None, None, :]
        x = self.norm(x + self.attn(x, mask=mask if self.masked else None))
        return x + self.fc2(jax.nn.relu(self.fc1(x)))


class TorchUnet(nn.Module):
    """Down, up by a transposed convolution, and the skip beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.down, self.norm2 = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.silu(self.norm1(self.inc(x)))
        b = F.silu(self.norm2(self.down(a)))
        b = F.interpolate(F.avg_pool2d(b, 2), scale_factor=2, mode="nearest") + b
        return self.out(torch.cat([a, self.up(b)], 1))


class NnxUnet(nnx.Module):
    """The port, with channels last."""

    def __init__(self, rngs: nnx.Rngs, *, eps=1e-5, skip_first=True, padding=((1, 1), (1, 1)), pool=nnx.avg_pool,
                 resize="nearest", groups=4) -> None:  # fmt: skip
        self.inc = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.norm1 = nnx.GroupNorm(8, 2, epsilon=eps, use_fast_variance=False, rngs=rngs)
        self.down = nnx.Conv(8, 16, (3, 3), strides=2, padding=padding, rngs=rngs)
        self.norm2 = nnx.GroupNorm(16, groups, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.up = nnx.ConvTranspose(16, 8, (2, 2), strides=2, padding="VALID", rngs=rngs)
        self.out = nnx.Conv(16, 2, (1, 1), rngs=rngs)
        self.skip_first, self.pool, self.resize = skip_first, pool, resize

    def __call__(self, x: jax.Array) -> jax.Array:
        a = nnx.silu(self.norm1(self.inc(x)))
        b = nnx.silu(self.norm2(self.down(a)))
        small = self.pool(b, (2, 2), strides=(2, 2))
        b = jax.image.resize(small, b.shape, self.resize) + b
        parts = [a, self.up(b)]
        return self.out(jnp.concatenate(parts if self.skip_first else parts[::-1], -1))


class TorchVit(nn.Module):
    """Patches, a class token, a fused qkv, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.pos_embed = nn.Parameter(0.1 * torch.randn(1, 17, 16))
        self.norm1, self.qkv, self.proj = nn.LayerNorm(16, eps=1e-6), nn.Linear(16, 48), nn.Linear(16, 16)
        self.ls1 = nn.Parameter(0.1 * torch.ones(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 4, 4).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + self.ls1 * self.proj(a)
        return self.head(x[:, 0])


class NnxVit(nnx.Module):
    """The port with einsum-style splitting."""

    def __init__(self, rngs: nnx.Rngs, *, turned=False, pool="cls", heads_first=False, eps=1e-6, last=False) -> None:
        self.patch_embed = nnx.Conv(3, 16, (4, 4), strides=(4, 4), padding="VALID", rngs=rngs)
        self.cls_token, self.pos_embed = nnx.Param(jnp.zeros((1, 1, 16))), nnx.Param(jnp.zeros((1, 17, 16)))
        self.norm1 = nnx.LayerNorm(16, epsilon=eps, rngs=rngs)
        self.qkv, self.proj = nnx.Linear(16, 48, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)
        self.ls1, self.head = nnx.Param(jnp.ones(16)), nnx.Linear(16, 5, rngs=rngs)
        self.turned, self.pool, self.heads_first, self.last = turned, pool, heads_first, last

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patch_embed(x)
        x = (x.swapaxes(1, 2) if self.turned else x).reshape(x.shape[0], -1, 16)
        cls = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, 16))
        x = jnp.concatenate([x, cls] if self.last else [cls, x], 1) + self.pos_embed[...]
        qkv = self.qkv(self.norm1(x))
        if self.heads_first:
            q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 4, 3, 4), 3, 0)
        else:
            q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, 4, 4), 2, 0)
        x = x + self.ls1[...] * self.proj(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
        return self.head(x[:, 0] if self.pool == "cls" else x.mean(1))


class TorchRecurrent(nn.Module):
    """An LSTM whose last output is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.fc = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(self.embed(ids))
        return self.fc(out[:, -1])


class NnxRecurrent(nnx.Module):
    """The port by `nnx.RNN`."""

    def __init__(self, rngs: nnx.Rngs, *, reverse=False, mean=False) -> None:
        self.embed, self.fc = nnx.Embed(20, 8, rngs=rngs), nnx.Linear(12, 3, rngs=rngs)
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(8, 12, rngs=rngs), reverse=reverse, keep_order=True)
        self.mean = mean

    def __call__(self, ids: jax.Array) -> jax.Array:
        out = self.lstm(self.embed(ids))
        return self.fc(out.mean(1) if self.mean else out[:, -1])


class TorchMoe(nn.Module):
    """Two of four experts for each word."""

    class Expert(nn.Module):
        """SwiGLU, named as by Mixtral."""

        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = (nn.Linear(*s, bias=False) for s in ((12, 20), (20, 12), (12, 20)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w2(F.silu(self.w1(x)) * self.w3(x))

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 4, bias=False)
        self.experts = nn.ModuleList(self.Expert() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(torch.softmax(self.gate(x), -1), 2)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for at, expert in enumerate(self.experts):
            share = (weights * (chosen == at)).sum(-1, keepdim=True)
            out = out + share * expert(x)
        return out


class NnxMoe(nnx.Module):
    """The port: all experts in three arrays."""

    def __init__(self, rngs: nnx.Rngs, *, normed=True, top=2, exchanged=False) -> None:
        self.gate = nnx.Linear(12, 4, use_bias=False, rngs=rngs)
        self.w1, self.w2, self.w3 = (nnx.Param(jnp.zeros(s)) for s in ((4, 12, 20), (4, 20, 12), (4, 12, 20)))
        self.normed, self.top, self.exchanged = normed, top, exchanged

    def __call__(self, x: jax.Array) -> jax.Array:
        weights, chosen = jax.lax.top_k(jax.nn.softmax(self.gate(x)), self.top)
        if self.normed:
            weights = weights / weights.sum(-1, keepdims=True)
        share = (jax.nn.one_hot(chosen, 4, dtype=x.dtype) * weights[..., None]).sum(-2)
        a, b = jnp.einsum("btd,edh->bteh", x, self.w1[...]), jnp.einsum("btd,edh->bteh", x, self.w3[...])
        hidden = jax.nn.silu(b) * a if self.exchanged else jax.nn.silu(a) * b
        return jnp.einsum("bteh,ehd,bte->btd", hidden, self.w2[...], share)


def moe(model: Any, **options: Any) -> Any:
    """Load experts by hand, as people do."""
    port = NnxMoe(nnx.Rngs(0), **options)
    port.gate.kernel[...] = jnp.asarray(model.gate.weight.detach().numpy().T)
    for name in ("w1", "w2", "w3"):
        stack = [getattr(one, name).weight.detach().numpy().T for one in model.experts]
        getattr(port, name)[...] = jnp.asarray(np.stack(stack))
    return port


class TorchNeoX(nn.Module):
    """A fused projection whose heads hold q, k and v each, partial rotary, parallel residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.query_key_value, self.dense = nn.Linear(24, 72), nn.Linear(24, 24)
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, 4, 2).float() / 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        q, k, v = self.query_key_value(self.norm(x)).view(b, n, 3, 24).transpose(1, 2).chunk(3, -1)
        turn = torch.arange(n, dtype=x.dtype)[:, None] * self.inv_freq.to(x.dtype)
        c, s = torch.cat([turn, turn], -1).cos(), torch.cat([turn, turn], -1).sin()

        def rotate(t: torch.Tensor) -> torch.Tensor:
            r, rest = t[..., :4], t[..., 4:]
            half = torch.cat([-r[..., 2:], r[..., :2]], -1)
            return torch.cat([r * c + half * s, rest], -1)

        a = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return x + self.dense(a.transpose(1, 2).reshape(b, n, d))


class NnxNeoX(nnx.Module):
    """The port with three projections, by whose hand the fused one is taken apart."""

    def __init__(self, rngs: nnx.Rngs, *, base=10000.0, neighbours=False, causal=True) -> None:
        self.norm = nnx.LayerNorm(24, epsilon=1e-5, rngs=rngs)
        self.q, self.k, self.v, self.dense = (nnx.Linear(24, 24, rngs=rngs) for _ in range(4))
        self.base, self.neighbours, self.causal = base, neighbours, causal

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.norm(x)
        q, k, v = (one(h).reshape(*x.shape[:2], 3, 8) for one in (self.q, self.k, self.v))
        turn = jnp.arange(x.shape[1])[:, None] * self.base ** (-jnp.arange(0, 4, 2) / 4)
        c, s = jnp.cos(turn)[None, :, None], jnp.sin(turn)[None, :, None]

        def rotate(t: jax.Array) -> jax.Array:
            r, rest = t[..., :4], t[..., 4:]
            a, b = (r[..., ::2], r[..., 1::2]) if self.neighbours else (r[..., :2], r[..., 2:])
            out = jnp.stack([a * c - b * s, b * c + a * s], -1)
            out = out.reshape(r.shape) if self.neighbours else jnp.concatenate([out[..., 0], out[..., 1]], -1)
            return jnp.concatenate([out, rest], -1)

        a = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=self.causal)
        return x + self.dense(a.reshape(x.shape))


def neox(model: Any, **options: Any) -> Any:
    """Take the fused projection apart by hand: (head, q k v, channel)."""
    port = NnxNeoX(nnx.Rngs(0), **options)
    port.norm.scale[...] = jnp.asarray(model.norm.weight.detach())
    port.norm.bias[...] = jnp.asarray(model.norm.bias.detach())
    weight = model.query_key_value.weight.detach().numpy().reshape(3, 3, 8, 24)
    bias = model.query_key_value.bias.detach().numpy().reshape(3, 3, 8)
    for at, one in enumerate((port.q, port.k, port.v)):
        one.kernel[...], one.bias[...] = jnp.asarray(weight[:, at].reshape(24, 24).T), jnp.asarray(bias[:, at].ravel())
    port.dense.kernel[...] = jnp.asarray(model.dense.weight.detach().numpy().T)
    port.dense.bias[...] = jnp.asarray(model.dense.bias.detach())
    return port


def _masked(seed: int) -> tuple[np.ndarray, np.ndarray]:
    keep = np.ones((2, 6), np.int32)
    keep[0, 4:] = 0
    return (*floats(2, 6, 16)(seed), keep)


PORTS = (
    Port("gemma", lambda seed: TorchGemma(), loaded(lambda **o: NnxGemma(nnx.Rngs(0), **o)), words(2, 7, 29), (
        Fault("scale is the weight", {"one": 0.0}, "input_layernorm", "constant|formula|term"),
        Fault("the cap of logits", {"cap": 50.0}, "|embed_tokens", "constant|cap|scale"),
        Fault("embeddings not scaled", {"scale": 1.0}, "|embed_tokens", "constant|scale|term"),
        Fault("gelu exact", {"approximate": False}, "", "approximate"),
    )),
    Port("torch's attention layer", lambda seed: TorchMha(), loaded(lambda **o: NnxMha(nnx.Rngs(0), **o)), _masked, (
        Fault("mask inverted", {"inverted": True}, "attn|", "mask"),
        Fault("mask left out", {"masked": False}, "attn|", "mask"),
        Fault("eps", {"eps": 1e-6}, "norm", "eps"),
    )),
    Port("unet", lambda seed: TorchUnet(), loaded(lambda **o: NnxUnet(nnx.Rngs(0), **o)), images(), (
        Fault("eps of GroupNorm", {"eps": 1e-6}, "norm1", "eps"),
        Fault("number of groups", {"groups": 2}, "norm2", "group"),
        Fault("skip last", {"skip_first": False}, "", "order|arrangement|concat|parts|exchanged"),
        Fault("SAME with stride 2", {"padding": "SAME"}, "down", "padding"),
        Fault("max pool", {"pool": nnx.max_pool}, "", "pool"),
        Fault("bilinear", {"resize": "bilinear"}, "", "interpol|resize|upsample"),
    )),
    Port("vit", lambda seed: TorchVit(), loaded(lambda **o: NnxVit(nnx.Rngs(0), **o)), images(), (
        Fault("patches by columns", {"turned": True}, "", "arrangement|order|transposed"),
        Fault("mean pooled", {"pool": "mean"}, "", "pool"),
        Fault("heads before q k v", {"heads_first": True}, "", "head order|arrangement|interleaved"),
        Fault("eps", {"eps": 1e-5}, "norm1", "eps"),
        Fault("class token last", {"last": True}, "", "order|arrangement|concat|parts|exchanged"),
    )),
    Port("lstm", lambda seed: TorchRecurrent(), loaded(lambda **o: NnxRecurrent(nnx.Rngs(0), **o)), words(2, 5, 20), (
        Fault("reversed", {"reverse": True}, "lstm|", "order|arrangement|flip|reverse"),
        Fault("mean", {"mean": True}, "", "pool"),
    )),
    Port("experts", lambda seed: TorchMoe(), moe, floats(2, 5, 12), (
        Fault("not normed", {"normed": False}, "", "formula|term|constant|norm"),
        Fault("one expert", {"top": 1}, "", "constant|top"),
        Fault("gate and up exchanged", {"exchanged": True}, "", "gate|exchanged|order"),
    )),
    Port("neox", lambda seed: TorchNeoX(), neox, floats(2, 6, 24), (
        Fault("rope base", {"base": 500.0}, "", "rope"),
        Fault("rope pairs", {"neighbours": True}, "", "pairing|interleaved"),
        Fault("not causal", {"causal": False}, "", "mask|causal"),
    )),
)  # fmt: skip
