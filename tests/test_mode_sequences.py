"""All 2 + 4 + 8 sequences of forward and reverse mode up to order three (S4).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "modes-f": (68, 15, 68, 25),
    "modes-r": (68, 15, 68, 25),
    "modes-ff": (65, 12, 33, 22),
    "modes-fr": (65, 12, 33, 22),
    "modes-rf": (65, 12, 33, 22),
    "modes-rr": (65, 12, 33, 22),
    "modes-fff": (64, 11, 2, 21),
    "modes-ffr": (64, 11, 2, 21),
    "modes-frf": (64, 11, 2, 21),
    "modes-frr": (64, 11, 2, 21),
    "modes-rff": (64, 11, 2, 21),
    "modes-rfr": (64, 11, 2, 21),
    "modes-rrf": (64, 11, 2, 21),
    "modes-rrr": (64, 11, 2, 21),
}


@pytest.mark.parametrize("transform", CELLS)
def test_mode_sequences(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
