"""Hessian-vector products and gradient penalties: nothing leaks at second order (S4).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "hvp-forward-over-reverse": (88, 15, 33, 33),
    "hvp-reverse-over-reverse": (88, 15, 33, 33),
    "hvp-reverse-over-forward": (88, 15, 33, 33),
    "gradient-penalty": (123, 15, 34, 40),
    "double-backward": (123, 15, 34, 40),
    "layer-ff": (33, 0, 1, 7),
    "layer-fr": (33, 0, 1, 7),
    "layer-rf": (33, 0, 1, 7),
    "layer-rr": (33, 1, 1, 7),
}


@pytest.mark.parametrize("transform", CELLS)
def test_second_order(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
