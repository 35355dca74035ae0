"""Whole Jacobians and Hessians (S4, S5).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "jacrev": (62, 12, 36, 35),
    "jacfwd": (62, 12, 36, 35),
    "hessian": (52, 9, 29, 25),
}


@pytest.mark.parametrize("transform", CELLS)
def test_jacobians(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
