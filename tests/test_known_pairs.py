"""Pairs that are known to differ: each is caught, in the right cells only, for the right reason (issue 5)."""

import pytest

from parity.verdict.runner import plan, run
from tests.pairs_at_hand import DIFFER

HERE = ("random", "zeros", "ties", "kinks")
EVERYWHERE = {(transform, data) for transform in ("forward", "vjp") for data in ("random", "ties", "kinks")}

EXPECTED = {
    # The derivative of the two forms of GELU is 1/2 at zero, and both are zero there.
    "gelu": {"default argument: approximate": EVERYWHERE},
    "std": {"default argument: ddof": EVERYWHERE, "nan in one": {("vjp", "zeros")}},
    "median": {"default argument: median of an even count": EVERYWHERE | {("vjp", "zeros")}},
    "clip": {"tie or kink": {("vjp", "ties"), ("vjp", "kinks")}},  # ties are of 1 and 2, and clip has an edge at 1
    "norm": {"nan in one": {("vjp", "zeros")}},
    "max": {"tie or kink": {("vjp", "zeros"), ("vjp", "ties")}},
    "bilinear": {"default argument: antialias": EVERYWHERE | {("vjp", "zeros")}},
}
"""The cells that differ, by cause."""


@pytest.mark.parametrize("pair", DIFFER, ids=lambda pair: pair.name)
def test_known_difference_is_caught_in_the_right_cells(pair):
    cells = plan(
        pair, transforms=["forward", "vjp"], worlds=["torch-eager", "jax-eager"], dtypes=["float32"], data=HERE
    )
    seen = {}
    for record in run(pair, cells):
        if record.failed:
            assert record.verdict == "differs", record.reason
            assert record.judged == "meaning"
            assert record.world == "jax-eager"  # in float32 each framework is as good as its own float64
            seen.setdefault(record.diagnosis.cause, set()).add((record.transform, record.data))
    assert seen == EXPECTED[pair.name]
