"""What a mask is (S1): every kind against a plain NumPy bool array, the algebra, the canonical form."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskedlinear_core import blocks, columns, elements, rows, simplify, submatrix

SHAPE = (6, 8)
FAST = settings(max_examples=60, deadline=None)


def positions(size):
    return st.lists(st.integers(-size, size - 1), max_size=2 * size)


def masks():
    """Any mask for a weight of SHAPE, with the bool array it must say."""

    def by_columns(index):
        array = np.zeros(SHAPE, bool)
        array[:, index] = True
        return columns(index), array

    def by_rows(index):
        array = np.zeros(SHAPE, bool)
        array[index] = True
        return rows(index), array

    def by_both(pair):
        array = np.zeros(SHAPE, bool)
        array[np.ix_(pair[0], pair[1])] = True
        return submatrix(*pair), array

    def by_blocks(grid):
        return blocks(grid, (3, 2)), np.repeat(np.repeat(grid, 3, 0), 2, 1)

    return st.one_of(
        positions(8).map(lambda i: by_columns(np.array(i, int))),
        positions(6).map(lambda i: by_rows(np.array(i, int))),
        st.tuples(positions(6), positions(8)).map(lambda p: by_both([np.array(i, int) for i in p])),
        hnp.arrays(bool, (2, 4)).map(by_blocks),
        hnp.arrays(bool, SHAPE).map(lambda a: (elements(a), a)),
    )


@FAST
@given(masks())
def test_to_array_and_density(case):
    mask, array = case
    np.testing.assert_array_equal(mask.to_array(SHAPE), array)
    assert mask.density(SHAPE) == array.mean()


@FAST
@given(masks(), masks())
def test_algebra_is_that_of_sets(left, right):
    (a, x), (b, y) = left, right
    np.testing.assert_array_equal((a | b).to_array(SHAPE), x | y)
    np.testing.assert_array_equal((a & b).to_array(SHAPE), x & y)
    np.testing.assert_array_equal((~a).to_array(SHAPE), ~x)
    np.testing.assert_array_equal((~(a | b)).to_array(SHAPE), (~a & ~b).to_array(SHAPE))
    assert ~~a is a


@FAST
@given(masks())
def test_simplify_says_the_same(case):
    _, array = case
    np.testing.assert_array_equal(simplify(array).to_array(SHAPE), array)


@FAST
@given(masks())
def test_canonical_positions_say_the_same(case):
    mask, array = case
    kind, arrays, grid_shape, block_shape = mask.canonical(SHAPE)
    rebuilt = np.zeros(SHAPE, bool)
    if kind == "submatrix":
        r, c = (np.arange(n) if a is None else a for a, n in zip(arrays, SHAPE, strict=True))
        rebuilt[np.ix_(r, c)] = True
        assert all(a is None or (np.diff(a) > 0).all() for a in arrays)
    elif kind == "blocks":
        grid = np.zeros(grid_shape, bool)
        grid.flat[arrays[0]] = True
        rebuilt = np.kron(grid, np.ones(block_shape, bool))
    else:
        rebuilt = arrays[0]
    np.testing.assert_array_equal(rebuilt, array)


CHEAPEST = {
    "columns": (columns([1, 2]), "columns([1, 2])"),
    "all": (columns(slice(None)), "columns(slice(None, None, None))"),
    "none": (rows([]), "columns([])"),
    "rows": (rows([0, 5]), "rows([0, 5])"),
    "submatrix": (submatrix([0, 1], [3]), "submatrix([0, 1], [3])"),
    "blocks": (blocks([[True, False], [False, True]], (3, 4)), "elements(24 of 48 in a weight of (6, 8))"),
}


@pytest.mark.parametrize("name", CHEAPEST)
def test_simplify_finds_the_cheapest_kind(name):
    mask, says = CHEAPEST[name]
    assert repr(simplify(mask.to_array(SHAPE))) == says


def test_simplify_finds_large_blocks():
    mask = blocks(np.eye(3, dtype=bool), (8, 16))
    assert simplify(mask.to_array((24, 48))) == mask
    assert repr(simplify(mask.to_array((24, 48)))) == "blocks(3 of 9 in a grid of (3, 3), (8, 16))"


INDICES = {
    "list": [1, 3],
    "tuple": (1, 3),
    "range": range(1, 4, 2),
    "duplicates and order": [3, 1, 3],
    "negative": [-7, -5],
    "slice": slice(1, 4, 2),
    "bools": [False, True, False, True, False, False, False, False],
    "numpy int8": np.array([1, 3], np.int8),
    "numpy uint64": np.array([1, 3], np.uint64),
    "numpy bool": np.arange(8) % 4 % 2 * (np.arange(8) < 4) == 1,
    "torch int32": torch.tensor([1, 3], dtype=torch.int32),
    "torch bool": torch.tensor([False, True, False, True, False, False, False, False]),
    "jax": jnp.array([1, 3]),
    "jax uint8": jnp.array([1, 3], jnp.uint8),
}


@pytest.mark.parametrize("name", INDICES)
def test_every_form_of_index_says_the_same(name):
    np.testing.assert_array_equal(columns(INDICES[name]).to_array(SHAPE), columns([1, 3]).to_array(SHAPE))


EQUAL = {
    "order and duplicates": (columns([3, 1, 1]), columns([1, 3])),
    "columns and elements": (columns([0]), elements(columns([0]).to_array(SHAPE))),
    "blocks and elements": (blocks(np.eye(2, dtype=bool), (3, 4)), elements(np.kron(np.eye(2), np.ones((3, 4))) == 1)),
    "combinations": (columns([1]) | rows([0]), columns([1, 1]) | rows([0])),
}
UNEQUAL = {
    "other positions": (columns([1]), columns([2])),
    "rows are not columns": (columns([1]), rows([1])),
    "other shape": (elements(np.ones((2, 3), bool)), elements(np.ones((3, 2), bool))),
    "out of range of the other's shape": (columns([9]), elements(np.ones(SHAPE, bool))),
    "no mask": (columns([1]), [1]),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal(name):
    left, right = EQUAL[name]
    assert left == right
    assert right == left


@pytest.mark.parametrize("name", UNEQUAL)
def test_unequal(name):
    left, right = UNEQUAL[name]
    assert left != right


REPRS = {
    "columns([3, -1])": columns([3, -1]),
    "columns([0, 1, 2, ..., 99] (100 positions))": columns(range(100)),
    "rows(slice(0, 2, None))": rows(slice(0, 2)),
    "submatrix([1], [0, 2])": submatrix([1], [0, 2]),
    "blocks(1 of 4 in a grid of (2, 2), (3, 4))": blocks([[True, False], [False, False]], (3, 4)),
    "elements(2 of 4 in a weight of (2, 2))": elements(np.eye(2, dtype=bool)),
    "(columns([1]) | ~rows([0]))": columns([1]) | ~rows([0]),
}


@pytest.mark.parametrize("says", REPRS)
def test_repr(says):
    assert repr(REPRS[says]) == says


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_later_changes_of_the_callers_array_do_not_reach_the_mask(make):
    index, array = make([0, 2]), make(np.eye(3, dtype=bool).tolist())
    by_index, by_array = columns(index), elements(array)
    index[0], array[0, 1] = 1, True
    np.testing.assert_array_equal(by_index.to_array((1, 3)), [[True, False, True]])
    np.testing.assert_array_equal(by_array.to_array((3, 3)), np.eye(3))
