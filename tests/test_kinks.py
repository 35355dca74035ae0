"""What differs at single points alone, such as a derivative at a kink, is told from what differs beside them."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import parity
from parity.execution import jax_backend
from parity.operator.pair import Pair

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32) * 3
SAME = "the same function at ordinary numbers"


def compared(torch_function, jax_function, inputs=(X,), **options):
    chosen = {"transforms": ["forward", "vjp"], "worlds": ["jax-eager"], "dtypes": ["float64"], **options}
    return parity.compare(torch_function, jax_function, inputs, name="pair", **chosen)


def soft_shrink(x):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.5, 0)


CONVENTIONS = [
    (F.hardtanh, lambda x: jax.nn.hard_tanh(x), "ties, kinks", "where input is 1,"),
    (F.leaky_relu, lambda x: jax.nn.leaky_relu(x), "zeros, signed zeros, kinks", "The derivative at zero is a"),
    (F.relu6, lambda x: jnp.minimum(jax.nn.relu(x), 6.0), "kinks", "where input is 6,"),
    (F.softshrink, soft_shrink, "kinks", "is -0.5 or 0.5,"),
]


@pytest.mark.parametrize(
    ("torch_function", "jax_function", "where", "point"),
    CONVENTIONS,
    ids=["hard_tanh", "leaky_relu", "relu6", "softshrink"],
)
def test_a_convention_at_a_kink_leaves_the_function_the_same(torch_function, jax_function, where, point):
    report = compared(torch_function, jax_function)
    assert str(report).startswith(f"pair: {SAME}; not at {where}\n")
    assert point in " ".join(str(report).split())
    assert {one.diagnosis.cause for one in report.failed} <= {"tie or kink", "signed zero"}


def test_a_distance_of_zero_is_such_a_point():
    a, b = X[:, :3], X[:, 3:6]
    report = compared(
        lambda a, b: torch.cdist(a, b),
        lambda a, b: jnp.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)),
        (a, b),
        data=["random", "ties"],
    )
    assert str(report).startswith(f"pair: {SAME}; not at ties\n  nan in one")


def test_kinks_among_the_user_s_numbers_are_called_so():
    report = compared(F.hardtanh, lambda x: jax.nn.hard_tanh(x), (np.ones((2, 3), np.float32),), data=["random"])
    assert str(report).startswith(f"pair: {SAME}; not at ties and kinks among them\n")
    assert "edges, where input is 1, is a convention" in " ".join(str(report).split())


@pytest.mark.parametrize(
    "jax_function",
    [
        lambda x: jnp.clip(0.2 * x + 0.5, 0, 1),  # the hard sigmoid of Keras
        lambda x: jnp.clip(x / 6 + 0.5, 0, 0.99),
        lambda x: jnp.where(x > -2, jax.nn.hard_sigmoid(x), jax.lax.stop_gradient(jax.nn.hard_sigmoid(x))),
    ],
)
def test_a_function_that_differs_is_no_convention(jax_function):
    report = compared(F.hardsigmoid, jax_function)
    assert str(report).startswith(f"pair: not {SAME}\n")
    assert "tie or kink" not in {one.diagnosis.cause for one in report.failed}


def test_a_factor_that_torch_rounds_to_float32_is_called_so_everywhere():
    """F.hardsigmoid multiplies its gradient by 1/6 in float32."""
    report = compared(F.hardsigmoid, lambda x: jax.nn.hard_sigmoid(x))
    assert {one.diagnosis.cause for one in report.failed} == {"gradient rule"}
    (text,) = {one.diagnosis.text for one in report.failed}
    assert "as a factor of it that one side rounded to float32 makes it" in text
    assert "torch's derivative is wrong" in text


def test_an_eps_near_zero_is_no_convention_at_zero():
    """The eps of optax stands under the root: norms below 1e-4 are 1e-4 there, below 1e-8 in torch 1e-8."""
    a, b = X[:, :5], X[:, 3:8]
    report = compared(
        lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1),
        lambda a, b: optax.losses.cosine_distance(a, b, epsilon=1e-8),
        (a, b),
        transforms=["vjp"],
        data=["zeros"],
    )
    (record,) = report.failed
    assert record.diagnosis.cause == "another formula"
    assert "an eps or a threshold differs" in record.diagnosis.text


def test_eager_operators_are_compiled_as_users_compile_them_in_float32():
    pair = Pair(torch.tanh, jnp.tanh, (X,))

    def of_users(world, dtype, transform):
        return not jax_backend.compiler(pair.cell("tanh", "", dtype, transform, world, "cpu", "random"))

    for transform in ("forward", "vjp"):
        assert of_users("jax-eager", "float32", transform)
        assert not of_users("jax-eager", "float64", transform)
        assert not of_users("jax-eager", "bfloat16", transform)
        assert all(of_users("jax-jit", dtype, transform) for dtype in ("float64", "float32", "bfloat16"))
    assert not of_users("jax-jit", "float32", "backward")
    assert of_users("jax-eager", "float32", "backward")


@pytest.mark.usefixtures("nothing_set_aside")
def test_the_collector_leaves_what_was_there_alone_while_a_comparison_runs():
    seen = []
    assert gc.get_freeze_count() == 0
    compared(torch.tanh, jnp.tanh, data=["random"], progress=lambda _: seen.append(gc.get_freeze_count()))
    assert min(seen) > 100_000
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        compared(torch.tanh, jnp.tanh, data=["random"])
        assert gc.get_freeze_count() > 100_000
    finally:
        gc.unfreeze()
