"""Ports of image models: ConvNeXt, a Swin block, MLP-Mixer, squeeze and excitation, a quantising autoencoder."""

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
from tests.model_ports.strangers.loading import floats, images, loaded, seeded


class TorchConvNext(nn.Module):
    """A stem of patches, one block with a scale of its own, and a head whose norm follows the pooling."""

    class Block(nn.Module):
        """Depthwise, norm, two linear layers, layer scale."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm, self.gamma = nn.LayerNorm(width, eps=1e-6), nn.Parameter(0.5 + 0.1 * torch.randn(width))
            self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
            h = self.gamma * self.pwconv2(F.gelu(self.pwconv1(h)))
            return x + h.permute(0, 3, 1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stages = nn.Conv2d(3, 8, 4, stride=4), nn.ModuleList(self.Block(8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8, eps=1e-6), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.stages:
            x = block(x)
        return self.head(self.norm(x.mean((-2, -1))))


class NnxConvNext(nnx.Module):
    """The port, with channels last."""

    class Block(nnx.Module):
        """The block."""

        def __init__(self, rngs: nnx.Rngs, eps: float, approximate: bool, gamma: bool, padding: Any) -> None:
            self.conv = nnx.Conv(8, 8, (7, 7), padding=padding, feature_group_count=8, rngs=rngs)
            self.norm = nnx.LayerNorm(8, epsilon=eps, rngs=rngs)
            self.layer_scale = nnx.Param(jnp.ones(8))
            self.up, self.down = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs)
            self.approximate, self.gamma = approximate, gamma

        def __call__(self, x: jax.Array) -> jax.Array:
            h = self.down(nnx.gelu(self.up(self.norm(self.conv(x))), approximate=self.approximate))
            return x + (self.layer_scale[...] * h if self.gamma else h)

    def __init__(self, rngs: nnx.Rngs, *, eps=1e-6, approximate=False, gamma=True, padding=3, before=False,
                 pool=jnp.mean) -> None:  # fmt: skip
        self.stem = nnx.Conv(3, 8, (4, 4), strides=(4, 4), padding="VALID", rngs=rngs)
        self.blocks = nnx.List([self.Block(rngs, eps, approximate, gamma, padding) for _ in range(2)])
        self.norm, self.head = nnx.LayerNorm(8, epsilon=1e-6, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)
        self.before, self.pool = before, pool

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if self.before:
            return self.head(self.pool(self.norm(x), (1, 2)))
        return self.head(self.norm(self.pool(x, (1, 2))))


def _index(side: int) -> np.ndarray:
    """Return where the bias of each pair of places of a window stands in its table."""
    rows, columns = np.divmod(np.arange(side * side), side)
    down, along = rows[:, None] - rows, columns[:, None] - columns
    return (down + side - 1) * (2 * side - 1) + along + side - 1


def _shifted(size: int, side: int, shift: int) -> np.ndarray:
    """Return which places of a shifted window saw each other before the shift, as numbers to add."""
    regions, at = np.zeros((size, size)), 0
    for rows in (slice(0, -side), slice(-side, -shift), slice(-shift, None)):
        for columns in (slice(0, -side), slice(-side, -shift), slice(-shift, None)):
            regions[rows, columns], at = at, at + 1
    parts = regions.reshape(size // side, side, size // side, side).swapaxes(1, 2).reshape(-1, side * side)
    return np.where(parts[:, None] != parts[:, :, None], -100.0, 0.0).astype(np.float32)


class TorchSwin(nn.Module):
    """Attention within shifted windows, with a bias for each relative place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.relative_position_bias_table = nn.Parameter(torch.randn(49, 2))
        self.register_buffer("relative_position_index", torch.tensor(_index(4)))
        self.register_buffer("attn_mask", torch.tensor(_shifted(8, 4, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = len(x)
        h = torch.roll(self.norm1(x), (-2, -2), (1, 2))
        h = h.view(b, 2, 4, 2, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(b * 4, 16, 8)
        q, k, v = self.qkv(h).reshape(b * 4, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        a = (q * 4**-0.5) @ k.transpose(-2, -1) + bias
        a = (a.view(b, 4, 2, 16, 16) + self.attn_mask[None, :, None]).view(b * 4, 2, 16, 16)
        h = self.proj((a.softmax(-1) @ v).transpose(1, 2).reshape(b * 4, 16, 8))
        h = h.view(b, 2, 2, 4, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(b, 8, 8, 8)
        return x + torch.roll(h, (2, 2), (1, 2))


class NnxSwin(nnx.Module):
    """The port, written with other reshapes."""

    def __init__(self, rngs: nnx.Rngs, *, roll=-2, turned=False, masked=True, scale=0.5, columns=False) -> None:
        self.norm1 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.qkv, self.proj = nnx.Linear(8, 24, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.relative_position_bias_table = nnx.Param(jnp.zeros((49, 2)))
        self.roll, self.turned, self.masked, self.scale, self.columns = roll, turned, masked, scale, columns

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jnp.roll(self.norm1(x), (self.roll, self.roll), (1, 2))
        axes = (0, 3, 1, 2, 4, 5) if self.columns else (0, 1, 3, 2, 4, 5)
        h = h.reshape(-1, 2, 4, 2, 4, 8).transpose(axes).reshape(-1, 4, 16, 8)
        q, k, v = jnp.split(self.qkv(h).reshape(-1, 4, 16, 6, 4), 3, axis=-2)
        index = _index(4).T if self.turned else _index(4)
        a = jnp.einsum("bwqhc,bwkhc->bwhqk", q, k) * self.scale
        a = a + jnp.moveaxis(self.relative_position_bias_table[...][index], -1, 0)
        if self.masked:
            a = a + _shifted(8, 4, 2)[None, :, None]
        h = self.proj(jnp.einsum("bwhqk,bwkhc->bwqhc", jax.nn.softmax(a), v).reshape(-1, 4, 16, 8))
        h = h.reshape(-1, 2, 2, 4, 4, 8).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
        return x + jnp.roll(h, (-self.roll, -self.roll), (1, 2))


class TorchMixer(nn.Module):
    """Patches whose tokens are mixed, then whose channels are."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 12, 4, stride=4)
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(12, eps=1e-6) for _ in range(3))
        self.tokens1, self.tokens2 = nn.Linear(16, 20), nn.Linear(20, 16)
        self.channels1, self.channels2 = nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2)
        x = x + self.tokens2(F.gelu(self.tokens1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.channels2(F.gelu(self.channels1(self.norm2(x))))
        return self.head(self.norm(x).mean(1))


class NnxMixer(nnx.Module):
    """The port."""

    def __init__(self, rngs: nnx.Rngs, *, approximate=False, first=False, skip=True, last=True, eps=1e-6) -> None:
        self.stem = nnx.Conv(3, 12, (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.ln_1, self.ln_2, self.ln_f = (nnx.LayerNorm(12, epsilon=eps, rngs=rngs) for _ in range(3))
        self.tok_fc1, self.tok_fc2 = nnx.Linear(16, 20, rngs=rngs), nnx.Linear(20, 16, rngs=rngs)
        self.ch_fc1, self.ch_fc2 = nnx.Linear(12, 24, rngs=rngs), nnx.Linear(24, 12, rngs=rngs)
        self.head = nnx.Linear(12, 4, rngs=rngs)
        self.approximate, self.first, self.skip, self.last = approximate, first, skip, last

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x).reshape(x.shape[0], 16, 12)
        y = self.ln_1(x).swapaxes(1, 2)
        y = self.tok_fc2(jax.nn.gelu(self.tok_fc1(y), approximate=self.approximate)).swapaxes(1, 2)
        x = x + y if self.skip else y
        x = x + self.ch_fc2(jax.nn.gelu(self.ch_fc1(self.ln_2(x)), approximate=self.approximate))
        x = self.ln_f(x) if self.last else x
        return self.head(x[:, 0] if self.first else x.mean(axis=1))


class TorchSqueeze(nn.Module):
    """An inverted bottleneck whose channels are weighed, as in EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn0 = nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12, eps=1e-3)
        self.depthwise = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False)
        self.bn1 = nn.BatchNorm2d(12, eps=1e-3)
        self.reduce, self.enlarge = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.project, self.bn2 = nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.bn0(self.expand(x)))
        x = F.silu(self.bn1(self.depthwise(x)))
        gate = self.enlarge(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return self.bn2(self.project(torch.sigmoid(gate) * x))


class NnxSqueeze(nnx.Module):
    """The port."""

    def __init__(self, rngs: nnx.Rngs, *, act=jax.nn.silu, inner=jax.nn.silu, gate=jax.nn.sigmoid, eps=1e-3,
                 padding=((1, 1), (1, 1)), squeeze=jnp.mean, gated=True) -> None:  # fmt: skip
        conv = lambda i, o, **k: nnx.Conv(i, o, rngs=rngs, **({"kernel_size": (1, 1)} | k))  # noqa: E731
        norm = lambda n: nnx.BatchNorm(n, epsilon=eps, use_running_average=True, rngs=rngs)  # noqa: E731
        self.expand_conv, self.expand_bn = conv(4, 12, use_bias=False), norm(12)
        self.dw_conv = conv(12, 12, kernel_size=(3, 3), strides=2, padding=padding, feature_group_count=12,
                            use_bias=False)  # fmt: skip
        self.dw_bn, self.se_reduce, self.se_expand = norm(12), conv(12, 3), conv(3, 12)
        self.project_conv, self.project_bn = conv(12, 6, use_bias=False), norm(6)
        self.act, self.inner, self.gate, self.squeeze, self.gated = act, inner, gate, squeeze, gated

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.act(self.expand_bn(self.expand_conv(x)))
        x = self.act(self.dw_bn(self.dw_conv(x)))
        gate = self.se_expand(self.inner(self.se_reduce(self.squeeze(x, (1, 2), keepdims=True))))
        return self.project_bn(self.project_conv(x * self.gate(gate) if self.gated else x))


class TorchQuantised(nn.Module):
    """The nearest code of each place, with the gradient passed straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.codebook, self.decoder = nn.Linear(6, 4), nn.Embedding(10, 4), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.encoder(x)
        w = self.codebook.weight
        distance = z.pow(2).sum(-1, keepdim=True) - 2 * z @ w.T + w.pow(2).sum(-1)
        q = self.codebook(distance.argmin(-1))
        return self.decoder(z + (q - z).detach())


class NnxQuantised(nnx.Module):
    """The port."""

    def __init__(self, rngs: nnx.Rngs, *, straight=True, doubled=2.0, furthest=False) -> None:
        self.enc, self.codes, self.dec = (nnx.Linear(6, 4, rngs=rngs), nnx.Embed(10, 4, rngs=rngs),
                                          nnx.Linear(4, 6, rngs=rngs))  # fmt: skip
        self.straight, self.doubled, self.furthest = straight, doubled, furthest

    def __call__(self, x: jax.Array) -> jax.Array:
        z, w = self.enc(x), self.codes.embedding[...]
        distance = jnp.sum(z**2, -1, keepdims=True) - self.doubled * z @ w.T + jnp.sum(w**2, -1)
        q = self.codes((jnp.argmax if self.furthest else jnp.argmin)(distance, axis=-1))
        return self.dec(z + jax.lax.stop_gradient(q - z) if self.straight else q)


PORTS = (
    Port("convnext", seeded(TorchConvNext), loaded(lambda **o: NnxConvNext(nnx.Rngs(0), **o)), images(), (
        Fault("eps", {"eps": 1e-5}, r"stages\.0\.norm", "eps"),
        Fault("gelu by tanh", {"approximate": True}, r"stages\.0|", "approximate"),
        Fault("layer scale left out", {"gamma": False}, r"stages\.0|", "factor left out"),
        Fault("depthwise padding", {"padding": ((2, 4), (2, 4))}, r"stages\.0\.dwconv", "padding"),
        Fault("norm before the pooling", {"before": True}, "", "norm order|order"),
        Fault("maximum pooled", {"pool": jnp.max}, "", "pool"),
    )),
    Port("swin", seeded(TorchSwin), loaded(lambda **o: NnxSwin(nnx.Rngs(0), **o)), floats(2, 8, 8, 8), (
        Fault("rolled the other way", {"roll": 2}, "", "roll|shift|position|order"),
        Fault("relative places turned", {"turned": True}, "", "transposed|order|arrangement|axes|position"),
        Fault("the mask of shifted windows left out", {"masked": False}, "", "mask|term"),
        Fault("scale", {"scale": 8**-0.5}, "", "scale"),
        Fault("windows by columns", {"columns": True}, "", "arrangement|order|transposed"),
    )),
    Port("mixer", seeded(TorchMixer), loaded(lambda **o: NnxMixer(nnx.Rngs(0), **o)), images(), (
        Fault("gelu by tanh", {"approximate": True}, "", "approximate"),
        Fault("the first token pooled", {"first": True}, "", "pool"),
        Fault("skip left out", {"skip": False}, "", "residual"),
        Fault("last norm left out", {"last": False}, "", "norm|term|not used|module"),
        Fault("eps", {"eps": 1e-5}, "norm1", "eps"),
    )),
    Port("squeeze", seeded(TorchSqueeze), loaded(lambda **o: NnxSqueeze(nnx.Rngs(0), **o)),
         images(4), (
        Fault("relu for silu", {"act": jax.nn.relu}, "", "activation"),
        Fault("relu in the gate", {"inner": jax.nn.relu}, "", "activation"),
        Fault("hard sigmoid", {"gate": jax.nn.hard_sigmoid}, "", "activation"),
        Fault("eps", {"eps": 1e-5}, "bn0", "eps"),
        Fault("SAME with stride 2", {"padding": "SAME"}, "depthwise", "padding"),
        Fault("the maximum squeezed", {"squeeze": jnp.max}, "", "pool"),
        Fault("gate left out", {"gated": False}, "", "factor left out"),
    )),
    Port("quantised", seeded(TorchQuantised), loaded(lambda **o: NnxQuantised(nnx.Rngs(0), **o)), floats(3, 5, 6), (
        Fault("no straight gradient", {"straight": False}, "|encoder", "gradient|stopped|detach"),
        Fault("distance without two", {"doubled": 1.0}, "", "constant|factor left out"),
        Fault("the furthest code", {"furthest": True}, "", "formula|order|argm|sign|pool|constant"),
    )),
)  # fmt: skip
