"""The kinds of mask, one a file; each has the methods of `Kind` (base.py)."""

from maskedlinear_torch.kinds.base import Kind as Kind
from maskedlinear_torch.kinds.base import Shape as Shape
from maskedlinear_torch.kinds.blocks import Blocks as Blocks
from maskedlinear_torch.kinds.dense_elements import DenseElements as DenseElements
from maskedlinear_torch.kinds.sparse_elements import SparseElements as SparseElements
from maskedlinear_torch.kinds.submatrix import FULL as FULL
from maskedlinear_torch.kinds.submatrix import Submatrix as Submatrix
