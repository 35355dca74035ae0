"""The real-size tier reaches the code that it is for, and its sums are exact."""

import numpy as np
import pytest

from maskedlinear_core import positions
from maskedlinear_jax import indexing as in_jax
from maskedlinear_jax import integer_products
from maskedlinear_jax.kinds import sums
from maskedlinear_torch import indexing as in_torch
from parity.suites.masked_linear import cases, real_size, transforms

REAL = {case.id: case for case in real_size.CASES}


def canonical(name):
    """The positions that a case computes with."""
    case = REAL[f"real-{name}"]
    found = case.build(case.shape).canonical(case.shape)
    return positions.packed(found) if case.packed else positions.unpacked(found)


def count(name):
    """How many positions, blocks or lines a case has: of a submatrix, the numbers in it."""
    return int(np.prod([array.size for array in canonical(name).arrays if array is not None]))


def sizes(name):
    case = REAL[f"real-{name}"]
    return *case.shape, case.batch[0]


def test_single_elements_are_few_and_just_more():
    few, more = canonical("elements-450"), canonical("elements-451")
    assert (few.kind, more.kind) == ("entries", "elements")
    assert count("elements-450") * positions.SPARSE == np.prod(sizes("elements-450")[:2]), "exactly one in so many"
    assert count("packed-elements-450") == count("elements-450")
    assert count("packed-elements-451") == count("elements-450") + 1


def test_blocks_are_many_and_just_not():
    grid = canonical("blocks-third").grid_shape
    assert count("blocks-third") == positions.MANY * grid[0] * grid[1]
    assert canonical("blocks-third").kind == "blocks"
    assert count("packed-blocks-many") == count("blocks-third") + 1


def test_a_dense_product_is_whole_and_in_halves():
    for name in ("packed-elements-whole", "packed-blocks-whole"):
        assert np.prod(sizes(name)[:2]) == positions.WHOLE
    for name in ("packed-elements-above", "packed-blocks-above", "packed-elements", "packed-blocks-many"):
        assert np.prod(sizes(name)[:2]) > positions.WHOLE
    assert positions.are_many(count("packed-blocks-whole"), canonical("packed-blocks-whole").grid_shape)


@pytest.mark.parametrize(("name", "chunk"), [("blocks", positions.LEAST_CHUNK), ("blocks-26", 176),
                         ("packed-blocks", positions.LEAST_CHUNK)])  # fmt: skip
def test_a_batch_in_pieces_leaves_one_row(name, chunk):
    found = canonical(name)
    assert positions.batch_chunk(count(name), found.block_shape) == chunk
    assert sizes(name)[2] % chunk == 1


def test_few_numbers_and_many_in_torch():
    assert count("submatrix-64") == in_torch.SMALL
    assert count("submatrix-65") > in_torch.SMALL
    quarter = np.prod(sizes("submatrix-quarter")[:2]) // 4
    assert count("submatrix-quarter") == quarter < count("packed-submatrix")


def test_a_value_is_read_or_written_in_jax():
    assert count("columns-23") * in_jax.GATHERED < 768
    assert count("columns-24") * in_jax.GATHERED == 768
    assert count("rows-18") * in_jax.GATHERED < 600 <= count("packed-rows") * in_jax.GATHERED
    assert count("columns-16") * 512 == in_jax.COMPARED
    assert count("columns-17") * 512 > in_jax.COMPARED
    for name in ("columns-16", "columns-17"):
        assert count(name) * in_jax.GATHERED >= 512


def test_operands_are_written_out_in_jax():
    outputs, _, batch = sizes("elements-128")
    assert outputs * batch == sums.WRITTEN_OUT > outputs * sizes("elements-127")[2]


def test_rows_are_computed_in_pieces():
    outputs, inputs, batch = sizes("rows-in-pieces")
    rows = integer_products.PIECE // max(outputs, inputs)
    assert batch == 2 * rows + 1


LARGEST = {"float32": 2**23, "bfloat16": 2**7, "float16": 2**10}
"""Half of the integers up to which a dtype holds all: sums of such magnitudes are exact in any order."""

PROBLEMS = sorted({(case, dtype) for case, dtype, _, _ in real_size.CELLS if REAL[case].data not in real_size.DIGITS})


@pytest.mark.parametrize(("name", "dtype"), [one for one in PROBLEMS if one[1] != "float32"], ids=str)
def test_sums_of_16_bits_are_exact_but_for_the_last_rounding(name, dtype):
    problem = cases.make(REAL[name], dtype, real_size.TIER, 0)
    large = transforms.majorant(problem)
    sums_ = {**transforms.BY_NAME["vjp"].oracle(large), **transforms.BY_NAME["forward"].oracle(large)}
    weight, tangent = sums_.pop("by weight"), transforms.BY_NAME["jvp"].oracle(large)["tangent"]
    assert max(np.max(part) for part in sums_.values()) <= LARGEST[dtype]
    if problem.case.data == "dense at the mask":  # each is a sum of its own, in float32
        assert 2 * LARGEST[dtype] < np.max(weight) < LARGEST["float32"]
        assert np.all(np.isfinite(transforms.BY_NAME["vjp"].oracle(problem)["by weight"]))
        assert np.max(tangent) < LARGEST["float32"]
    else:
        assert max(np.max(weight), np.max(tangent)) <= LARGEST[dtype]


@pytest.mark.parametrize("name", ["real-columns", "real-packed-elements"])
def test_sums_of_float32_are_exact(name):
    """Of the largest batches and weights, up to the order that their cells have."""
    assert cases.exact_order(cases.make(REAL[name], "float32", real_size.TIER, 0)) >= 2


@pytest.mark.parametrize("name", [name for name, case in REAL.items() if case.data in real_size.DIGITS])
def test_the_limit_of_the_digits(name):
    """The sums lie just beside half a unit of a float32, and their parts need all the bits that there are."""
    problem = cases.make(REAL[name], "float32", real_size.TIER, 0)
    x, w = (np.ldexp(problem.point.theta[one], 31).astype(np.int64).astype(object) for one in ("input", "weight"))
    assert x.shape[1] == 128
    for total in map(int, (x @ w.T).ravel()):
        unit = 1 << (total.bit_length() - 24)
        assert abs(total % unit - unit // 2) == real_size.HALF + 1
        assert total.bit_length() > 68
    cut, whole = (x, w) if x.size < w.size else (w, x)
    parts = [int(np.max(whole @ high.T)) for high in (cut >> 15, cut >> 16)]
    assert parts[0] > 2**53 >= parts[1], "digits that are a bit longer do not fit"


def test_traced_positions_count_from_the_end():
    for name in ("real-few-columns", "real-few-rows", "real-few-submatrix", "real-few-blocks"):
        copies = cases.make(REAL[name], "float32", real_size.TIER, 0).mask_copies
        assert all((leaf < 0).any() for leaf in copies), name


def test_every_case_has_a_cell_and_every_cell_a_case():
    assert {name for name, *_ in real_size.CELLS} == set(REAL)
