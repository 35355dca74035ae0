"""New tokens alone learn: in the embedding and in the head (contract S13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskedlinear_core import constructors, masks
from maskedlinear_core.checks import embedding as embedding_checks
from maskedlinear_jax.convert import OWN, embeddings, mask_linears, not_of_flax


def train_new_tokens(model: Any, *, first: int, embedding: str | None = None, packed: bool = True,
                     freeze_others: bool = True) -> Any:  # fmt: skip
    """Return a pytree model of whose tokens the new ones learn, in the embedding and in the head, and nothing else.

    For models whose vocabulary has grown. A head that is `embedding.attend` stays tied: one matrix, one mask.

    Args:
        model: A pytree with an embedding of this package; the adapters have this function for their libraries.
        first: The number of the first new token: the old vocabulary's size.
        embedding: The embedding's dotted path, where the model has several.
        packed: The new rows are leaves of their own, so no optimizer can move the others; else `hold_frozen` is
            needed with weight decay and momentum.
        freeze_others: Make everything else constant (see `mask_linears`).

    Returns:
        The new model.

    Raises:
        TypeError, ValueError: No such token, no embedding, or one that cannot be converted (see `mask_linears`).

    Example:
        >>> from maskedlinear_jax import MaskedEmbedding, columns
        >>> plain = MaskedEmbedding(6, 4, grad_mask=columns(slice(None)), seed=0)
        >>> train_new_tokens({"tokens": plain}, first=4)
        {'tokens': PackedEmbedding(6, 4, grad_mask=rows([4, 5]))}
    """
    not_of_flax(model, "train_new_tokens")
    masks = new_tokens(embeddings(model, OWN), first, embedding)
    return mask_linears(model, masks, packed=packed, freeze_others=freeze_others)


def new_tokens(found: Mapping[str, int], first: int, name: str | None) -> dict[str, masks.Mask]:
    """Return the mask of the new tokens for the one embedding of a model, by its dotted path.

    Example:
        >>> new_tokens({"tokens": 6}, 4, None)
        {'tokens': rows([4, 5])}
    """
    if name is not None:
        found = {one: tokens for one, tokens in found.items() if one == name}
    if len(found) != 1:
        embedding_checks.refuse_no_embedding(sorted(found))
    ((one, tokens),) = found.items()
    return {one: constructors.rows(np.arange(embedding_checks.first_token(first, tokens), tokens))}
