"""Hessian-vector products and gradient penalties: nothing leaks at second order (S4).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "hvp-forward-over-reverse": (65, 12, 33, 22),
    "hvp-reverse-over-reverse": (65, 12, 33, 22),
    "hvp-reverse-over-forward": (65, 12, 33, 22),
    "gradient-penalty": (65, 12, 33, 22),
    "double-backward": (65, 12, 33, 22),
}


@pytest.mark.parametrize("transform", CELLS)
def test_second_order(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
