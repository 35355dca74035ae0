"""Causes that are claimed with evidence alone, and right ports whose derivative or range only looked wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from jax import lax

import parity
from parity.execution.calls import Failure
from parity.verdict.refusals import is_gap

RNG = np.random.default_rng(0)
X, Y = 2 * RNG.standard_normal((4, 6)), RNG.standard_normal((4, 6))
LONG = np.abs(RNG.standard_normal((4, 600)))
COMPLEX = RNG.standard_normal((3, 4)) + 1j * RNG.standard_normal((3, 4))
MASK = RNG.random((4, 6)) > 0.4
WORLDS = ["torch-eager", "jax-jit"]


def in_bfloat16(x, factor):
    return jnp.tanh(x) * (factor if x.dtype == jnp.bfloat16 else 1)


def added_one_by_one(x):
    if x.dtype != jnp.bfloat16:
        return x.sum(-1)
    return lax.fori_loop(0, x.shape[-1], lambda i, s: s + x[:, i], jnp.zeros(x.shape[0], x.dtype))


@jax.custom_vjp
def half_right(x):
    return jnp.tanh(x)


half_right.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x)),))


def torch_gradient(x):
    return torch.func.grad(lambda z: (z.abs() ** 2).sum() + (1j * z).real.sum())(x)


def jax_gradient(x):
    return jax.grad(lambda z: (jnp.abs(z) ** 2).sum() + (1j * z).real.sum())(x)


def filled(mask, s):
    return torch.softmax(s.masked_fill(mask, -1e9), -1)


# name: torch function, JAX function, inputs, the cause, a part of its text, options
FORWARD = {"data": ["random"], "transforms": ["forward"]}
THRESHOLD = "default argument: threshold"

NAMED = {
    "a threshold at a kink": (lambda x: F.softplus(x, threshold=5), jax.nn.softplus, (X,), THRESHOLD,
                              "threshold 5 of softplus", {**FORWARD, "data": ["kinks"]}),
    "a threshold in a sweep": (F.softplus, jax.nn.softplus, (RNG.standard_normal((20, 20)),), THRESHOLD,
                               "threshold 20 of softplus", {**FORWARD, "data": ["sweep"], "dtypes": ["float64"]}),
    "a factor in 16 bits": (torch.tanh, lambda x: in_bfloat16(x, 1.03125), (X,), "constant factor",
                            "Rounding does not explain it", FORWARD),
    "sums in 16 bits": (lambda x: x.sum(-1), added_one_by_one, (LONG,), "bfloat16 accumulation", "adds in 16 bits",
                        FORWARD),
    "a derivative": (torch.tanh, half_right, (X,), "gradient rule", "JAX's derivative is wrong",
                     {"data": ["random"], "transforms": ["vjp"]}),
    "a complex gradient": (torch_gradient, jax_gradient, (COMPLEX,), "complex convention: conjugate", "its conjugate",
                           FORWARD),
    "a conjugate inside": (torch.vdot, jnp.dot, (COMPLEX[0], COMPLEX[1]), "complex convention: conjugate", "conjugate",
                           FORWARD),
    "the opposite mask": (lambda s, m: filled(m, s), lambda s, m: jax.nn.softmax(jnp.where(m, s, -1e9)), (X, MASK),
                          "another formula: mask", "the opposite one", FORWARD),
    "a bias": (lambda x, w, b: F.linear(x, w, b).relu(), lambda x, w, b: jax.nn.relu(x @ w.T),
               (X, RNG.standard_normal((5, 6)), RNG.standard_normal(5)), "another formula: bias", "adds a bias",
               FORWARD),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine", "inputs", "cause", "text", "options"), NAMED.values(), ids=NAMED)
def test_a_cause_is_named_with_its_evidence(theirs, mine, inputs, cause, text, options):
    report = parity.compare(theirs, mine, inputs, worlds=WORLDS, **options)
    assert {cell.diagnosis.cause for cell in report.failed} == {cause}, str(report)
    assert all(text in cell.diagnosis.text for cell in report.failed), str(report)


QUIET = {
    "optax' Huber loss": (lambda x, y: F.huber_loss(x, y, reduction="none"), optax.huber_loss, (X, Y),
                          ["random", "zeros", "ties", "subnormal", "sweep"]),
    "indices of products that vanish": (lambda x, w: (x @ w).argmax(-1), lambda x, w: jnp.argmax(x @ w, -1),
                                        (X, RNG.standard_normal((6, 5))), ["small", "random"]),
    "a derivative at NaN": (torch.relu, jax.nn.relu, (X,), ["nan", "infinite"]),
    "a derivative of NaN": (lambda x: x.amax(-1), lambda x: x.max(-1), (X,), ["nan", "infinite"]),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine", "inputs", "data"), QUIET.values(), ids=QUIET)
def test_a_right_port_is_left_alone(theirs, mine, inputs, data):
    report = parity.compare(theirs, mine, inputs, worlds=WORLDS, data=data, transforms=["forward", "vjp"])
    assert report.ok, str(report)


def shifted(x):
    return jnp.log(jnp.exp(x - x.max(-1, keepdims=True)).sum(-1)) + x.max(-1)


def tanh_beside(x):
    """Return tanh, whose derivative at infinity is NaN here, and x."""
    safe = jnp.where(jnp.isinf(x), jnp.sign(x), x)
    return jnp.tanh(x) + 0 * jnp.where(jnp.isinf(x), 0.0, jnp.sqrt(jnp.abs(x - safe) ** 2)), x * 1.0


# name: torch function, JAX function, what differs
AT_INFINITY = {
    "a row that is all masked": (lambda x: torch.logsumexp(x, -1), shifted, "forward"),
    "infinity of the other sign": (lambda x: x * 1.0, lambda x: jnp.where(jnp.isinf(x), -x, x), "forward"),
    "NaN for infinity": (lambda x: x * 1.0, lambda x: jnp.where(jnp.isinf(x), jnp.nan, x), "forward"),
    "a derivative of a number": (lambda x: (torch.tanh(x), x * 1.0), tanh_beside, "vjp"),
}


@pytest.mark.parametrize(("theirs", "mine", "transform"), AT_INFINITY.values(), ids=AT_INFINITY)
def test_what_a_function_makes_of_infinity_is_no_edge(theirs, mine, transform):
    report = parity.compare(
        theirs, mine, (X,), worlds=["jax-jit"], data=["infinite"], transforms=[transform], dtypes=["float64", "float32"]
    )
    assert {cell.verdict for cell in report.cells} == {"differs"}, str(report)


def test_a_derivative_that_torch_has_not_is_no_failure_and_is_counted():
    report = parity.compare(
        F.huber_loss, lambda x, y: optax.huber_loss(x, y).mean(), (X, Y), data=["random"],
        transforms=["forward", "vjp", "hvp-forward-over-reverse"], worlds=WORLDS, dtypes=["float32"],
    )  # fmt: skip
    assert report.ok, str(report)
    refused = [cell for cell in report.cells if cell.verdict == "unsupported"]
    assert {cell.transform for cell in refused} == {"hvp-forward-over-reverse"}
    assert all("has not been implemented yet" in cell.reason for cell in refused)


@pytest.mark.parametrize("text", ["NotImplementedError: later", "ValueError: no", "RuntimeError: the derivative"])
def test_errors_of_users_are_no_gap_of_a_framework(text):
    assert not is_gap(Failure(text, text))


def test_a_changed_result_has_as_many_tensors_as_the_usual_one():
    from parity.explanation.programs.torch_program import _checked

    one = torch.ones(2)
    assert _checked(one, one) is one
    with pytest.raises(TypeError, match="expected 2 results"):
        _checked(one, (one, one))
    with pytest.raises(TypeError, match="expected a tensor"):
        _checked([one], one)


def test_a_batch_norm_without_statistics_is_not_switched_to_them():
    """Torch reads statistics that are not there, which ended the process."""
    normed = lambda x: jax.nn.standardize(x, axis=0, algorithm="stable")  # noqa: E731
    report = parity.compare(
        lambda x: F.batch_norm(x, None, None, training=True), lambda x: normed(x).at[-1, -1].add(0.01),
        (np.random.default_rng(0).standard_normal((4, 6)),), transforms=["forward"], worlds=["jax-jit"],
        dtypes=["float64"], data=["random"],
    )  # fmt: skip
    assert [record.verdict for record in report.cells] == ["differs"]
