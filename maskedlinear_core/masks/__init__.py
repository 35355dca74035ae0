"""What a gradient mask is: the kinds, their algebra and their canonical form (contract S1).

True means everywhere: the gradient flows, this position is trainable.

A mask says *which* positions; the shape of the weight is given where it is needed. Its positions
may be traced (values not known yet, as under `jax.jit`): then only a twin can apply it.
"""

from maskedlinear_core.masks.base import Combination, Complement, Intersection, Mask, Union, on_register, register
from maskedlinear_core.masks.blocks import Blocks
from maskedlinear_core.masks.elements import Elements, Entries
from maskedlinear_core.masks.lines import Columns, Lines, Rows
from maskedlinear_core.masks.submatrix import Submatrix

__all__ = [
    "Blocks", "Columns", "Combination", "Complement", "Elements", "Entries", "Intersection", "Lines", "Mask", "Rows",
    "Submatrix", "Union", "on_register", "register",
]  # fmt: skip

for _kind in (Columns, Rows, Submatrix, Blocks, Elements, Entries, Complement, Union, Intersection):
    register(_kind)
