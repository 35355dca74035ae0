"""Indexing, joining and moving elements."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from parity.suites.atlas.entry import entry, group, integers, joined, matrix, normal

ROWS = joined(normal((4, 6)), integers(0, 4, (3,)))
PLACES = joined(normal((4, 6)), integers(0, 6, (4, 3)))
ADDED = joined(normal((4, 6)), integers(0, 4, (5,)), normal((5, 6)))


def _outside(seed):  # type: ignore[no-untyped-def]
    return np.random.default_rng(seed).standard_normal((4, 6)), np.array([0, 9], np.int32)


PAIRS = group(
    "indexing",
    [
        entry("index_select", lambda x, i: torch.index_select(x, 0, i), lambda x, i: jnp.take(x, i, 0), ROWS),
        entry(
            "index out of range",
            lambda x, i: x[i],
            lambda x, i: x[i],
            _outside,
            why=(
                "torch raises an IndexError; JAX, which cannot raise from within a compiled program, "
                "reads the nearest element, and drops its gradient."
            ),
            where=[("*", "*", "*")],
            docs=("torch.index_select", "https://docs.jax.dev/en/latest/notebooks/Common_Gotchas_in_JAX.html"),
        ),
        entry("gather", lambda x, i: torch.gather(x, 1, i.long()), lambda x, i: jnp.take_along_axis(x, i, 1), PLACES),
        entry("embedding", lambda x, i: F.embedding(i, x), lambda x, i: x[i], ROWS),
        entry("index_add", lambda x, i, y: torch.index_add(x, 0, i, y), lambda x, i, y: x.at[i].add(y), ADDED),
        entry(
            "one_hot",
            lambda x, i: x * F.one_hot(i.long(), 6),
            lambda x, i: x * jax.nn.one_hot(i, 6, dtype=x.dtype),
            joined(normal((4, 6)), integers(0, 6, (4,))),
        ),
        entry(
            "where", lambda x, y: torch.where(x > 0, x, y), lambda x, y: jnp.where(x > 0, x, y), normal((4, 6), (4, 6))
        ),
        entry("masked_fill", lambda x: x.masked_fill(x > 1, 0.0), lambda x: jnp.where(x > 1, 0.0, x), matrix),
        entry("flip", lambda x: torch.flip(x, [1]), lambda x: jnp.flip(x, 1), matrix),
        entry(
            "repeat",
            lambda x: x.repeat(2, 1),
            lambda x: jnp.repeat(x, 2, 0),
            matrix,
            why=(
                "Tensor.repeat lays copies of the whole side by side, as tile does; jax.numpy.repeat "
                "repeats each element, as torch.repeat_interleave does."
            ),
            where=[("forward", "random ties kinks"), ("vjp", "*"), ("jvp", "*"), ("gradient-per-copy", "*")],
            docs=("torch.Tensor.repeat", "jax.numpy.repeat"),
        ),
        entry("tile", lambda x: torch.tile(x, (2, 1)), lambda x: jnp.tile(x, (2, 1)), matrix),
        entry("pad", lambda x: F.pad(x, (1, 2)), lambda x: jnp.pad(x, ((0, 0), (1, 2))), matrix),
        entry(
            "pad, reflect",
            lambda x: F.pad(x, (1, 2), mode="reflect"),
            lambda x: jnp.pad(x, ((0, 0), (1, 2)), mode="reflect"),
            matrix,
        ),
        entry(
            "meshgrid",
            lambda x, y: torch.meshgrid(x, y, indexing="ij"),
            lambda x, y: jnp.meshgrid(x, y),
            normal((3,), (4,)),
            why=("JAX has indexing='xy' by default and torch 'ij': the outputs are transposed."),
            where=[("*", "*")],
            docs=("torch.meshgrid", "jax.numpy.meshgrid"),
        ),
    ],
)
