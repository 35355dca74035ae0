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
    "forward": (195, 30, 130, 96),
    # First-order reverse mode: through torch.func, the ordinary way, accumulated, adjoint, with NaN and inf (S3).
    "vjp": (147, 19, 91, 49),
    "vjp-forward-mode-rule": (135, 7, 90, 47),
    "backward": (237, 59, 94, 123),
    "accumulate": (135, 18, 51, 47),
    "adjoint": (99, 7, 50, 40),
    "non-finite": (99, 7, 50, 40),
    # First-order forward mode (S3, S5).
    "jvp": (205, 21, 127, 99),
    "jvp-default-rule": (129, 7, 48, 44),
    # vmap over each argument and over the mask's positions (S5).
    "vmap-input": (135, 7, 51, 47),
    "vmap-weight": (135, 7, 51, 47),
    "vmap-bias": (131, 7, 9, 46),
    "vmap-cotangent": (135, 7, 9, 47),
    "vmap-mask": (127, 7, 41, 48),
    "vmap-input-weight": (136, 7, 9, 47),
    "vmap-everything": (123, 7, 41, 44),
    "gradient-of-vmap": (96, 2, 34, 37),
    "tangent-of-vmap": (132, 2, 35, 44),
    "per-sample-gradients": (70, 12, 42, 35),
    # Whole Jacobians and Hessians (S4, S5).
    "jacrev": (70, 7, 41, 39),
    "jacfwd": (70, 7, 41, 39),
    "hessian": (60, 2, 30, 29),
    # Hessian-vector products and gradient penalties: nothing leaks at second order (S4).
    "hvp-forward-over-reverse": (96, 7, 34, 37),
    "hvp-reverse-over-reverse": (98, 7, 34, 37),
    "hvp-reverse-over-forward": (96, 2, 34, 37),
    "gradient-penalty": (133, 2, 35, 45),
    "double-backward": (139, 7, 35, 44),
    "double-backward-of-weight": (129, 2, 35, 44),
    "layer-ff": (34, 0, 1, 7),
    "layer-fr": (34, 0, 1, 7),
    "layer-rf": (34, 0, 1, 7),
    "layer-rr": (34, 1, 1, 7),
    # All 2 + 4 + 8 sequences of forward and reverse mode up to order three (S4).
    "modes-f": (99, 7, 50, 40),
    "modes-r": (99, 7, 50, 40),
    "modes-ff": (96, 2, 34, 37),
    "modes-fr": (96, 2, 34, 37),
    "modes-rf": (96, 2, 34, 37),
    "modes-rr": (96, 2, 34, 37),
    "modes-fff": (95, 2, 2, 33),
    "modes-ffr": (95, 2, 2, 33),
    "modes-frf": (95, 2, 2, 33),
    "modes-frr": (95, 2, 2, 33),
    "modes-rff": (95, 2, 2, 33),
    "modes-rfr": (95, 2, 2, 33),
    "modes-rrf": (95, 2, 2, 33),
    "modes-rrr": (95, 2, 2, 33),
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
