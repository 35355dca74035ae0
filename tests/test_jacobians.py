"""Whole Jacobians and Hessians (S4, S5).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "jacrev": (44, 10, 44, 20),
    "jacfwd": (44, 10, 44, 20),
    "hessian": (41, 7, 29, 17),
}


@pytest.mark.parametrize("transform", CELLS)
def test_jacobians(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
