"""Pairs that people port, of kinds that were told wrongly: what is said is true, and right ones are let through."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import parity
from parity.report import table

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((2, 4, 6))
LABELS = (RNG.random((4, 6)) > 0.5).astype(float)
IMAGE = RNG.standard_normal((2, 3, 5, 5))
GRID = RNG.uniform(-0.9, 0.9, (2, 4, 4, 2))
GROUPS = np.array([0, 0, 1, 2, 2, 2])
MATRIX = RNG.standard_normal((5, 5))
HEADS = tuple(RNG.standard_normal((3, 2, 2, 6, 8)))
ONE = {"transforms": ["forward"], "worlds": ["jax-eager"], "dtypes": ["float64"], "data": ["random"], "jobs": 1}


def compared(theirs, mine, *inputs, **options):
    return parity.compare(theirs, mine, inputs, name="pair", **{**ONE, **options})


def why(theirs, mine, *inputs, **options):
    first = compared(theirs, mine, *inputs, **options).failed[0]
    return first.diagnosis


def counted(times, function):
    calls = []

    def called(x):
        calls.append(1)
        return function(x) * times(len(calls))

    return called


@pytest.mark.parametrize(
    "times", [lambda n: n, lambda n: 1 + n % 2, lambda n: 1 if n < 3 else 2], ids=["n", "2", "late"]
)
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_function_that_counts_its_calls_is_not_deterministic(framework, times):
    theirs, mine = torch.tanh, jnp.tanh
    if framework == "torch":
        theirs = counted(times, theirs)
    else:
        mine = counted(times, mine)
    several = {
        "transforms": ["forward", "vjp"],
        "dtypes": ["float32", "float64"],
        "worlds": ["torch-eager", "jax-eager"],
    }
    report = compared(theirs, mine, X, **several)
    assert {record.diagnosis.cause for record in report.failed} == {"not deterministic"}


@pytest.mark.parametrize("turned", [False, True])
def test_a_threshold_near_zero_is_one_finding(turned):
    pair = (lambda x: torch.where(x.abs() < 1e-3, 0, x), lambda x: x)
    if turned:
        pair = (pair[1], lambda x: jnp.where(jnp.abs(x) < 1e-3, 0, x))
    report = compared(*pair, X, data=None, transforms=["forward", "vjp"], dtypes=["float32", "float64"])
    found = {(record.diagnosis.cause, record.diagnosis.fix) for record in report.failed}
    assert [cause for cause, _ in found] == ["another formula: threshold"]
    assert "a choice by < 0.001" in report.failed[0].diagnosis.text
    assert {"zeros", "small", "sweep"} <= {record.data for record in report.failed}


def test_a_type_that_only_torch_refuses_is_not_called_another_shape():
    def mine(x):
        return jnp.fft.rfft(x.astype(jnp.float32)).real.astype(x.dtype)

    report = compared(
        lambda x: torch.fft.rfft(x).real, mine, X, dtypes=["bfloat16"], worlds=["torch-eager", "jax-eager"]
    )
    assert not [record for record in report.failed if record.diagnosis.cause == "broadcast"]
    assert any("Unsupported dtype BFloat16" in record.reason for record in report.cells)


@pytest.mark.parametrize("leaves", [lambda: sys.exit(3), lambda: os._exit(3)], ids=["sys.exit", "os._exit"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_function_that_ends_the_process_is_told_and_ends_nothing(framework, leaves):
    def ends(x):
        leaves()

    usual = os._exit
    theirs, mine = (ends, jnp.tanh) if framework == "torch" else (torch.tanh, ends)
    report = compared(theirs, mine, X, worlds=["torch-eager", "jax-eager", "jax-jit"], data=["random", "zeros"], jobs=2)
    assert not report.ok
    assert "the function ends the process" in str(report)
    assert os._exit is usual


def test_why_torch_compile_refuses_is_told():
    def prints(x):
        print(end="")
        return torch.tanh(x)

    found = why(prints, jnp.tanh, X, worlds=["torch-compiled"], dtypes=["float32"])
    assert "does not know how to trace builtin operator `print`" in found.text
    assert 'print(end="")' in found.text
    assert "fullgraph" in found.fix


def test_halves_that_are_rounded_otherwise_are_named():
    for theirs, mine, has in (
        (
            torch.round,
            lambda x: jnp.floor(x + 0.5),
            "halves rounded to even (round) in torch where JAX has them rounded up",
        ),
        (
            lambda x: torch.floor(x + 0.5),
            jnp.round,
            "halves rounded to even (round) in JAX where torch has them rounded up",
        ),
        (
            torch.round,
            jax.lax.round,
            "halves rounded to even (round) in torch where JAX has them rounded away from zero",
        ),
    ):
        assert has in why(theirs, mine, X, data=["kinks"]).text


def test_the_last_of_equal_numbers_is_no_convention_of_a_framework():
    last = lambda x: x.shape[-1] - 1 - jnp.argmax(x[..., ::-1], -1)  # noqa: E731
    found = why(lambda x: x.argmax(-1), last, X, data=["ties"])
    assert found.cause == "tie or kink"
    assert found.fix.startswith("Let both take the first of equal numbers, as argmax")


def test_arrays_of_numpy_are_no_other_promotion():
    for theirs, mine, who in (
        (lambda x: torch.tanh(x).detach().numpy(), jnp.tanh, "torch"), (torch.tanh, lambda x: np.tanh(x), "JAX"),
    ):  # fmt: skip
        found = why(theirs, mine, X)
        assert found.text == f"output is a NumPy array in {who}, and the framework's own in the other."


def test_the_function_that_was_called_is_named():
    weight = RNG.standard_normal((6, 3))
    found = why(lambda x, w: torch.nan_to_num(x @ w), lambda x, w: x @ w, X, weight, data=["infinite"])
    assert "()" not in found.text
    found = why(lambda x: torch.softmax(x, 0), lambda x: jax.nn.softmax(x, 1), X)
    assert found.text.startswith("softmax along axis 0 in torch where JAX has axis 1")
    report = compared(lambda x, w: torch.matmul(x, w), lambda x, w: x @ jnp.abs(w), X, weight, data=["large"],
                      worlds=["torch-eager"], dtypes=["float32"])  # fmt: skip
    assert "overflows (matmul in torch" in report.cells[0].reason


def test_signs_of_zeros_that_only_a_compiler_changes_are_at_the_edge():
    def mine(x):
        return jax.nn.one_hot(x.argmax(-1), 6, dtype=x.dtype) * x

    signs = {"data": ["signed zeros"], "worlds": ["jax-eager", "jax-jit"]}
    theirs = lambda x: F.one_hot(x.argmax(-1), 6).to(x.dtype) * x  # noqa: E731
    assert compared(theirs, mine, X, **signs).ok
    assert not compared(theirs, lambda x: jnp.abs(mine(x)), X, **signs).ok


def test_the_sign_of_one_zero_is_told_from_one_that_rounding_makes():
    assert compared(torch.linalg.det, jnp.linalg.det, MATRIX, data=["signed zeros"]).ok
    assert not compared(lambda x: x[0], lambda x: x[0] + 0.0, np.ones(3), data=["signed zeros"]).ok


def test_a_matrix_that_is_singular_in_a_sweep_is_at_the_edge():
    def log(x):
        return jnp.linalg.slogdet(x)[1]

    sweeps = {"data": ["sweep"], "transforms": ["forward", "vjp"]}
    for seed in range(3):
        report = compared(lambda x: torch.linalg.slogdet(x)[1], log, MATRIX, seed=seed, **sweeps)
        assert report.ok, str(report)
        report = compared(torch.linalg.matrix_exp, jax.scipy.linalg.expm, MATRIX, seed=seed, **sweeps)
        assert report.ok, str(report)
    assert not compared(lambda x: torch.linalg.slogdet(x)[1], lambda x: 1.01 * log(x), MATRIX, **ONE).ok


@pytest.mark.parametrize("shape", [(4, 6), (10, 20), (40, 50)])
def test_a_factor_of_a_mean_of_numbers_that_cancel_is_seen(shape):
    numbers = np.random.default_rng(1).standard_normal(shape)
    low = {"dtypes": ["bfloat16"], "worlds": ["torch-eager", "jax-eager"]}
    off = lambda x: x.mean() * (1.02 if x.dtype == jnp.bfloat16 else 1)  # noqa: E731
    assert not compared(torch.mean, off, numbers, **low).ok
    assert compared(torch.mean, jnp.mean, numbers, **low).ok
    assert compared(
        lambda x: x.mean() * 0.1 + 0.3 * x.sum(), lambda x: x.mean() * 0.1 + 0.3 * x.sum(), numbers, **low
    ).ok


def test_large_numbers_are_not_at_the_edge_where_one_side_multiplies_by_zero():
    report = compared(lambda x: torch.where(x > 10, 10 + 0 * x, x), lambda x: x, X, data=["large"])
    assert not report.ok


def focal(alpha, gamma):
    def loss(x, y):
        p = jax.nn.sigmoid(x)
        one, other = jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
        return -(alpha * y * (1 - p) ** gamma * one + (1 - alpha) * (1 - y) * p**gamma * other).mean()

    return loss


def torch_focal(x, y):
    p = torch.sigmoid(x)
    right = p * y + (1 - p) * (1 - y)
    losses = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    return ((0.25 * y + 0.75 * (1 - y)) * (1 - right) ** 2 * losses).mean()


def test_labels_of_zeros_and_ones_stay_labels():
    everything = {"data": None, "transforms": ["forward", "vjp", "jvp"], "dtypes": ["float64", "float32"]}
    report = compared(torch_focal, focal(0.25, 2), X, LABELS, **everything)
    assert report.ok, str(report)
    assert any("a derivative by y, which is 0 or 1 everywhere" in record.reason for record in report.cells)
    assert "0.25 and 0.75 in JAX where torch has 0.75 and 0.25" in why(torch_focal, focal(0.75, 2), X, LABELS).text
    assert "1.5 in JAX where torch has 2" in why(torch_focal, focal(0.25, 1.5), X, LABELS).text
    # An array alone is no label, whatever it holds.
    assert not compared(torch.relu, lambda x: x, LABELS, data=["negative", "sweep"]).ok


def windowed(width, fill):
    def attend(q, k, v):
        i = jnp.arange(6)
        apart = i[:, None] - i
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * 8**-0.5
        return jax.nn.softmax(jnp.where((apart >= 0) & (apart < width), scores, fill)) @ v

    return attend


def torch_windowed(q, k, v):
    i = torch.arange(6)
    apart = i[:, None] - i
    return F.scaled_dot_product_attention(q, k, v, (apart >= 0) & (apart < 3))


def test_a_number_for_infinity_is_at_the_edge_beside_numbers_as_large():
    assert compared(torch_windowed, windowed(3, -1e30), *HEADS, data=["random", "large", "sweep"]).ok
    assert not compared(torch_windowed, windowed(3, -1.0), *HEADS, data=["random"]).ok


def alibi(sign, cap):
    def attend(q, k, v):
        i = jnp.arange(6)
        bias = sign * jnp.abs(i[:, None] - i) * 0.25
        return jax.nn.softmax(cap * jnp.tanh(q @ jnp.swapaxes(k, -1, -2) / cap) + bias) @ v

    return attend


def torch_alibi(q, k, v):
    i = torch.arange(6)
    return torch.softmax(50 * torch.tanh(q @ k.transpose(-1, -2) / 50) - (i[:, None] - i).abs() * 0.25, -1) @ v


def test_a_slope_and_a_soft_cap_are_no_scale_of_attention():
    for sign, cap in ((1.0, 50.0), (-1.0, 30.0)):
        assert "attention scale" not in str(why(torch_alibi, alibi(sign, cap), *HEADS))


def normed(ddof):
    def norm(x, b):
        scale = jax.lax.rsqrt(x.var((2, 3), keepdims=True, ddof=ddof) + 1e-5)
        return (x - x.mean((2, 3), keepdims=True)) * scale + b[:, None, None]

    return norm


def pooled(x):
    around = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return jax.lax.reduce_window(around, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "VALID")


def sampled(x, g):
    def one(image, y, x):
        return jax.scipy.ndimage.map_coordinates(image, [y, x], order=1, mode="nearest")

    at = [((1.5 * g[..., axis] + 1) * 5 - 1) / 2 for axis in (1, 0)]
    return jax.vmap(lambda image, y, x: jax.vmap(lambda channel: one(channel, y, x))(image))(x, *at)


def torch_groups(x, s):
    where = s.clamp(0, 3).long()
    count = torch.zeros(4, dtype=x.dtype).index_add(0, where, torch.ones(6, dtype=x.dtype))
    return torch.zeros(4, 3, dtype=x.dtype).index_add(0, where, x) / count.clamp(min=1)[:, None]


NAMED = {
    "ddof": (
        lambda x, b: F.instance_norm(x, bias=b), normed(1), (IMAGE, X[0, :3]), "default argument: ddof",
        "JAX divides by n - 1",
    ),
    "pytorch/pytorch 48595": (
        lambda x, y: F.smooth_l1_loss(x, y, beta=0.5), lambda x, y: optax.huber_loss(x, y, delta=0.5).mean(), (X, Y),
        "default argument: beta", "smooth_l1_loss with beta=0.5",
    ),
    "mlcommons/algorithmic-efficiency 248": (
        lambda x: F.max_pool2d(x, 3, 2, 1), pooled, (IMAGE,), "padding", "padded with -inf (max_pool2d)",
    ),
    "jax-ml/jax 11206": (
        lambda x: F.interpolate(x, (9, 9), mode="bicubic", align_corners=True),
        lambda x: jax.image.resize(x, (2, 3, 9, 9), "bicubic"), (IMAGE,), "default argument: align_corners", "-0.75",
    ),
    "beyond an image": (
        lambda x, g: F.grid_sample(x, g * 1.5, align_corners=False), sampled, (IMAGE, GRID),
        "default argument: padding_mode", "padding_mode='zeros' (grid_sample)",
    ),
    "a scan from behind": (
        lambda x: torch.logcumsumexp(x, -1), lambda x: jax.lax.cumlogsumexp(x, 1, reverse=True), (X,),
        "another formula: scan", "logcumsumexp from the first on",
    ),
    "a threshold of few numbers": (
        F.hardshrink, lambda x: jnp.where(jnp.abs(x) > 0.2, x, 0), (X,), "default argument: threshold", "0.2 in JAX",
    ),
    "huggingface/transformers 29176": (
        torch_windowed, windowed(4, -jnp.inf), HEADS, "constant", "4 in JAX where torch has 3 (lt)",
    ),
    "a channel": (
        lambda x: x * torch.tensor([1, 1, 1, 1, 1, 6.0]), lambda x: x * jnp.array([1, 1, 1, 1, 1, 7.0]), (X,),
        "constant factor: by channel", "(1.16667 at 5)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_what_is_wrong_is_named(name):
    theirs, mine, inputs, cause, text = NAMED[name]
    found = why(theirs, mine, *inputs)
    assert (found.cause, text in found.text) == (cause, True), found


def test_a_sign_of_what_is_counted_is_no_cause():
    found = why(
        torch_groups, lambda x, s: jax.ops.segment_sum(x, jnp.clip(s, 0, 3), 4), RNG.standard_normal((6, 3)), GROUPS
    )
    assert found.cause != "another formula: sign"


def test_a_small_difference_at_special_numbers_is_no_other_function():
    found = why(torch.linalg.matrix_exp, jax.scipy.linalg.expm, np.ones((5, 5)) + np.eye(5), data=["ties"])
    assert "digits, and no further" in found.text


def test_complex_numbers_inside_do_not_end_a_diagnosis():
    def mine(x):
        return jnp.abs(jnp.fft.rfft(x.astype(jnp.float32)))

    report = compared(lambda x: torch.fft.rfft(x.float()).abs(), mine, X, data=None, dtypes=["float32"])
    assert table.summary(report).startswith("pair: the same function at ordinary numbers")
