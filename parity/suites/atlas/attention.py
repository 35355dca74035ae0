"""Scaled dot-product attention. torch takes (batch, heads, length, size), JAX (batch, length, heads, size)."""

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from parity.suites.atlas.entry import entry, group, normal

EVEN = ("random", "zeros", "ties")
"""The kinds of data that say something: attention has no kinks, and scores of 36 are beyond what it is for."""

HEADS = normal((1, 2, 4, 3), (1, 2, 4, 3), (1, 2, 4, 3))


DOCS = ("torch.nn.functional.scaled_dot_product_attention", "jax.nn.dot_product_attention")
FORWARD_MODE = "In forward mode torch's fused kernel for the CPU raises an error."
SINGLE = (
    f"{FORWARD_MODE} Elsewhere the two agree, as far as JAX goes: it takes the softmax in float32 whatever the inputs "
    "are, so float64 results are right to 1e-7 only."
)
IN_FORWARD_MODE = (("jvp", "*"), ("jvp", "*", "torch-eager"))
DIFFER = (("forward", "*"), ("jvp", "*"), ("gradient-per-copy", "*"), ("jvp", "*", "torch-eager"))
"""Where those of other meaning differ."""


def _swapped(q, k, v, **keywords):  # type: ignore[no-untyped-def]
    q, k, v = (jnp.swapaxes(part, 1, 2) for part in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, **keywords), 1, 2)


PAIRS = group(
    "attention",
    [
        entry(
            "attention",
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
            lambda q, k, v: jax.nn.dot_product_attention(q, k, v),
            HEADS,
            data=EVEN,
            why=(
                "torch takes (batch, heads, length, size), JAX (batch, length, heads, size): the same "
                f"arrays mean other things. {FORWARD_MODE}"
            ),
            where=[*DIFFER, ("vjp", "*")],
            docs=DOCS,
        ),
        entry(
            "attention, axes alike",
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
            lambda q, k, v: _swapped(q, k, v),
            HEADS,
            data=EVEN,
            why=SINGLE,
            where=IN_FORWARD_MODE,
            docs=DOCS,
        ),
        entry(
            "attention, causal",
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            lambda q, k, v: _swapped(q, k, v, is_causal=True),
            HEADS,
            data=EVEN,
            why=SINGLE,
            where=IN_FORWARD_MODE,
            docs=DOCS,
        ),
        entry(
            "attention, a row wholly masked",
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.tensor([[True], [False], [True], [True]])),
            lambda q, k, v: _swapped(q, k, v, mask=jnp.array([[True], [False], [True], [True]])[None, None]),
            HEADS,
            data=EVEN,
            why=(
                "A query that may attend to nothing gets 0 in torch; in JAX it gets the mean of all "
                f"values, as masked scores are a large negative number and not -inf. {FORWARD_MODE}"
            ),
            where=[*DIFFER, ("vjp", "*")],
            docs=DOCS,
        ),
    ],
)
