"""First-order reverse mode (S3): through torch.func, the ordinary way, accumulated, adjoint, with NaN and inf.

Every case, in every world; the numbers say how many cells there are, so that none goes missing in silence.
"""

import pytest

from parity.records import WORLDS

CELLS = {
    "vjp": (126, 19, 85, 43),
    "vjp-forward-mode-rule": (126, 18, 85, 43),
    "backward": (174, 55, 82, 83),
    "accumulate": (126, 18, 46, 43),
    "adjoint": (91, 18, 45, 36),
    "non-finite": (91, 18, 45, 36),
}


@pytest.mark.parametrize("transform", CELLS)
def test_vjp(check_cells, transform):
    check_cells(transform, dict(zip(WORLDS, CELLS[transform], strict=True)))
