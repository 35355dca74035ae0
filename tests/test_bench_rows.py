"""What the benchmark measures, and the least it can cost."""

import pytest

from benchmarks import rows
from benchmarks.limits import DENSE, Machine, Shares, is_memory_bound, limit
from benchmarks.rows import Row

FAST_MEMORY = Machine(1e9, 1e15)
P = Shares(0.1, 1, 0.1)


def row(**changes):
    usual = {
        "framework": "torch", "work": "forward+backward", "kind": "columns", "p": 0.1, "shape": (64, 32, 16),
        "dtype": "float32", "how": "eager", "place": "inner",
    }  # fmt: skip
    return Row(**usual | changes)


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize(
    ("changes", "least"),
    [({}, 2.1 / 3), ({"place": "first"}, 1.1 / 2), ({"work": "forward"}, 1), ({"dtype": "bfloat16"}, 2.1 / 3)],
)
def test_flop_limit(changes, least, form):
    assert limit(row(**changes), form, FAST_MEMORY, P) == pytest.approx(least, rel=1e-4)


def test_everything_that_learns_costs_the_dense_layer():
    for work in rows.WORKS:
        for machine in (FAST_MEMORY, Machine(1e15, 1e9)):
            assert limit(row(work=work), "masked", machine, DENSE) == pytest.approx(1)


def test_memory_limit_by_hand():
    """Batch 1, 2 x 3: bytes of x, W and y move three times dense; masked, the last product reads less."""
    one = row(shape=(1, 2, 3))
    slow_memory = Machine(1e15, 1e9)
    dense = 3 * (3 + 6 + 2)
    # g is read in full, a third of x, and all of W's gradient is written, or a third of it.
    third = Shares(1 / 3, 1, 1 / 3)
    assert limit(one, "masked", slow_memory, third) == pytest.approx((2 * 11 + 2 + 1 + 6) / dense)
    assert limit(one, "packed", slow_memory, third) == pytest.approx((2 * 11 + 2 + 1 + 2) / dense)
    step = row(shape=(1, 2, 3), work="adamw step")
    assert limit(step, "masked", slow_memory, third) == pytest.approx((31 + 42) / (dense + 42))
    assert limit(step, "packed", slow_memory, third) == pytest.approx((27 + 14) / (dense + 42))


def test_small_batches_are_bound_by_memory():
    machine = Machine(1e11, 1e10)  # 40 FLOPs a float32: W's 4 bytes take what a batch of 20 does
    assert is_memory_bound(row(shape=(19, 8, 8)), machine)
    assert not is_memory_bound(row(shape=(21, 8, 8)), machine)


@pytest.mark.parametrize("framework", rows.FRAMEWORKS)
def test_the_plan_varies_every_factor(framework):
    plan = rows.plan(framework)
    usual = {(one.kind, one.p) for one in plan if one.shape == rows.LARGE and one.work == "forward+backward"}
    assert {(kind, p) for kind in rows.KINDS for p in rows.SHARES} <= usual
    assert {one.work for one in plan} == set(rows.WORKS)
    assert {one.dtype for one in plan} == set(rows.DTYPES)
    assert {one.how for one in plan} == set(rows.HOWS[framework])
    assert {one.place for one in plan} == set(rows.PLACES)
    assert {one.batch for one in plan} >= set(rows.BATCHES)
    assert {one.weight_shape for one in plan} >= {(256, 256), (1024, 1024), (4096, 4096)}
    assert any(len(one.shape) == 4 for one in plan)
    assert len({one.id for one in plan}) == len(plan) >= 45


def test_all_is_the_product():
    found = rows.plan("jax", everything=True)
    assert len(found) >= 5 * 4 * 3 * 13 * 2 * 2 * 2
    assert len(rows.plan("jax", quick=True)) < 10
    assert {one.shape for one in rows.plan("jax", shapes=[(2, 64, 64)])} == {(2, 64, 64)}


@pytest.mark.parametrize("kind", rows.KINDS)
@pytest.mark.parametrize("p", rows.SHARES)
def test_masks_have_the_share_that_is_wanted(kind, p):
    one = row(kind=kind, p=p, shape=(1, 1024, 1024))
    # A block is 1/256 of this weight, and a share is that of whole rows, columns and blocks.
    assert abs(rows.mask_of(one).density((1024, 1024)) - p) <= 1 / 512
