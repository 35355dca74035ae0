"""Reductions and cumulative sums."""

import jax
import jax.numpy as jnp
import torch

from parity.subjects.atlas.entry import entry, group, matrix

PAIRS = group(
    "reductions",
    [
        entry("sum", lambda x: torch.sum(x, -1), lambda x: jnp.sum(x, -1), matrix),
        entry("mean", lambda x: torch.mean(x, -1), lambda x: jnp.mean(x, -1), matrix),
        entry("prod", lambda x: torch.prod(x, -1), lambda x: jnp.prod(x, -1), matrix),
        entry("std", lambda x: torch.std(x, -1), lambda x: jnp.std(x, -1), matrix),
        entry("std, ddof alike", lambda x: torch.std(x, -1), lambda x: jnp.std(x, -1, ddof=1), matrix),
        entry("std, correction alike", lambda x: torch.std(x, -1, correction=0), lambda x: jnp.std(x, -1), matrix),
        entry("var", lambda x: torch.var(x, -1), lambda x: jnp.var(x, -1), matrix),
        entry("var, ddof alike", lambda x: torch.var(x, -1), lambda x: jnp.var(x, -1, ddof=1), matrix),
        entry("cov", lambda x: torch.cov(x), lambda x: jnp.cov(x), matrix),
        entry("median", lambda x: torch.median(x, -1).values, lambda x: jnp.median(x, -1), matrix),
        entry(
            "median of an odd count",
            lambda x: torch.median(x[:, :5], -1).values,
            lambda x: jnp.median(x[:, :5], -1),
            matrix,
        ),
        entry("quantile", lambda x: torch.quantile(x, 0.3, -1), lambda x: jnp.quantile(x, 0.3, -1), matrix),
        entry("max", lambda x: torch.max(x, -1).values, lambda x: jnp.max(x, -1), matrix),
        entry("amax", lambda x: torch.amax(x, -1), lambda x: jnp.max(x, -1), matrix),
        entry("nansum", lambda x: torch.nansum(x, -1), lambda x: jnp.nansum(x, -1), matrix),
        entry("logsumexp", lambda x: torch.logsumexp(x, -1), lambda x: jax.nn.logsumexp(x, -1), matrix),
        entry("norm", lambda x: torch.linalg.vector_norm(x, dim=-1), lambda x: jnp.linalg.norm(x, axis=-1), matrix),
        entry("cumsum", lambda x: torch.cumsum(x, -1), lambda x: jnp.cumsum(x, -1), matrix),
        entry("cumprod", lambda x: torch.cumprod(x, -1), lambda x: jnp.cumprod(x, -1), matrix),
        entry("cummax", lambda x: torch.cummax(x, -1).values, lambda x: jax.lax.cummax(x, axis=1), matrix),
        entry("logcumsumexp", lambda x: torch.logcumsumexp(x, -1), lambda x: jax.lax.cumlogsumexp(x, axis=1), matrix),
    ],
)
