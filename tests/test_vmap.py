"""vmap over each argument and over the mask's positions (S5).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "vmap-input": (68, 15, 68, 25),
    "vmap-weight": (68, 15, 68, 25),
    "vmap-bias": (66, 15, 66, 25),
    "vmap-cotangent": (68, 15, 68, 25),
    "vmap-mask": (61, 15, 61, 25),
    "vmap-input-weight": (68, 15, 68, 25),
    "vmap-everything": (61, 15, 61, 25),
    "per-sample-gradients": (46, 10, 46, 20),
}


@pytest.mark.parametrize("transform", CELLS)
def test_vmap(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
