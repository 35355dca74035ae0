"""vmap over each argument and over the mask's positions (S5).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "vmap-input": (125, 18, 46, 43),
    "vmap-weight": (125, 18, 46, 43),
    "vmap-bias": (122, 18, 43, 42),
    "vmap-cotangent": (125, 18, 46, 43),
    "vmap-mask": (118, 18, 39, 43),
    "vmap-input-weight": (125, 18, 46, 43),
    "vmap-everything": (118, 18, 39, 43),
    "gradient-of-vmap": (88, 15, 33, 33),
    "tangent-of-vmap": (122, 15, 34, 40),
    "per-sample-gradients": (57, 12, 37, 28),
}


@pytest.mark.parametrize("transform", CELLS)
def test_vmap(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
