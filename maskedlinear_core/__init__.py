"""What a gradient mask is, independent of any framework: kinds, algebra, selection, checks (contract S1, S10)."""

from maskedlinear_core import select as select
from maskedlinear_core.constructors import blocks as blocks
from maskedlinear_core.constructors import columns as columns
from maskedlinear_core.constructors import elements as elements
from maskedlinear_core.constructors import rows as rows
from maskedlinear_core.constructors import submatrix as submatrix
from maskedlinear_core.masks import Mask as Mask
from maskedlinear_core.precision import accuracy_bound as accuracy_bound
from maskedlinear_core.precision import reproducible as reproducible
from maskedlinear_core.simplify import simplify as simplify

__all__ = [
    "Mask",
    "accuracy_bound",
    "blocks",
    "columns",
    "elements",
    "reproducible",
    "rows",
    "select",
    "simplify",
    "submatrix",
]


def __dir__() -> list[str]:
    return sorted(__all__)
