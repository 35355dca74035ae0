"""Reductions and cumulative sums."""

import jax
import jax.numpy as jnp
import torch

from parity.suites.atlas.entry import entry, group, matrix

PAIRS = group(
    "reductions",
    [
        entry("sum", lambda x: torch.sum(x, -1), lambda x: jnp.sum(x, -1), matrix),
        entry("mean", lambda x: torch.mean(x, -1), lambda x: jnp.mean(x, -1), matrix),
        entry("prod", lambda x: torch.prod(x, -1), lambda x: jnp.prod(x, -1), matrix),
        entry(
            "std",
            lambda x: torch.std(x, -1),
            lambda x: jnp.std(x, -1),
            matrix,
            why=(
                "torch divides by n - 1 (correction=1), JAX by n (ddof=0). For equal numbers, where the "
                "root is of 0, torch's gradient is 0 and JAX's NaN."
            ),
            where=[("*", "random"), ("*", "ties"), ("*", "kinks"), ("vjp", "zeros")],
            docs=("torch.std", "jax.numpy.std"),
        ),
        entry(
            "std, ddof alike",
            lambda x: torch.std(x, -1),
            lambda x: jnp.std(x, -1, ddof=1),
            matrix,
            why=(
                "For equal numbers the root is taken of 0: torch defines its gradient as 0, JAX "
                "multiplies infinity by 0, which is NaN."
            ),
            where=[("vjp", "zeros")],
            docs=("torch.std", "jax.numpy.std"),
        ),
        entry(
            "std, correction alike",
            lambda x: torch.std(x, -1, correction=0),
            lambda x: jnp.std(x, -1),
            matrix,
            why=(
                "For equal numbers the root is taken of 0: torch defines its gradient as 0, JAX "
                "multiplies infinity by 0, which is NaN."
            ),
            where=[("vjp", "zeros")],
            docs=("torch.std", "jax.numpy.std"),
        ),
        entry(
            "var",
            lambda x: torch.var(x, -1),
            lambda x: jnp.var(x, -1),
            matrix,
            why=("torch divides by n - 1 (correction=1), JAX by n (ddof=0)."),
            where=[("*", "random"), ("*", "ties"), ("*", "kinks")],
            docs=("torch.var", "jax.numpy.var"),
        ),
        entry("var, ddof alike", lambda x: torch.var(x, -1), lambda x: jnp.var(x, -1, ddof=1), matrix),
        entry("cov", lambda x: torch.cov(x), lambda x: jnp.cov(x), matrix),
        entry(
            "median",
            lambda x: torch.median(x, -1).values,
            lambda x: jnp.median(x, -1),
            matrix,
            why=(
                "Of an even count torch returns the lower of the two in the middle, JAX their mean; the "
                "gradient goes to one of them, or to both by half."
            ),
            where=[("forward", "random ties kinks"), ("vjp", "*"), ("jvp", "*"), ("gradient-per-copy", "*")],
            docs=("torch.median", "jax.numpy.median"),
        ),
        entry(
            "median of an odd count",
            lambda x: torch.median(x[:, :5], -1).values,
            lambda x: jnp.median(x[:, :5], -1),
            matrix,
        ),
        entry("quantile", lambda x: torch.quantile(x, 0.3, -1), lambda x: jnp.quantile(x, 0.3, -1), matrix),
        entry(
            "max",
            lambda x: torch.max(x, -1).values,
            lambda x: jnp.max(x, -1),
            matrix,
            why=(
                "Among equal maxima torch gives the gradient to the one whose index it returns, JAX "
                "shares it equally; torch.amax shares as well."
            ),
            where=[("vjp", "zeros ties kinks")],
            docs=("torch.max", "jax.numpy.max"),
        ),
        entry("amax", lambda x: torch.amax(x, -1), lambda x: jnp.max(x, -1), matrix),
        entry("nansum", lambda x: torch.nansum(x, -1), lambda x: jnp.nansum(x, -1), matrix),
        entry("logsumexp", lambda x: torch.logsumexp(x, -1), lambda x: jax.nn.logsumexp(x, -1), matrix),
        entry(
            "norm",
            lambda x: torch.linalg.vector_norm(x, dim=-1),
            lambda x: jnp.linalg.norm(x, axis=-1),
            matrix,
            why=("At a row of zeros the norm has no derivative: torch gives 0, JAX 0/0, which is NaN."),
            where=[("vjp", "zeros")],
            docs=("torch.linalg.vector_norm", "jax.numpy.linalg.norm"),
        ),
        entry("cumsum", lambda x: torch.cumsum(x, -1), lambda x: jnp.cumsum(x, -1), matrix),
        entry("cumprod", lambda x: torch.cumprod(x, -1), lambda x: jnp.cumprod(x, -1), matrix),
        entry(
            "cummax",
            lambda x: torch.cummax(x, -1).values,
            lambda x: jax.lax.cummax(x, axis=1),
            matrix,
            transforms=("forward", "vjp"),
            why=(
                "Among equal maxima torch gives the gradient to the last one, whose index it returns, "
                "JAX shares it between them."
            ),
            where=[("vjp", "zeros ties kinks")],
            docs=("torch.cummax", "jax.lax.cummax"),
        ),
    ],
)
