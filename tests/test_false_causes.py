"""Causes that a reader found to be false, each as its kind: what is said now is proved, or less is said."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import parity
from parity.explanation import substitution
from parity.report import table

RNG = np.random.default_rng(0)
X = RNG.standard_normal(6).astype(np.float32)
BESIDE = np.linspace(-2, 5.3, 24).astype(np.float32)
W, B = RNG.standard_normal((6, 3)).astype(np.float32), RNG.standard_normal(3).astype(np.float32)
ROWS = RNG.standard_normal((4, 6)).astype(np.float32)
ONE = {"transforms": ["forward"], "worlds": ["jax-eager"], "dtypes": ["float64"], "data": ["random"], "jobs": 1}


def why(theirs, mine, *inputs, **options):
    (cell,) = parity.compare(theirs, mine, inputs, **{**ONE, **options}).cells
    assert cell.verdict == "differs"
    return cell.diagnosis


@pytest.mark.parametrize("x64", [False, True])
def test_a_cast_is_no_x64_that_is_off(x64):
    with jax.enable_x64(x64):
        found = why(torch.tanh, lambda x: jnp.tanh(x.astype(jnp.float32)).astype(x.dtype), X)
    assert found.cause == "lower precision"
    assert "x64" not in found.fix


@pytest.mark.parametrize("x64", [False, True])
def test_an_array_that_was_made_without_x64_is(x64):
    table_of = np.full(6, 0.1)
    with jax.enable_x64(False):
        made = [jnp.asarray(table_of)]
    hidden = iter(lambda: made[0], None)  # found in no closure, so that it keeps its type
    with jax.enable_x64(x64):
        found = why(lambda x: x * torch.from_numpy(table_of).to(x.dtype), lambda x: x * next(hidden), X)
    assert (found.cause == "x64 off") is not x64, found
    assert ("jax_enable_x64" in found.fix) is not x64


def selected(x):
    return jnp.where((x > 5) & (x < 8), 5, x)


@pytest.mark.parametrize("before", [lambda x: x, lambda x: x * 1.5], ids=["plain", "scaled"])
def test_a_comparison_after_which_nothing_is_selected_is_not_the_others(before):
    """(x > 5) & (x > 8) selects nothing of these numbers: the two agree, and torch compares nothing."""
    found = why(before, lambda x: selected(before(x)), BESIDE / (before(1.0)))
    assert found.text.startswith("select_n")
    assert "where torch has none" in found.text


def test_masks_that_are_joined_otherwise_are_named():
    """With `or` all is selected: a product before or after such a selection is the same, and no cause."""
    found = why(lambda x: torch.where((x > 0) & (x < 1), x * x, x), lambda x: jnp.where((x > 0) | (x < 1), x * x, x), X)
    assert found.text.startswith("masks joined by and in torch where JAX has or;")


def test_a_momentum_of_statistics_that_is_one_less_it_is_no_factor():
    """mlcommons/algorithmic-efficiency #231: torch's momentum is one less Flax's."""
    found = why(
        lambda x, m: 0.9 * m + 0.1 * F.relu(x).mean(0), lambda x, m: 0.1 * m + 0.9 * jax.nn.relu(x).mean(0),
        RNG.standard_normal((6, 4)), RNG.standard_normal(4),
    )  # fmt: skip
    assert "0.1 and 0.9 in JAX where torch has 0.9 and 0.1" in found.text


def test_a_comparison_that_is_another_is_still_named():
    found = why(lambda x: torch.where(x > 0, x, 0.1 * x), lambda x: jnp.where(x < 0, x, 0.1 * x), X)
    assert found.cause == "another formula: mask"


@pytest.mark.parametrize(
    ("stopping", "kind", "made"),
    [(lambda x: torch.clamp(x, -1e4, 1e4), "infinite", "clamp makes 1e+04 of inf in torch"),
     (torch.nan_to_num, "infinite", "nan_to_num makes 1.798e+308 of inf in torch"),
     (lambda x: torch.nan_to_num(x).tanh(), "nan", "nan_to_num makes 0 of nan in torch")],
    ids=["clamp", "infinity", "NaN"],
)  # fmt: skip
def test_what_stops_an_infinity_is_named_and_no_overflow(stopping, kind, made):
    def plain(x):
        return jnp.tanh(x) if kind == "nan" else x

    found = why(stopping, plain, X, data=[kind])
    assert f"{made}; where it hands that on, the two agree" in found.text
    assert found.cause == "another formula"


def test_an_infinity_of_which_nothing_is_proved_is_no_overflow():
    """Two steps stop it: with either alone handing it on, the other still does."""
    found = why(lambda x: torch.clamp(torch.clamp(x, -1e9, 1e9), -1e4, 1e4), lambda x: x, X, data=["infinite"])
    assert found.cause == "infinity in one"
    assert "overflow" not in found.text + found.fix


@pytest.mark.parametrize("steps", [1, 3])
def test_adam_without_bias_corrections_is_no_constant_factor(steps):
    def step(sqrt, corrected):
        def moved(p, g, m, v):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v * v + 0.001 * g * g
            first, second = (1 - b**steps if corrected else 1 for b in (0.9, 0.999))
            return p - 1e-3 * (m / first) / (sqrt(v / second) + 1e-8)

        return moved

    found = why(step(torch.sqrt, True), step(jnp.sqrt, False), *RNG.standard_normal((4, 6)))
    assert found.cause == "optimizer: bias correction"
    assert "of b = 0.9 and 0.999," in found.text


def test_a_derivative_beside_a_tolerance_is_not_said_to_be_wrong():
    """The functions agree within the tolerance alone, so that their derivatives differ is no fault of a rule."""
    report = parity.compare(
        torch.sin, lambda x: jnp.sin(x) + 1e-4 * jnp.sin(100 * x), (X,), **{**ONE, "transforms": None},
        tolerance=parity.Tolerance("a table", atol=2e-4),
    )  # fmt: skip
    causes = {cell.transform: cell.diagnosis for cell in report.failed}
    assert {"vjp", "hessian", "hvp-reverse-over-reverse"} <= causes.keys()
    for found in causes.values():
        assert found.text.startswith("The functions agree within the tolerance given alone, and the derivative differs")
        assert found.text.endswith("0.0001 in JAX where torch has 0 (mul); with it replaced the two agree.")
    assert table.summary(report).count("\n") == 2  # one fault, and what is within the tolerance


def test_a_small_difference_is_not_called_transposed():
    """The matrix of second derivatives is diagonal, and so is its transpose."""
    found = why(lambda x: torch.tanh(x.float()).to(x.dtype) * 2, lambda x: jnp.tanh(x) * 2, X, transforms=["hessian"])
    assert found.cause == "lower precision"


def of_closures(kernel, bias):
    return lambda x: jax.nn.relu(x @ kernel + bias), lambda x: jax.nn.relu(x @ kernel.T + bias)


@pytest.mark.parametrize("turned", [False, True])
def test_a_weight_of_a_closure_that_differs_is_named(turned):
    changed = W.copy()
    changed[2, 1] += 0.5
    weight, offset = torch.from_numpy(W), torch.from_numpy(B)
    port = of_closures(jnp.asarray(changed.T if turned else changed), jnp.asarray(B))[turned]
    found = why(lambda x: torch.relu(x @ weight + offset), port, ROWS)
    assert found.cause == "other weights"
    at = [1, 2] if turned else [2, 1]
    assert f"kernel has {changed[2, 1]:.6g} at {at} in JAX where torch has {W[2, 1]:.6g} (weight)" in found.text


SECOND = ["hessian", "hvp-forward-over-reverse", "hvp-reverse-over-forward", "hvp-reverse-over-reverse"]


def test_second_derivatives_of_special_functions_have_their_cause():
    """Tangents that forward mode knows to be zero are no plain arrays."""
    for theirs, mine in ((torch.special.digamma, jax.scipy.special.digamma), (torch.lgamma, jax.scipy.special.gammaln)):
        report = parity.compare(theirs, mine, (np.abs(X) + 0.3,), **{**ONE, "transforms": SECOND})
        assert report.failed
        assert {cell.diagnosis.cause for cell in report.failed} == {"special function"}
        assert {cell.diagnosis.text.split(" otherwise")[0] for cell in report.failed} == {"torch computes polygamma"}


def test_shapes_that_flushed_numbers_make_are_said():
    found = why(torch.unique, jnp.unique, X, dtypes=["float32"], data=["subnormal"])
    assert found.cause == "flushed subnormals"
    assert "shape (1,), the other framework's (6,): JAX takes numbers below 1.18e-38 for zero" in found.text


def test_the_matrix_has_no_row_that_can_be_read_for_another_transform():
    """A heading names what looks alike; below it every row names its kinds of numbers."""
    options = {"worlds": ["torch-eager", "jax-jit"], "transforms": ["forward", "vjp", "jvp", "vmap-0"], "jobs": 1}
    text = str(parity.compare(F.gelu, jax.nn.gelu, (X,), **options))
    rows = [line.strip("│ ").split("│")[0].strip() for line in text.splitlines() if line.startswith("│")]
    rows = rows[rows.index("forward") :]
    heads = [row for row in rows if row.startswith(("forward", "vjp", "jvp", "vmap"))]
    assert heads == ["forward", "vjp", "jvp, vmap-0"]
    assert "zeros, signed zeros, large, small" in rows
    assert not any("more" in row for row in rows)


def test_numbers_that_both_have_are_not_said_to_be_the_others_alone():
    """The two have 2 and 4, before and after the softmax: that JAX has 1 and 2 was said."""
    found = why(lambda x: torch.log_softmax(x / 2, -1) * 4, lambda x: jax.nn.log_softmax(x, -1) / 2 * 4, ROWS)
    assert found.text.startswith("With 1 and 2 in the place of 2 and 4 in torch"), found
    assert "JAX has 2 and 4 as well" in found.text


def limited(x, y):
    return jnp.tanh(x) * jnp.clip(y, -100, 100)


SEEN = {"transforms": ["forward"], "worlds": ["jax-eager"], "dtypes": ["float64"], "jobs": 1}
TOLD = {
    "a limit": (lambda x, y: torch.tanh(x) * y, limited, (X, X), r"max .step 1.*in JAX where torch has none"),
    "one limit": (lambda x, y: x * y.clamp(max=100), lambda x, y: x * y, (X, X), "clamp"),
    "a limit before": (lambda x: torch.tanh(x.clamp(-60, 60) / 10), lambda x: jnp.tanh(x / 10), (X,), "clamp"),
    "a slope": (torch.relu, lambda x: jnp.where(x > 0, x, 1e-3 * x), (X,), "0.001 in JAX where torch has 0"),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_cause_on_unusual_numbers_leaves_the_usual_ones_alone(name):
    """A tanh for an erf, exchanged arguments, another divisor and a factor were said to be proved, on infinities."""
    theirs, mine, inputs, said = TOLD[name]
    found = parity.compare(theirs, mine, inputs, **SEEN).failed
    causes = [cell.diagnosis for cell in found]
    assert any(re.search(said, one.text) for one in causes), causes
    assert not {one.cause for one in causes} & {"constant factor", "default argument: approximate", "arrangement"}
    assert not any("exchanged" in one.text or "10 in torch" in one.text or "tanh makes" in one.text for one in causes)


def test_a_cast_is_no_convolution_whose_kernel_is_flipped():
    steps = np.arange(6)
    mine = lambda x: jnp.cumsum(jnp.flip(x) * jnp.asarray(steps).astype(x.dtype))  # noqa: E731
    found = why(lambda x: torch.cumsum(x * torch.from_numpy(steps), 0), mine, X)
    assert found.cause == "arrangement: reversed"
    assert "Reverse that axis" in found.fix


def test_numbers_whose_squares_overflow_prove_nothing():
    """A change that does nothing proved a "position offset" on them: their size was taken to be infinite."""
    labels = np.array([0, 1, 2, 3, 4, 5])
    theirs = lambda x, y: (torch.nn.functional.one_hot(y, 6) * x.clamp(min=0)).sum()  # noqa: E731
    mine = lambda x, y: (jnp.eye(6)[y] * jnp.clip(x, 0, 30)).sum()  # noqa: E731
    report = parity.compare(theirs, mine, (X * 3, labels), **{**ONE, "data": ["large"]})
    assert {cell.diagnosis.cause for cell in report.failed} == {"another formula"}
    huge, small = {"output": np.array([7e241])}, {"output": np.array([276.0])}
    assert substitution.distance(small, huge) == substitution.distance({"output": np.array([0.0])}, huge) == 1
    assert substitution.distance(huge, huge) == 0


def test_positions_that_one_side_does_not_have_are_not_transposed_there():
    """0 to the power of what is above the diagonal is one below it: so the decay is left out, and nothing turned."""
    square = RNG.standard_normal((4, 4)).astype(np.float32)
    found = why(lambda x: x * _decay(x), lambda x: x * jnp.tril(jnp.ones((4, 4))), square)
    assert "exchanged" not in found.text, found


def _decay(x):
    at = torch.arange(4)
    back = (at[:, None] - at).clamp(min=0)
    return torch.where(at[:, None] >= at, torch.tensor(0.9, dtype=x.dtype) ** back, 0.0)


def test_numbers_of_one_sign_have_no_absolute_value():
    """exp(-exp(d)) in torch, exp(d) in JAX: the absolute value of -exp(d) is a sign, and no activation."""
    found = why(lambda x, d: x * torch.exp(-torch.exp(d)), lambda x, d: x * jnp.exp(d), ROWS, X)
    assert "abs" not in found.text, found


def test_a_graph_of_edges_both_ways_is_not_transposed():
    """Rows for columns of a symmetric matrix: with another graph the two do not agree."""
    graph = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]], np.float32)

    def theirs(x, a):
        d = a.sum(1).pow(-0.5)
        return (d[:, None] * a * d[None]) @ x

    found = why(theirs, lambda x, a: (a / a.sum(1, keepdims=True)) @ x, ROWS, graph)
    assert "exchanged" not in found.text, found


def test_a_mask_of_turns_that_is_read_the_other_way_round_is_not_reversed():
    turns = np.tile(np.array([0.0, 1.0], np.float32), 3)
    mask = torch.from_numpy(turns)
    found = why(lambda x: x * mask.to(x.dtype) * 2, lambda x: x * (1 - jnp.asarray(turns)) * 2, ROWS)
    assert "reversed" not in found.text, found


def test_the_activations_of_one_tower_are_told_from_those_of_the_other():
    def two(matmul, one, other, a, b):
        for _ in range(2):
            a = one(a) * 1.5
        for _ in range(3):
            b = other(b) * 1.5
        return matmul(a, b)

    found = why(
        lambda a, b: two(torch.matmul, torch.tanh, torch.tanh, a, b),
        lambda a, b: two(jnp.matmul, jnp.tanh, jax.nn.silu, a, b),
        ROWS, W,
    )  # fmt: skip
    assert found.cause == "another formula: activation", found
    assert "silu" in found.text
