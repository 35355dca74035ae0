"""Any shape, any mask: both twins give the oracle's value and gradients, exactly (S2, S3)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedlinear_core import blocks, columns, elements, rows, submatrix
from parity.suites.masked_linear import oracle


@st.composite
def problems(draw):
    """A weight, a batch, a mask of any kind for it, a bias mask, and small integers everywhere."""
    out, into = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    batch = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bools = rng.random((out, into)) < 0.5
    kinds = {
        "columns": lambda: columns(np.flatnonzero(bools.any(0))),
        "rows": lambda: rows(list(np.flatnonzero(bools.any(1)))),
        "submatrix": lambda: submatrix(bools.any(1), slice(0, into, 2)),
        "blocks": lambda: blocks(bools, (1, 1)),
        "elements": lambda: elements(bools),
        "union": lambda: columns(bools.any(0)) | ~rows(bools.any(1)),
    }
    mask = kinds[draw(st.sampled_from(sorted(kinds)))]()
    bias_mask = rng.random(out) < 0.5
    theta = {
        name: rng.integers(-3, 4, shape).astype(np.float64)
        for name, shape in {"input": (*batch, into), "weight": (out, into), "bias": (out,)}.items()
    }
    point = oracle.Point(theta, mask.to_array((out, into)), bias_mask, np.ones((*batch, out)))
    return mask, point, rng.integers(-3, 4, (*batch, out)).astype(np.float64)


# Few examples: JAX compiles every new shape. Each run draws others, and a failure is kept and shown.
@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_value_and_gradients(twins, problem):
    mask, point, g = problem
    for t in twins:
        theta = [t.array(part) for part in point.theta.values()]

        def layer(*theta, t=t):
            return t.masked_linear(*theta, grad_mask=mask, bias_mask=t.bools(point.bias_mask))

        output, pull = t.vjp(layer, *theta)
        np.testing.assert_array_equal(t.numpy(output), oracle.forward(point), err_msg=t.name)
        for name, got in zip(point.theta, pull(t.array(g)), strict=True):
            np.testing.assert_array_equal(t.numpy(got), oracle.vjp(point, g)[name], err_msg=f"{t.name} {name}")
        frozen = t.numpy(pull(t.array(g))[1])[~point.mask]
        assert not np.signbit(frozen).any()


@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_kind_decides_the_cost_and_never_the_result(twins, problem):
    """S1: the same positions said by elements."""
    mask, point, g = problem
    for t in twins:
        x, w = (t.array(point.theta[name]) for name in ("input", "weight"))
        by_kind, by_elements = (
            t.numpy(t.vjp(lambda w, t=t, m=m: t.masked_linear(x, w, grad_mask=m), w)[1](t.array(g))[0])  # noqa: B023
            for m in (mask, point.mask)
        )
        np.testing.assert_array_equal(by_kind, by_elements, err_msg=t.name)


@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_packed_values_are_the_trainable_entries_and_learn_alike(twins, problem):
    """S7: unpacking undoes packing, and the packed gradient is the masked one, packed."""
    mask, point, g = problem
    shape = point.mask.shape
    for t in twins:
        x, w = (t.array(point.theta[name]) for name in ("input", "weight"))
        values = t.twin.pack(w, grad_mask=mask)
        assert t.numpy(values).size == point.mask.sum()
        np.testing.assert_array_equal(t.numpy(t.twin.unpack(w * 0 + 9, values, grad_mask=mask)),
                                      np.where(point.mask, point.theta["weight"], 9), err_msg=t.name)  # fmt: skip
        output, pull = t.vjp(lambda v, t=t: t.twin.packed_linear(x, w, v, grad_mask=mask), values)  # noqa: B023
        np.testing.assert_array_equal(t.numpy(output), point.theta["input"] @ point.theta["weight"].T, err_msg=t.name)
        dense = t.array(oracle.vjp(point, g)["weight"])
        want = t.numpy(t.twin.pack(dense, grad_mask=mask))
        np.testing.assert_array_equal(t.numpy(pull(t.array(g))[0]), want, err_msg=t.name)
        other = mask.packed(shape)
        np.testing.assert_array_equal(t.numpy(t.twin.repack(values, mask, other, shape=shape)), t.numpy(values))


def test_the_check_sees_a_wrong_gradient(twins):
    point = oracle.Point(
        {"input": np.ones((1, 2)), "weight": np.ones((1, 2))}, np.array([[True, False]]), np.ones(1), np.ones((1, 1))
    )
    for t in twins:
        got = t.vjp(
            lambda w, t=t: t.masked_linear(t.array(np.ones((1, 2))), w, grad_mask=columns([1])),
            t.array(np.ones((1, 2))),
        )
        with pytest.raises(AssertionError, match="Arrays are not equal"):
            np.testing.assert_array_equal(
                t.numpy(got[1](t.array(np.ones((1, 1))))[0]), oracle.vjp(point, np.ones((1, 1)))["weight"]
            )
