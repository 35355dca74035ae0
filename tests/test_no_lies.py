"""What was once called equal and is not, and what was called different and is right: each kind with an instance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from parity.execution import jax_programs
from parity.operator.data import make, variants
from parity.verdict.bias import Slope, assert_no_factor
from parity.verdict.compare import Mismatch
from parity.verdict.judge import same_dtype

X = np.random.default_rng(0).standard_normal((4, 6))
Z = X + 1j * X[::-1]
MASK = np.arange(6) % 3 > 0


def compared(torch_function, jax_function, *arrays, **chosen):
    usual = {"transforms": ["forward"], "worlds": ["jax-eager"], "dtypes": ["float64"], "data": ["random"]}
    return parity.compare(torch_function, jax_function, arrays, name="pair", **usual | chosen)


@dataclasses.dataclass
class Result:
    value: object
    cache: object = None


LIES = {
    "the imaginary part": (lambda x: torch.complex(x, x), lambda x: jax.lax.complex(x, -x), X),
    "a complex input's conjugate": (lambda z: z * 2, lambda z: jnp.conj(z) * 2, Z),
    "beside a mask's large number": (
        lambda x: torch.where(torch.from_numpy(MASK), x, -1e30), lambda x: jnp.where(MASK, x + 1000, -1e30), X,
    ),
    "a large second output": (lambda x: (x, x * 0 + 1e16), lambda x: (x + 1e-3, x * 0 + 1e16), X),
    "None and an empty dict": (lambda x: (x, None, {}), lambda x: [x], X),
    "a dict with the key 0": (lambda x: {0: x}, lambda x: (x,), X),
    "text": (lambda x: (x, "mean"), lambda x: (x, "sum"), X),
    "a field": (lambda x: Result(x, x), lambda x: Result(x), X),
    "the width of integers": (lambda x: (x > 0).long(), lambda x: (x > 0).astype(jnp.int16), X),
    "the width of unsigned ones": (lambda x: (x > 0).to(torch.uint8), lambda x: (x > 0).astype(jnp.uint32), X),
    "a torch error in one dtype of both": (
        lambda x: x if x.dtype == torch.float64 else x.wrong, lambda x: x if x.dtype == jnp.float64 else x.wrong, X,
    ),
    "one unit in four": (lambda x: x * 1, lambda x: x * (1 + 4 * jnp.finfo(x.dtype).eps), X),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine", "array"), LIES.values(), ids=LIES)
def test_a_difference_is_seen(theirs, mine, array):
    assert not compared(theirs, mine, array, dtypes=["float64", "float32"]).ok


RIGHT = {
    "complex numbers": (lambda z: torch.exp(z) * z, lambda z: jnp.exp(z) * z, Z),
    "a transform": (lambda x: torch.fft.fft(x), lambda x: jnp.fft.fft(x), X),
    "a record": (lambda x: Result(x * 2), lambda x: Result(x * 2), X),
    "a record and a dict": (lambda x: Result(x * 2), lambda x: {"value": x * 2}, X),
    "a list and a tuple": (lambda x: [x, x], lambda x: (x, x), X),
    "indices": (lambda x: torch.argmax(x, -1), lambda x: jnp.argmax(x, -1), X),
    "logits that are float32 in any case": (lambda x: x.float() * 2, lambda x: x.astype(jnp.float32) * 2, X),
    "a mean of truth values": (lambda x: (x, (x > 0).float().mean()), lambda x: (x, (x > 0).mean()), X),
    "float32 by name, and by default": (lambda x: (x, torch.tensor(1 / 3)), lambda x: (x, jnp.float32(1 / 3)), X),
    "positions of the default dtype": (
        lambda x: x * torch.arange(6).float().div(6).cos(),
        lambda x: x * jnp.cos(jnp.arange(6) / 6),
        X,
    ),
    "what an offset leaves": (lambda x: (x + 1e6).mean() - 1e6, lambda x: (x + 1e6).mean() - 1e6, X),
}


@pytest.mark.parametrize(("theirs", "mine", "array"), RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_no_difference(theirs, mine, array):
    report = compared(
        theirs, mine, array, transforms=["forward", "vjp", "jacrev"], worlds=["jax-jit"], dtypes=["float64", "float32"]
    )
    assert report.ok, str(report)


def test_what_is_chosen_at_numerical_ties_is_no_difference():
    w = np.random.default_rng(1).standard_normal((6, 64))
    report = compared(
        lambda x, w: torch.argmax(x @ w, -1), lambda x, w: jnp.argmax(x @ w, -1), np.repeat(X, 16, 0), w,
        dtypes=["bfloat16"], worlds=["torch-eager", "jax-eager"],
    )  # fmt: skip
    assert report.ok, str(report)
    assert not compared(lambda x: torch.argmax(x, -1), lambda x: jnp.argmin(x, -1), X, dtypes=["bfloat16"]).ok


def coded(xp, whole, largest):
    def function(x):
        scale = largest(abs(x)) / 127
        return whole(xp.round(x / scale)), scale

    return function


def test_a_code_that_rounding_decides_is_no_difference():
    theirs = coded(torch, lambda x: x.to(torch.int8), lambda x: x.amax(-1, keepdim=True))
    mine = coded(jnp, lambda x: x.astype(jnp.int8), lambda x: x.max(-1, keepdims=True))
    many = np.random.default_rng(2).standard_normal((4, 64))
    chosen = {"dtypes": ["float32", "bfloat16"], "worlds": ["torch-eager", "jax-jit"]}
    report = compared(theirs, mine, many, **chosen)
    assert report.ok, str(report)
    assert not compared(theirs, lambda x: (mine(x)[0] + 1, mine(x)[1]), many, **chosen).ok
    assert not compared(theirs, lambda x: (mine(x)[0].at[1, 1].add(1), mine(x)[1]), many).ok


def test_a_kernel_that_does_otherwise_than_its_formula_at_infinity_is_the_edge():
    exact = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
    large = np.repeat(X, 4, 0)
    chosen = {"data": ["infinite"], "dtypes": ["float64", "float32"], "worlds": ["torch-eager", "jax-jit"]}
    report = compared(torch.nn.functional.gelu, exact, large, **chosen)
    assert report.ok, str(report)
    # Which of torch's kernels do otherwise than the formula depends on the CPU, and so does the sign of infinity.
    formula = lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))  # noqa: E731
    differs = {
        dtype: any(
            not torch.equal(torch.nn.functional.gelu(one).isnan(), formula(one).isnan())
            for one in (torch.full((96,), sign * np.inf, dtype=dtype) for sign in (-1, 1))
        )
        for dtype in (torch.float64, torch.float32)
    }
    found = {record.verdict for record in report.cells if record.cell.world == "torch-eager"}
    assert found == {"edge"} or not differs[torch.float32], (found, differs)
    assert found != {"edge"} or any(differs.values()), (found, differs)
    wrong = lambda x: jnp.where(jnp.isinf(x), 0.0, exact(x))  # noqa: E731
    assert not compared(torch.nn.functional.gelu, wrong, large, **chosen).ok


SPECIAL = {
    "nan in a second argument": (lambda x, w: x + torch.nan_to_num(w), lambda x, w: x + w, "nan"),
    "zeros in a second argument": (lambda x, w: x + w.abs(), lambda x, w: x + jnp.sqrt(w * w), "zeros"),
    "a threshold": (
        lambda x, w: torch.where(x > 20, x * 1.001, x) + w, lambda x, w: x + w, "sweep",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine", "kind"), SPECIAL.values(), ids=SPECIAL)
def test_data_reaches_every_argument_and_range(theirs, mine, kind):
    assert compared(theirs, mine, X, X[0]).ok
    assert not compared(theirs, mine, X, X[0], data=[kind], transforms=["forward", "vjp"]).ok


def test_integers_are_varied():
    whole = np.arange(1, 9, dtype=np.int32)
    trunc = lambda n: torch.div(n, 4, rounding_mode="trunc")  # noqa: E731
    assert compared(trunc, lambda n: n // 4, whole).ok
    assert not compared(trunc, lambda n: n // 4, whole, data=["indices"]).ok
    table = lambda x, n: x[:, n]  # noqa: E731
    assert compared(table, table, X, np.arange(5), data=["indices"]).ok


def test_keywords_and_what_is_no_array_are_passed():
    report = parity.compare(
        lambda x, *, dim, scale: x.sum(dim) * scale, lambda x, *, dim, scale: x.sum(dim) * scale,
        parity.Args(X, dim=-1, scale=np.array(2.0)), name="sum", transforms=["forward", "vjp"], worlds=["jax-jit"],
        dtypes=["float64"], data=["random"],
    )  # fmt: skip
    assert report.ok, str(report)
    turned = parity.Args({"x": X, "how": ["roll", None]}, shift=2)
    (cell,) = parity.compare(
        lambda of, *, shift: torch.roll(of["x"], shift), lambda of, *, shift: jnp.roll(of["x"], shift), turned,
        transforms=["forward"], worlds=["torch-compiled"], dtypes=["float32"], data=["random"],
    ).cells  # fmt: skip
    assert cell.verdict == "identical", cell.reason  # Dynamo traces how arguments are put together
    with pytest.raises(ValueError, match="expected at least one NumPy array, got none"):
        parity.Args(2, axis=1)


def test_a_tolerance_has_a_reason_which_is_told():
    given = parity.Tolerance("the table is stored in bfloat16", rtol=0.01)
    right, wrong = (lambda x: x * 2), (lambda x: x * 2.01)
    report = compared(right, wrong, X, tolerance=given)
    assert report.ok
    assert "the table is stored in bfloat16" in report.cells[0].reason
    assert not compared(right, lambda x: x * 2.1, X, tolerance=given).ok
    with pytest.raises(ValueError, match="expected a reason, got an empty text"):
        parity.Tolerance(" ", rtol=0.1)
    with pytest.raises(ValueError, match="expected rtol or atol above 0"):
        parity.Tolerance("none")


@pytest.mark.parametrize("eps", [np.finfo(np.float32).eps, jnp.finfo(jnp.bfloat16).eps, np.float64(2**-8), np.int64(1)])
def test_a_tolerance_is_a_number_of_any_library(eps):
    """Of NumPy's floats only float64 is a `float`: float32's was said to be below 0 (as in ModOpt #386)."""
    given = parity.Tolerance("the table is stored in few bits", rtol=eps)
    assert type(given.rtol) is float
    assert given.rtol == float(eps)
    assert repr(given).endswith(f"rtol={float(eps)}, atol=0.0)")


@pytest.mark.parametrize(
    ("rtol", "error", "said"),
    [
        (np.float32(-1), ValueError, "of 0 or more, got -1.0"),
        (float("nan"), ValueError, "of 0 or more, got nan"),
        ("0.1", TypeError, "as a number, got str"),
        (None, TypeError, "as a number, got NoneType"),
        (np.ones(2), TypeError, "as a number, got ndarray"),
        (1j, TypeError, "as a number, got complex"),
    ],
)
def test_what_is_no_tolerance_is_refused(rtol, error, said):
    with pytest.raises(error, match=f"^tolerance: expected rtol {said}$"):
        parity.Tolerance("because", rtol=rtol)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [("int64", "int32", True), ("int64", "int16", False), ("uint8", "uint32", False), ("float64", "float32", False)],
)
def test_dtypes_are_the_same_but_for_settings(left, right, same):
    assert same_dtype(left, right) == same_dtype(right, left) == same


def test_a_factor_shows_over_many_numbers():
    rng = np.random.default_rng(0)
    want = rng.standard_normal(400)
    unit, error = 2.0**-8, rng.uniform(-1, 1, 400) * 2.0**-8
    inherent = 2 * unit * np.abs(want)
    assert assert_no_factor({"y": Slope.of(want * (1 + error), want, inherent)}, "bfloat16") is None
    with pytest.raises(Mismatch, match="all in one direction"):
        assert_no_factor({"y": Slope.of(want * (1.02 + error), want, inherent)}, "bfloat16")


def test_variants_change_the_arguments_that_they_name():
    pair = parity.Pair(max, max, (X, X[0]), "pair")
    assert variants(pair, "nan") == ("nan", "nan#2", "nan#all")
    found = {kind: [np.isnan(leaf).any() for leaf in make(pair, kind, "float32", 0)] for kind in variants(pair, "nan")}
    assert found == {"nan": [True, False], "nan#2": [False, True], "nan#all": [True, True]}


def test_every_draw_of_the_numbers_is_held_to_its_own_bounds():
    """Equal arguments hide a weight: only other draws, whose arguments are scaled apart, show it."""
    right = lambda m, x: 0.9 * m + 0.1 * x  # noqa: E731
    report = compared(right, lambda m, x: 0.99 * m + 0.01 * x, X, X)
    assert report.failed[0].finding.ratio > 1e6
    assert compared(right, right, X, X).ok


def test_derivatives_that_are_both_right_are_of_two_functions():
    """No rule is blamed where finite differences bear out both sides."""
    flat = np.full((16, 16), 2.0)  # enough for one draw
    report = compared(lambda x: x * x, lambda x: x + 2, flat, transforms=["vjp"], worlds=["jax-jit"])
    assert report.failed[0].diagnosis.cause == "another formula"
    assert "part from each other beside these numbers" in report.failed[0].diagnosis.text


def test_attention_that_a_library_computes_in_float32_is_no_difference_at_kinks():
    q, k, v = np.random.default_rng(3).standard_normal((3, 1, 3, 5, 4))

    def mine(q, k, v):
        q, k, v = (jnp.swapaxes(one, 1, 2) for one in (q, k, v))
        return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, is_causal=True), 1, 2)

    theirs = lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    report = compared(theirs, mine, q, k, v, data=["kinks"])
    assert report.ok, str(report)


def centred(x):
    return x - x.mean(-1, keepdims=True)


@pytest.mark.parametrize(
    ("theirs", "mine", "verdict"),
    [
        pytest.param(lambda x: centred(x) + 0.0, centred, "edge", id="a zero that cancels"),
        pytest.param(lambda x: x * 2, lambda x: x * 2 + 0.0, "differs", id="a zero of the input's side"),
        pytest.param(lambda x: x + 0.0, lambda x: x, "edge", id="kept in JAX alone"),
        pytest.param(
            torch.tanh, lambda x: -jnp.tanh(jnp.abs(x)) * (2 * (x < 0) - 1), "differs", id="a sign of its own"
        ),
        pytest.param(lambda x: (centred(x) + 0.0, x * 2), lambda x: (centred(x), x * 2 + 0.0), "differs", id="both"),
    ],
)
def test_the_sign_of_a_zero_counts_where_the_function_has_one(theirs, mine, verdict):
    """What is just beside the zeros says which sign they have: of a sum that cancels it is either."""
    x = np.linspace(-2, 2, 12).reshape(3, 4)
    report, strict = (compared(theirs, mine, x, data=["signed zeros"], strict=strict) for strict in (False, True))
    assert [record.verdict for record in report.cells] == [verdict]
    assert report.ok == (verdict == "edge")
    assert not strict.ok


def test_a_sign_that_is_left_open_hides_no_other_fault():
    """Of one dtype alone: what was computed in it is judged all the same."""
    report = compared(
        lambda x: (centred(x) + 0.0, x * 2),
        lambda x: (centred(x), x * 2 + 3 * (x.dtype == jnp.float32)),
        np.linspace(-2, 2, 12).reshape(3, 4), data=["signed zeros"], dtypes=["float32"],
    )  # fmt: skip
    assert not report.ok


def test_where_numbers_leave_the_range_is_read_of_numbers_with_a_weak_type_too():
    read = jax_programs.ranges(lambda x: jnp.exp(x) + (jnp.arange(2) + 1) * 0.5, jnp.ones(2))
    assert (read(jnp.ones(2)).large, read(jnp.full(2, 1e4)).large) == (set(), {"exp"})


def by_numpy(x):
    try:
        values = np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return jnp.sin(x)
    return jnp.asarray(np.where(values == 0, 1.0, np.sin(values)))


def by_a_branch(x):
    if not isinstance(x, jax.core.Tracer) and bool((x == 0).any()):
        return x + 1
    return jnp.sin(x)


def by_a_caught_error(x):
    try:
        if bool((x == 0).any()):
            return x * 3 + 1
    except jax.errors.ConcretizationTypeError:
        pass
    return jnp.sin(x)


@pytest.mark.parametrize("mine", [by_numpy, by_a_branch, by_a_caught_error])
def test_what_eager_jax_alone_does_at_some_numbers_is_seen(mine):
    """Each traces as the right function: it must run on the numbers themselves, and on all of them."""
    chosen = {"transforms": ["forward"], "worlds": ["jax-eager"], "dtypes": ["float64"]}
    report = compared(torch.sin, mine, X * 0.3, data=["random", "nan", "ties", "large", "zeros"], **chosen)
    assert {cell.cell.data for cell in report.failed} >= {"zeros"}, str(report)
    assert "random" not in {cell.cell.data for cell in report.failed}


def convolved(x, weight):
    return jax.lax.conv_general_dilated(x, weight, (1,), "VALID")


def test_a_convolution_of_infinities_is_no_NaN_alone():
    """Where infinities of both signs meet in each sum, all is NaN on both sides, whatever the port makes of one."""
    rng = np.random.default_rng(0)
    pair = (rng.standard_normal((2, 8, 24)), rng.standard_normal((3, 8, 9)))
    asked = {"transforms": ["forward"], "worlds": ["jax-eager"], "dtypes": ["float32", "float64"]}
    right = parity.compare(torch.nn.functional.conv1d, convolved, pair, **asked)
    assert right.ok, str(right)
    wrong = parity.compare(
        torch.nn.functional.conv1d, lambda x, w: convolved(jnp.where(jnp.isinf(x), jnp.nan, x), w), pair, **asked
    )
    assert {record.data for record in wrong.failed} == {"infinite"}
