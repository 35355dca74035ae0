"""First-order forward mode (S3, S5).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "jvp": (174, 21, 121, 83),
    "jvp-default-rule": (126, 18, 46, 43),
}


@pytest.mark.parametrize("transform", CELLS)
def test_jvp(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
