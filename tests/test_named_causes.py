"""Causes of what ports of others got wrong: windows, axes, repeats, eps near zero, steps that make NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import parity

RNG = np.random.default_rng(0)
FORWARD = {"transforms": ["forward"], "worlds": ["jax-jit"], "dtypes": ["float64"], "data": ["random"]}


def drawn(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


# Spectra: n_fft 16, windows of 10.


def spectrum(x):
    return torch.stft(x, 16, 4, 10, torch.hann_window(10, dtype=x.dtype), center=False, return_complex=True)


def cut(x, size):
    return x[..., jnp.arange(size)[None] + 4 * jnp.arange(1 + (x.shape[-1] - 16) // 4)[:, None]]


def hann(dtype):
    return (0.5 - 0.5 * jnp.cos(2 * jnp.pi * jnp.arange(10) / 10)).astype(dtype)


def placed(before, window=hann):
    def port(x):
        wide = jnp.pad(window(x.dtype), (before, 6 - before))
        return jnp.swapaxes(jnp.fft.rfft(cut(x, 16) * wide), -1, -2)

    return port


def short_frames(x):
    return jnp.swapaxes(jnp.fft.rfft(cut(x, 10) * hann(x.dtype), 16), -1, -2)


def symmetric(dtype):
    return jnp.hanning(10).astype(dtype)


def periodic_by_hand(x):
    return x * (0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(6) / 6)).to(x.dtype)


# Steps, distances, losses.


def decayed(sqrt, last):
    def step(p, g, v):
        moved = 1e-2 * g / (sqrt(0.9 * v * v + 0.1 * g * g) + 1e-8)
        return (p - moved) * (1 - 1e-2 * 0.1) if last else p * (1 - 1e-2 * 0.1) - moved

    return step


def root_mean_square(p, g, v):
    v = 0.99 * v * v + 0.01 * g * g
    return p - 6e-4 * g / (v.sqrt() + 0.01)


def root_with_eps_inside(p, g, v):
    v = 0.99 * v * v + 0.01 * g * g
    return p - 6e-4 * g / jnp.sqrt(v + 0.01)


def correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm() + 1e-8)


def kl(x, y):
    return F.kl_div(F.log_softmax(x, -1), F.softmax(y, -1))


def kl_of_optax(x, y):
    return optax.losses.kl_divergence(jax.nn.log_softmax(x), jax.nn.softmax(y)).mean()


def scores(q, k):
    return torch.softmax(q @ k.repeat_interleave(2, 1).mT, -1)


def scores_of_copies(q, k):
    return jax.nn.softmax(q @ jnp.swapaxes(jnp.tile(k, (1, 2, 1, 1)), -1, -2))


FILTERS = RNG.random((17, 4))

CAUSES = {
    "pytorch/pytorch 7038": (
        lambda x: spectrum(x).abs(), lambda x: jnp.abs(short_frames(x)), drawn((2, 64)), "padding: window",
        "zeros beside the window, 3 before and 3 after, in torch where JAX has 0 before and 6 after",
    ),
    "a window at the start": (
        spectrum, placed(0), drawn((2, 64)), "padding: window", "3 before and 3 after, in torch where JAX has 0 before",
    ),
    "a symmetric window": (
        spectrum, placed(3, symmetric), drawn((2, 64)), "another formula: window",
        "a periodic window (hann_window) in torch where JAX has a symmetric one",
    ),
    "a symmetric window beside one by hand": (
        periodic_by_hand, lambda x: x * jnp.hanning(6).astype(x.dtype), drawn((6,)), "another formula: window",
        "JAX divides by n - 1 where torch divides by n, with n = 6",
    ),
    "heads at another axis": (
        F.scaled_dot_product_attention, jax.nn.dot_product_attention, drawn(*[(2, 3, 5, 4)] * 3), "arrangement: axes",
        "with axes 1 and 2 exchanged",
    ),
    "copies of the whole": (
        lambda x: x.repeat(2, 1), lambda x: jnp.repeat(x, 2, 0), drawn((4, 6)), "another formula: repeat",
        "copies of the whole (repeat) in torch where JAX has each element repeated",
    ),
    "copies of key heads": (
        scores, scores_of_copies, drawn((1, 4, 5, 3), (1, 2, 5, 3)), "another formula: repeat",
        "each element repeated (repeat_interleave) in torch where JAX has copies of the whole",
    ),
    "eps of a distance": (
        F.triplet_margin_loss, lambda a, p, n: optax.losses.triplet_margin_loss(a, p, n).mean(),
        drawn(*[(4, 6)] * 3), "default argument: eps",
        "eps = 1e-06 added to a difference in torch where JAX has 1e-06 under the root",
    ),
    "eps of a correlation": (
        correlation, lambda x, y: jnp.corrcoef(x, y)[0, 1], drawn((12,), (12,)), "default argument: eps",
        "1e-08 in torch where JAX has none",
    ),
    "a mean over classes": (
        kl, kl_of_optax, drawn((4, 6), (4, 6)), "default argument: reduction",
        "the mean over all 24 numbers (mean) in torch where JAX has their sum over axis 1",
    ),
    "a sum of squares": (
        F.mse_loss, lambda x, y: ((x - y) ** 2).sum(-1).mean(), drawn((4, 6), (4, 6)), "default argument: reduction",
        "(mse_loss) in torch where JAX has their sum over axis 1",
    ),
    "kyleliang919/C-Optim 3": (
        decayed(torch.sqrt, False), decayed(jnp.sqrt, True), drawn((6,), (6,), (6,)), "optimizer: weight decay",
        "by 0.999 before the step",
    ),
    "google-deepmind/optax 532": (
        root_mean_square, root_with_eps_inside, drawn((6,), (6,), (6,)), "default argument: eps",
        "eps = 0.01 added to the root in torch where JAX has 0.01 under the root",
    ),
    "pytorch/audio 287": (
        lambda p: p @ torch.tensor(FILTERS, dtype=p.dtype),
        lambda p: p @ jnp.asarray(FILTERS * np.array([0.5, 0.3, 0.2, 0.1]), p.dtype), drawn((3, 17)),
        "constant factor: by channel", "a number for each index of axis 1 (0.5, 0.3, 0.2, ...)",
    ),
    "keras-team/keras 19291": (
        lambda x, w: F.conv2d(x, w, stride=2, padding=1),
        lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), "SAME"), drawn((1, 3, 8, 8), (4, 3, 3, 3)), "padding",
        "JAX has ((0, 1), (0, 1)) before and after",
    ),
    "gmalivenko/pytorch2keras 38": (
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 1, 3, 3), (1, 1, 2, 2), [(0, 0)] * 2 + [(1, 1)] * 2)
        / jax.lax.reduce_window(jnp.ones_like(x), 0.0, jax.lax.add, (1, 1, 3, 3), (1, 1, 2, 2),
                                [(0, 0)] * 2 + [(1, 1)] * 2),
        drawn((1, 2, 8, 8)), "default argument: count_include_pad", "count_include_pad=True",
    ),
    "a causal convolution": (
        lambda x, w: F.conv1d(F.pad(x, (2, 0)), w),
        lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), [(0, 2)]), drawn((2, 3, 8), (4, 3, 3)), "padding",
        "zeros, 2 before and 0 after, in torch where JAX has 0 before and 2 after",
    ),
    "polygamma": (
        lambda x: torch.special.polygamma(1, x), lambda x: jax.scipy.special.polygamma(1, x),
        (RNG.uniform(0.3, 4, (4, 6)),), "special function", "torch computes polygamma otherwise than SciPy",
    ),
    "columns the other way": (
        torch.linalg.vander, jnp.vander, drawn((4,)), "arrangement: reversed", "reversed along axis 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_a_cause_is_named(name):
    theirs, mine, inputs, cause, text = CAUSES[name]
    (record,) = parity.compare(theirs, mine, inputs, **FORWARD).failed
    assert record.diagnosis.cause == cause, record.diagnosis
    assert text in record.diagnosis.text
    assert "lax.conv_transpose" not in record.diagnosis.fix


@pytest.mark.parametrize("transforms", [["forward"], ["vjp"]])
def test_a_spectrum_that_is_right_is_no_difference(transforms):
    assert parity.compare(spectrum, placed(3), drawn((2, 64)), **(FORWARD | {"transforms": transforms})).ok


NEAR_ZERO = {
    "normalize": (lambda x: F.normalize(x), lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True), "1e-12"),
    "cosine": (
        lambda x: F.cosine_similarity(x, x.flip(1)),
        lambda x: optax.losses.cosine_similarity(x, jnp.flip(x, 1), axis=1), "1e-08 in torch where JAX has none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("transform", ["forward", "vjp"])
@pytest.mark.parametrize("name", NEAR_ZERO)
def test_an_eps_that_shows_at_zero_alone_is_proved_on_tiny_numbers(name, transform):
    theirs, mine, text = NEAR_ZERO[name]
    report = parity.compare(theirs, mine, drawn((4, 6)), **(FORWARD | {"transforms": [transform], "data": ["zeros"]}))
    (record,) = report.failed
    assert record.diagnosis.cause == "default argument: eps", record.diagnosis
    assert text in record.diagnosis.text


MADE = {
    "a power": (torch.pow, jnp.power, drawn((4,), (4,)), "zeros", "0 * inf (mul, whose infinity is of pow); with 0"),
    "a logarithm": (torch.special.xlogy, jax.scipy.special.xlogy, drawn((4,), (4,)), "zeros", "log(0); with 0"),
    "a norm": (lambda x: torch.linalg.vector_norm(x, dim=-1), lambda x: jnp.linalg.norm(x, axis=-1), drawn((3, 4)),
               "zeros", "whose infinity is of div); with 0 there the two agree"),
    "torch's own": (torch.special.logit, jax.scipy.special.logit, drawn((6,)), "ties", "NaN in torch only"),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_the_step_that_makes_what_is_no_number_is_named(name):
    theirs, mine, inputs, data, text = MADE[name]
    report = parity.compare(theirs, mine, inputs, **(FORWARD | {"transforms": ["vjp"], "data": [data]}))
    assert text in report.failed[0].diagnosis.text


def test_a_derivative_of_outputs_that_are_transposed_is_no_convention():
    report = parity.compare(
        lambda x, y: torch.meshgrid(x, y, indexing="ij")[0] * 1, lambda x, y: jnp.meshgrid(x, y)[0], drawn((3,), (4,)),
        **(FORWARD | {"transforms": ["forward", "vjp"]}),
    )  # fmt: skip
    assert {record.diagnosis.cause for record in report.failed} == {"transposed"}
    assert "with its axes in the order (1, 0) the two agree" in report.failed[0].diagnosis.text


def test_a_count_that_depends_on_the_numbers_is_no_broadcast():
    report = parity.compare(
        torch.unique, jnp.unique, drawn((4, 6)), **(FORWARD | {"data": ["nan"], "worlds": ["jax-eager"]})
    )
    assert "how many there are depends on the numbers" in report.failed[0].diagnosis.text


def test_nan_where_infinities_of_both_signs_meet_everywhere_is_found():
    weights = np.random.default_rng(1).uniform(0.5, 1.5, (3, 4))

    def theirs(x):
        return torch.einsum("oc,nchw->nohw", torch.tensor(weights, dtype=x.dtype), x)

    def mine(x):
        return jnp.einsum("oc,nchw->nohw", jnp.asarray(weights, x.dtype), x)

    def wrong(x):
        return jnp.where(jnp.isinf(x).any(1, keepdims=True), jnp.nan, mine(x))

    chosen = FORWARD | {"data": ["infinite"]}
    assert parity.compare(theirs, mine, drawn((1, 4, 5, 5)), **chosen).ok
    assert not parity.compare(theirs, wrong, drawn((1, 4, 5, 5)), **chosen).ok


@pytest.mark.parametrize(
    ("ours", "theirs", "where"),
    [
        (torch.relu, lambda x: jax.nn.relu(x + 1e-3), "eps = 0.001 added in JAX"),
        (lambda x: x.mean(-1), lambda x: x.mean(-1) + 1e-5, "eps = 1e-05 added in JAX"),
        (
            lambda x: x / x.square().sum(-1, keepdim=True).sqrt(),
            lambda x: x / (jnp.sqrt((x * x).sum(-1, keepdims=True)) + 1e-3),
            "eps = 0.001 added to the root in JAX",
        ),
    ],
    ids=["to what goes into relu", "to a mean", "to a root"],
)
def test_a_small_number_is_said_to_be_added_to_a_root_where_there_is_one(ours, theirs, where):
    report = parity.compare(ours, theirs, drawn((4, 6)), **FORWARD)
    assert f"{where} where torch has none" in str(report).replace("\n", " ")
