"""All 2 + 4 + 8 sequences of forward and reverse mode up to order three (S4).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "modes-f": (91, 18, 45, 36),
    "modes-r": (91, 18, 45, 36),
    "modes-ff": (88, 15, 33, 33),
    "modes-fr": (88, 15, 33, 33),
    "modes-rf": (88, 15, 33, 33),
    "modes-rr": (88, 15, 33, 33),
    "modes-fff": (87, 6, 2, 32),
    "modes-ffr": (87, 6, 2, 32),
    "modes-frf": (87, 6, 2, 32),
    "modes-frr": (87, 6, 2, 32),
    "modes-rff": (87, 6, 2, 32),
    "modes-rfr": (87, 6, 2, 32),
    "modes-rrf": (87, 6, 2, 32),
    "modes-rrr": (87, 6, 2, 32),
}


@pytest.mark.parametrize("transform", CELLS)
def test_mode_sequences(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
