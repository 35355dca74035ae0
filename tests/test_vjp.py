"""First-order reverse mode (S3): through torch.func, the ordinary way, accumulated, adjoint, with NaN and inf.

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "vjp": (68, 15, 68, 25),
    "vjp-forward-mode-rule": (68, 15, 68, 25),
    "backward": (68, 15, 68, 25),
    "accumulate": (68, 15, 68, 25),
    "adjoint": (68, 15, 68, 25),
    "non-finite": (68, 15, 68, 25),
}


@pytest.mark.parametrize("transform", CELLS)
def test_vjp(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
