"""What readers found with small programs: few numbers, names of fields, choices among equal numbers, NaN and masks."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import parity
from parity.execution.torch_programs import Rounding
from parity.suites.atlas.pairs import PAIRS
from parity.verdict import runner

RNG = np.random.default_rng(0)
X, A, B = RNG.standard_normal((3, 6)), RNG.standard_normal((6, 4)), RNG.standard_normal((4, 2))
MASK = np.arange(18).reshape(3, 6) % 4 > 1
SPECIAL = ["zeros", "signed zeros", "ties", "infinite", "nan"]
HALF = (torch.bfloat16, jnp.bfloat16)
Parts = collections.namedtuple("Parts", "value weight")
Turned = collections.namedtuple("Turned", "weight value")
TABLE = np.arange(6.0)


def compared(torch_function, jax_function, *arrays, **chosen):
    usual = {"transforms": ["forward", "vjp"], "worlds": ["jax-eager"], "dtypes": ["float64"]}
    return parity.compare(torch_function, jax_function, arrays, name="pair", **usual | chosen)


@pytest.mark.parametrize("size", [1, 2, 6, 18])
def test_a_sweep_covers_the_range_whatever_the_size_of_the_argument(size):
    """F.softplus is x itself beyond 20, which is off by more than rounding from there to 28."""
    for seed in range(3):
        inputs = np.random.default_rng(seed).standard_normal(size)
        report = compared(F.softplus, jax.nn.softplus, inputs, data=["sweep"], seed=seed)
        assert not report.ok
    assert compared(lambda x: torch.logaddexp(x, x * 0), jax.nn.softplus, inputs, data=["sweep"]).ok


def test_a_sweep_reaches_every_argument():
    report = compared(lambda x, w: F.softplus(w) * x, lambda x, w: jax.nn.softplus(w) * x, X[:, :5], X[0, :5],
                      data=["sweep"], transforms=["forward"])  # fmt: skip
    assert not report.ok


@pytest.mark.parametrize("shape", [(4, 6), (10, 20), (40, 50)])
def test_one_number_of_16_bits_is_drawn_often_enough_to_show_a_wrong_factor(shape):
    numbers = np.random.default_rng(1).standard_normal(shape)
    chosen = {"data": ["random"], "worlds": ["torch-eager"], "dtypes": ["bfloat16"], "transforms": ["forward"]}

    def off(x):
        return torch.logsumexp(x.flatten(), 0) * (1.02 if x.dtype in HALF else 1)

    assert not compared(off, jax.nn.logsumexp, numbers, **chosen).ok
    assert compared(lambda x: torch.logsumexp(x.flatten(), 0), jax.nn.logsumexp, numbers, **chosen).ok


def test_the_names_of_fields_are_compared_where_both_have_some():
    chosen = {"data": ["random"], "transforms": ["forward"]}
    (record,) = compared(lambda x: Parts(x, x * 2), lambda x: Turned(x, x * 2), X, **chosen).cells
    assert record.reason == "output: jax returns a named tuple of weight, value; torch of value, weight"
    assert compared(lambda x: Parts(x, x * 2), lambda x: Parts(x, x * 2), X, **chosen).ok
    assert compared(lambda x: Parts(x, x * 2), lambda x: (x, x * 2), X, **chosen).ok
    text = Parts("\0a, b", X[0])
    assert not compared(lambda x: (x, text[0]), lambda x: (x, "\0b, a"), X, **chosen).ok


FREE = {
    "topk": (lambda x: tuple(torch.topk(x, 3)), lambda x: tuple(jax.lax.top_k(x, 3))),
    "an expert for each token": (
        lambda x: F.one_hot(torch.topk(torch.relu(x), 2)[1], 6).to(x.dtype) * x[:, None],
        lambda x: jax.nn.one_hot(jax.lax.top_k(jax.nn.relu(x), 2)[1], 6, dtype=x.dtype) * x[:, None],
    ),
    "a sort that is not stable": (
        lambda x: torch.sort(x)[1], lambda x: x.shape[-1] - 1 - jnp.argsort(x[..., ::-1], -1),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine"), FREE.values(), ids=FREE)
def test_a_choice_among_equal_numbers_is_at_the_edge(theirs, mine):
    report = compared(theirs, mine, X, data=["random", "zeros", "signed zeros", "ties"])
    assert not [record for record in report.failed if record.verdict == "differs"]
    assert any(record.verdict == "edge" and "leaves open" in record.reason for record in report.cells)


def test_a_matrix_of_numbers_of_all_sizes_may_be_badly_conditioned():
    pair = next(pair for pair in PAIRS if pair.name == "det")
    cells = runner.plan(pair, transforms=["vjp"], data=["sweep"], dtypes=["float64"], worlds=["jax-eager"])
    assert not [record.reason for record in runner.run(pair, cells) if record.failed]


def test_a_wrong_choice_is_none():
    ties = {"data": ["zeros", "ties"], "transforms": ["forward"]}
    assert not compared(FREE["topk"][0], lambda x: (jax.lax.top_k(x, 3)[0], jnp.argsort(x)[..., :3]), X, **ties).ok
    last = lambda x: x.shape[-1] - 1 - jnp.argsort(x[..., ::-1], -1)  # noqa: E731
    assert not compared(lambda x: torch.sort(x, stable=True)[1], last, X, **ties).ok


def test_the_derivative_of_relu_at_nan_is_a_convention():
    report = compared(lambda x, a, b: torch.relu(x @ a) @ b, lambda x, a, b: jax.nn.relu(x @ a) @ b, X[:, :4],
                      A[:4], B, data=["nan", "infinite"])  # fmt: skip
    assert report.ok, str(report)
    assert any("relu and its like" in record.reason for record in report.cells)
    other = lambda x: jnp.where(x < 0, 0, 1.5) * x  # noqa: E731
    assert not compared(lambda x, a: torch.relu(x @ a), lambda x, a: other(x @ a), X[:, :4], A[:4], data=["nan"]).ok


def test_a_mask_by_a_product_or_by_a_choice_is_at_the_edge():
    product, choice = lambda x, m: x * m / 0.5, lambda x, m: jnp.where(m, x / 0.5, 0)
    for theirs, mine in ((product, choice), (lambda x, m: torch.where(m, x / 0.5, 0), product)):
        report = compared(theirs, mine, X, MASK, data=SPECIAL)
        assert report.ok, str(report)
        # XLA takes a product with truth values for a choice.
        found = {record.cell.data for record in report.cells if record.verdict == "edge"}
        assert found == ({"signed zeros", "infinite", "nan"} if theirs is product else set())
    assert not compared(F.hardshrink, lambda x: -jnp.where(jnp.abs(x) > 0.5, -x, 0), X, data=["signed zeros"]).ok


def test_a_mask_of_floats_stays_one_in_further_draws():
    report = compared(lambda x, m: x * m * 2, lambda x, m: jnp.where(m > 0, x * 2, 0.0), X, 1.0 * MASK,
                      data=["random"], transforms=["forward"])  # fmt: skip
    assert report.ok, str(report)


def test_an_array_of_numpy_in_a_compiled_function_is_differentiated():
    chosen = {"data": ["random"], "worlds": ["torch-compiled"], "dtypes": ["float32"], "transforms": ["vjp"]}
    report = compared(lambda x: x * torch.from_numpy(TABLE).to(x.dtype), lambda x: x * jnp.asarray(TABLE, x.dtype), X,
                      **chosen)  # fmt: skip
    assert report.ok, str(report)


@pytest.mark.parametrize("step", [
    lambda m, g: m.lerp(g, 0.1), lambda m, g: m.clone().lerp_(g, 0.1), lambda m, g: (m * 0.9).add_(g, alpha=0.1),
    lambda m, g: (m * 0.9).addcmul_(g, torch.ones_like(g), value=0.1),
])  # fmt: skip
def test_what_a_step_of_an_optimizer_rounds_inside_is_counted(step):
    """Where 0.9 m and 0.1 g cancel, the result has few digits, however it is written."""
    m, g = torch.ones(64, dtype=torch.float64), -9 * torch.ones(64, dtype=torch.float64) * (1 + 2.0**-30)
    with Rounding(2.0**-20, 0):
        moved = step(m, g)
    assert float((moved - step(m, g)).abs().mean()) > 2.0**-22


def test_a_sweep_of_which_only_the_tail_differs_has_a_verdict():
    """There was no result left, and an error of our own."""
    report = parity.compare(
        lambda x: torch.where(x > 20, x, torch.log1p(torch.exp(x))), lambda x: jnp.logaddexp(x, 0), (np.ones(5),),
        data=["sweep"], dtypes=["float64"], worlds=["jax-eager"], transforms=["forward", "vjp"],
    )  # fmt: skip
    assert [cell.verdict for cell in report.cells][:1] == ["differs"], report
