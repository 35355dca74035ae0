"""Hessian-vector products and gradient penalties: nothing leaks at second order (S4).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "hvp-forward-over-reverse": (83, 15, 33, 31),
    "hvp-reverse-over-reverse": (83, 15, 33, 31),
    "hvp-reverse-over-forward": (83, 15, 33, 31),
    "gradient-penalty": (83, 15, 33, 31),
    "double-backward": (83, 15, 33, 31),
}


@pytest.mark.parametrize("transform", CELLS)
def test_second_order(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
