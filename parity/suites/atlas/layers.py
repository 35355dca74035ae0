"""Layers without randomness: linear, convolution, pooling, resizing, Fourier transforms."""

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from jax import lax

from parity.suites.atlas.entry import entry, group, matrix, normal

IMAGE = normal((1, 2, 6, 6))
WINDOW = (1, 1, 2, 2)


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
            why=(
                "torch computes the transpose of a convolution, which turns the kernel round; JAX does "
                "not turn it unless transpose_kernel=True."
            ),
            where=[("forward", "random ties kinks"), ("vjp", "*"), ("jvp", "*"), ("gradient-per-copy", "*")],
            docs=("torch.nn.functional.conv_transpose1d", "jax.lax.conv_transpose"),
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
            lambda x: lax.reduce_window(x, -jnp.inf, lax.max, WINDOW, WINDOW, "VALID"),
            IMAGE,
        ),
        entry(
            "avg_pool2d",
            lambda x: F.avg_pool2d(x, 2),
            lambda x: lax.reduce_window(x, 0.0, lax.add, WINDOW, WINDOW, "VALID") / 4,
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
            why=("JAX smooths before it makes an image smaller (antialias=True), torch does not."),
            where=[("forward", "random ties kinks"), ("vjp", "*"), ("jvp", "*"), ("gradient-per-copy", "*")],
            docs=("torch.nn.functional.interpolate", "jax.image.resize"),
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
            why=("torch's cubic kernel has a = -0.75, JAX's, that of Keys, a = -0.5."),
            where=[("forward", "random ties kinks"), ("vjp", "*"), ("jvp", "*"), ("gradient-per-copy", "*")],
            docs=("torch.nn.functional.interpolate", "jax.image.resize"),
        ),
        entry(
            "interpolate, nearest",
            lambda x: F.interpolate(x, (4, 4), mode="nearest"),
            lambda x: _resized(x, (4, 4), "nearest"),
            IMAGE,
            why=(
                'torch\'s "nearest" takes floor(i * scale), JAX the element nearest to the middle of the '
                'pixel, as torch\'s "nearest-exact" does.'
            ),
            where=[("forward", "random ties kinks"), ("vjp", "*"), ("jvp", "*"), ("gradient-per-copy", "*")],
            docs=("torch.nn.functional.interpolate", "jax.image.resize"),
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
            why=("torch.hann_window is periodic by default, for spectra; jax.numpy.hanning is symmetric, as NumPy's."),
            where=[("forward", "random ties kinks"), ("vjp", "*"), ("jvp", "*"), ("gradient-per-copy", "*")],
            docs=("torch.hann_window", "jax.numpy.hanning"),
        ),
        entry(
            "fft, power",
            lambda x: torch.fft.rfft(x).abs().square(),
            lambda x: jnp.square(jnp.abs(jnp.fft.rfft(x))),
            matrix,
        ),
    ],
)
