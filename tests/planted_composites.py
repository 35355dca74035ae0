"""The composites that tests/planted_errors.py plants errors in: original and port, as users write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax import lax

from tests.pairs_at_hand import numbers


@dataclass(frozen=True)
class Planted:
    """An error in the JAX port of a composite.

    Attributes:
        name: Of the error.
        torch: The original.
        jax: Makes the port, given what is wrong or right.
        right: What is right.
        wrong: What is wrong.
        inputs: Arrays for a seed.
        cause: A pattern of the causes that name it.
        text: A pattern that the text or the fix has.
    """

    name: str
    torch: Callable[..., Any]
    jax: Callable[[Any], Callable[..., Any]]
    right: Any
    wrong: Any
    inputs: Callable[[int], tuple[np.ndarray, ...]]
    cause: str
    text: str = ""


def positive(*shapes: tuple[int, ...]) -> Callable[[int], tuple[np.ndarray, ...]]:
    """Return inputs whose numbers are positive."""
    return lambda seed: tuple(np.abs(x) + 0.1 for x in numbers(*shapes)(seed))


def norm(x: Any, eps: float, ddof: int = 0) -> Any:
    """Layer norm."""
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True, ddof=ddof) + eps)


def rms(x: Any, eps: float) -> Any:
    """RMS norm."""
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)


def torch_rms(x: Any, eps: float) -> Any:
    """RMS norm."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


MLP = numbers((5, 6), (6, 8), (8, 3))
ROWS = numbers((6, 8), (8, 5))
QKV = numbers((2, 6, 8), (2, 6, 8), (2, 6, 8))
IMAGE = numbers((1, 2, 8, 8), (3, 2, 3, 3))
GATES = numbers((2, 3), (2, 4), (2, 4), (16, 3), (16, 4), (16,))
STEP = positive((12,), (12,), (12,), (12,))
STATISTICS = positive((16, 4), (4,), (4,))


def mlp(activation: Any) -> Any:
    """Two products with an activation between."""
    return lambda x, w, v: activation(x @ w) @ v


def attention(scale: float = 8**0.5, mask: Any = None, fill: float = -1e9, axis: int = -1) -> Any:
    """Attention of JAX."""

    def attend(q: Any, k: Any, v: Any) -> Any:
        s = q @ jnp.swapaxes(k, -1, -2) / scale
        if mask is not None:
            s = jnp.where(mask(jnp.arange(6)[:, None], jnp.arange(6)), s, fill)
        return jax.nn.softmax(s, axis) @ v

    return attend


def torch_attention(causal: bool = False) -> Any:
    """Attention of torch."""

    def attend(q: Any, k: Any, v: Any) -> Any:
        s = q @ k.mT / 8**0.5
        if causal:
            s = s.masked_fill(torch.triu(torch.ones(6, 6, dtype=torch.bool), 1), -1e9)
        return torch.softmax(s, -1) @ v

    return attend


def angles(base: float, xp: Any, positions: Any, channels: Any) -> tuple[Any, Any]:
    """Cosines and sines of rotary positions."""
    turn = positions[:, None] * base ** (-channels / 4)
    return xp.cos(turn), xp.sin(turn)


def torch_rope(x: Any) -> Any:
    """Rotate halves."""
    c, s = angles(10000.0, torch, torch.arange(6, dtype=x.dtype), torch.arange(4, dtype=x.dtype))
    a, b = x[..., :4], x[..., 4:]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def rope(pairs: str = "halves", base: float = 10000.0, sign: int = 1, offset: int = 0) -> Any:
    """Rotate halves or neighbours."""

    def rotate(x: Any) -> Any:
        c, s = angles(base, jnp, jnp.arange(6, dtype=x.dtype) + offset, jnp.arange(4, dtype=x.dtype))
        s = s * sign
        if pairs == "halves":
            a, b = x[..., :4], x[..., 4:]
            return jnp.concatenate([a * c - b * s, b * c + a * s], -1)
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * c - b * s, b * c + a * s], -1).reshape(x.shape)

    return rotate


def torch_rope_attention(q: Any, k: Any, v: Any) -> Any:
    """Attention with rotary positions."""
    return torch_attention()(torch_rope(q), torch_rope(k), v)


def rope_attention(**options: Any) -> Any:
    """Attention with rotary positions."""
    return lambda q, k, v: attention()(rope(**options)(q), rope(**options)(k), v)


def torch_lstm(x: Any, h: Any, c: Any, wi: Any, wh: Any, b: Any) -> Any:
    """LSTM cell with gates i, f, g, o."""
    i, f, g, o = (x @ wi.T + h @ wh.T + b).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def lstm(order: str = "ifgo", forget: float = 0.0) -> Any:
    """LSTM cell with gates in some order."""

    def cell(x: Any, h: Any, c: Any, wi: Any, wh: Any, b: Any) -> Any:
        gate = dict(zip(order, jnp.split(x @ wi.T + h @ wh.T + b, 4, -1), strict=True))
        c = jax.nn.sigmoid(gate["f"] + forget) * c + jax.nn.sigmoid(gate["i"]) * jnp.tanh(gate["g"])
        return jax.nn.sigmoid(gate["o"]) * jnp.tanh(c), c

    return cell


def torch_batch_norm(x: Any, mean: Any, var: Any) -> Any:
    """Batch norm in training, with its statistics."""
    mean, var = mean.clone(), var.clone()
    return F.batch_norm(x, mean, var, training=True).tanh(), mean, var


def batch_norm(momentum: float = 0.9, ddof: int = 1, eps: float = 1e-5) -> Any:
    """Batch norm in training, with its statistics."""

    def normed(x: Any, mean: Any, var: Any) -> Any:
        m, v = x.mean(0), x.var(0)
        y = jnp.tanh((x - m) * lax.rsqrt(v + eps))
        return y, momentum * mean + (1 - momentum) * m, momentum * var + (1 - momentum) * x.var(0, ddof=ddof)

    return normed


def torch_adam(p: Any, g: Any, m: Any, v: Any) -> Any:
    """The third step of Adam."""
    m, v = m.lerp(g, 0.1), 0.999 * v + 0.001 * g * g
    return p - 1e-2 * (m / (1 - 0.9**3)) / ((v / (1 - 0.999**3)).sqrt() + 1e-8), m, v


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, lr: float = 1e-2, inside: bool = False) -> Any:
    """The third step of Adam."""

    def step(p: Any, g: Any, m: Any, v: Any) -> Any:
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        root = jnp.sqrt(v / (1 - b2**3) + eps) if inside else jnp.sqrt(v / (1 - b2**3)) + eps
        return p - lr * (m / (1 - b1**3)) / root, m, v

    return step


def torch_smoothed(x: Any, w: Any) -> Any:
    """Cross entropy with smoothed labels."""
    target = 0.9 * torch.eye(6, 5, dtype=x.dtype) + 0.1 / 5
    return -(F.log_softmax(x @ w, -1) * target).sum(-1)


def smoothed(by: float) -> Any:
    """Cross entropy with smoothed labels."""
    return lambda x, w: -(jax.nn.log_softmax(x @ w, -1) * ((1 - by) * jnp.eye(6, 5) + by / 5)).sum(-1)


def conv(x: Any, w: Any, stride: int = 1, padding: Any = "VALID") -> Any:
    """Convolution with channels first."""
    return lax.conv_general_dilated(x, w, (stride, stride), padding)


def up(x: Any, w: Any) -> Any:
    """Transposed convolution with channels first."""
    return lax.conv_transpose(x, w, (2, 2), "VALID", dimension_numbers=("NCHW", "IOHW", "NCHW"))


def torch_heads(x: Any) -> Any:
    """Scores of two heads."""
    q = x.reshape(6, 2, 4).transpose(0, 1)
    return torch.softmax(q @ q.mT, -1) @ q


def heads(split: Any) -> Any:
    """Scores of two heads."""

    def scores(x: Any) -> Any:
        q = split(x)
        return jax.nn.softmax(q @ jnp.swapaxes(q, -1, -2), -1) @ q

    return scores


def right_heads(x: Any) -> Any:
    """Split heads as torch does."""
    return jnp.swapaxes(x.reshape(6, 2, 4), 0, 1)


def torch_qkv(x: Any, w: Any) -> Any:
    """Fused projection to (q, k, v), each of two heads."""
    q, k, v = (x @ w.T).reshape(5, 3, 2, 4).permute(1, 2, 0, 3)
    return torch.softmax(q @ k.mT, -1) @ v


def qkv(order: str) -> Any:
    """Fused projection, read in some order."""

    def attend(x: Any, w: Any) -> Any:
        y = x @ w.T
        if order == "heads first":
            y = jnp.transpose(y.reshape(5, 2, 3, 4), (2, 1, 0, 3))
        else:
            y = jnp.transpose(y.reshape(5, 3, 2, 4), (1, 2, 0, 3))
        parts = dict(zip("kqv" if order == "k first" else "qkv", y, strict=True))
        return jax.nn.softmax(parts["q"] @ jnp.swapaxes(parts["k"], -1, -2), -1) @ parts["v"]

    return attend


def corners(x: Any) -> Any:
    """Bilinear resizing of the last two axes from 8 to 16 with corners aligned."""
    at = jnp.arange(16) * 7 / 15
    weights = jnp.maximum(0, 1 - jnp.abs(at[:, None] - jnp.arange(8)))
    return jnp.einsum("ai,bj,ncij->ncab", weights, weights, x)
