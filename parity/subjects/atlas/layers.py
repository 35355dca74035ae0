"""Layers without randomness: linear, convolution, pooling, resizing, Fourier transforms."""

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from jax import lax

from parity.subjects.atlas.entry import entry, group, matrix, normal

IMAGE = normal((1, 2, 6, 6))
SIGNAL = normal((1, 2, 7), (3, 2, 3))
WINDOW = {"window_dimensions": (1, 1, 2, 2), "window_strides": (1, 1, 2, 2), "padding": "VALID"}


def _resized(x, size, method, **keywords):  # type: ignore[no-untyped-def]
    return jax.image.resize(x, (*x.shape[:2], *size), method, **keywords)


PAIRS = group(
    "layers",
    [
        entry("linear", lambda x, w, b: F.linear(x, w, b), lambda x, w, b: x @ w.T + b, normal((4, 6), (3, 6), (3,))),
        entry(
            "conv2d",
            lambda x, w: F.conv2d(x, w, padding="same"),
            lambda x, w: lax.conv(x, w, (1, 1), "SAME"),
            normal((1, 2, 5, 5), (3, 2, 3, 3)),
        ),
        entry(
            "conv_transpose1d",
            lambda x, w: F.conv_transpose1d(x, w, stride=2),
            lambda x, w: lax.conv_transpose(x, w, (2,), "VALID", dimension_numbers=("NCH", "IOH", "NCH")),
            normal((1, 2, 4), (2, 3, 3)),
        ),
        entry(
            "conv_transpose1d, kernel turned alike",
            lambda x, w: F.conv_transpose1d(x, w, stride=2),
            lambda x, w: lax.conv_transpose(x, w[..., ::-1], (2,), "VALID", dimension_numbers=("NCH", "IOH", "NCH")),
            normal((1, 2, 4), (2, 3, 3)),
        ),
        entry(
            "max_pool2d",
            lambda x: F.max_pool2d(x, 2),
            lambda x: lax.reduce_window(x, -jnp.inf, lax.max, **WINDOW),
            IMAGE,
        ),
        entry(
            "avg_pool2d",
            lambda x: F.avg_pool2d(x, 2),
            lambda x: lax.reduce_window(x, 0.0, lax.add, **WINDOW) / 4,
            IMAGE,
        ),
        entry(
            "interpolate, bilinear, larger",
            lambda x: F.interpolate(x, (9, 9), mode="bilinear"),
            lambda x: _resized(x, (9, 9), "bilinear"),
            IMAGE,
        ),
        entry(
            "interpolate, bilinear, smaller",
            lambda x: F.interpolate(x, (4, 4), mode="bilinear"),
            lambda x: _resized(x, (4, 4), "bilinear"),
            IMAGE,
        ),
        entry(
            "interpolate, bilinear, antialias alike",
            lambda x: F.interpolate(x, (4, 4), mode="bilinear"),
            lambda x: _resized(x, (4, 4), "bilinear", antialias=False),
            IMAGE,
        ),
        entry(
            "interpolate, bicubic",
            lambda x: F.interpolate(x, (9, 9), mode="bicubic"),
            lambda x: _resized(x, (9, 9), "bicubic"),
            IMAGE,
        ),
        entry(
            "interpolate, nearest",
            lambda x: F.interpolate(x, (4, 4), mode="nearest"),
            lambda x: _resized(x, (4, 4), "nearest"),
            IMAGE,
        ),
        entry(
            "interpolate, nearest-exact",
            lambda x: F.interpolate(x, (4, 4), mode="nearest-exact"),
            lambda x: _resized(x, (4, 4), "nearest"),
            IMAGE,
        ),
        entry(
            "hann window",
            lambda x: x * torch.hann_window(6, dtype=x.dtype),
            lambda x: x * jnp.hanning(6).astype(x.dtype),
            matrix,
        ),
        entry(
            "fft, power",
            lambda x: torch.fft.rfft(x).abs().square(),
            lambda x: jnp.square(jnp.abs(jnp.fft.rfft(x))),
            matrix,
        ),
    ],
)
