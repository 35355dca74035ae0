"""The formulas that torch's operators stand for: on ordinary numbers they give what the operators give."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import parity
from parity.execution import torch_backend
from parity.execution.outputs import Runs
from parity.execution.torch_formulas import FORMULAS
from parity.operator.pair import Pair

RNG = np.random.default_rng(0)


def drawn(*shape):
    return torch.from_numpy(RNG.standard_normal(shape))


def close(got, want):
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


GEOMETRIES = [
    (transposed, groups, stride, padding, dilation, more, axes)
    for transposed, groups, stride, padding, dilation, more, axes in itertools.product(
        (False, True), (1, 2), (1, 2, 3), (0, 1, 2), (1, 2), (0, 1), (1, 2)
    )
    if not more or (transposed and more < max(stride, dilation))
]


def test_convolutions_and_their_gradients():
    for transposed, groups, stride, padding, dilation, more, axes in GEOMETRIES:
        x = drawn(2, 4, *(9, 8)[:axes])
        weight = drawn(*(4, 6 // groups) if transposed else (6, 4 // groups), *(3, 2)[:axes])
        how = ([stride] * axes, [padding] * axes, [dilation] * axes, transposed, [more] * axes, groups)
        out = torch.ops.aten.convolution(x, weight, drawn(6), *how)
        bias = drawn(6)
        close(FORMULAS["convolution"](x, weight, bias, *how), torch.ops.aten.convolution(x, weight, bias, *how))
        g = drawn(*out.shape)
        want = torch.ops.aten.convolution_backward(g, x, weight, [6], *how, [True] * 3)
        got = FORMULAS["convolution_backward"](g, x, weight, [6], *how, [True] * 3)
        for one, other in zip(got, want, strict=True):
            close(one, other)
    assert FORMULAS["convolution_backward"](g, x, weight, [6], *how, [False] * 3) == (None, None, None)


def test_a_batch_of_none():
    how = ([1], [1], [1], False, [0], 3)
    x, weight = drawn(0, 6, 6), drawn(6, 2, 1)
    out = torch.ops.aten.convolution(x, weight, None, *how)
    close(FORMULAS["convolution"](x, weight, None, *how), out)
    got = FORMULAS["convolution_backward"](out, x, weight, None, *how, [True, True, False])
    for one, other in zip(got[:2], (x, torch.zeros_like(weight)), strict=True):
        close(one, other)


RESIZES = {
    "linear": ("linear", (2, 3, 7), {"size": 12}),
    "bilinear": ("bilinear", (1, 2, 5, 4), {"scale_factor": 2}),
    "bilinear, scale is used": ("bilinear", (1, 2, 5, 4), {"scale_factor": 1.7}),
    "bilinear, corners": ("bilinear", (1, 2, 5, 4), {"size": (9, 3), "align_corners": True}),
    "bilinear, antialias": ("bilinear", (1, 2, 8, 9), {"size": (4, 3), "antialias": True}),
    "bicubic": ("bicubic", (1, 2, 5, 6), {"size": (8, 3)}),
    "bicubic, antialias": ("bicubic", (1, 2, 8, 9), {"size": (4, 3), "antialias": True}),
    "trilinear": ("trilinear", (1, 2, 3, 4, 3), {"scale_factor": 2}),
}


@pytest.mark.parametrize(("mode", "shape", "how"), RESIZES.values(), ids=RESIZES)
def test_a_resize_is_the_same_where_no_number_is_infinite(mode, shape, how):
    """One number is infinite: what it does not reach is as the operator gives it."""
    x = drawn(*shape)
    still = F.interpolate(x, mode=mode, **how)
    x.reshape(-1)[0] = torch.inf
    want = F.interpolate(x, mode=mode, **how)
    with torch_backend.in_parts():
        got = F.interpolate(x, mode=mode, **how)
    unreached = torch.isfinite(want)
    assert unreached.any()
    close(got[unreached], want[unreached])
    finite = torch.isfinite(got)
    close(got[finite], still[finite])
    assert (finite >= unreached).all()
    assert torch.isinf(got).any()


X, W = (RNG.standard_normal(shape).astype(np.float32) for shape in ((1, 3, 5, 5), (3, 4, 3, 3)))
LAYOUT = ("NCHW", "IOHW", "NCHW")


def transposed(x, w, stride, padding):
    return jax.lax.conv_transpose(x, w[:, :, ::-1, ::-1], (stride, stride), padding, dimension_numbers=LAYOUT)


RIGHT = {
    "its gradient by the weight": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
        lambda x, w: transposed(x, w, 2, [(1, 2), (1, 2)]), "vjp",
    ),
    "padded by hand, and cut": (
        lambda x, w: F.conv_transpose2d(x, w, padding=1),
        lambda x, w: transposed(jnp.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), w, 1, "VALID")[:, :, 2:-2, 2:-2],
        "forward",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine", "transform"), RIGHT.values(), ids=RIGHT)
def test_padding_of_a_transposed_convolution_times_infinity_is_the_edge(theirs, mine, transform):
    chosen = {"transforms": [transform], "worlds": ["jax-eager"], "data": ["random", "infinite", "nan"]}
    report = parity.compare(theirs, mine, (X, W), **chosen)
    assert report.ok, str(report)
    cut = lambda x, w: mine(jnp.clip(x, -9, 9), w)  # noqa: E731
    report = parity.compare(theirs, cut, (X, W), **chosen)
    assert {cell.cell.data for cell in report.failed} == {"infinite"}, str(report)


WATCHED = {
    "singular values": torch.linalg.svdvals,
    "singular vectors": lambda x: torch.linalg.svd(x, full_matrices=False)[0].square(),
    "a diagonal": lambda x: torch.diagonal(x) ** 3,
    "a diagonal matrix": lambda x: torch.diag_embed(x) ** 3,
    "a row": lambda x: x[1] ** 3,
    "every second": lambda x: x[:, ::2] ** 3,
}


@pytest.mark.parametrize("what", WATCHED)
@pytest.mark.parametrize("transform", ["hvp-reverse-over-forward", "hvp-reverse-over-reverse", "second-tangent"])
def test_second_derivatives_stay_where_rounding_is_made_anew(what, transform):
    """Taken apart, what is backward to a diagonal lost the derivative of its derivative."""
    runs = Runs(Pair(WATCHED[what], lambda x: x, (RNG.standard_normal((3, 4)),), "watched"))
    cell = runs.pair.cell("watched", "", "float64", transform, "torch-eager", "cpu", "random")
    want = runs.outputs(cell).values
    with torch_backend.rounding(0.0, 0):
        got = runs.rerun(cell, "float64").values
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-10, atol=1e-10 * abs(value).max(), err_msg=name)


ZEROS = """
import torch
from parity.execution.torch_programs import Rounding

def twice(x, y):
    tangent = lambda *there: torch.func.jvp(torch.dot, there, (x, y))[1]
    return torch.func.jvp(tangent, (x, y), (y, x))[1]

x = torch.arange(6.0, dtype=torch.float64)
with Rounding(0.0, 0):
    assert twice(x, x + 1) == x @ x + (x + 1) @ (x + 1), twice(x, x + 1)
"""


def test_zeros_that_are_not_stored_are_not_moved():
    """In a process of its own: torch.dot ended it."""
    assert subprocess.run([sys.executable, "-c", ZEROS], check=False).returncode == 0


def compared_at_infinities(jax_fn):
    rng = np.random.default_rng(0)
    z = (rng.standard_normal(20) + 1j * rng.standard_normal(20)).astype(np.complex64)
    asked = {"worlds": ["jax-eager"], "dtypes": ["float32", "float64"], "data": ["random", "infinite", "nan"]}
    return parity.compare(torch.exp, jax_fn, (z,), transforms=["forward", "vjp"], **asked)


def test_exp_of_complex_infinities_is_an_edge():
    report = compared_at_infinities(jnp.exp)
    assert report.ok, str(report)
    assert {record.verdict for record in report.cells if record.data == "infinite"} == {"edge"}


@pytest.mark.parametrize(
    "wrong",
    [lambda z: jnp.where(jnp.isinf(z), 0, jnp.exp(z)), lambda z: jnp.nan_to_num(jnp.exp(z))],
    ids=["infinity to zero", "NaN to zero"],
)
def test_a_wrong_exp_of_complex_infinities_is_none(wrong):
    failed = {(record.transform, record.data) for record in compared_at_infinities(wrong).failed}
    assert ("forward", "infinite") in failed
