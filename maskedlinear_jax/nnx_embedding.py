"""Masked embeddings for Flax NNX: drop-ins for `flax.nnx.Embed`; `attend` is the head tied to them (contract S13)."""

from __future__ import annotations

from typing import Any, Self

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from maskedlinear_core import constructors, masks
from maskedlinear_core.annotations import MaskLike, PrecisionLike
from maskedlinear_core.arrays import dtype_name
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.precision import Precision, as_precision
from maskedlinear_jax import marks, moments, packing
from maskedlinear_jax.embedding import check_tokens, masked_lookup, packed_lookup
from maskedlinear_jax.functional import masked_linear
from maskedlinear_jax.module import _name_of_dtype
from maskedlinear_jax.nnx_layers import Layer, given_rngs
from maskedlinear_jax.nnx_variables import Frozen, Positions, ValuesPositions, Whole


class _Embedding(Layer):
    """What both embeddings have in common."""

    plain = nnx.Embed

    def _take_embed(self, embed: nnx.Embed, grad_mask: MaskLike, arithmetic: Precision) -> None:
        self.num_embeddings, self.features = embed.num_embeddings, embed.features
        self.in_features, self.out_features = embed.features, embed.num_embeddings
        self.dtype, self.param_dtype, self.promote_dtype = embed.dtype, embed.param_dtype, embed.promote_dtype
        self.arithmetic = arithmetic
        mask = constructors.as_mask(grad_mask).packed((self.num_embeddings, self.features))
        self.positions = (ValuesPositions if self.is_packed else Positions)(mask)
        self.bias_positions = nnx.data(None)

    def to_linear(self) -> nnx.Embed:
        """Return the plain embedding, as `to_embedding` does: all layers have this method."""
        return self.to_embedding()

    def to_embedding(self) -> nnx.Embed:
        """Return a plain embedding with the trained matrix."""
        embed = nnx.eval_shape(
            lambda: nnx.Embed(
                self.num_embeddings, self.features, dtype=self.dtype, param_dtype=self.param_dtype,
                promote_dtype=self.promote_dtype, rngs=nnx.Rngs(0),
            )
        )  # fmt: skip
        embed.embedding = nnx.Param(self.table)
        return embed

    @property
    def table(self) -> Array:
        """The whole matrix (num_embeddings, features)."""
        raise NotImplementedError

    def _tokens(self, inputs: Array) -> Array:
        check_tokens(inputs)
        # As nnx.Embed, which takes every token for the only one that there is.
        return jnp.zeros_like(inputs) if self.num_embeddings == 1 else inputs


class MaskedEmbed(_Embedding):
    """A drop-in for `flax.nnx.Embed` of which only the masked positions learn: rows are tokens.

    `embedding` is an `nnx.Param`, as there; the positions are not. `attend` is the tied head.

    Args:
        num_embeddings: As for `nnx.Embed`.
        features: As for `nnx.Embed`.
        grad_mask: Over the embedding (num_embeddings, features). True = the gradient flows.
        rngs: As for `nnx.Embed`.
        keywords: As for `nnx.Embed`.

    Example:
        >>> from maskedlinear_jax import rows
        >>> layer = MaskedEmbed(4, 2, grad_mask=rows([3]), rngs=nnx.Rngs(0))
        >>> nnx.grad(lambda layer: layer(jnp.array([1, 3, 3])).sum())(layer).embedding[...].tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 2.0]]
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        grad_mask: MaskLike,
        rngs: nnx.Rngs | None = None,
        _embed: nnx.Embed | None = None,
        _arithmetic: PrecisionLike = "native",
        **keywords: Any,
    ) -> None:
        if _embed is None:
            _embed = nnx.Embed(num_embeddings, features, rngs=given_rngs(self, rngs), **keywords)
        embed = _embed
        self._take_embed(embed, grad_mask, as_precision(_arithmetic))
        self.embedding = embed.embedding

    @classmethod
    def from_linear(cls, embed: nnx.Embed, *, grad_mask: MaskLike, precision: PrecisionLike = "native") -> Self:
        """Return a masked embedding around the very parameter of `embed`.

        Raises:
            TypeError: `embed` is no plain `flax.nnx.Embed`.
        """
        check_embed("from_embedding", embed)
        return cls(embed.num_embeddings, embed.features, grad_mask=grad_mask, _embed=embed, _arithmetic=precision)

    from_embedding = from_linear

    @property
    def table(self) -> Array:
        """The whole matrix (num_embeddings, features)."""
        return self.embedding.get_value()

    def __call__(self, inputs: Array) -> Array:
        """Return the rows of the tokens: (*batch, features) of integers (*batch)."""
        self._refuse_norms()
        (table,) = self.promote_dtype((self.table,), dtype=self.dtype, inexact=False)
        return masked_lookup(table, self._tokens(inputs), self.grad_mask, _take)

    def attend(self, query: Array) -> Array:
        """Return x W^T, the head tied to the embedding: (*batch, num_embeddings) of (*batch, features)."""
        self._refuse_norms()
        query, table = self.promote_dtype((query, self.table), dtype=self.dtype)
        return masked_linear(query, table, grad_mask=self.grad_mask, precision=self.arithmetic)


class PackedEmbed(_Embedding):
    """A drop-in for `flax.nnx.Embed` whose trainable tokens are a parameter of their own.

    `values` is an `nnx.Param`, the matrix is `Frozen`: see `maskedlinear_jax.PackedEmbedding`.

    Args:
        num_embeddings: As for `nnx.Embed`.
        features: As for `nnx.Embed`.
        grad_mask: Over the embedding (num_embeddings, features). True = the gradient flows.
        values_dtype: Dtype of the values: the embedding's (None), or float32 over a 16-bit embedding.
        rngs: As for `nnx.Embed`.
        keywords: As for `nnx.Embed`.

    Example:
        >>> from maskedlinear_jax import rows
        >>> layer = PackedEmbed(4, 2, grad_mask=rows([3]), rngs=nnx.Rngs(0))
        >>> nnx.grad(lambda layer: layer(jnp.array([1, 3, 3])).sum())(layer)["values"][...].tolist()
        [[2.0, 2.0]]
    """

    is_packed = True

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        grad_mask: MaskLike,
        values_dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
        _embed: nnx.Embed | None = None,
        _arithmetic: PrecisionLike = "native",
        **keywords: Any,
    ) -> None:
        if _embed is None:
            _embed = nnx.Embed(num_embeddings, features, rngs=given_rngs(self, rngs), **keywords)
        embed = _embed
        packed_checks.with_numbers(type(self).__name__, table := embed.embedding.get_value())
        self._take_embed(embed, grad_mask, as_precision(_arithmetic))
        dtype = dtype_name(table) if values_dtype is None else _name_of_dtype(values_dtype)
        module_checks.values_dtype(dtype, dtype_name(table))
        self.base = Frozen(table)
        self.values = nnx.Param(packing.pack(table, grad_mask=self.grad_mask).astype(dtype))

    @classmethod
    def from_linear(
        cls,
        embed: nnx.Embed,
        *,
        grad_mask: MaskLike,
        values_dtype: DTypeLike | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a packed embedding with the numbers of `embed`.

        Raises:
            TypeError: `embed` is no plain `flax.nnx.Embed`.
        """
        check_embed("from_embedding", embed)
        return cls(
            embed.num_embeddings, embed.features,
            grad_mask=grad_mask, values_dtype=values_dtype, _embed=embed, _arithmetic=precision,
        )  # fmt: skip

    from_embedding = from_linear

    @property
    def table(self) -> Array:
        """The whole matrix (num_embeddings, features), with the values in their places."""
        return packing.unpack(self.base.get_value(), self.values.get_value(), grad_mask=self.grad_mask)

    @property
    def embedding(self) -> Whole:
        """The whole matrix, by the name that `nnx.Embed` has it under. It can be set."""
        return Whole.of("embedding", self.table, self._parts, self._write)

    def _parts(self) -> tuple[Any, ...]:
        return self.base.get_value(), self.values.get_value()

    def _write(self, table: Array) -> None:
        values = packing.pack(table, grad_mask=self.grad_mask)
        self.values.set_value(values.astype(self.values.get_value().dtype))
        self.base.set_value(table)

    def __call__(self, inputs: Array) -> Array:
        """Return the rows of the tokens: (*batch, features) of integers (*batch)."""
        self._refuse_norms()
        (base,) = self.promote_dtype((self.base.get_value(),), dtype=self.dtype, inexact=False)
        return packed_lookup(base, self.values.get_value(), self._tokens(inputs), self.grad_mask, _take)

    def attend(self, query: Array) -> Array:
        """Return x W^T, the head tied to the embedding: (*batch, num_embeddings) of (*batch, features)."""
        self._refuse_norms()
        query, base = self.promote_dtype((query, self.base.get_value()), dtype=self.dtype)
        values = self.values.get_value()
        values = values if values.dtype == jnp.float32 else values.astype(base.dtype)
        return packing.packed_linear(query, base, values, grad_mask=self.grad_mask, precision=self.arithmetic)

    def _change_weight(self, mask: masks.Mask, path: moments.Path) -> dict[moments.Path, Any]:
        old, values, whole = self.grad_mask, self.values.get_value(), self.table
        changed = packing.repack(values, old, mask, weight=whole)
        self.base.set_value(marks.repacked(self.base.get_value(), values, old, mask, whole))
        self.values.set_value(changed)
        self.positions = ValuesPositions(mask)
        return {(*path, "values"): moments.Moved(old, mask, (self.out_features, self.in_features), values.shape)}


def check_embed(name: str, embed: Any) -> None:
    """Refuse what is no plain `flax.nnx.Embed`."""
    if type(embed) is not nnx.Embed:
        convert_checks.refuse_subclass(name, embed, expected="a flax.nnx.Embed")
    convert_checks.not_stacked(name, embed.embedding.ndim, 2)


def _take(table: Array, inputs: Array, **fill: Any) -> Array:
    return jnp.take(table, inputs, axis=0, **fill)
