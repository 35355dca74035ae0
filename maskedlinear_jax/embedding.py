"""Embeddings of which only chosen tokens learn, and the head tied to them (contract S13).

An embedding is a linear map of one-hot vectors: y = E W. Since E picks rows, E where(M, W, stop_gradient(W)) is
where(E M, E W, stop_gradient(E W)): the rows are looked up first and masked then, and the framework derives every
derivative from that.
"""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from maskedlinear_core import constructors, masks
from maskedlinear_core.annotations import HasWeight, MaskLike, PrecisionLike, SupportsArray
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import embedding as embedding_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_jax import lowering, rule
from maskedlinear_jax.kinds import Submatrix
from maskedlinear_jax.module import MaskedLinear
from maskedlinear_jax.packed_module import PackedLinear


@jax.tree_util.register_pytree_with_keys_class
class MaskedEmbedding(MaskedLinear):
    """An embedding of which only the masked positions learn: rows are tokens.

    The weight is a full leaf with a masked gradient, as in `MaskedLinear`; `attend` is the head tied to it.

    Args:
        num_embeddings: How many tokens.
        embedding_dim: How many features each token has.
        padding_idx: A token that never learns, whatever the mask says.
        grad_mask: Over the weight (num_embeddings, embedding_dim), e.g. `rows(new_tokens)`. True = the gradient flows.
        seed: Draw the initial values with NumPy: the same bits as the torch twin.
        key: Draw them with `jax.random` instead. Exactly one of seed and key must be given.
        dtype: float32, float64, bfloat16 or float16; None = float32.

    Raises:
        TypeError, ValueError, IndexError: A wrong argument (contract S10).

    Example:
        >>> from maskedlinear_jax import rows
        >>> layer = MaskedEmbedding(4, 2, grad_mask=rows([3]), seed=0)
        >>> loss = lambda weight: layer.replace(weight=weight)(jnp.array([1, 3, 3])).sum()
        >>> jax.grad(loss)(layer.weight).tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 2.0]]
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        grad_mask: MaskLike,
        seed: int | None = None,
        key: Array | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        plain = _drawn(num_embeddings, embedding_dim, seed, key, dtype)
        mask = _without_padding(grad_mask, plain.weight.shape, padding_idx)
        self.__dict__.update(MaskedLinear.from_linear(plain, grad_mask=mask).__dict__)

    @classmethod
    def from_embedding(cls, embedding: HasWeight, *, grad_mask: MaskLike, precision: PrecisionLike = "native") -> Self:
        """Return a masked embedding around the very array of a plain one.

        Args:
            embedding: A layer with a `weight` (tokens, features), such as `equinox.nn.Embedding`.
            grad_mask: As for the constructor.
            precision: Precision of `attend`, as for `masked_linear`.

        Raises:
            TypeError: `embedding` has no such array.
        """
        return cls.from_linear(_Plain(embedding.weight), grad_mask=grad_mask, precision=precision)

    def to_embedding(self) -> MaskedEmbedding:
        """Return an embedding around the very array of this one, all of which learns."""
        everything = constructors.columns(slice(None))
        return MaskedEmbedding.from_embedding(self, grad_mask=everything)

    def to_linear(self) -> MaskedEmbedding:
        """Return the plain embedding, as `to_embedding` does: all layers have this method."""
        return self.to_embedding()

    def __call__(self, input: Array) -> Array:  # type: ignore[override]
        """Return the rows of the tokens: (*batch, embedding_dim) of integers (*batch)."""
        return masked_lookup(self.weight, input, self.grad_mask, self._look_up)

    def attend(self, input: Array, *, forward_mode: bool = False) -> Array:
        """Return x W^T, the head tied to the embedding: (*batch, num_embeddings) of (*batch, embedding_dim)."""
        return MaskedLinear.__call__(self, input, forward_mode=forward_mode)

    def __repr__(self) -> str:
        """Describe sizes and mask."""
        return _described("MaskedEmbedding", self, self.weight)

    @staticmethod
    def _look_up(table: Array, input: Array, **fill: Any) -> Array:
        return jnp.take(table, input, axis=0, **fill)


@jax.tree_util.register_pytree_with_keys_class
class PackedEmbedding(PackedLinear):
    """An embedding whose trainable tokens are a leaf of their own, over a matrix that is a constant.

    As `PackedLinear`: no optimizer can move a frozen entry. For whole tokens (`rows`), and for features of these
    (`submatrix`, `columns`), nothing of the vocabulary's size is computed: the gradient is that of the values.

    Args:
        num_embeddings: As for `MaskedEmbedding`.
        embedding_dim: As for `MaskedEmbedding`.
        padding_idx: As for `MaskedEmbedding`.
        grad_mask: As for `MaskedEmbedding`.
        seed: As for `MaskedEmbedding`.
        key: As for `MaskedEmbedding`.
        dtype: As for `MaskedEmbedding`.
        values_dtype: Dtype of the values: the same (None), or float32 over a 16-bit matrix.

    Raises:
        TypeError, ValueError, IndexError: A wrong argument (contract S10).

    Example:
        >>> from maskedlinear_jax import rows
        >>> layer = PackedEmbedding(4, 2, grad_mask=rows([3]), seed=0)
        >>> loss = lambda values: layer.replace(values=values)(jnp.array([1, 3, 3])).sum()
        >>> jax.grad(loss)(layer.values)
        Array([[2., 2.]], dtype=float32)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        grad_mask: MaskLike,
        seed: int | None = None,
        key: Array | None = None,
        dtype: DTypeLike | None = None,
        values_dtype: DTypeLike | None = None,
    ) -> None:
        plain = _drawn(num_embeddings, embedding_dim, seed, key, dtype)
        mask = _without_padding(grad_mask, plain.weight.shape, padding_idx)
        made = PackedLinear.from_linear(plain, grad_mask=mask, values_dtype=values_dtype)
        self.__dict__.update(made.__dict__)

    @classmethod
    def from_embedding(
        cls,
        embedding: HasWeight,
        *,
        grad_mask: MaskLike,
        values_dtype: DTypeLike | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a packed embedding with the numbers of a plain one.

        Args:
            embedding: A layer with a `weight` (tokens, features), such as `equinox.nn.Embedding`.
            grad_mask: As for the constructor.
            values_dtype: As for the constructor.
            precision: Precision of `attend`, as for `masked_linear`.

        Raises:
            TypeError: `embedding` has no such array.
        """
        return cls.from_linear(
            _Plain(embedding.weight), grad_mask=grad_mask, values_dtype=values_dtype, precision=precision
        )

    def to_embedding(self) -> MaskedEmbedding:
        """Return an embedding with the trained weight, all of which learns."""
        return MaskedEmbedding.from_embedding(self, grad_mask=constructors.columns(slice(None)))

    def to_linear(self) -> MaskedEmbedding:
        """Return the plain embedding, as `to_embedding` does: all layers have this method."""
        return self.to_embedding()

    def __call__(self, input: Array) -> Array:  # type: ignore[override]
        """Return the rows of the tokens: (*batch, embedding_dim) of integers (*batch)."""
        return packed_lookup(self.base, self.values, input, self.grad_mask, self._look_up)

    def attend(self, input: Array, *, forward_mode: bool = False) -> Array:
        """Return x W^T, the head tied to the embedding: (*batch, num_embeddings) of (*batch, embedding_dim)."""
        return PackedLinear.__call__(self, input, forward_mode=forward_mode)

    def __repr__(self) -> str:
        """Describe sizes and mask."""
        return _described("PackedEmbedding", self, self.base_bits)

    @staticmethod
    def _look_up(table: Array, input: Array, **fill: Any) -> Array:
        return jnp.take(table, input, axis=0, **fill)


class _Plain:
    """An array as a layer without a bias."""

    bias = None

    def __init__(self, weight: SupportsArray) -> None:
        self.weight = weight


def masked_lookup(weight: Array, input: Array, mask: masks.Mask, look_up: Any) -> Array:
    """Return rows of a weight of which only masked positions learn.

    Args:
        weight: (tokens, features).
        input: Integers, (*batch).
        mask: Over the weight.
        look_up: Takes rows of a table as the library does it: (table, input).

    Returns:
        (*batch, features).
    """
    check_tokens(input)
    kind = lowering.resolve(mask, (weight.shape[0], weight.shape[1]))
    trains = jnp.asarray(kind.mask(weight))
    trains = trains[0] if trains.shape[0] == 1 and weight.shape[0] != 1 else look_up(trains, input)
    looked_up = look_up(weight, input)
    return jnp.where(trains, looked_up, jax.lax.stop_gradient(looked_up))


def check_tokens(input: Any) -> None:
    """Refuse what are no tokens, which a look-up may take for something else (a list, bools, None)."""
    if not isinstance(input, Array | np.ndarray | np.generic | int):
        call_checks.refuse_array("tokens", input, function="embedding")
    dtype = np.result_type(input) if isinstance(input, int) else input.dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        embedding_checks.refuse_tokens(str(dtype))


def packed_lookup(base: Array, values: Array, input: Array, mask: masks.Mask, look_up: Any) -> Array:
    """Return rows of a constant matrix with values in the places of a mask: see `masked_lookup`."""
    check_tokens(input)
    shape = base.shape[0], base.shape[1]
    kind = lowering.resolve(mask, shape, packed=True)
    if not isinstance(kind, Submatrix):
        return look_up(rule.weight_view(kind, values, base), input)
    rows, columns = kind.rows, kind.columns
    looked_up, values = look_up(base, input), values.astype(base.dtype)
    if values.size == 0:
        return looked_up
    if rows is None:
        return _with_columns(looked_up, look_up(values, input), columns)
    count = rows.shape[0]
    slots = jnp.full(shape[0], count).at[rows].set(jnp.arange(count), mode="drop")
    # A token beyond the table has no slot; where a library takes it for the last one, the look-up does so here too.
    slots = look_up(slots, input, fill_value=count)
    learned = _with_columns(looked_up, values[jnp.clip(slots, 0, count - 1)], columns)
    return jnp.where((slots < count)[..., None], learned, looked_up)


def _drawn(num_embeddings: int, embedding_dim: int, seed: int | None, key: Any, dtype: Any) -> MaskedLinear:
    num_embeddings = module_checks.features("num_embeddings", num_embeddings)
    embedding_dim = module_checks.features("embedding_dim", embedding_dim)
    everything = constructors.columns(slice(None))
    return MaskedLinear(
        embedding_dim, num_embeddings, False, grad_mask=everything, seed=seed, key=key, dtype=dtype
    )  # fmt: skip


def _without_padding(grad_mask: MaskLike, shape: Any, padding_idx: int | None) -> masks.Mask:
    mask = constructors.as_mask(grad_mask)
    mask.canonical(shape)
    return mask if padding_idx is None else (mask & ~constructors.rows([padding_idx])).packed(shape)


def _with_columns(looked_up: Array, values: Array, columns: Array | None) -> Array:
    # Rows that were looked up, with the values of some columns in their places.
    return values if columns is None else looked_up.at[..., columns].set(values, mode="drop")


def _described(name: str, layer: Any, matrix: Any) -> str:
    if not hasattr(matrix, "shape"):
        return f"{name}(...)"
    return f"{name}({layer.out_features}, {layer.in_features}, grad_mask={layer.grad_mask!r})"
