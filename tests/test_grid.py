"""The grid: every case under every transform, in every world (S2 to S5, S9).

A test runs all cells of a case, because what JAX compiled for one transform serves the others. The table says how many
cells each transform has in each world, so that none goes missing in silence.
"""

import os
from collections import Counter, defaultdict

import pytest

from parity.records import WORLDS
from parity.report.terminal import failure
from parity.suites.masked_linear import grid, plan, run
from parity.suites.masked_linear.records import PRECISIONS

CELLS = {
    # The forward is the framework's own linear layer, bit for bit (S2).
    "forward": (174, 30, 123, 83),
    # First-order reverse mode: through torch.func, the ordinary way, accumulated, adjoint, with NaN and inf (S3).
    "vjp": (126, 19, 85, 43),
    "vjp-forward-mode-rule": (126, 18, 85, 43),
    "backward": (174, 55, 82, 83),
    "accumulate": (126, 18, 46, 43),
    "adjoint": (91, 18, 45, 36),
    "non-finite": (91, 18, 45, 36),
    # First-order forward mode (S3, S5).
    "jvp": (174, 21, 121, 83),
    "jvp-default-rule": (126, 18, 46, 43),
    # vmap over each argument and over the mask's positions (S5).
    "vmap-input": (126, 18, 46, 43),
    "vmap-weight": (126, 18, 46, 43),
    "vmap-bias": (123, 18, 6, 42),
    "vmap-cotangent": (126, 18, 6, 43),
    "vmap-mask": (119, 18, 39, 43),
    "vmap-input-weight": (126, 18, 6, 43),
    "vmap-everything": (119, 18, 39, 43),
    "gradient-of-vmap": (88, 15, 33, 33),
    "tangent-of-vmap": (123, 15, 34, 40),
    "per-sample-gradients": (57, 12, 37, 28),
    # Whole Jacobians and Hessians (S4, S5).
    "jacrev": (62, 12, 36, 35),
    "jacfwd": (62, 12, 36, 35),
    "hessian": (52, 9, 29, 25),
    # Hessian-vector products and gradient penalties: nothing leaks at second order (S4).
    "hvp-forward-over-reverse": (88, 15, 33, 33),
    "hvp-reverse-over-reverse": (88, 15, 33, 33),
    "hvp-reverse-over-forward": (88, 15, 33, 33),
    "gradient-penalty": (123, 15, 34, 40),
    "double-backward": (123, 15, 34, 40),
    "layer-ff": (33, 0, 1, 7),
    "layer-fr": (33, 0, 1, 7),
    "layer-rf": (33, 0, 1, 7),
    "layer-rr": (33, 1, 1, 7),
    # All 2 + 4 + 8 sequences of forward and reverse mode up to order three (S4).
    "modes-f": (91, 18, 45, 36),
    "modes-r": (91, 18, 45, 36),
    "modes-ff": (88, 15, 33, 33),
    "modes-fr": (88, 15, 33, 33),
    "modes-rf": (88, 15, 33, 33),
    "modes-rr": (88, 15, 33, 33),
    "modes-fff": (87, 6, 2, 32),
    "modes-ffr": (87, 6, 2, 32),
    "modes-frf": (87, 6, 2, 32),
    "modes-frr": (87, 6, 2, 32),
    "modes-rff": (87, 6, 2, 32),
    "modes-rfr": (87, 6, 2, 32),
    "modes-rrf": (87, 6, 2, 32),
    "modes-rrr": (87, 6, 2, 32),
}

FORMS = [(cases, precision) for precision in PRECISIONS for cases in grid.forms(precision)]
"""Every case in each of its precisions; those that compile the same programs for other numbers together."""


@pytest.mark.timeout(1200)  # a core case takes about 100 seconds, most of them in torch's compiler
@pytest.mark.parametrize(("cases", "precision"), FORMS, ids=[f"{cases[0]}-{how}" for cases, how in FORMS])
def test_case(cases, precision):
    cells = grid.together(plan(cases=cases, precisions=[precision]))
    assert {cell.pair for cell in cells} == set(cases)
    # All worlds in one run, so that the frameworks' errors are compared.
    records = list(run(cells))
    failures = [failure(record) for record in records if record.failed]
    assert not failures, "\n\n".join(failures)
    assert [record.cell.id for record in records] == [cell.id for cell in cells]
    if os.environ.get("PARITY_CELLS"):  # CI adds these up
        with open(os.environ["PARITY_CELLS"], "a", encoding="utf-8") as file:
            file.write(f"{len(records)}\n")


@pytest.fixture(scope="module")
def counts():
    """How many cells of the tests above there are, by transform and world."""
    found = defaultdict(Counter)
    for cases, precision in FORMS:
        for cell in plan(cases=cases, precisions=[precision]):
            found[cell.transform][cell.world] += 1
    return found


@pytest.mark.parametrize("transform", CELLS)
def test_no_cell_is_missing(counts, transform):
    found = tuple(counts[transform][world] for world in WORLDS)
    assert all(there >= least for there, least in zip(found, CELLS[transform], strict=True)), found


def test_every_transform_is_in_the_table(counts):
    assert set(counts) == set(CELLS)
