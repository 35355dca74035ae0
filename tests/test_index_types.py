"""An index may be an integer or bool vector of any framework, of any integer dtype, empty or not (S1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedlinear_core import blocks, columns, elements, rows, simplify, submatrix

SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
SHAPE = (6, 8)


def in_jax(values, dtype):
    with jax.enable_x64(True):
        return jnp.asarray(values, dtype)


MAKERS = {
    "numpy": lambda values, dtype: np.array(values, dtype),
    "torch": lambda values, dtype: torch.tensor(values, dtype=getattr(torch, dtype)),
    "jax": in_jax,
}


@pytest.mark.parametrize("dtype", SIGNED + UNSIGNED)
@pytest.mark.parametrize("make", MAKERS)
def test_every_integer_dtype(make, dtype):
    values = [7, 0, 7] if dtype in UNSIGNED else [-1, 0, 7]
    seen = columns(MAKERS[make](values, dtype)).to_array(SHAPE)
    np.testing.assert_array_equal(seen, columns([0, 7]).to_array(SHAPE))


@pytest.mark.parametrize("dtype", [*SIGNED, *UNSIGNED, "bool"])
@pytest.mark.parametrize("make", MAKERS)
def test_empty_index_trains_nothing(make, dtype):
    mask = rows(MAKERS[make](np.zeros(0, bool).tolist(), dtype))
    shape = (0, 8) if dtype == "bool" else SHAPE
    assert not mask.to_array(shape).any()


@pytest.mark.parametrize("big", [2**64 - 1, 2**63], ids=["2**64-1", "2**63"])
@pytest.mark.parametrize("make", [list, lambda v: np.array(v, np.uint64)], ids=["list", "uint64"])
def test_positions_beyond_int64_are_out_of_range(make, big):
    """As int64 they would wrap round: 2**64 - 1 to the last column, without an error."""
    index = make([big])
    with pytest.raises(IndexError, match=rf"columns: expected positions below 2\*\*63, got {big}"):
        columns(index)


@settings(max_examples=60, deadline=None)
@given(st.slices(8), st.slices(6), st.lists(st.booleans(), min_size=8, max_size=8))
def test_slices_and_bools_are_those_of_numpy(across, down, keep):
    want = np.zeros(SHAPE, bool)
    want[down, across] = True
    np.testing.assert_array_equal(submatrix(down, across).to_array(SHAPE), want)
    np.testing.assert_array_equal(columns(keep).to_array(SHAPE), np.broadcast_to(keep, SHAPE))
    assert simplify(want) == elements(want)


ARRAYS = st.lists(st.booleans(), min_size=48, max_size=48).map(lambda bits: np.array(bits).reshape(SHAPE))


@settings(max_examples=60, deadline=None)
@given(ARRAYS, ARRAYS)
def test_de_morgan(x, y):
    a, b = elements(x), simplify(y)
    assert ~(a | b) == ~a & ~b
    assert ~(a & b) == ~a | ~b
    assert simplify((a & b).to_array(SHAPE)) == a & b


TRACED = {
    "columns": lambda i: columns(i),
    "rows": lambda i: rows(i),
    "submatrix": lambda i: submatrix(i, [0]),
    "elements": lambda i: elements((i[:, None] == jnp.arange(8))[:6]),
    "union": lambda i: columns([0]) | rows(i),
}


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("read", ["to_array", "density", "canonical"])
def test_traced_masks_are_not_read(name, read):
    with pytest.raises(TypeError, match="whose values can be read, got a traced mask; call this outside of jit"):
        jax.jit(lambda i: getattr(TRACED[name](i), read)(SHAPE))(jnp.arange(6))


VIEWS = {
    "step": lambda base: base[::2],
    "reversed": lambda base: base.flip(0)[:2],
    "expanded": lambda base: base[1:2].expand(3),
    "from numpy": lambda base: torch.from_numpy(base.numpy()),
}


@pytest.mark.parametrize("name", VIEWS)
def test_later_changes_of_a_torch_base_do_not_reach_the_mask(name):
    base = torch.arange(4)
    mask, before = columns(VIEWS[name](base)), columns(VIEWS[name](base).tolist())
    base.fill_(3)
    assert mask == before
    np.testing.assert_array_equal(mask.to_array(SHAPE), before.to_array(SHAPE))


@pytest.mark.parametrize("mask", [columns([0]), elements(np.eye(6, 8) == 1), blocks(np.eye(2) == 1, (3, 4))], ids=repr)
def test_the_array_of_a_mask_is_the_callers(mask):
    mask.to_array(SHAPE)[:] = True
    assert mask.density(SHAPE) < 1
