"""vmap over each argument and over the mask's positions (S5).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
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
}


@pytest.mark.parametrize("transform", CELLS)
def test_vmap(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
