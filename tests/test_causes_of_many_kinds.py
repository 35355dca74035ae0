"""Ports of losses, graphs, policies and boxes with one fault: it is named, and no other in its place."""

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import parity

RNG = np.random.default_rng(3)
ONE = {"transforms": ["forward"], "worlds": ["jax-eager"], "dtypes": ["float64"], "data": ["random"], "jobs": 1}


def normal(*shape):
    return RNG.standard_normal(shape)


def dice(p, y):
    p = torch.sigmoid(p)
    return 1 - ((2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)).mean()


def dice_of_the_batch(p, y):
    p = jax.nn.sigmoid(p)
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def contrast(a, b):
    labels = torch.arange(len(a))
    return F.cross_entropy(F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / 0.1, labels)


def contrast_of_any_length(a, b):
    return optax.softmax_cross_entropy_with_integer_labels(a @ b.T / 0.1, jnp.arange(len(a))).mean()


def normalised_graph(x, a):
    degrees = a.sum(1).rsqrt()
    return degrees[:, None] * a * degrees @ x


def averaged_graph(x, a):
    return (a / a.sum(1)[:, None]) @ x


def with_loops(x, a):
    return normalised_graph(x, a + torch.eye(len(a), dtype=a.dtype))


def without_loops(x, a):
    degrees = jax.lax.rsqrt(a.sum(1))
    return (degrees[:, None] * a * degrees) @ x


def clipped(new, old, advantage):
    ratio = (new - old).exp()
    return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()


def clipped_otherwise(bound, choose):
    def loss(new, old, advantage):
        ratio = jnp.exp(new - old)
        return -choose(ratio * advantage, jnp.clip(ratio, 1 - bound, 1 + bound) * advantage).mean()

    return loss


def traced(logs, rewards):
    weight = logs.exp().clamp(max=1.0)
    total = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        total = weight[t] * rewards[t] + 0.9 * weight[t] * total
    return total


def traced_below_a_half(logs, rewards):
    weight = jnp.minimum(jnp.exp(logs), 1.0)

    def step(total, now):
        return now[0] * now[1] + 0.9 * jnp.minimum(0.5, now[0]) * total, None

    return jax.lax.scan(step, jnp.zeros_like(rewards[0]), (weight, rewards), reverse=True)[0]


def returns(rewards, done):
    total, found = torch.zeros_like(rewards[0]), []
    for t in reversed(range(len(rewards))):
        total = rewards[t] + 0.9 * (1 - done[t]) * total
        found.append(total)
    return torch.stack(found[::-1])


def returns_of_the_next(rewards, done):
    def step(total, now):
        total = now[0] + 0.9 * (1 - now[1]) * total
        return total, total

    later = jnp.concatenate([done[1:], done[:1] * 0])
    return jax.lax.scan(step, jnp.zeros_like(rewards[0]), (rewards, later), reverse=True)[1]


def capped(q, k):
    return torch.softmax(torch.tanh(q @ k.mT / 5) * 5, -1)


def capped_at_six(q, k):
    return jax.nn.softmax(jnp.tanh(q @ jnp.swapaxes(k, -1, -2) / 6) * 6)


def of_beta(a, b, x):
    return torch.distributions.Beta(a.exp(), b.exp()).log_prob(x)


def of_beta_exchanged(a, b, x):
    return jsp.stats.beta.logpdf(x, jnp.exp(b), jnp.exp(a))


def by_the_deviation(x):
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True, ddof=1) + 1e-6)


def whitened_by_layer(x):
    mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5)


GRAPH = (normal(5, 3), RNG.uniform(0.1, 1, (5, 5)))
POLICY = (normal(12), normal(12), normal(12))
DONE = np.array([[0, 1], [0, 0], [1, 0], [0, 0], [0, 1], [0, 0]], float)

NAMED = {
    "dice of the batch": (
        dice, dice_of_the_batch, (normal(4, 6), (RNG.random((4, 6)) > 0.5).astype(float)),
        "default argument: dim", "sum along axis 1 in torch where JAX has all axes",
    ),
    "codertimo/BERT-pytorch 30": (
        lambda x: F.layer_norm(x, (16,), None, None, 1e-6), by_the_deviation, (normal(4, 16),), "default argument: eps",
        "added to the root of a variance over n - 1, with n = 16, in JAX where torch has 1e-06 under the root",
    ),
    "weights by one norm": (
        lambda v: v / v.norm(dim=1, keepdim=True), lambda v: v / jnp.linalg.norm(v), (normal(3, 5),),
        "default argument: dim", "along axis 1 in torch where JAX has all axes",
    ),
    "statistics of a layer": (
        F.instance_norm, whitened_by_layer, (normal(2, 3, 4, 4),),
        "normalization axes", "a norm over each channel",
    ),
    "a pool of the largest": (
        lambda x: x.reshape(2, 3, 2, 2, 2, 2).mean((3, 5)), lambda x: x.reshape(2, 3, 2, 2, 2, 2).max((3, 5)),
        (normal(2, 3, 4, 4),), "pooling", "the mean of 4 along axes 3, 5 is taken in torch where JAX has the maximum",
    ),
    "not normalised": (
        contrast, contrast_of_any_length, (normal(5, 8), normal(5, 8)), "another formula", "div (2 steps)",
    ),
    "a mean of neighbours": (normalised_graph, averaged_graph, GRAPH, "default argument: dim", "a vector along axis 1"),
    "no loops": (with_loops, without_loops, GRAPH, "another formula", "add (step"),
    "another bound": (
        clipped, clipped_otherwise(0.1, jnp.minimum), POLICY,
        "constant", "0.9 and 1.1 in JAX where torch has 0.8 and 1.2",
    ),
    "the larger": (
        clipped, clipped_otherwise(0.2, jnp.maximum), POLICY, "another formula", "the minimum of two numbers",
    ),
    "a second bound": (
        traced, traced_below_a_half, (normal(6, 2), normal(6, 2)), "constant", "0.5 in JAX where torch has 1 (min)",
    ),
    "a flag too late": (returns, returns_of_the_next, (normal(6, 2), DONE), "arrangement: shifted", "done"),
    "a cap as long as the keys": (capped, capped_at_six, (normal(2, 6, 4), normal(2, 6, 4)), "constant", "6 in JAX"),
    "parameters exchanged": (
        of_beta, of_beta_exchanged, (normal(6) / 2, normal(6) / 2, RNG.uniform(0.1, 0.9, 6)), "concat order", "2 parts",
    ),
}  # fmt: skip
"""The torch function, a port with a fault, inputs, the cause, and a part of what is said."""


@pytest.mark.parametrize("name", NAMED)
def test_the_one_fault_is_named(name):
    theirs, mine, inputs, cause, said = NAMED[name]
    (cell,) = parity.compare(theirs, mine, inputs, name=name, **ONE).cells
    assert (cell.verdict, cell.diagnosis.cause) == ("differs", cause), cell.diagnosis
    assert said in cell.diagnosis.text


def all_data(theirs, mine, *inputs, **options):
    return parity.compare(theirs, mine, inputs, name="pair", **{**ONE, "data": None, **options})


def divergence(m, s, n, t):
    normals = torch.distributions.Normal
    return torch.distributions.kl_divergence(normals(m, s.exp()), normals(n, t.exp()))


def divergence_jax(m, s, n, t):
    return t - s + (jnp.exp(2 * s) + (m - n) ** 2) / (2 * jnp.exp(2 * t)) - 0.5


def test_numbers_outside_of_a_distribution_are_at_the_edge():
    """Torch refuses a scale that is zero or infinite: the harness made it, and JAX cannot raise."""
    torch.distributions.Distribution.set_default_validate_args(True)  # the first use of torch.compile turns it off
    own = np.random.default_rng(0)
    draws = tuple(own.standard_normal(6) for _ in range(4))
    report = all_data(divergence, divergence_jax, *draws)
    assert report.ok, str(report)
    assert any("outside of what torch's function takes" in cell.reason for cell in report.cells)
    wrong = all_data(divergence, lambda m, s, n, t: divergence_jax(m, s, n, t) + 1e-9, *draws)
    assert not wrong.ok


def test_numbers_of_the_users_own_that_torch_refuses_are_a_failure():
    torch.distributions.Distribution.set_default_validate_args(True)
    draws = normal(6), normal(6), normal(6), np.full(6, -1e4)
    report = all_data(divergence, divergence_jax, *draws, data=["random"])
    assert not report.ok


@pytest.mark.parametrize("kind", ["infinite", "nan"])
def test_an_index_that_is_made_of_no_number_is_at_the_edge(kind):
    def theirs(x, at):
        return x[at.floor().long()]

    def mine(x, at):
        return x[jnp.floor(at).astype(int)]

    report = all_data(theirs, mine, normal(6), RNG.uniform(0, 5.9, 6), data=["random", kind])
    assert report.ok, str(report)
    assert not all_data(theirs, lambda x, at: mine(x, at) * (1 + 1e-9), normal(6), RNG.uniform(0, 5.9, 6)).ok


def diverges(x, y):
    return F.kl_div(F.log_softmax(x, -1), F.softmax(y, -1), reduction="batchmean")


def test_a_probability_that_underflows_is_at_the_edge():
    """Of p log p, which is NaN where p is zero, torch makes zero: in float32 that is where p underflows."""

    def mine(x, y):
        p = jax.nn.softmax(y)
        return (p * jnp.log(p) - p * jax.nn.log_softmax(x)).sum() / len(x)

    several = {"transforms": ["forward", "vjp"], "dtypes": ["float32"], "data": ["random", "sweep"]}
    report = all_data(diverges, mine, normal(6, 8), normal(6, 8), **several)
    assert report.ok, str(report)
    assert "edge" in {cell.verdict for cell in report.cells}


def quantised(x):
    return torch.fake_quantize_per_tensor_affine(x, 0.1, 3, 0, 255)


def quantised_jax(scale):
    return lambda x: (jnp.clip(jnp.round(x / scale + 3), 0, 255) - 3) * scale


def test_a_kernel_that_computes_in_float32_is_no_fault_of_float64():
    """Torch's kernel has its scale as a float of C++, also for numbers of 64 bits."""
    report = all_data(quantised, quantised_jax(0.1), normal(6, 8) * 3, data=["random", "sweep"])
    assert report.ok, str(report)
    assert "float32" in report.cells[0].reason
    assert not all_data(quantised, quantised_jax(0.1001), normal(6, 8) * 3, data=["random"]).ok


def test_a_special_function_that_rounds_more_in_a_library_is_told_so():
    """JAX's log_ndtr is the logarithm of a number beside one up to 5, and loses the digits of that in float32."""
    numbers = np.linspace(-3, 4.8, 40)
    several = {"dtypes": ["float32"], "data": ["random"]}
    report = all_data(torch.special.log_ndtr, jsp.special.log_ndtr, numbers, **several)
    assert report.ok, str(report)
    assert "log_ndtr of JAX's library rounds more in float32" in report.cells[0].reason
    by_hand = all_data(torch.special.log_ndtr, lambda x: jnp.log(jax.scipy.stats.norm.cdf(x)), numbers, **several)
    assert not by_hand.ok


def test_a_kink_that_tiny_numbers_reach_is_a_convention():
    report = all_data(
        lambda x: x.exp().clamp(max=1.0) * 3, lambda x: jnp.minimum(jnp.exp(x), 1.0) * 3, normal(12),
        transforms=["vjp"], data=["random", "small"],
    )  # fmt: skip
    assert {cell.diagnosis.cause for cell in report.failed} == {"tie or kink"}, str(report)
