"""The vocabulary: every check passes what it should, and raises, with the worst element, on what it should not."""

import numpy as np
import pytest

from parity.verdict import bounds, compare

ONES = np.ones((2, 3))


def test_same_bits_accepts_equal_values():
    assert compare.assert_same_bits("y", ONES, ONES.copy()) is None


def test_same_bits_takes_both_zeros_for_zero():
    assert compare.assert_same_bits("y", np.array([-0.0]), np.array([0.0])) is None


def test_same_bits_accepts_nan_for_nan():
    assert compare.assert_same_bits("y", np.array([np.nan]), np.array([np.nan])) is None


def test_same_bits_rejects_one_ulp():
    wrong = ONES.copy()
    wrong[1, 2] = np.nextafter(1.0, 2.0)
    with pytest.raises(compare.Mismatch, match=r"y\[1, 2\]: 1 of 6 elements differ") as caught:
        compare.assert_same_bits("y", wrong, ONES)
    assert caught.value.finding.index == (1, 2)
    assert caught.value.finding.want == 1.0


def test_same_bits_rejects_nan_in_one_only():
    with pytest.raises(compare.Mismatch, match="1 of 1 elements differ"):
        compare.assert_same_bits("y", np.array([np.nan]), np.array([1.0]))


def test_shape_is_compared_first():
    with pytest.raises(compare.Mismatch, match=r"shape \(3, 2\), expected \(2, 3\)"):
        compare.assert_same_bits("y", ONES.T, ONES)


@pytest.mark.parametrize(
    ("leak", "says"),
    [(-0.0, "are -0.0"), (1e-45, "are not zero"), (np.nan, "are not zero"), (np.inf, "are not zero")],
    ids=["negative-zero", "subnormal", "nan", "inf"],
)
def test_frozen_zero_rejects(leak, says):
    got = np.zeros((2, 2))
    got[0, 1] = leak
    with pytest.raises(compare.Mismatch, match=f"1 frozen entries {says}"):
        compare.assert_frozen_zero("weight", got, np.ones((2, 2), bool))


def test_frozen_zero_ignores_trainable_entries():
    assert compare.assert_frozen_zero("weight", ONES, np.zeros((2, 3), bool)) is None


def test_within_accepts_the_bound_itself():
    assert compare.assert_within("y", ONES + 0.5, ONES, 0.5 * ONES) is None


def test_within_rejects_just_beyond():
    with pytest.raises(compare.Mismatch, match=r"error is 1\.5 times the bound 0\.5"):
        compare.assert_within("y", ONES + 0.75, ONES, 0.5 * ONES)


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
def test_within_rejects_non_finite(bad):
    with pytest.raises(compare.Mismatch, match="error is inf times the bound"):
        compare.assert_within("y", np.full(3, bad), np.ones(3), np.ones(3))


def test_within_demands_exactness_where_the_bound_is_zero():
    with pytest.raises(compare.Mismatch, match="error is inf times the bound 0"):
        compare.assert_within("y", np.array([1e-30]), np.zeros(1), np.zeros(1))


def test_error_ratio_accepts_one_precision():
    assert compare.assert_error_ratio({"torch": 0.1, "jax": 0.15}, 1000) == pytest.approx(1.5)


@pytest.mark.parametrize(("torch", "jax", "worse"), [(0.001, 0.5, "jax"), (0.5, 0.001, "torch")])
def test_error_ratio_rejects_both_sides(torch, jax, worse):
    with pytest.raises(compare.Mismatch, match=f"RMS error of {worse} is 500 times the other's"):
        compare.assert_error_ratio({"torch": torch, "jax": jax}, 1000)


def test_error_ratio_says_nothing_of_few_elements():
    assert compare.assert_error_ratio({"torch": 0.001, "jax": 0.5}, compare.ENOUGH - 1) is None


def test_bound_knows_the_length_of_the_sum():
    short, long = (bounds.error_bound(np.ones(()), "float32", terms=n, stages=1) for n in (16, 1600))
    assert 5 < long / short < 10  # the square root of 100, and the stages


@pytest.mark.parametrize("dtype", list(bounds.UNIT))
def test_honest_sums_stay_within_the_bound(dtype):
    """Products summed one after the other, in the accumulator's precision and stored in the dtype's."""
    if dtype in ("bfloat16", "float64"):
        accumulator, store = (np.float64, np.float64) if dtype == "float64" else (np.float32, np.float32)
    else:
        accumulator, store = np.float32, np.dtype(dtype).type
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200, 300)).astype(accumulator)
    total = np.zeros(200, accumulator)
    for k in range(300):
        total += a[:, k] * b[:, k]
    exact = np.sum(a.astype(np.longdouble) * b, axis=1).astype(np.float64)
    majorant = np.sum(np.abs(a.astype(np.float64) * b), axis=1)
    bound = bounds.error_bound(majorant, dtype, terms=300, stages=2)
    assert compare.assert_within("sum", total.astype(store).astype(np.float64), exact, bound) is None
