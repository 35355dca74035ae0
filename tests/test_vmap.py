"""vmap over each argument and over the mask's positions (S5).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "vmap-input": (86, 18, 78, 34),
    "vmap-weight": (86, 18, 78, 34),
    "vmap-bias": (83, 18, 75, 33),
    "vmap-cotangent": (86, 18, 78, 34),
    "vmap-mask": (79, 18, 71, 34),
    "vmap-input-weight": (86, 18, 78, 34),
    "vmap-everything": (79, 18, 71, 34),
    "per-sample-gradients": (52, 12, 52, 26),
}


@pytest.mark.parametrize("transform", CELLS)
def test_vmap(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
