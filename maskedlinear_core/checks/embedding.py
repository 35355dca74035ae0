"""Embeddings (contract S10, S13)."""

from __future__ import annotations

from typing import Any, NoReturn

from maskedlinear_core.checks.words import is_integer, where


def refuse_max_norm(name: str) -> NoReturn:
    """Refuse an embedding that rescales its rows in the forward, frozen ones too."""
    raise TypeError(
        f"{where(name)}: expected an embedding without max_norm, got one that rescales "
        "its rows in each forward, frozen ones too; set max_norm=None and rescale after the step"
    )


def refuse_sparse(name: str) -> NoReturn:
    """Refuse an embedding with sparse gradients."""
    raise TypeError(
        f"{where(name)}: expected an embedding with dense gradients, got sparse=True; set "
        "sparse=False: with packed=True the gradient has the rows of the mask alone"
    )


def refuse_scaled(name: str) -> NoReturn:
    """Refuse to pack an embedding whose gradients are divided by how often a token occurs."""
    raise TypeError(
        f"{where(name)}: expected scale_grad_by_freq=False for a packed embedding, got True; use packed=False"
    )


def refuse_assignment() -> NoReturn:
    """Refuse another weight for a head that is tied to an embedding."""
    raise ValueError(
        "weight of a tied head: expected the embedding's own weight, got another; write to the embedding's, or untie "
        "with unmask_linears first"
    )


def first_token(first: Any, tokens: int) -> int:
    """Check and return the number of the first new token.

    Raises:
        TypeError: It is no integer.
        ValueError: No token has it.
    """
    if not is_integer(first):
        raise TypeError(
            f"train_new_tokens: expected first as an integer, got {first!r}; e.g. the old vocabulary's size"
        )
    if not 0 <= first < tokens:
        raise ValueError(
            f"train_new_tokens: expected first within [0, {tokens}), the tokens that there are, got {first}; resize "
            "the embeddings first, and pass the old vocabulary's size"
        )
    return int(first)


def refuse_no_embedding(found: list[str]) -> NoReturn:
    """Refuse a model whose embedding of tokens cannot be told."""
    got = f"several: {', '.join(found)}" if found else "none"
    raise ValueError(
        f"train_new_tokens: expected one embedding of tokens, or get_input_embeddings() that tells it, got {got}; pass "
        "embedding=, its dotted name"
    )


def refuse_tokens(dtype: str) -> NoReturn:
    """Refuse tokens that are no integers."""
    raise ValueError(f"embedding: expected tokens as integers, got dtype {dtype}; cast them first")
