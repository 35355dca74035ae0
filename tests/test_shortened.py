"""Special numbers of large arrays run on shorter ones, and catch what whole arrays catch; what is right passes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from parity.execution.outputs import Runs
from parity.operator.pair import Pair
from parity.verdict.shortened import LARGE, factor, is_shorter, shortened

SHAPE = (512, 256)
PLACE = (511, 252)
"""Of an element that shorter arrays do not have."""

SHORT = "on shorter arrays"
INPUTS = (np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32),)


def compared(torch_fn, jax_fn, inputs=INPUTS, **options):
    asked = {"transforms": ["forward"], "worlds": ["jax-eager"], "dtypes": ["float32", "float64"], **options}
    return parity.compare(torch_fn, jax_fn, inputs, **asked)


def test_what_is_right_passes_and_says_on_what():
    report = compared(lambda x: torch.exp(-x) * x, lambda x: jnp.exp(-x) * x, transforms=["forward", "vjp"])
    assert report.ok, str(report)
    assert {record.data for record in report.cells if SHORT not in record.reason} == {"random"}
    assert "(128, 64) in the place of (512, 256)" in report.cells[-1].reason
    assert len({record.inputs_sha256 for record in report.cells if record.dtype == "float32"}) > 8


def at_place(y):
    row, column = (jnp.arange(size) for size in y.shape)
    return (row[:, None] == PLACE[0]) & (column == PLACE[1])


FAULTS = {
    "NaN becomes zero": (lambda y: jnp.where(jnp.isnan(y), 0, y), "nan"),
    "infinity becomes the largest number": (lambda y: jnp.clip(y, -3e38, 3e38), "infinite"),
    "minus zero becomes zero": (lambda y: jnp.where(y == 0, 0.0, y), "signed zeros"),
    "small numbers become zero": (lambda y: jnp.where(jnp.abs(y) < 1e-25, 0, y), "small"),
    "large numbers become infinite": (lambda y: jnp.where(jnp.abs(y) > 1e25, jnp.inf, y), "large"),
    "one branch is another at a kink": (lambda y: jnp.where(y == 3, 3.5, y), "kinks"),
    "NaN becomes zero in a place that shorter arrays have not": (
        lambda y: jnp.where(at_place(y), jnp.nan_to_num(y), y), "nan",
    ),
    "one element is off where shorter arrays have it not": (lambda y: jnp.where(at_place(y), y * 1.01, y), "random"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault):
    change, kind = FAULTS[fault]
    whole = Pair(lambda x: x * 1, lambda x: change(x * 1), INPUTS, "whole")
    assert (PLACE[0] * SHAPE[1] + PLACE[1]) % 7 == 0  # where NaN is
    assert shortened(Runs(whole)) is not None
    report = compared(whole.torch, whole.jax)
    assert kind in {record.data for record in report.failed}, str(report)
    # A difference is always one of whole arrays.
    assert not [record.id for record in report.failed if SHORT in record.reason]


OTHER_PROGRAMS = {
    "a slice of a size that is written": (lambda x: x[:, :192] * 2, lambda x: x[:, :192] * 2),
    "a size that does not go into fewer": (lambda x: x.reshape(8, 64, 256) * 2, lambda x: x.reshape(8, 64, 256) * 2),
    "a loop over an axis": (
        lambda x: sum((row * 2 for row in x), start=x[0]),
        lambda x: sum((row * 2 for row in x), start=x[0]),
    ),
    "another operator for long rows": (
        lambda x: x.exp() if x.shape[1] > 100 else x.sin(),
        lambda x: jnp.exp(x) if x.shape[1] > 100 else jnp.sin(x),
    ),
}


@pytest.mark.parametrize("what", OTHER_PROGRAMS)
def test_another_program_is_not_shortened(what):
    assert shortened(Runs(Pair(*OTHER_PROGRAMS[what], INPUTS, "other"))) is None


def test_what_is_not_shortened():
    double = (lambda x, *rest: x * 2, lambda x, *rest: x * 2)
    assert shortened(Runs(Pair(*double, INPUTS, "double"))) is not None
    assert shortened(Runs(Pair(*double, (INPUTS[0][:64],), "small"))) is None
    assert shortened(Runs(Pair(*double, (*INPUTS, np.arange(3)), "with indices"))) is None
    assert shortened(Runs(Pair(*double, INPUTS, "answered", oracle=lambda x: x * 2))) is None


def test_shapes_stay_apart_from_one_another():
    assert factor([SHAPE]) == 4
    # 32 and 512 would be one size; (128, 8) and (1024, 8), divided by 8, are still two.
    assert factor([(1024, 512), (32,)]) is None or 512 // factor([(1024, 512), (32,)]) != 32
    assert factor([(LARGE,)]) == 32
    assert factor([(1021, 1021)]) is None
    assert not is_shorter([("mm", (512, 8)), ("add", (512, 8))], [("mm", (64, 8))], 8)
    assert not is_shorter([("exp", (512, 8))], [("sin", (64, 8))], 8)
