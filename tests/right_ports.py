"""Right ports of what models are made of, as users write them: none of them may be called different.

    python -m tests.right_ports [--seeds N] [--data KIND ...] [NAME ...]

compares each, forward and backward, in three dtypes, eager and compiled, and prints how many are called different.
`--data all` takes every kind of data, `--data random` (the usual one) the numbers of each port alone.
"""

import argparse
import zlib

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import linen as nn

import parity

PORTS = {}
"""By name: the torch function, the JAX function, and a function of a NumPy generator that draws the arguments."""


def port(name, theirs, mine, draw, **options):
    """Add a port to the list."""
    PORTS[name] = theirs, mine, draw, options


def normal(*shapes):
    """Return what draws normal arrays of these shapes."""
    return lambda rng: tuple(rng.standard_normal(shape) for shape in shapes)


# Normalisations.


def linen(module, **values):
    """Apply a Flax module to its first argument, with parameters by name."""
    return lambda x: module.apply({"params": values}, x)


def llama_norm(x, w):
    h = x.float()
    return w * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def llama_norm_jax(x, w):
    h = x.astype(jnp.float32)
    return w * (h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def gemma_norm(x, w):
    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + w.float())).to(x.dtype)


def gemma_norm_jax(x, w):
    h = x.astype(jnp.float32)
    return (h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6) * (1 + w.astype(jnp.float32))).astype(
        x.dtype
    )


def group_norm(x, w, b):
    return F.group_norm(x.transpose(1, -1), 4, w, b, 1e-6).transpose(1, -1)


def batch_norm_jax(x, w, b):
    state = {"mean": jnp.zeros(16, x.dtype), "var": jnp.ones(16, x.dtype)}
    module = nn.BatchNorm(use_running_average=False, epsilon=1e-5, use_fast_variance=False)
    y, _ = module.apply({"params": {"scale": w, "bias": b}, "batch_stats": state}, x, mutable=["batch_stats"])
    return y


def layer_norm_written(x, w, b):
    mean = x.mean(-1)[..., None]
    return (x - mean) / (((x - mean) ** 2).mean(-1)[..., None] + 1e-5) ** 0.5 * w + b


def group_norm_written(x, w, b):
    groups = x.reshape(2, 5, 4, 4)
    mean = groups.mean((1, 3))[:, None, :, None]
    var = ((groups - mean) ** 2).mean((1, 3))[:, None, :, None]
    return ((groups - mean) / (var + 1e-5) ** 0.5).reshape(2, 5, 16) * w + b


NORM = normal((6, 16), (16,), (16,))
port("RMSNorm, written", llama_norm, llama_norm_jax, normal((6, 16), (16,)))
port("RMSNorm, Gemma's", gemma_norm, gemma_norm_jax, normal((6, 16), (16,)))
port(
    "RMSNorm, library", lambda x, w: F.rms_norm(x, (16,), w, 1e-6), lambda x, w: linen(nn.RMSNorm(), scale=w)(x),
    normal((6, 16), (16,)),
)  # fmt: skip
port("LayerNorm, written", layer_norm_written, layer_norm_written, NORM)
port("GroupNorm, written", group_norm_written, group_norm_written, normal((2, 5, 16), (16,), (16,)))
port(
    "LayerNorm", lambda x, w, b: F.layer_norm(x, (16,), w, b, 1e-6),
    lambda x, w, b: linen(nn.LayerNorm(), scale=w, bias=b)(x), NORM,
)  # fmt: skip
port(
    "LayerNorm, nothing learned", lambda x: F.layer_norm(x, (16,)),
    jax.vmap(equinox.nn.LayerNorm(16, use_weight=False, use_bias=False)), normal((6, 16)),
)  # fmt: skip
port(
    "GroupNorm", group_norm, lambda x, w, b: linen(nn.GroupNorm(num_groups=4), scale=w, bias=b)(x),
    normal((2, 5, 16), (16,), (16,)),
)  # fmt: skip
port(
    "BatchNorm, train", lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0.1, 1e-5), batch_norm_jax,
    normal((12, 16), (16,), (16,)),
)  # fmt: skip
port(
    "BatchNorm, eval", lambda x, w, b, m, v: (x - m) * torch.rsqrt(v * v + 1e-5) * w + b,
    lambda x, w, b, m, v: (x - m) * (w * jax.lax.rsqrt(v * v + 1e-5)) + b, normal((12, 16), *[(16,)] * 4),
)  # fmt: skip

# Feed-forward layers.

port(
    "GELU MLP", lambda x, a, b, c: F.linear(F.gelu(F.linear(x, a, b)), c),
    lambda x, a, b, c: jax.nn.gelu(x @ a.T + b, approximate=False) @ c.T, normal((6, 8), (16, 8), (16,), (8, 16)),
)  # fmt: skip
port(
    "SwiGLU", lambda x, g, u, d: (F.silu(x @ g) * (x @ u)) @ d,
    lambda x, g, u, d: (jax.nn.silu(x @ g) * (x @ u)) @ d, normal((4, 8), (8, 16), (8, 16), (16, 8)),
)  # fmt: skip

# Attention.


def angles(x, xp):
    """Return the angles (positions, 4) of rotary embeddings of 8 channels."""
    return xp.arange(x.shape[-2], dtype=x.dtype)[:, None] / 10000 ** (xp.arange(0, 8, 2, dtype=x.dtype) / 8)


def rope_halves(xp, cat):
    def rotate(x):
        a, (left, right) = angles(x, xp), (x[..., :4], x[..., 4:])
        return cat([left * xp.cos(a) - right * xp.sin(a), right * xp.cos(a) + left * xp.sin(a)])

    return rotate


def rope_pairs(xp, stack):
    def rotate(x):
        a, (even, odd) = angles(x, xp), (x[..., 0::2], x[..., 1::2])
        return stack([even * xp.cos(a) - odd * xp.sin(a), even * xp.sin(a) + odd * xp.cos(a)]).reshape(x.shape)

    return rotate


def padding(rng):
    mask = np.ones((2, 1, 5, 5), bool)
    mask[0, :, :, 3:] = False
    return (*normal(*[(2, 3, 5, 4)] * 3)(rng), mask)


def attention_jax(q, k, v, mask=None, **options):
    q, k, v = (jnp.swapaxes(one, 1, 2) for one in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, mask=mask, **options), 1, 2)


def additive(q, k, v, mask):
    scores = q @ k.mT / 2 + torch.where(mask, 0.0, -1e9).to(q.dtype)
    return torch.softmax(scores, -1) @ v


def additive_jax(q, k, v, mask):
    scores = q @ jnp.swapaxes(k, -1, -2) / 2 + jnp.where(mask, 0.0, -1e9).astype(q.dtype)
    return jax.nn.softmax(scores, -1) @ v


port(
    "RoPE, halves",
    rope_halves(torch, lambda p: torch.cat(p, -1)),
    rope_halves(jnp, lambda p: jnp.concatenate(p, -1)),
    normal((2, 6, 8)),
)
port(
    "RoPE, pairs",
    rope_pairs(torch, lambda p: torch.stack(p, -1)),
    rope_pairs(jnp, lambda p: jnp.stack(p, -1)),
    normal((2, 6, 8)),
)
port(
    "attention, causal", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    lambda q, k, v: attention_jax(q, k, v, is_causal=True), normal(*[(2, 3, 5, 4)] * 3),
)  # fmt: skip
port("attention, padded", F.scaled_dot_product_attention, attention_jax, padding)
port("attention, -1e9 added", additive, additive_jax, padding)

# Losses.

port(
    "cross entropy", F.cross_entropy, lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).mean(),
    lambda rng: (rng.standard_normal((4, 8)), rng.integers(0, 8, 4)),
)  # fmt: skip


def smoothed(x):
    return F.cross_entropy(x, torch.tensor([0, 3, -100, 5]), label_smoothing=0.1, ignore_index=-100)


def smoothed_jax(x):
    target = jnp.array([0, 3, -100, 5])
    soft = optax.smooth_labels(jax.nn.one_hot(jnp.maximum(target, 0), 8, dtype=x.dtype), 0.1)
    return jnp.where(target >= 0, optax.softmax_cross_entropy(x, soft), 0).sum() / 3


def divergence(x, y):
    return F.kl_div(F.log_softmax(x, -1), F.softmax(y, -1), reduction="batchmean")


def divergence_jax(x, y):
    return (jax.nn.softmax(y) * (jax.nn.log_softmax(y) - jax.nn.log_softmax(x))).sum() / x.shape[0]


port("cross entropy, smoothed and ignoring", smoothed, smoothed_jax, normal((4, 8)))
port("divergence", divergence, divergence_jax, normal((6, 8), (6, 8)))
port(
    "log-softmax of masked logits", lambda x, m: torch.where(m, x, -1e30).log_softmax(-1),
    lambda x, m: jax.nn.log_softmax(jnp.where(m, x, -1e30)),
    lambda rng: (rng.standard_normal((2, 5)), np.arange(5) < np.array([[3], [5]])),
)  # fmt: skip

# Convolutions and images.


def transposed_jax(x, k):
    kernel = jnp.flip(k, (2, 3)).transpose(1, 0, 2, 3)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2))


def channels_last_jax(x, k):
    module = nn.Conv(4, (3, 3), padding=1, use_bias=False)
    return linen(module, kernel=k.transpose(2, 3, 1, 0))(x.transpose(0, 2, 3, 1))


IMAGE = normal((2, 3, 8, 8), (4, 3, 3, 3))
port(
    "convolution, strided", lambda x, k: F.conv2d(x, k, stride=2, padding=1),
    lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), ((1, 1), (1, 1))), IMAGE,
)  # fmt: skip
port("convolution, channels last", lambda x, k: F.conv2d(x, k, padding=1).permute(0, 2, 3, 1), channels_last_jax, IMAGE)
port(
    "convolution, grouped", lambda x, k: F.conv2d(x, k, groups=2),
    lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", feature_group_count=2),
    normal((2, 4, 6, 6), (6, 2, 3, 3)),
)  # fmt: skip
port(
    "convolution, transposed",
    lambda x, k: F.conv_transpose2d(x, k, stride=2),
    transposed_jax,
    normal((2, 3, 4, 4), (3, 5, 3, 3)),
)
port(
    "resize, bicubic", lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True),
    lambda x: jax.image.resize(x, (1, 2, 4, 4), "bicubic"), normal((1, 2, 8, 8)),
)  # fmt: skip
port(
    "resize, bilinear", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    lambda x: jax.image.resize(x, (1, 2, 16, 16), "bilinear"), normal((1, 2, 8, 8)),
)  # fmt: skip

# Recurrent cells and optimizers.


def lstm_jax(x, h, c, wx, wh, b):
    i, f, g, o = jnp.split(x @ wx.T + h @ wh.T + b, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru_jax(x, h, wx, wh, bx, bh):
    (r1, z1, n1), (r2, z2, n2) = jnp.split(x @ wx.T + bx, 3, -1), jnp.split(h @ wh.T + bh, 3, -1)
    r, z = jax.nn.sigmoid(r1 + r2), jax.nn.sigmoid(z1 + z2)
    return (1 - z) * jnp.tanh(n1 + r * n2) + z * h


def adam(sqrt):
    def step(p, g, m, v):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v * v + 0.001 * g * g
        return p - 1e-3 * (m / (1 - 0.9**3)) / (sqrt(v / (1 - 0.999**3)) + 1e-8), m, v

    return step


def first_adamw(p, g):
    m, v = 0.1 * g / (1 - 0.9), 0.001 * g * g / (1 - 0.999)
    return p * (1 - 1e-2 * 0.1) - 1e-2 * m / (v.sqrt() + 1e-8)


def first_adamw_jax(p, g):
    rule = optax.adamw(1e-2, weight_decay=0.1)
    updates, _ = rule.update(g, rule.init(p), p)
    return p + updates


port(
    "LSTM cell", lambda x, h, c, wx, wh, b: torch.lstm_cell(x, (h, c), wx, wh, b, torch.zeros_like(b)), lstm_jax,
    normal((3, 4), (3, 5), (3, 5), (20, 4), (20, 5), (20,)),
)  # fmt: skip
port("GRU cell", torch.gru_cell, gru_jax, normal((3, 4), (3, 5), (15, 4), (15, 5), (15,), (15,)))
port("Adam", adam(torch.sqrt), adam(jnp.sqrt), normal(*[(8,)] * 4))
port("AdamW, optax", first_adamw, first_adamw_jax, normal((8,), (8,)))
port(
    "RMSprop", lambda p, g, v: p - 0.01 * g / ((0.9 * v * v + 0.1 * g * g).sqrt() + 1e-8),
    lambda p, g, v: p - 0.01 * g / (jnp.sqrt(0.9 * v * v + 0.1 * g * g) + 1e-8), normal(*[(8,)] * 3),
)  # fmt: skip

# Transforms, sums, choices.

port("FFT", torch.fft.fft, jnp.fft.fft, normal((4, 16)))
port(
    "inverse FFT",
    lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=16),
    lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * 2, n=16),
    normal((4, 16)),
)
port("polar", lambda x: torch.polar(x.abs(), x), lambda x: jnp.abs(x) * jnp.exp(1j * x), normal((6,)))
port(
    "log of summed exponentials",
    lambda x: torch.logsumexp(x, -1),
    lambda x: jax.nn.logsumexp(x, axis=-1),
    normal((6, 8)),
)
port("a mean that cancels", lambda x: (x + 1e6).mean() - 1e6, lambda x: (x + 1e6).mean() - 1e6, normal((6, 8)))
port("mean and variance", lambda x: (x.mean(0), x.var(0)), lambda x: (x.mean(0), x.var(0, ddof=1)), normal((6, 8)))
port("argmax of a product", lambda x, w: (x @ w).argmax(-1), lambda x, w: (x @ w).argmax(-1), normal((6, 8), (8, 5)))
port("the three largest", lambda x: tuple(torch.topk(x, 3)), lambda x: tuple(jax.lax.top_k(x, 3)), normal((6, 8)))
port("softplus", lambda x: F.softplus(x, threshold=40), jax.nn.softplus, normal((6, 8)))
port(
    "rows of a table",
    F.embedding,
    lambda i, w: w[i],
    lambda rng: (rng.integers(0, 5, (2, 2)), rng.standard_normal((5, 4))),
)


def compare(name, seed, **options):
    """Compare the two functions of a port on numbers of a seed."""
    theirs, mine, draw, own = PORTS[name]
    inputs = draw(np.random.default_rng([seed, zlib.crc32(name.encode())]))
    return parity.compare(theirs, mine, inputs, name=name, seed=seed, **(options | own))


def main():
    """Compare all, print what is called different, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.right_ports", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a port; all if none is given")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many draws of the numbers (1)")
    parser.add_argument("--data", action="append", metavar="KIND", help="a kind of data, or all; may be repeated")
    asked = parser.parse_args()
    kinds = None if asked.data == ["all"] else asked.data or ["random"]
    names, wrong, total = asked.names or list(PORTS), 0, 0
    for name in names:
        for seed in range(asked.seeds):
            report = compare(name, seed, transforms=["forward", "vjp"], data=kinds, worlds=["jax-eager", "jax-jit"])
            total += 1
            wrong += not report.ok
            if not report.ok:
                print(f"{name}, seed {seed}: {report.failed[0].cell.id}: {report.failed[0].reason}", flush=True)
    print(f"{wrong} of {total} right ports were called different ({len(names)} ports, {asked.seeds} seeds)")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
