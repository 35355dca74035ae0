"""Normalisations, with and without equal eps."""

import jax
import jax.numpy as jnp
import optax
import torch.nn.functional as F

from parity.suites.atlas.entry import COLUMNS, ROWS, entry, group, matrix, normal, two_matrices

IMAGES = normal((2, ROWS, 3))

PAIRS = group(
    "normalisations",
    [
        entry("layer_norm", lambda x: F.layer_norm(x, x.shape[-1:]), lambda x: jax.nn.standardize(x), matrix),
        entry(
            "layer_norm, affine",
            lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias),
            lambda x, weight, bias: jax.nn.standardize(x) * weight + bias,
            normal((ROWS, COLUMNS), (COLUMNS,), (COLUMNS,)),
        ),
        entry(
            "batch_norm",
            lambda x: F.batch_norm(x, None, None, training=True),
            lambda x: jax.nn.standardize(x, axis=0),
            matrix,
        ),
        entry(
            "batch_norm, algorithm alike",
            lambda x: F.batch_norm(x, None, None, training=True),
            lambda x: jax.nn.standardize(x, axis=0, algorithm="stable"),  # type: ignore[call-arg] # not in JAX's stubs
            matrix,
        ),
        entry(
            "instance_norm",
            lambda x: F.instance_norm(x),
            lambda x: jax.nn.standardize(x),
            IMAGES,
        ),
        entry(
            "group_norm",
            lambda x: F.group_norm(x, 2),
            lambda x: jax.nn.standardize(x.reshape(x.shape[0], 2, -1)).reshape(x.shape),
            IMAGES,
        ),
        entry(
            "rms_norm, equal eps",
            lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6),
            lambda x: x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6),
            matrix,
        ),
        entry(
            "normalize",
            lambda x: F.normalize(x),
            lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True),
            matrix,
            why=(
                "torch divides by the norm or by eps=1e-12, whichever is larger; division by the norm "
                "alone is NaN for a row of zeros, and so is its gradient."
            ),
            where=[("*", "zeros")],
            docs=("torch.nn.functional.normalize", "jax.numpy.linalg.norm"),
        ),
        entry(
            "cosine_similarity",
            lambda x, y: F.cosine_similarity(x, y),
            lambda x, y: optax.losses.cosine_similarity(x, y, axis=1),
            two_matrices,
            why=(
                "torch bounds the norms from below by eps=1e-8; optax has epsilon=0, which is NaN for a row of zeros."
            ),
            where=[("*", "zeros")],
            docs=("torch.nn.functional.cosine_similarity", "optax.losses.cosine_similarity"),
        ),
    ],
)
