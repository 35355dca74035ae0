"""A gradient-masked linear layer for JAX: y = x W^T + b, where only chosen positions of W learn.

The torch twin is `maskedlinear_torch`: the same names, the same meaning.
"""

try:
    import jax as _jax
except ImportError as error:
    raise ImportError("maskedlinear_jax needs jax: pip install 'maskedlinear[jax]'") from error

from maskedlinear_core import Mask as Mask
from maskedlinear_core import accuracy_bound as accuracy_bound
from maskedlinear_core import arrays as _arrays
from maskedlinear_core import blocks as blocks
from maskedlinear_core import columns as columns
from maskedlinear_core import elements as elements
from maskedlinear_core import masks as _masks
from maskedlinear_core import reproducible as reproducible
from maskedlinear_core import rows as rows
from maskedlinear_core import score_trees as _score_trees
from maskedlinear_core import select as select
from maskedlinear_core import simplify as simplify
from maskedlinear_core import submatrix as submatrix
from maskedlinear_jax import constant as _constant
from maskedlinear_jax import convert as _convert
from maskedlinear_jax import flax_bytes as _flax_bytes
from maskedlinear_jax import lowering as _lowering
from maskedlinear_jax.convert import mask_linears as mask_linears
from maskedlinear_jax.convert import merged as merged
from maskedlinear_jax.convert import unmask_linears as unmask_linears
from maskedlinear_jax.embedding import MaskedEmbedding as MaskedEmbedding
from maskedlinear_jax.embedding import PackedEmbedding as PackedEmbedding
from maskedlinear_jax.freeze import apply_updates as apply_updates
from maskedlinear_jax.freeze import assert_frozen as assert_frozen
from maskedlinear_jax.freeze import grad_masks as grad_masks
from maskedlinear_jax.freeze import hold_frozen as hold_frozen
from maskedlinear_jax.freeze import keep_frozen as keep_frozen
from maskedlinear_jax.functional import masked_linear as masked_linear
from maskedlinear_jax.module import MaskedLinear as MaskedLinear
from maskedlinear_jax.module import combine as combine
from maskedlinear_jax.module import partition as partition
from maskedlinear_jax.moments import repack_state as repack_state
from maskedlinear_jax.new_tokens import train_new_tokens as train_new_tokens
from maskedlinear_jax.packed_module import PackedLinear as PackedLinear
from maskedlinear_jax.packing import pack as pack
from maskedlinear_jax.packing import packed_linear as packed_linear
from maskedlinear_jax.packing import repack as repack
from maskedlinear_jax.packing import unpack as unpack
from maskedlinear_jax.parameter import masked_parameter as masked_parameter
from maskedlinear_jax.storage import load_packed as load_packed
from maskedlinear_jax.storage import packed_arrays as packed_arrays
from maskedlinear_jax.storage import packed_bytes as packed_bytes
from maskedlinear_jax.storage import save_packed as save_packed
from maskedlinear_jax.summary import summary as summary

_arrays.register_reader(_jax.Array, _lowering.read)
_score_trees.register_flattener(_convert.leaves_of)
_masks.on_register(_lowering.register_pytree)
_flax_bytes.store(MaskedLinear, PackedLinear, MaskedEmbedding, PackedEmbedding, _constant.Constant)

__all__ = [
    "Mask",
    "MaskedEmbedding",
    "MaskedLinear",
    "PackedEmbedding",
    "PackedLinear",
    "accuracy_bound",
    "apply_updates",
    "assert_frozen",
    "blocks",
    "columns",
    "combine",
    "elements",
    "grad_masks",
    "hold_frozen",
    "keep_frozen",
    "load_packed",
    "mask_linears",
    "masked_linear",
    "masked_parameter",
    "merged",
    "pack",
    "packed_arrays",
    "packed_bytes",
    "packed_linear",
    "partition",
    "repack",
    "repack_state",
    "reproducible",
    "rows",
    "save_packed",
    "select",
    "simplify",
    "submatrix",
    "summary",
    "train_new_tokens",
    "unmask_linears",
    "unpack",
]


def __dir__() -> list[str]:
    return sorted(__all__)
