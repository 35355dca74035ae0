"""New tokens alone learn: in the embedding and in the head (contract S13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import numpy as np
from torch import nn

from maskedlinear_core import constructors
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import embedding as embedding_checks
from maskedlinear_torch.convert import Model, mask_linears
from maskedlinear_torch.embedding import PackedEmbedding


@overload
def train_new_tokens(
    model: nn.Embedding, *, first: int, embedding: str | None = ..., packed: bool = ..., freeze_others: bool = ...
) -> Any: ...
@overload
def train_new_tokens(
    model: Model, *, first: int, embedding: str | None = ..., packed: bool = ..., freeze_others: bool = ...
) -> Model: ...
def train_new_tokens(
    model: nn.Module,
    *,
    first: int,
    embedding: str | None = None,
    packed: bool = True,
    freeze_others: bool = True,
) -> nn.Module:
    """Let the rows of new tokens learn, in the embedding and in the head, and nothing else; in place.

    For models whose vocabulary has grown, e.g. by `model.resize_token_embeddings(...)` of transformers. A head that
    is tied to the embedding stays tied: one matrix, one mask, both uses.

    Args:
        model: Its embedding and head are those of `get_input_embeddings` and `get_output_embeddings` where it has
            these; else its only embedding, and the linear layers whose weight is the embedding's.
        first: The number of the first new token: the old vocabulary's size.
        embedding: The embedding's dotted name, where it cannot be told.
        packed: The new rows are parameters of their own, so no optimizer can move the others; else
            `hold_frozen` is needed with weight decay and momentum.
        freeze_others: Let every other parameter be constant.

    Returns:
        The model.

    Raises:
        TypeError, ValueError: No such token, no embedding, or one that cannot be converted (see `mask_linears`).

    Example:
        >>> model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
        >>> model[1].weight = model[0].weight
        >>> train_new_tokens(model, first=4)
        Sequential(
          (0): PackedEmbedding(6, 4, grad_mask=rows([4, 5]))
          (1): TiedHead(6, 4, grad_mask=rows([4, 5]), bias=False)
        )
        >>> [tuple(one.shape) for one in model.parameters() if one.requires_grad]
        [(2, 4)]
    """
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model, function="train_new_tokens")
    modules = dict(model.named_modules())
    name, layer = _token_embedding(model, modules, embedding)
    tokens = layer.weight.shape[0]
    mask = constructors.rows(np.arange(embedding_checks.first_token(first, tokens), tokens))
    chosen, biases = {name: mask}, {}
    told: Any = getattr(model, "get_output_embeddings", lambda: None)()
    for other, head in modules.items():
        tied = isinstance(head, nn.Linear) and head is not layer and head.weight is layer.weight
        if tied or (head is told and isinstance(head, nn.Linear) and head.out_features == tokens):
            chosen[other] = mask
            if head.bias is not None:
                biases[other] = mask.to_array((tokens, 1))[:, 0]
    if packed and any(modules[other]._parameters.get("weight") is layer.weight for other in biases):
        biases = {}  # a head tied to a packed embedding has no mask of its own
    return mask_linears(model, chosen, packed=packed, bias_masks=biases or None, freeze_others=freeze_others)


def _token_embedding(model: Any, modules: Mapping[str, nn.Module], name: str | None) -> tuple[str, Any]:
    kinds = nn.Embedding | PackedEmbedding
    found = {one: module for one, module in modules.items() if isinstance(module, kinds)}
    if name is not None:
        found = {one: module for one, module in found.items() if one == name}
    elif hasattr(model, "get_input_embeddings"):
        told = model.get_input_embeddings()
        found = {one: module for one, module in found.items() if module is told}
    if len(found) != 1:
        embedding_checks.refuse_no_embedding(sorted(found))
    return next(iter(found.items()))
