"""What a right port meets beyond ordinary numbers, forward and vjp: other transforms, 16 bits, infinities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import parity
from parity.execution.calls import Failure
from parity.verdict.refusals import is_of_this_type
from tests.right_ports import PORTS, compare

RNG = np.random.default_rng(0)
INFINITE = {"data": ["infinite"], "dtypes": ["float64"], "worlds": ["jax-jit"]}


@pytest.mark.parametrize("transform", ["jvp", "hvp-reverse-over-forward"])
def test_float32_inside_is_seen_under_forward_mode(transform):
    report = compare(
        "RMSNorm, written", 0, transforms=[transform], data=["random"], dtypes=["float64"], worlds=["jax-jit"]
    )
    assert report.ok, str(report)


def test_float32_on_one_side_is_named_under_forward_mode():
    report = parity.compare(
        torch.tanh, lambda x: jnp.tanh(x.astype(jnp.float32)).astype(x.dtype), (RNG.standard_normal(6),),
        transforms=["jvp"], data=["random"], dtypes=["float64"], worlds=["jax-jit"],
    )  # fmt: skip
    assert not report.ok
    assert "float32" in str(report)


@pytest.mark.parametrize("transform", ["forward", "vjp"])
@pytest.mark.parametrize("name", ["GELU MLP", "GroupNorm", "BatchNorm, train"])
def test_infinite_weights_are_no_fault(name, transform):
    report = compare(name, 0, transforms=[transform], **INFINITE)
    assert report.ok, str(report)
    assert {cell.verdict for cell in report.cells} == {"edge"}  # a failure under strict


WRONG_AT_INFINITY = {
    "a gain that is not infinite": ("GroupNorm", lambda mine: lambda x, w, b: mine(x, jnp.nan_to_num(w), b)),
    "a layer that is not infinite": ("GELU MLP", lambda mine: lambda x, a, b, c: mine(x, a, b, jnp.nan_to_num(c))),
}  # fmt: skip


@pytest.mark.parametrize("change", WRONG_AT_INFINITY)
def test_what_is_made_of_infinite_weights_is_still_compared(change, monkeypatch):
    name, wrap = WRONG_AT_INFINITY[change]
    theirs, mine, *rest = PORTS[name]
    monkeypatch.setitem(PORTS, "planted", (theirs, wrap(mine), *rest))
    assert not compare("planted", 0, transforms=["forward"], **INFINITE).ok


def quantile(x):
    return jnp.quantile(x, 0.3, method="lower")


BFLOAT16 = {"transforms": ["forward"], "data": ["random"], "dtypes": ["float32", "bfloat16"]}


def test_a_type_that_torch_does_not_take_is_counted_and_no_failure():
    report = parity.compare(
        lambda x: torch.quantile(x, 0.3, interpolation="lower"), quantile, (RNG.standard_normal(12),), **BFLOAT16
    )
    assert report.ok, str(report)
    assert any(cell.verdict == "unsupported" for cell in report.cells if cell.cell.dtype == "bfloat16")


def upcast(x):
    return x if x.dtype == torch.float64 else x.float()


def refuses(x):
    if x.dtype == jnp.bfloat16:
        raise TypeError(f"Unsupported dtype {x.dtype}")
    return jnp.sin(x)


@pytest.mark.parametrize(("theirs", "mine"), [
    (lambda x: torch.fft.rfft(upcast(x)).abs().to(x.dtype), lambda x: jnp.abs(jnp.fft.rfft(x)).astype(x.dtype)),
    (torch.sin, refuses),
], ids=["a port without the cast", "a port that raises"])  # fmt: skip
def test_a_port_that_refuses_what_torch_takes_is_a_failure(theirs, mine):
    assert not parity.compare(theirs, mine, (RNG.standard_normal((4, 4)),), **BFLOAT16).ok


def test_a_function_that_mixes_types_is_a_failure():
    report = parity.compare(
        lambda x: x @ torch.ones(4, 3), lambda x: x @ jnp.ones((4, 3)), (RNG.standard_normal((5, 4)),), **BFLOAT16
    )
    assert not report.ok


SAID = {
    "RuntimeError: Unsupported dtype BFloat16": True,
    "NotImplementedError: \"cdist\" not implemented for 'Half'": True,
    "RuntimeError: linalg.inv: Low precision dtypes not supported. Got BFloat16": True,
    "RuntimeError: quantile() input tensor must be either float or double dtype": True,
    "RuntimeError: linalg.pinv(Half{[4, 4]}): expected a tensor with 2 or more dimensions of float, double, cfloat "
    "or cdouble types": True,
    "RuntimeError: This function doesn't handle types other than float and double": True,
    "RuntimeError: expected m1 and m2 to have the same dtype, but got: c10::BFloat16 != float": False,
    "RuntimeError: expected scalar type Float but found BFloat16": False,
    "TypeError: lax.mul requires arguments to have the same dtypes, got float64, bfloat16.": False,
    "ValueError: my own check: bfloat16 is bad": False,
    "ValueError: Expected a float mask here, e.g. a double; this layer is not ported yet": False,
}


@pytest.mark.parametrize("text", SAID)
def test_a_refused_type_is_told_from_a_mixture(text):
    assert is_of_this_type(Failure(text, text)) == SAID[text]


def clipped(g):
    return g * torch.clamp(1.0 / (g.norm() + 1e-6), max=1.0)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


MASK = RNG.random((4, 5)) > 0.5
CAUSES = {
    "a weight forgotten": (lambda x, w: F.softplus(-x) * w, lambda x, w: jax.nn.softplus(-x), draw((4, 5), (5,)),
                           "input not used", "with w one everywhere"),
    "a mask forgotten": (lambda x, m: torch.softmax(x.masked_fill(~m, -1e9), -1), lambda x, m: jax.nn.softmax(x),
                         (*draw((4, 5)), MASK), "input not used", "True everywhere"),
    "a term forgotten": (lambda x, y: x.sum() * y.sin().mean() + x, lambda x, y: x, draw((4, 5), (4, 5)),
                         "input not used", "with y zero everywhere"),
    "divergences the other way": (
        lambda a, b: F.kl_div(F.log_softmax(a, -1), F.log_softmax(b, -1), log_target=True, reduction="sum"),
        lambda a, b: (jax.nn.softmax(a) * (jax.nn.log_softmax(a) - jax.nn.log_softmax(b))).sum(),
        draw((4, 5), (4, 5)), "arguments exchanged", "a and b in torch where JAX has b and a",
    ),
    "a temperature multiplied": (lambda x: F.softmax(x / 0.7, -1), lambda x: jax.nn.softmax(x * 0.7), draw((4, 5)),
                                 "constant", "0.7 in JAX where torch has 1 / 0.7"),
    "an eps that is nowhere": (clipped, lambda g: g * jnp.minimum(1.0, 1.0 / jnp.linalg.norm(g)), draw((4, 5)),
                               "default argument: eps", "where JAX has none"),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_an_input_or_a_constant_is_named(name):
    theirs, mine, inputs, cause, text = CAUSES[name]
    report = parity.compare(
        theirs, mine, inputs, transforms=["forward"], data=["random"], dtypes=["float64"], worlds=["jax-jit"]
    )
    assert [cell.diagnosis.cause for cell in report.failed] == [cause], str(report)
    assert text in report.failed[0].diagnosis.text


BOTH_USE = {
    "another formula": (lambda x, y: x * y.exp() + y, lambda x, y: x * jnp.exp2(y) + y * y, draw((4, 5), (4, 5))),
    "a scale that hides it": (lambda x, b: (x + 10 * b).argmax(-1), lambda x, b: (x + 0.01 * b).argmax(-1),
                              draw((4, 5), (5,))),
    "a bound far away": (torch.minimum, lambda x, y: jnp.minimum(x, y + 100), (draw((4, 5))[0], np.array(0.3))),
    "parts of a complex number": (lambda z: torch.atan2(z.imag, z.real), lambda z: jnp.arctan2(z.real, z.imag),
                                  (draw((4,))[0] + 1j * draw((4,))[0],)),
    "half of a length": (lambda x, y: (x[:, None] - y[None]).square().sum(-1).min(1)[0],
                         lambda x, y: 0.5 * ((x[:, None] - y[None]) ** 2).sum(-1).min(1), draw((5, 3), (4, 3))),
}  # fmt: skip


@pytest.mark.parametrize("name", BOTH_USE)
def test_inputs_that_both_use_are_not_blamed(name):
    report = parity.compare(
        *BOTH_USE[name], transforms=["forward"], data=["random"], dtypes=["float64"], worlds=["jax-jit"],
    )  # fmt: skip
    false = ("input not used", "arguments exchanged", "default argument: norm")
    assert report.failed[0].diagnosis.cause not in false, str(report)


@jax.custom_vjp
def bell(x):
    return jnp.exp(-x * x)


bell.defvjp(
    lambda x: (jnp.exp(-x * x), x),
    lambda x, g: (g * jnp.where(jnp.isinf(x), jnp.inf, -2 * x * jnp.exp(-x * x)),),
)


def test_a_derivative_of_a_number_is_compared_beside_infinities():
    report = parity.compare(
        lambda x: (torch.exp(-x * x), x * 1), lambda x: (bell(x), x * 1), draw((8,)),
        transforms=["vjp"], data=["infinite"], dtypes=["float64"], worlds=["jax-jit"],
    )  # fmt: skip
    assert not report.ok


def test_a_gradient_that_one_side_stops_names_both():
    report = parity.compare(
        lambda x, y: ((x - F.softmax(y, -1).detach()) ** 2).mean() + 0 * y.sum(),
        lambda x, y: ((x - jax.nn.softmax(y)) ** 2).mean(),
        draw((4, 5), (4, 5)), transforms=["vjp"], data=["random"], dtypes=["float64"], worlds=["jax-jit"],
    )  # fmt: skip
    found = report.failed[0].diagnosis
    assert found.cause == "gradient missing"
    assert "zero everywhere in torch, and is not in JAX" in found.text
    assert "JAX should stop it as well" in found.fix


def test_a_torch_function_may_write_into_what_it_is_given():
    def theirs(x, mask):
        x += 1
        return torch.nn.functional.silu(x, inplace=True).masked_fill_(mask > 0, 0.0)

    def mine(x, mask):
        return jnp.where(mask > 0, 0.0, jax.nn.silu(x + 1))

    inputs = (np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3), np.array([[1, 0, 0], [0, 1, 0]]))
    transforms = ["forward", "vjp", "backward", "vmap-0", "hvp-reverse-over-reverse"]
    report = parity.compare(theirs, mine, inputs, transforms=transforms, data=["random", "nan"])
    assert report.ok, str(report)


def dense(x):
    """Keep the even columns, by a product with zeros and ones."""
    return x @ jnp.eye(x.shape[-1], dtype=x.dtype)[:, ::2]


SPARSE = {
    "columns are chosen": (lambda x: x[..., ::2], dense, True),
    "a wrong column is chosen": (lambda x: x[..., ::2], lambda x: dense(x[..., ::-1]), False),
    "NaN where infinity reaches it": (torch.relu, lambda x: jnp.where(jnp.isinf(x), jnp.nan, jax.nn.relu(x)), False),
    "NaN where the slope is zero": (torch.floor, lambda x: jnp.where(jnp.isinf(x), jnp.nan, jnp.floor(x)), False),
}


def guarded(x):
    return jnp.where(jnp.isinf(x).any(), jnp.nan, jnp.sin(x))


SPARSE |= {
    "a large number where infinity goes in": (
        lambda x: x * 2, lambda x: jnp.where(jnp.isinf(x), jnp.sign(x) * 1e30, x) * 2, False,
    ),
    "a limit": (torch.relu, lambda x: jnp.minimum(jax.nn.relu(x), jnp.full_like(x, 1e30)), False),
    "all is NaN where one is infinite": (torch.sin, guarded, False),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["infinite", "nan"])
def test_a_derivative_through_a_branch_that_is_not_taken_is_a_failure(kind):
    def theirs(x):
        ok = torch.isfinite(x)
        return torch.where(ok, torch.sin(torch.where(ok, x, 0.0)), 0.0)[:5], x[5:] * 2

    def mine(x):
        return jnp.where(jnp.isfinite(x), jnp.sin(x), 0.0)[:5], x[5:] * 2

    chosen = {"transforms": ["vjp"], "worlds": ["jax-eager"], "dtypes": ["float64"], "data": [kind]}
    report = parity.compare(theirs, mine, (np.random.default_rng(0).standard_normal(10),), **chosen)
    assert [cell.verdict for cell in report.cells] == ["differs"], str(report)


@pytest.mark.parametrize(("theirs", "mine", "right"), SPARSE.values(), ids=SPARSE)
def test_zero_times_infinity_is_told_from_a_result_that_is_no_number(theirs, mine, right):
    inputs = (np.random.default_rng(0).standard_normal((3, 6)),)
    chosen = {"transforms": ["forward"], "worlds": ["jax-eager"], "dtypes": ["float64"]}
    report = parity.compare(theirs, mine, inputs, data=["infinite"], **chosen)
    assert [cell.verdict for cell in report.cells] == ["edge" if right else "differs"], str(report)


PLACES = np.arange(6).reshape(2, 3)[:, ::-1] % 4
"""A table of positions, as ports of windowed attention hold it: NumPy makes it of 64 bits."""


def test_positions_of_64_bits_that_a_port_brings_along_are_read_with_both_settings_of_x64():
    def theirs(x):
        return x[torch.from_numpy(PLACES.copy())] * 2

    report = parity.compare(
        theirs, lambda x: x[PLACES] * 2, (np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2),),
        transforms=["forward", "vjp", "vmap-0"], data=["random"], worlds=["jax-eager", "jax-jit"],
    )  # fmt: skip
    assert report.ok, str(report)


def test_a_torch_function_that_refuses_a_gradient_by_an_input_is_told_so():
    def theirs(x, mean, var):
        return F.batch_norm(x, mean.clone(), var.clone(), training=True)

    def mine(x, mean, var):
        return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) + 0 * (mean + var)

    inputs = (np.random.default_rng(0).standard_normal((4, 3)), np.zeros(3), np.ones(3))
    report = parity.compare(theirs, mine, inputs, transforms=["forward", "vjp"], data=["random"], worlds=["jax-eager"])
    assert {cell.verdict for cell in report.cells if cell.cell.transform == "forward"} <= {"identical", "within bound"}
    derivatives = [cell for cell in report.cells if cell.cell.transform == "vjp"]
    assert derivatives
    assert all("not differentiable with respect to argument 'running_mean'" in cell.reason for cell in derivatives)


def test_a_resize_that_leaves_out_terms_of_weight_zero_is_the_edge_at_infinities():
    """Torch reads a neighbour beyond the border with weight zero, JAX multiplies by a matrix of which most is zero."""
    for data in ("infinite", "nan"):
        report = compare("resize, bilinear", 0, transforms=["forward"], data=[data], worlds=["jax-eager"])
        assert {cell.verdict for cell in report.cells} == {"edge"}, str(report)


def resized(x, method="bilinear"):
    return jax.image.resize(x, (1, 2, 16, 16), method)


WRONG_RESIZES = {
    "infinities cut off": lambda x: resized(jnp.clip(x, -9, 9)),
    "infinities cut off after": lambda x: jnp.nan_to_num(resized(x)),
    "nearest at infinities": lambda x: jnp.where(jnp.isinf(x).any(), resized(x, "nearest"), resized(x)),
}


@pytest.mark.parametrize("mine", WRONG_RESIZES.values(), ids=WRONG_RESIZES)
def test_a_resize_that_is_wrong_at_infinities_differs(mine):
    theirs, _, draw, _ = PORTS["resize, bilinear"]
    report = parity.compare(
        theirs, mine, draw(np.random.default_rng(0)), transforms=["forward"], data=["random", "infinite"],
        worlds=["jax-eager"], dtypes=["float64"],
    )  # fmt: skip
    assert [cell.cell.data for cell in report.failed] == ["infinite"], str(report)


def test_a_tangent_that_torch_gives_in_float64_is_one_of_its_function():
    """Of a float32 number less a Python one, torch's forward mode gives a tangent of float64."""
    report = compare(
        "a mean that cancels", 0, data=["random"], worlds=["jax-eager"], dtypes=["float32"],
        transforms=["jvp", "jacfwd", "second-tangent", "hvp-forward-over-reverse"],
    )  # fmt: skip
    assert report.ok, str(report)


def test_a_function_that_is_float64_in_torch_is_still_told_from_one_that_is_not():
    report = parity.compare(
        lambda x: x.double() * 2, lambda x: x * 2, (RNG.standard_normal(6),), data=["random"], dtypes=["float32"],
        transforms=["forward", "jvp", "jacfwd"], worlds=["jax-eager"],
    )  # fmt: skip
    assert {cell.cell.transform for cell in report.failed} == {"forward", "jvp", "jacfwd"}, str(report)
