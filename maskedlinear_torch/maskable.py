"""What of a torch model can get a mask, and what is refused (contract S8, S13)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from maskedlinear_core.arrays import dtype_name
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.patterns import Part
from maskedlinear_torch import _compat, conv1d
from maskedlinear_torch import attention as attentions
from maskedlinear_torch import embedding as embeddings
from maskedlinear_torch.attention import MaskedMultiheadAttention
from maskedlinear_torch.embedding import MaskedEmbedding, PackedEmbedding
from maskedlinear_torch.functional import check_matrix
from maskedlinear_torch.module import Layer, MaskedLinear
from maskedlinear_torch.packed_attention import InProjection, PackedMultiheadAttention


def parts_of(prefix: str, module: nn.Module, modules: Mapping[str, nn.Module], packed: bool) -> list[tuple[str, Part]]:
    """Return what of one module can get a mask, by name.

    Args:
        prefix: Dotted name of the module.
        module: The module.
        modules: All modules of the model, by name.
        packed: Whether packed layers are asked for.
    """
    if isinstance(module, InProjection):
        return []  # by its attention's projections
    if isinstance(module, Layer):
        is_embedding = isinstance(module, MaskedEmbedding | PackedEmbedding)
        return [
            (
                prefix,
                Part(
                    module,
                    (module.out_features, module.in_features),
                    lambda: _check_form(prefix, module, packed),
                    is_embedding=is_embedding,
                    has_bias=module.bias is not None,
                ),
            )
        ]
    if isinstance(module, nn.Embedding):
        shape = module.num_embeddings, module.embedding_dim
        fits = functools.partial(embeddings.check, prefix, module, packed=packed)
        return [(prefix, Part(module, shape, fits, is_embedding=True, has_bias=False))]
    if isinstance(module, nn.Linear):
        parent = modules.get(prefix.rpartition(".")[0]) if prefix else None
        check = lambda: _check_linear(prefix, module, parent, packed)  # noqa: E731
        shape = module.out_features, module.in_features
        return [(prefix, Part(module, shape, check, has_bias=module.bias is not None))]
    if conv1d.is_conv1d(module):
        linear: Any = module
        shape = linear.weight.shape[1], linear.weight.shape[0]
        return [(prefix, Part(module, shape, lambda: _check_parameters(prefix, linear)))]
    if isinstance(module, nn.MultiheadAttention):
        has_bias = module.in_proj_bias is not None
        return [
            (f"{prefix}.{name}" if prefix else name,
             Part(module, shape, _attention_check(prefix, name, module, packed), has_bias=has_bias))
            for name, shape in attentions.projection_shapes(module).items()
        ]  # fmt: skip
    return []


def _check_form(name: str, layer: Any, packed: bool) -> None:
    # A user's subclass keeps its form: one of another would lose its forward.
    if packed and isinstance(layer, MaskedLinear | MaskedEmbedding) and has_own_forward(layer):
        convert_checks.refuse_subclass(name, layer)


def has_own_forward(layer: Any) -> bool:
    """Return whether a layer's forward is a user's own."""
    return type(layer).forward.__module__.partition(".")[0] != __name__.partition(".")[0]


def _check_linear(name: str, linear: nn.Linear, parent: nn.Module | None, packed: bool) -> None:
    plain = type(linear) is nn.Linear
    if type(linear) is NonDynamicallyQuantizableLinear:
        # What attention reads the weight of instead of calling it: a packed layer's weight guards itself, and the
        # masked attention guards the other.
        plain = packed or type(parent) in (nn.MultiheadAttention, MaskedMultiheadAttention, PackedMultiheadAttention)
    if not plain:
        convert_checks.refuse_subclass(name, linear)
    _check_parameters(name, linear)


def _check_parameters(name: str, linear: Any) -> None:
    if not isinstance(linear.weight, nn.Parameter) or not isinstance(linear.bias, nn.Parameter | None):
        convert_checks.refuse_computed(name)
    with convert_checks.naming(name):
        module_checks.float_dtype(dtype_name(linear.weight))
        check_matrix("from_linear", linear.weight, linear.bias)


def _attention_check(prefix: str, name: str, attention: nn.MultiheadAttention, packed: bool) -> Callable[[], None]:
    def check() -> None:
        where = f"{prefix}.{name}" if prefix else name
        if type(attention) not in (nn.MultiheadAttention, MaskedMultiheadAttention, PackedMultiheadAttention):
            convert_checks.refuse_subclass(where, attention)
        if isinstance(attention, PackedMultiheadAttention):
            return
        is_masked = isinstance(attention, MaskedMultiheadAttention)
        if packed and not is_masked and not _compat.has_joint_projection(attention):
            convert_checks.refuse_attention(where)
        weights = attention._parameters
        if weights.get("in_proj_weight") is None and weights.get("q_proj_weight") is None:
            convert_checks.refuse_computed(where)

    return check
