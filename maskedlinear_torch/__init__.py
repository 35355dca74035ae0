"""A gradient-masked linear layer for torch: y = x W^T + b, where only chosen positions of W learn.

The JAX twin is `maskedlinear_jax`: the same names, the same meaning.
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError("maskedlinear_torch needs torch: pip install 'maskedlinear[torch]'") from error

from maskedlinear_core import Mask as Mask
from maskedlinear_core import accuracy_bound as accuracy_bound
from maskedlinear_core import arrays as _arrays
from maskedlinear_core import blocks as blocks
from maskedlinear_core import columns as columns
from maskedlinear_core import elements as elements
from maskedlinear_core import reproducible as reproducible
from maskedlinear_core import rows as rows
from maskedlinear_core import score_trees as _score_trees
from maskedlinear_core import select as select
from maskedlinear_core import simplify as simplify
from maskedlinear_core import submatrix as submatrix
from maskedlinear_torch import convert as _convert
from maskedlinear_torch import lowering as _lowering
from maskedlinear_torch.convert import mask_linears as mask_linears
from maskedlinear_torch.convert import unmask_linears as unmask_linears
from maskedlinear_torch.embedding import MaskedEmbedding as MaskedEmbedding
from maskedlinear_torch.embedding import PackedEmbedding as PackedEmbedding
from maskedlinear_torch.freeze import assert_frozen as assert_frozen
from maskedlinear_torch.freeze import grad_masks as grad_masks
from maskedlinear_torch.freeze import hold_frozen as hold_frozen
from maskedlinear_torch.functional import masked_linear as masked_linear
from maskedlinear_torch.groups import parameter_groups as parameter_groups
from maskedlinear_torch.module import MaskedLinear as MaskedLinear
from maskedlinear_torch.new_tokens import train_new_tokens as train_new_tokens
from maskedlinear_torch.packed_module import PackedLinear as PackedLinear
from maskedlinear_torch.packing import pack as pack
from maskedlinear_torch.packing import packed_linear as packed_linear
from maskedlinear_torch.packing import repack as repack
from maskedlinear_torch.packing import unpack as unpack
from maskedlinear_torch.parameter import mask_parameter as mask_parameter
from maskedlinear_torch.parameter import masked_parameter as masked_parameter
from maskedlinear_torch.storage import load_packed as load_packed
from maskedlinear_torch.storage import packed_arrays as packed_arrays
from maskedlinear_torch.storage import packed_bytes as packed_bytes
from maskedlinear_torch.storage import save_packed as save_packed
from maskedlinear_torch.summary import summary as summary

_arrays.register_reader(_torch.Tensor, _lowering.read)
_arrays.register_viewer("torch", _torch.from_numpy)
_score_trees.register_model_reader(_torch.nn.Module, _convert.weights_of)
_arrays.register_compiler(_torch.compiler.is_dynamo_compiling, _lowering.as_tensor)

__all__ = [
    "Mask",
    "MaskedEmbedding",
    "MaskedLinear",
    "PackedEmbedding",
    "PackedLinear",
    "accuracy_bound",
    "assert_frozen",
    "blocks",
    "columns",
    "elements",
    "grad_masks",
    "hold_frozen",
    "load_packed",
    "mask_linears",
    "mask_parameter",
    "masked_linear",
    "masked_parameter",
    "pack",
    "packed_arrays",
    "packed_bytes",
    "packed_linear",
    "parameter_groups",
    "repack",
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
