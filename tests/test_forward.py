"""The forward is the framework's own linear layer, bit for bit (S2).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "forward": (174, 30, 123, 83),
}


@pytest.mark.parametrize("transform", CELLS)
def test_forward(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
