"""Operators of both frameworks, as people write them: some that agree, some that are known not to."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from parity import Pair


def numbers(*shapes):
    """Return a function of a seed that makes normal numbers."""

    def make(seed):
        rng = np.random.Generator(np.random.PCG64([seed, 11]))
        return tuple(rng.standard_normal(shape) for shape in shapes)

    return make


def jax_layer_norm(x, weight, bias):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight + bias


def jax_lower_median(x):
    return jnp.sort(x, -1)[..., (x.shape[-1] - 1) // 2]


ROWS = numbers((6, 8))

AGREE = (
    Pair(F.silu, jax.nn.silu, ROWS, "silu"),
    Pair(lambda x: F.log_softmax(x, -1), jax.nn.log_softmax, ROWS, "log_softmax"),
    Pair(lambda x, w, b: F.layer_norm(x, (8,), w, b), jax_layer_norm, numbers((6, 8), (8,), (8,)), "layer_norm"),
    Pair(lambda x: torch.logsumexp(x, -1), lambda x: jax.nn.logsumexp(x, -1), ROWS, "logsumexp"),
    Pair(lambda x, w: torch.einsum("bi,oi->bo", x, w), lambda x, w: jnp.einsum("bi,oi->bo", x, w),
         numbers((16, 24), (20, 24)), "einsum"),
    Pair(lambda x: torch.cumsum(x, -1), lambda x: jnp.cumsum(x, -1), ROWS, "cumsum"),
    Pair(lambda x: torch.amax(x, -1), lambda x: jnp.max(x, -1), ROWS, "amax"),
)  # fmt: skip
"""They are one function."""

DIFFER = (
    Pair(F.gelu, jax.nn.gelu, ROWS, "gelu"),
    Pair(lambda x: torch.std(x, -1), lambda x: jnp.std(x, -1), ROWS, "std"),
    Pair(lambda x: torch.median(x, -1).values, lambda x: jnp.median(x, -1), ROWS, "median"),
    Pair(lambda x: torch.clamp(x, -1, 1), lambda x: jnp.clip(x, -1, 1), ROWS, "clip"),
    Pair(lambda x: torch.linalg.vector_norm(x, dim=-1), lambda x: jnp.linalg.norm(x, axis=-1), ROWS, "norm"),
    Pair(lambda x: torch.max(x, -1).values, lambda x: jnp.max(x, -1), ROWS, "max"),
    Pair(lambda x: F.interpolate(x, (4, 4), mode="bilinear"), lambda x: jax.image.resize(x, (1, 2, 4, 4), "bilinear"),
         numbers((1, 2, 8, 8)), "bilinear"),
)  # fmt: skip
"""They are not, at some points or at all."""

REPAIRED = (
    Pair(F.gelu, lambda x: jax.nn.gelu(x, approximate=False), ROWS, "gelu"),
    Pair(lambda x: torch.std(x, -1), lambda x: jnp.std(x, -1, ddof=1), ROWS, "std"),
    Pair(lambda x: torch.median(x, -1).values, jax_lower_median, ROWS, "median"),
    Pair(lambda x: F.interpolate(x, (4, 4), mode="bilinear", antialias=True),
         lambda x: jax.image.resize(x, (1, 2, 4, 4), "bilinear"), numbers((1, 2, 8, 8)), "bilinear"),
)  # fmt: skip
"""The same with the argument that the diagnosis names."""
