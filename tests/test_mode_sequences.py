"""All 2 + 4 + 8 sequences of forward and reverse mode up to order three (S4).

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "modes-f": (86, 18, 78, 34),
    "modes-r": (86, 18, 78, 34),
    "modes-ff": (83, 15, 33, 31),
    "modes-fr": (83, 15, 33, 31),
    "modes-rf": (83, 15, 33, 31),
    "modes-rr": (83, 15, 33, 31),
    "modes-fff": (82, 14, 2, 30),
    "modes-ffr": (82, 14, 2, 30),
    "modes-frf": (82, 14, 2, 30),
    "modes-frr": (82, 14, 2, 30),
    "modes-rff": (82, 14, 2, 30),
    "modes-rfr": (82, 14, 2, 30),
    "modes-rrf": (82, 14, 2, 30),
    "modes-rrr": (82, 14, 2, 30),
}


@pytest.mark.parametrize("transform", CELLS)
def test_mode_sequences(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
