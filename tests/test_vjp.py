"""First-order reverse mode (S3): through torch.func, the ordinary way, accumulated, adjoint, with NaN and inf.

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "vjp": (86, 18, 78, 34),
    "vjp-forward-mode-rule": (86, 18, 78, 34),
    "backward": (86, 18, 78, 34),
    "accumulate": (86, 18, 78, 34),
    "adjoint": (86, 18, 78, 34),
    "non-finite": (86, 18, 78, 34),
}


@pytest.mark.parametrize("transform", CELLS)
def test_vjp(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
