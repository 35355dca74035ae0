"""Each diagnosis is given for its cause, planted in one function of a pair, and not without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity import Pair
from parity.verdict.runner import plan, run
from tests.pairs_at_hand import numbers

PRODUCT = numbers((24, 32), (20, 32))
SQUARE = numbers((6, 8), (6, 8))
ROWS = numbers((6, 8))
POSITIVE = lambda seed: tuple(np.abs(x) + 0.1 for x in ROWS(seed))  # noqa: E731
TINY = lambda seed: tuple(x * 1e-4 for x in numbers((16, 24))(seed))  # noqa: E731
MASK = np.arange(8) % 2 == 0


def product(x, w):
    return x @ w.T


def in_float32(change):
    """Return a change that is made in float32 only: float64 means what it should."""
    return lambda x: change(x) if x.dtype == jnp.float32 else x


def digits(count):
    def cut(x):
        mantissa, exponent = jnp.frexp(x)
        return x + jax.lax.stop_gradient(jnp.ldexp(jnp.round(mantissa * 2.0**count), exponent - count) - x)

    return in_float32(cut)


def stored_short(x):
    return in_float32(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32))(x)


def single(x):
    return x.astype(jnp.float32).astype(x.dtype)


def refuses(x):
    raise ValueError("no such thing")


def masked(x):
    return jnp.where(MASK, x, jax.lax.stop_gradient(x)) * 2


def torch_masked(x):
    return torch.where(torch.from_numpy(MASK), x, x.detach()) * 2


def norm(eps):
    def layer_norm(x):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)

    return layer_norm


def torch_norm(x):
    return F.layer_norm(x, (8,), eps=1e-5)


def double(x):
    return x * 2


@jax.custom_vjp
def half_a_gradient(x):
    return x * x


half_a_gradient.defvjp(lambda x: (x * x, x), lambda x, g: (x * g,))


def square(x):
    return x * x


def torch_scaled(x):
    x = x / x.abs().amax(-1, keepdim=True)
    return x / torch.sqrt((x * x).sum(-1, keepdim=True))


def scaled(x):
    return unscaled(x / jnp.abs(x).max(-1, keepdims=True))


def unscaled(x):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True))


# cause, torch function, right JAX function, JAX function with the cause, inputs, transform, dtype, data
PLANTED = (
    ("tf32 inputs", product, product, lambda x, w: product(digits(11)(x), digits(11)(w)), PRODUCT, "forward", "float32", "random"),
    ("bfloat16 inputs", product, product, lambda x, w: product(digits(8)(x), digits(8)(w)), PRODUCT, "vjp", "float32", "random"),
    ("bfloat16 accumulation", product, product, lambda x, w: stored_short(product(x, w)), PRODUCT, "forward", "float32", "random"),
    ("lower precision", torch.sin, jnp.sin, lambda x: single(jnp.sin(single(x))), ROWS, "forward", "float64", "random"),
    ("flushed subnormals", torch.sign, lambda x: jnp.where(jnp.signbit(x), -1.0, 1.0).astype(x.dtype), jnp.sign, ROWS, "forward", "float32", "subnormal"),
    ("signed zero", double, double, lambda x: x * 2 + 0.0, ROWS, "forward", "float64", "signed zeros"),
    ("tie or kink", lambda x: torch.where(x > 0, x, 0), lambda x: jnp.where(x > 0, x, 0), lambda x: jnp.where(x >= 0, x, 0),
     ROWS, "vjp", "float64", "kinks"),
    ("default argument: eps", torch_norm, norm(1e-5), norm(1e-3), ROWS, "forward", "float64", "random"),
    ("default argument: ddof", lambda x: x.var(-1), lambda x: x.var(-1, ddof=1), lambda x: x.var(-1), ROWS, "forward", "float64", "random"),
    ("default argument: reduction", lambda x: x.sum(-1), lambda x: x.sum(-1), lambda x: x.mean(-1), ROWS, "forward", "float64", "random"),
    ("constant factor", double, double, lambda x: x * 3, ROWS, "forward", "float64", "random"),
    ("transposed", product, product, lambda x, w: product(x, w).T, SQUARE, "forward", "float64", "random"),
    ("transposed", double, double, lambda x: (x * 2).T, ROWS, "forward", "float64", "random"),
    ("broadcast", lambda x: x.sum(-1), lambda x: x.sum(-1), lambda x: x.sum(-1, keepdims=True) + 0 * x, ROWS, "forward", "float64", "random"),
    ("structure", double, double, lambda x: (x * 2, x), ROWS, "forward", "float64", "random"),
    ("dtype promotion", double, double, lambda x: x * np.float32(2), ROWS, "forward", "bfloat16", "random"),
    ("gradient missing", double, double, lambda x: jax.lax.stop_gradient(x * 2), ROWS, "vjp", "float64", "random"),
    ("gradient masked", double, double, masked, ROWS, "vjp", "float64", "random"),
    ("gradient leaking", torch_masked, masked, double, ROWS, "vjp", "float64", "random"),
    ("gradient rule", square, square, half_a_gradient, ROWS, "vjp", "float64", "random"),
    ("gradient rule", square, square, half_a_gradient, ROWS, "vjp", "float32", "ties"),
    ("transposed", product, product, lambda x, w: product(x, w).T, SQUARE, "forward", "float64", "infinite"),
    ("dtype promotion", lambda x: (x * 2).float(), lambda x: jnp.float32(x * 2), double, ROWS, "forward", "float32", "random"),
    ("dtype promotion", double, double, lambda x: (x * 2).astype(jnp.int32), ROWS, "vjp", "float64", "random"),
    ("overflow in one", torch_scaled, scaled, unscaled, ROWS, "forward", "float32", "large"),
    ("another formula", double, double, lambda x: jnp.nan_to_num(x * 2), ROWS, "forward", "float64", "nan"),
    ("overflow in one", lambda x: torch.logsumexp(x, -1), lambda x: jax.nn.logsumexp(x, -1),
     lambda x: jnp.log(jnp.exp(x).sum(-1)), POSITIVE, "forward", "float64", "large"),
    ("loss of precision", torch.log1p, jnp.log1p, lambda x: jnp.log(1 + x), TINY, "forward", "float32", "random"),
    ("another formula", torch.sin, jnp.sin, lambda x: jnp.sin(x) + 0.1 * x**3, ROWS, "forward", "float64", "random"),
    ("tie or kink", lambda x: torch.argsort(x, dim=-1, stable=True), lambda x: jnp.argsort(x, -1),
     lambda x: x.shape[-1] - 1 - jnp.argsort(x[..., ::-1], -1), ROWS, "forward", "float64", "ties"),
    ("another formula: mask", lambda x: x > 0, lambda x: x > 0, lambda x: x < 0, ROWS, "forward", "float64", "random"),
    ("unsupported", double, double, refuses, ROWS, "forward", "float32", "random"),
    ("underflow", torch.abs, jnp.abs, lambda x: jnp.sqrt(x * x), ROWS, "forward", "float32", "small"),
)  # fmt: skip
IDS = [f"{row[0]}-{number}" for number, row in enumerate(PLANTED)]


def the_cell(torch_function, jax_function, inputs, transform, dtype, data, world="jax-eager"):
    pair = Pair(torch_function, jax_function, inputs, "planted")
    cells = plan(pair, transforms=[transform], dtypes=[dtype], worlds=[world], data=[data])
    (record,) = run(pair, cells, strict=True)
    return record


@pytest.mark.parametrize(
    ("cause", "theirs", "right", "wrong", "inputs", "transform", "dtype", "data"), PLANTED, ids=IDS
)
def test_planted_cause_is_named(cause, theirs, right, wrong, inputs, transform, dtype, data):
    record = the_cell(theirs, wrong, inputs, transform, dtype, data)
    assert record.failed
    assert record.diagnosis.cause == cause, record.diagnosis.text
    assert len(record.diagnosis.text) > 20
    assert len(record.diagnosis.fix) > 10


@pytest.mark.parametrize(
    ("cause", "theirs", "right", "wrong", "inputs", "transform", "dtype", "data"), PLANTED, ids=IDS
)
def test_without_the_cause_nothing_is_named(cause, theirs, right, wrong, inputs, transform, dtype, data):
    record = the_cell(theirs, right, inputs, transform, dtype, data)
    assert not record.failed, record.reason
    assert record.diagnosis is None or record.diagnosis.cause == "rounding only"


def test_what_only_torch_refuses_is_named():
    record = the_cell(refuses, double, ROWS, "forward", "float64", "random")
    assert (record.verdict, record.diagnosis.cause) == ("differs", "raises in one")
    assert "torch raises ValueError: no such thing" in record.reason
    assert not the_cell(double, double, ROWS, "forward", "float64", "random").failed


def test_what_runs_in_neither_is_a_failure():
    record = the_cell(refuses, refuses, ROWS, "forward", "float64", "random")
    assert (record.verdict, record.alike, record.failed) == ("unsupported", False, True)
    assert "the function ran in neither" in record.reason


@pytest.mark.parametrize("transform", ["forward", "vjp"])
def test_a_mistake_in_both_is_a_failure(transform):
    def mistaken(x):
        return x * undefined_name  # noqa: F821

    record = the_cell(mistaken, mistaken, ROWS, transform, "float64", "random")
    assert (record.verdict, record.failed) == ("unsupported", True)
    assert "an error of the function's own code" in record.reason


def test_a_derivative_that_neither_has_is_no_difference():
    @jax.custom_vjp
    def in_jax(x):
        return x * 2

    in_jax.defvjp(lambda x: (x * 2, None), lambda kept, g: (g * 2,))

    class InTorch(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            return g * 2

    record = the_cell(InTorch.apply, in_jax, ROWS, "jvp", "float64", "random")
    assert (record.verdict, record.alike, record.failed) == ("unsupported", True, False)
    assert "torch raises as well" in record.reason


def test_the_edge_of_the_range_is_told_apart():
    """Torch scales first, JAX squares: the same function at ordinary numbers."""
    pair = Pair(torch_scaled, unscaled, ROWS, "planted")
    cells = plan(pair, transforms=["forward"], dtypes=["float32"], worlds=["jax-eager"], data=["random", "large"])
    for strict in (False, True):
        usual, large = run(pair, cells, strict=strict)
        assert (usual.failed, large.verdict, large.failed) == (False, "edge", strict), large.reason
        assert "overflows" in large.reason


def test_an_oracle_that_is_alone_is_named():
    """At zeros both give zeros, which have few digits: they are no sums in bfloat16."""
    pair = Pair(double, double, ROWS, "planted", oracle=lambda x: x * 2 + 0.1)
    for kind in ("random", "zeros"):
        for record in run(
            pair, plan(pair, transforms=["forward"], dtypes=["float32"], worlds=["jax-eager"], data=[kind])
        ):
            assert (record.verdict, record.diagnosis.cause) == ("differs", "oracle")
            assert "against the oracle, output[" in record.reason


@pytest.mark.parametrize("kind", ["random", "zeros"])
def test_random_numbers_are_no_default_argument(kind):
    record = the_cell(lambda x: x + torch.rand(6, 8), double, ROWS, "forward", "float64", kind)
    assert (record.verdict, record.diagnosis.cause) == ("differs", "not deterministic")
    assert "the function in torch gives" in record.diagnosis.text


def test_zeros_show_no_eps():
    record = the_cell(double, lambda x: jnp.cos(x) * (x == 0) + x * 2, ROWS, "forward", "float64", "zeros")
    assert (record.verdict, record.diagnosis.cause) == ("differs", "tie or kink")


def test_weights_that_keep_their_dtype_are_to_be_inputs():
    class Holder:  # no module, and no function: what it holds is not found
        weight = torch.ones(8, 2)

        def __call__(self, x):
            return x @ self.weight

    record = the_cell(Holder(), lambda x: x[:, :2], ROWS, "forward", "float64", "random")
    assert (record.verdict, record.diagnosis.cause) == ("differs", "raises in one")
    assert "pass weights as inputs" in record.diagnosis.fix


def test_a_gradient_of_another_dtype_is_promotion_and_nothing_to_rewrite():
    record = the_cell(double, lambda x: (x * 2).astype(jnp.int32), ROWS, "vjp", "float32", "random")
    assert record.failed
    assert "The forward differs already" in record.diagnosis.text


def test_sums_in_another_order_are_rounding_only():
    record = the_cell(lambda x: x.sum(), lambda x: x.sum(0).sum(), numbers((9, 9)), "forward", "float32", "random")
    assert (record.verdict, record.diagnosis.cause) == ("within bound", "rounding only")


def test_the_same_bits_have_no_diagnosis():
    record = the_cell(double, double, ROWS, "forward", "float32", "random")
    assert (record.verdict, record.judged, record.diagnosis) == ("identical", "bits", None)
