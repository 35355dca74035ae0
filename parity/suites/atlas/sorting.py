"""Sorting, searching and what becomes of ties."""

import jax
import jax.numpy as jnp
import torch

from parity.suites.atlas.entry import entry, group, matrix, normal

EDGES = (-1.0, 0.0, 0.5, 1.0)

PAIRS = group(
    "sorting and ties",
    [
        entry("sort", lambda x: torch.sort(x).values, lambda x: jnp.sort(x), matrix),
        entry("argsort", lambda x: torch.argsort(x), lambda x: jnp.argsort(x), matrix, transforms=("forward",)),
        entry("argmax", lambda x: torch.argmax(x, -1), lambda x: jnp.argmax(x, -1), matrix, transforms=("forward",)),
        entry(
            "topk",
            lambda x: torch.topk(x, 3).values,
            lambda x: jax.lax.top_k(x, 3)[0],
            matrix,
            why=(
                "Among equal numbers at the border torch takes another one than JAX, which takes the "
                "first: the values are the same, the gradient goes elsewhere."
            ),
            where=[("vjp", "zeros ties kinks")],
            docs=("torch.topk", "jax.lax.top_k"),
        ),
        entry(
            "topk, indices",
            lambda x: torch.topk(x, 3).indices,
            lambda x: jax.lax.top_k(x, 3)[1],
            matrix,
            transforms=("forward",),
            why=("Among equal numbers torch may name another one than JAX, which names the first."),
            where=[("forward", "zeros ties kinks")],
            docs=("torch.topk", "jax.lax.top_k"),
        ),
        entry(
            "searchsorted",
            lambda x: torch.searchsorted(torch.tensor(EDGES, dtype=x.dtype), x),
            lambda x: jnp.searchsorted(jnp.array(EDGES, x.dtype), x),
            matrix,
            transforms=("forward",),
        ),
        entry("maximum", lambda x, y: torch.maximum(x, y), lambda x, y: jnp.maximum(x, y), normal((4, 6), (4, 6))),
        entry(
            "unique",
            lambda x: torch.unique(x),
            lambda x: jnp.unique(x),
            matrix,
            transforms=("forward",),
            why=("Under jit JAX cannot tell how many numbers there will be, and raises unless size= says it."),
            where=[("forward", "random", "jax-jit")],
            docs=("torch.unique", "jax.numpy.unique"),
        ),
    ],
)
