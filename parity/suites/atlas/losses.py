"""Losses: torch.nn.functional against optax."""

import jax
import jax.numpy as jnp
import optax
import torch.nn.functional as F

from parity.suites.atlas.entry import entry, group, integers, joined, normal, two_matrices, uniform

LABELS = joined(normal((4, 6)), integers(0, 6, (4,)))
APART = ("random", "ties", "kinks")
"""The kinds of data in which the two arguments differ: where they do not, gradients are rounding errors around 0."""

CHANCES = joined(normal((4, 6)), uniform(0.0, 1.0, (4, 6)))

PAIRS = group(
    "losses",
    [
        entry(
            "mse_loss",
            lambda x, y: F.mse_loss(x, y),
            lambda x, y: optax.losses.squared_error(x, y).mean(),
            two_matrices,
        ),
        entry(
            "l2_loss",
            lambda x, y: F.mse_loss(x, y),
            lambda x, y: optax.losses.l2_loss(x, y).mean(),
            two_matrices,
            why=(
                "optax.losses.l2_loss is half of the squared error, which is torch's mse_loss; "
                "optax.losses.squared_error is all of it."
            ),
            where=[("*", "*")],
            docs=("torch.nn.functional.mse_loss", "optax.losses.l2_loss"),
        ),
        entry(
            "l1_loss",
            lambda x, y: F.l1_loss(x, y),
            lambda x, y: jnp.abs(x - y).mean(),
            two_matrices,
            why=("Where prediction and target are equal torch's gradient is 0; jax.numpy.abs has the gradient 1 at 0."),
            where=[("vjp", "zeros"), ("vjp", "ties"), ("vjp", "kinks")],
            docs=("torch.nn.functional.l1_loss", "jax.numpy.abs"),
        ),
        entry(
            "huber_loss",
            lambda x, y: F.huber_loss(x, y),
            lambda x, y: optax.losses.huber_loss(x, y).mean(),
            two_matrices,
        ),
        entry(
            "cross_entropy",
            lambda x, y: F.cross_entropy(x, y.long()),
            lambda x, y: optax.losses.softmax_cross_entropy_with_integer_labels(x, y).mean(),
            LABELS,
        ),
        entry(
            "cross_entropy, smoothed",
            lambda x, y: F.cross_entropy(x, y.long(), label_smoothing=0.1),
            lambda x, y: optax.losses.softmax_cross_entropy(
                x, optax.losses.smooth_labels(jax.nn.one_hot(y, 6, dtype=x.dtype), 0.1)
            ).mean(),
            LABELS,
        ),
        entry(
            "binary_cross_entropy_with_logits",
            lambda x, y: F.binary_cross_entropy_with_logits(x, y),
            lambda x, y: optax.losses.sigmoid_binary_cross_entropy(x, y).mean(),
            CHANCES,
        ),
        entry(
            "kl_div",
            lambda x, y: F.kl_div(F.log_softmax(x, -1), F.softmax(y, -1)),
            lambda x, y: optax.losses.kl_divergence(jax.nn.log_softmax(x), jax.nn.softmax(y)).mean(),
            two_matrices,
            data=APART,
            why=(
                "torch divides by the number of elements (reduction='mean'), where optax sums over the "
                "classes before the mean; reduction='batchmean' agrees with it."
            ),
            where=[("*", "*")],
            docs=("torch.nn.functional.kl_div", "optax.losses.kl_divergence"),
        ),
        entry(
            "kl_div, batchmean",
            lambda x, y: F.kl_div(F.log_softmax(x, -1), F.softmax(y, -1), reduction="batchmean"),
            lambda x, y: optax.losses.kl_divergence(jax.nn.log_softmax(x), jax.nn.softmax(y)).mean(),
            two_matrices,
            data=APART,
        ),
        entry(
            "triplet_margin_loss",
            lambda a, p, n: F.triplet_margin_loss(a, p, n),
            lambda a, p, n: optax.losses.triplet_margin_loss(a, p, n).mean(),
            normal((4, 6), (4, 6), (4, 6)),
            why=(
                "torch adds eps=1e-6 to each difference before the norm, optax to the sum of squares "
                "under the root: 1e-7 apart for common numbers, and far for equal ones."
            ),
            where=[("*", "*")],
            docs=("torch.nn.functional.triplet_margin_loss", "optax.losses.triplet_margin_loss"),
        ),
    ],
)
