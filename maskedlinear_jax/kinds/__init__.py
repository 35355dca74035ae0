"""The kinds of mask, one a file; each has the methods of `Kind` (base.py)."""

from maskedlinear_jax.kinds.base import Kind as Kind
from maskedlinear_jax.kinds.base import Shape as Shape
from maskedlinear_jax.kinds.blocks import Blocks as Blocks
from maskedlinear_jax.kinds.dense_elements import DenseElements as DenseElements
from maskedlinear_jax.kinds.sparse_elements import SparseElements as SparseElements
from maskedlinear_jax.kinds.submatrix import FULL as FULL
from maskedlinear_jax.kinds.submatrix import Submatrix as Submatrix
