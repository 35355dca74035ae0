"""Elementwise functions."""

import jax
import jax.numpy as jnp
import torch

from parity.suites.atlas.entry import entry, group, joined, matrix, positive, two_matrices

PAIRS = group(
    "elementwise",
    [
        entry(
            "abs",
            lambda x: torch.abs(x),
            lambda x: jnp.abs(x),
            matrix,
            why=("At 0 torch's gradient is 0, the mean of both sides; JAX's is 1."),
            where=[("vjp", "zeros"), ("vjp", "kinks")],
            docs=("torch.abs", "jax.numpy.abs"),
        ),
        entry("sign", lambda x: torch.sign(x), lambda x: jnp.sign(x), matrix),
        entry("sqrt", lambda x: torch.sqrt(x), lambda x: jnp.sqrt(x), positive),
        entry("rsqrt", lambda x: torch.rsqrt(x), lambda x: jax.lax.rsqrt(x), positive),
        entry("exp", lambda x: torch.exp(x), lambda x: jnp.exp(x), matrix),
        entry("log", lambda x: torch.log(x), lambda x: jnp.log(x), positive),
        entry("log1p", lambda x: torch.log1p(x), lambda x: jnp.log1p(x), positive),
        entry("sin", lambda x: torch.sin(x), lambda x: jnp.sin(x), matrix),
        entry(
            "atan2",
            lambda y, x: torch.atan2(y, x),
            lambda y, x: jnp.atan2(y, x),
            two_matrices,
            why=("At (0, 0) torch gives the gradient 0, JAX 0/0, which is NaN."),
            where=[("vjp", "zeros"), ("vjp", "kinks")],
            docs=("torch.atan2", "jax.numpy.atan2"),
        ),
        entry(
            "hypot",
            lambda x, y: torch.hypot(x, y),
            lambda x, y: jnp.hypot(x, y),
            two_matrices,
            why=("At (0, 0) torch's gradient is 0/0, which is NaN, and JAX's 1/2 by either argument."),
            where=[("vjp", "zeros")],
            docs=("torch.hypot", "jax.numpy.hypot"),
        ),
        entry(
            "pow",
            lambda x, y: torch.pow(x, y),
            lambda x, y: jnp.power(x, y),
            joined(positive, matrix),
            why=("At 0^0 torch has the derivative 0 by the base; JAX computes 0 * 0^-1, which is NaN."),
            where=[("vjp", "zeros"), ("vjp", "kinks")],
            docs=("torch.pow", "jax.numpy.power"),
        ),
        entry(
            "clip",
            lambda x: torch.clip(x, -1, 1),
            lambda x: jnp.clip(x, -1, 1),
            matrix,
            why=(
                "At the edges torch lets the whole gradient through, JAX half of it: its clip is a "
                "minimum of a maximum, and both share the gradient at a tie."
            ),
            where=[("vjp", "ties"), ("vjp", "kinks")],
            docs=("torch.clip", "jax.numpy.clip"),
        ),
        entry("round", lambda x: torch.round(x), lambda x: jnp.round(x), matrix),
        entry(
            "remainder", lambda x, y: torch.remainder(x, y), lambda x, y: jnp.remainder(x, y), joined(matrix, positive)
        ),
        entry("div", lambda x, y: torch.div(x, y), lambda x, y: jnp.divide(x, y), joined(matrix, positive)),
        entry(
            "floor_divide",
            lambda x, y: torch.floor_divide(x, y),
            lambda x, y: jnp.floor_divide(x, y),
            joined(matrix, positive),
            why=("torch has no derivative of it and raises; JAX has the derivative 0."),
            where=[("vjp", "*", "*"), ("jvp", "*", "*"), ("gradient-per-copy", "*", "*")],
            docs=("torch.floor_divide", "jax.numpy.floor_divide"),
        ),
        entry(
            "heaviside",
            lambda x, y: torch.heaviside(x, y),
            lambda x, y: jnp.heaviside(x, y),
            two_matrices,
            why=("torch has no derivative of it and raises; JAX has one."),
            where=[("vjp", "*", "*"), ("jvp", "*", "*"), ("gradient-per-copy", "*", "*")],
            docs=("torch.heaviside", "jax.numpy.heaviside"),
        ),
        entry("nan_to_num", lambda x: torch.nan_to_num(x), lambda x: jnp.nan_to_num(x), matrix),
    ],
)
