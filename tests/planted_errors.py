"""Porting errors, planted two or more operators deep in composites, after public reports: data, and the table of them.

`python -m tests.planted_errors` prints the table of docs/evidence/planted-errors.md.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from parity import Pair
from parity.verdict.runner import plan, run
from tests.pairs_at_hand import numbers
from tests.planted_composites import (
    GATES,
    IMAGE,
    MLP,
    QKV,
    ROWS,
    STATISTICS,
    STEP,
    Planted,
    adam,
    attention,
    batch_norm,
    conv,
    corners,
    heads,
    lstm,
    mlp,
    norm,
    qkv,
    right_heads,
    rms,
    rope,
    rope_attention,
    smoothed,
    torch_adam,
    torch_attention,
    torch_batch_norm,
    torch_heads,
    torch_lstm,
    torch_qkv,
    torch_rms,
    torch_rope,
    torch_rope_attention,
    torch_smoothed,
    up,
)

EPS, GELU, DDOF = "default argument: eps", "default argument: approximate", "default argument: ddof"
INTERLEAVED, PARTS, RESIZE = "arrangement: interleaved", "arrangement: part order", "default argument: antialias"

PLANTED = (
    Planted(
        "LayerNorm's eps, in an MLP (flax #2195)",
        lambda x, w: torch.tanh(F.layer_norm(x, (8,)) @ w),
        lambda eps: lambda x, w: jnp.tanh(norm(x, eps) @ w),
        1e-5,
        1e-6,
        ROWS,
        EPS,
        "1e-06 .*1e-05",
    ),
    Planted(
        "LayerNorm's eps 1e-3 for 1e-6",
        lambda x, w: torch.tanh(F.layer_norm(x, (8,), eps=1e-6) @ w),
        lambda eps: lambda x, w: jnp.tanh(norm(x, eps) @ w),
        1e-6,
        1e-3,
        ROWS,
        EPS,
        "0.001 .*1e-06",
    ),
    Planted(
        "LayerNorm's eps 1e-12 (BERT)",
        lambda x, w: torch.relu(F.layer_norm(x, (8,), eps=1e-12) @ w),
        lambda eps: lambda x, w: jax.nn.relu(norm(x, eps) @ w),
        1e-12,
        1e-6,
        ROWS,
        EPS,
        "1e-06 .*1e-12",
    ),
    Planted(
        "RMSNorm's eps, before a product",
        lambda x, w: F.silu(torch_rms(x, 1e-6) @ w),
        lambda eps: lambda x, w: jax.nn.silu(rms(x, eps) @ w),
        1e-6,
        1e-5,
        ROWS,
        EPS,
        "1e-05 .*1e-06",
    ),
    Planted(
        "RMSNorm's eps, computed in float32",
        lambda x, w: F.silu(torch_rms(x.float(), 1e-6).to(x.dtype) @ w),
        lambda eps: lambda x, w: jax.nn.silu(rms(x.astype(jnp.float32), eps).astype(x.dtype) @ w),
        1e-6,
        1e-3,
        ROWS,
        EPS,
        "1e-06",
    ),
    Planted(
        "eps of two norms of a block",
        lambda x, w: F.layer_norm(F.layer_norm(x, (8,)) @ w, (5,)),
        lambda eps: lambda x, w: norm(norm(x, eps) @ w, eps),
        1e-5,
        1e-6,
        ROWS,
        EPS,
        "1e-06 .*1e-05",
    ),
    Planted(
        "GroupNorm's eps",
        lambda x, w: F.conv2d(F.group_norm(x, 2), w),
        lambda eps: lambda x, w: conv(norm(x.reshape(1, 2, -1), eps).reshape(x.shape), w),
        1e-5,
        1e-6,
        IMAGE,
        EPS,
        "1e-06 .*1e-05",
    ),
    Planted(
        "eps within a logarithm",
        lambda x, w: torch.log(torch.softmax(x @ w, -1) + 1e-7).mean(-1),
        lambda eps: lambda x, w: jnp.log(jax.nn.softmax(x @ w) + eps).mean(-1),
        1e-7,
        1e-5,
        ROWS,
        EPS,
        "1e-05 .*1e-07",
    ),
    Planted(
        "eps missing in a logarithm",
        lambda x, w: torch.log(torch.softmax(x @ w, -1) + 1e-5).mean(-1),
        lambda eps: lambda x, w: jnp.log(jax.nn.softmax(x @ w) + eps).mean(-1),
        1e-5,
        0.0,
        ROWS,
        EPS,
        "1e-05",
    ),
    Planted(
        "eps under a root, of a normalised vector",
        lambda x, w: (x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-8)) @ w,
        lambda eps: lambda x, w: (x / jnp.sqrt((x * x).sum(-1, keepdims=True) + eps)) @ w,
        1e-8,
        1e-4,
        ROWS,
        EPS,
        "0.0001 .*1e-08",
    ),
    Planted("Adam's eps", torch_adam, lambda eps: adam(eps=eps), 1e-8, 1e-6, STEP, EPS, "1e-06 .*1e-08"),
    Planted(
        "Adam's first momentum", torch_adam, lambda b: adam(b1=b), 0.9, 0.95, STEP, "constant|momentum", "0.05|0.95"
    ),
    Planted("Adam's rate", torch_adam, lambda lr: adam(lr=lr), 1e-2, 3e-2, STEP, "constant", "0.03 .*0.01"),
    Planted(
        "BatchNorm's eps",
        torch_batch_norm,
        lambda eps: batch_norm(eps=eps),
        1e-5,
        1e-3,
        STATISTICS,
        EPS,
        "0.001 .*1e-05",
    ),
    Planted(
        "BatchNorm's momentum", torch_batch_norm, lambda m: batch_norm(m), 0.9, 0.99, STATISTICS, "momentum", "0.1|0.01"
    ),
    Planted(
        "BatchNorm's running variance divided by n",
        torch_batch_norm,
        lambda d: batch_norm(ddof=d),
        1,
        0,
        STATISTICS,
        DDOF,
    ),
    Planted(
        "GELU in an MLP (transformers #11364)",
        mlp(F.gelu),
        lambda a: mlp(lambda x: jax.nn.gelu(x, approximate=a)),
        False,
        True,
        MLP,
        GELU,
    ),
    Planted(
        "GELU by tanh in torch",
        mlp(lambda x: F.gelu(x, approximate="tanh")),
        lambda a: mlp(lambda x: jax.nn.gelu(x, approximate=a)),
        True,
        False,
        MLP,
        GELU,
    ),
    Planted(
        "GELU written out with erf",
        mlp(lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        lambda a: mlp(lambda x: jax.nn.gelu(x, approximate=a)),
        False,
        True,
        MLP,
        GELU,
    ),
    Planted(
        "quick GELU (CLIP) for GELU",
        mlp(lambda x: x * torch.sigmoid(1.702 * x)),
        lambda f: mlp(f),
        lambda x: x * jax.nn.sigmoid(1.702 * x),
        lambda x: jax.nn.gelu(x, approximate=False),
        MLP,
        GELU,
    ),
    Planted(
        "two GELUs",
        lambda x, w, v: F.gelu(F.gelu(x @ w) @ v),
        lambda a: lambda x, w, v: jax.nn.gelu(jax.nn.gelu(x @ w, approximate=a) @ v, approximate=a),
        False,
        True,
        MLP,
        GELU,
    ),
    Planted(
        "GEGLU",
        lambda x, w, v: (F.gelu(x @ w[:, :4]) * (x @ w[:, 4:])) @ v[:4],
        lambda a: lambda x, w, v: (jax.nn.gelu(x @ w[:, :4], approximate=a) * (x @ w[:, 4:])) @ v[:4],
        False,
        True,
        MLP,
        GELU,
    ),
    Planted("ReLU for SiLU", mlp(F.silu), lambda f: mlp(f), jax.nn.silu, jax.nn.relu, MLP, "activation", "silu"),
    Planted(
        "ELU for SELU",
        mlp(F.selu),
        lambda f: mlp(f),
        jax.nn.selu,
        jax.nn.elu,
        MLP,
        "activation|alpha|constant",
        "elu|1.05",
    ),
    Planted(
        "tanh for sigmoid", mlp(torch.sigmoid), lambda f: mlp(f), jax.nn.sigmoid, jnp.tanh, MLP, "activation", "tanh"
    ),
    Planted(
        "hard swish for SiLU", mlp(F.silu), lambda f: mlp(f), jax.nn.silu, jax.nn.hard_swish, MLP, "activation|constant"
    ),
    Planted(
        "leaky ReLU's slope",
        mlp(lambda x: F.leaky_relu(x, 0.2)),
        lambda s: mlp(lambda x: jax.nn.leaky_relu(x, s)),
        0.2,
        0.01,
        MLP,
        "negative_slope",
        "0.01|0.2",
    ),
    Planted(
        "ELU's alpha",
        mlp(lambda x: F.elu(x, 1.5)),
        lambda s: mlp(lambda x: jax.nn.elu(x, s)),
        1.5,
        1.0,
        MLP,
        "alpha|constant",
        "1.5",
    ),
    Planted(
        "truncated constant in GELU",
        mlp(lambda x: F.gelu(x, approximate="tanh")),
        lambda c: mlp(lambda x: 0.5 * x * (1 + jnp.tanh(c * (x + 0.044715 * x**3)))),
        (2 / np.pi) ** 0.5,
        0.79788,
        MLP,
        "constant",
        "0.79788",
    ),
    Planted(
        "std dividing by n",
        lambda x, w: ((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)) @ w,
        lambda d: lambda x, w: ((x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True, ddof=d)) @ w,
        1,
        0,
        ROWS,
        DDOF,
    ),
    Planted(
        "LayerNorm by an unbiased variance",
        lambda x, w: F.layer_norm(x, (8,)) @ w,
        lambda d: lambda x, w: norm(x, 1e-5, d) @ w,
        0,
        1,
        ROWS,
        DDOF,
    ),
    Planted(
        "a sum for a mean, in a penalty",
        lambda x, w: torch.exp(-(x * x).mean(-1, keepdim=True)) * (x @ w),
        lambda f: lambda x, w: jnp.exp(-f(x * x, -1, keepdims=True)) * (x @ w),
        jnp.mean,
        jnp.sum,
        ROWS,
        "reduction",
    ),
    Planted(
        "attention's scale", torch_attention(), lambda s: attention(s), 8**0.5, 64**0.5, QKV, "constant|scale", "8"
    ),
    Planted(
        "attention without scale",
        torch_attention(),
        lambda s: attention(s),
        8**0.5,
        1.0,
        QKV,
        "constant|scale|another formula",
    ),
    Planted(
        "softmax along queries", torch_attention(), lambda a: attention(axis=a), -1, -2, QKV, "default argument: dim"
    ),
    Planted(
        "causal mask one off",
        torch_attention(True),
        lambda m: attention(mask=m),
        lambda i, j: j <= i,
        lambda i, j: j < i,
        QKV,
        "mask|position offset",
    ),
    Planted(
        "causal mask turned around",
        torch_attention(True),
        lambda m: attention(mask=m),
        lambda i, j: j <= i,
        lambda i, j: j > i,
        QKV,
        "mask",
    ),
    Planted(
        "a weak mask",
        torch_attention(True),
        lambda f: attention(mask=lambda i, j: j <= i, fill=f),
        -1e9,
        -5.0,
        QKV,
        "mask|constant",
        "-5",
    ),
    Planted(
        "rotary pairs (transformers #16288)",
        torch_rope_attention,
        lambda p: rope_attention(pairs=p),
        "halves",
        "neighbours",
        QKV,
        INTERLEAVED,
    ),
    Planted(
        "rotary pairs, of queries alone",
        lambda q, k, v: torch.tanh(torch_rope(q)) * k + v,
        lambda p: lambda q, k, v: jnp.tanh(rope(p)(q)) * k + v,
        "halves",
        "neighbours",
        QKV,
        INTERLEAVED,
    ),
    Planted(
        "rotary base",
        torch_rope_attention,
        lambda b: rope_attention(base=b),
        10000.0,
        500000.0,
        QKV,
        "constant",
        "500000 .*10000",
    ),
    Planted(
        "rotary turned the other way",
        lambda q, k, v: torch_rope(q) * k + v,
        lambda s: lambda q, k, v: rope(sign=s)(q) * k + v,
        1,
        -1,
        QKV,
        "sign|constant|another formula",
        "-1 in JAX where torch has 1",
    ),
    Planted("LSTM's gates in the order i, g, f, o", torch_lstm, lstm, "ifgo", "igfo", GATES, f"{PARTS}|split order"),
    Planted("LSTM's gates in the order i, f, o, g", torch_lstm, lstm, "ifgo", "ifog", GATES, f"{PARTS}|split order"),
    Planted(
        "LSTM's forget bias",
        torch_lstm,
        lambda f: lstm(forget=f),
        0.0,
        1.0,
        GATES,
        "constant|another formula",
        "1 in JAX|add",
    ),
    Planted(
        "fused qkv by heads (GPT-NeoX)", torch_qkv, qkv, "parts first", "heads first", numbers((5, 6), (24, 6)), PARTS
    ),
    Planted(
        "fused qkv with k first",
        torch_qkv,
        qkv,
        "parts first",
        "k first",
        numbers((5, 6), (24, 6)),
        PARTS + "|order|transposed",
    ),
    Planted(
        "heads by reshape alone",
        torch_heads,
        heads,
        right_heads,
        lambda x: x.reshape(2, 6, 4),
        numbers((6, 8)),
        "reshaped",
    ),
    Planted(
        "fused gate and up exchanged",
        lambda x, w, v: (F.silu((x @ w)[:, :4]) * (x @ w)[:, 4:]) @ v[:4],
        lambda o: lambda x, w, v: (jax.nn.silu((x @ w)[:, o[0]]) * (x @ w)[:, o[1]]) @ v[:4],
        (slice(0, 4), slice(4, 8)),
        (slice(4, 8), slice(0, 4)),
        MLP,
        PARTS,
    ),
    Planted(
        "fused gate and up interleaved",
        lambda x, w, v: (F.silu((x @ w)[:, :4]) * (x @ w)[:, 4:]) @ v[:4],
        lambda o: lambda x, w, v: (jax.nn.silu((x @ w)[:, o[0]]) * (x @ w)[:, o[1]]) @ v[:4],
        (slice(0, 4), slice(4, 8)),
        (slice(0, 8, 2), slice(1, 8, 2)),
        MLP,
        INTERLEAVED,
    ),
    Planted(
        "a square weight not transposed",
        lambda x, w: torch.tanh(x @ w.T).sum(-1),
        lambda f: lambda x, w: jnp.tanh(x @ f(w)).sum(-1),
        jnp.transpose,
        lambda w: w,
        numbers((5, 6), (6, 6)),
        "transposed",
    ),
    Planted(
        "SAME with stride 2",
        lambda x, w: F.conv2d(x, w, stride=2, padding=1).relu(),
        lambda p: lambda x, w: jax.nn.relu(conv(x, w, 2, p)),
        [(1, 1), (1, 1)],
        "SAME",
        IMAGE,
        "padding",
    ),
    Planted(
        "kernel of a transposed convolution not flipped",
        lambda x, w: F.conv_transpose2d(x, w, stride=2).tanh(),
        lambda f: lambda x, w: jnp.tanh(up(x, f(w))),
        lambda w: jnp.flip(w, (2, 3)),
        lambda w: w,
        numbers((1, 2, 4, 4), (2, 3, 3, 3)),
        "kernel flip",
    ),
    Planted(
        "kernel flipped (a true convolution)",
        lambda x, w: F.conv2d(x, w).tanh(),
        lambda f: lambda x, w: jnp.tanh(conv(x, f(w))),
        lambda w: w,
        lambda w: jnp.flip(w, (2, 3)),
        IMAGE,
        "kernel flip",
    ),
    Planted(
        "kernel's height and width exchanged",
        lambda x, w: F.conv2d(x, w).tanh(),
        lambda f: lambda x, w: jnp.tanh(conv(x, f(w))),
        lambda w: w,
        lambda w: jnp.swapaxes(w, 2, 3),
        IMAGE,
        "transposed",
    ),
    Planted(
        "antialias, before a tanh",
        lambda x, w: F.interpolate(x, (4, 4), mode="bilinear", antialias=True).tanh(),
        lambda a: lambda x, w: jnp.tanh(jax.image.resize(x, (1, 2, 4, 4), "bilinear", antialias=a)),
        True,
        False,
        IMAGE,
        RESIZE,
    ),
    Planted(
        "align_corners",
        lambda x, w: F.interpolate(x, (16, 16), mode="bilinear", align_corners=True).tanh(),
        lambda f: lambda x, w: f(x),
        lambda x: jnp.tanh(corners(x)),
        lambda x: jnp.tanh(jax.image.resize(x, (1, 2, 16, 16), "bilinear")),
        IMAGE,
        "align_corners",
    ),
    Planted(
        "smoothing of labels: two constants at once", torch_smoothed, smoothed, 0.1, 0.2, ROWS, "constant", "0.8.*0.9"
    ),
    Planted(
        "loss scaled by a temperature",
        lambda x, w: F.log_softmax(x @ w / 2.0, -1).sum(-1),
        lambda t: lambda x, w: jax.nn.log_softmax(x @ w / t, -1).sum(-1),
        2.0,
        4.0,
        ROWS,
        "constant",
        "4 .*2",
    ),
    Planted(
        "a residual left out",
        lambda x, w, v: torch.tanh(x + torch.relu(x @ w) @ v[:, :1]),
        lambda r: lambda x, w, v: jnp.tanh(r * x + jax.nn.relu(x @ w) @ v[:, :1]),
        1.0,
        0.0,
        MLP,
        "another formula|constant",
    ),
    Planted(
        "an activation left out",
        lambda x, w, v: torch.relu(torch.relu(x @ w) @ v).sum(-1),
        lambda f: lambda x, w, v: f(jax.nn.relu(x @ w) @ v).sum(-1),
        jax.nn.relu,
        lambda x: x,
        MLP,
        "activation|another formula",
        "relu",
    ),
    Planted(
        "a cast within",
        lambda x, w: torch.tanh(x @ w).exp(),
        lambda d: lambda x, w: jnp.exp(jnp.tanh((x @ w).astype(d)).astype(x.dtype)),
        "float64",
        "float32",
        ROWS,
        "lower precision",
        "float32",
    ),
)


def diagnosed(planted: Planted, wrong: bool = True) -> Any:
    """Return the record of the forward of a planted error, or of the right port, in float64."""
    pair = Pair(planted.torch, planted.jax(planted.wrong if wrong else planted.right), planted.inputs, "planted")
    cells = plan(pair, transforms=["forward"], dtypes=["float64"], worlds=["jax-jit"], data=["random"])
    (record,) = run(pair, cells)
    return record


def named(planted: Planted, record: Any) -> str:
    """Return "right", "wrong" or "unnamed" for a diagnosis."""
    found = record.diagnosis
    if found is None or (found.cause == "another formula" and "replaced" not in found.text):
        return "unnamed"
    right = re.search(planted.cause, found.cause) and re.search(planted.text, found.text + found.fix)
    return "right" if right else "wrong"


def main() -> None:
    """Print the table."""
    counts = {"right": 0, "wrong": 0, "unnamed": 0, "missed": 0}
    rows = []
    for planted in PLANTED:
        record = diagnosed(planted)
        how = named(planted, record) if record.failed else "missed"
        counts[how] += 1
        found = record.diagnosis
        rows.append(
            f"| {planted.name} | {how} | {found.cause if found else ''} | {found.text if found else record.reason} |"
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print("# Planted porting errors\n")
    print(
        "Made by `python -m tests.planted_errors`. Each error stands in a composite of two or more operators; the pair "
        "runs in float64,\nforward, under jit.\n"
    )
    print(f"{len(PLANTED)} errors: " + ", ".join(f"{count} {how}" for how, count in counts.items()) + ".\n")
    print("| error | named | cause | what the report says |\n|---|---|---|---|")
    print("\n".join(row.replace("\n", " ") for row in rows))


if __name__ == "__main__":
    main()
