"""Embeddings of which only chosen tokens learn, the head tied to them, and the rows of new tokens (contract S13).

An embedding is a linear map of one-hot vectors: y = E W. Since E picks rows, E where(M, W, W.detach()) is
where(E M, E W, (E W).detach()): the rows are looked up first and masked then, and the framework derives every
derivative from that.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device as DeviceLike

from maskedlinear_core import constructors, initial, masks
from maskedlinear_core.annotations import MaskLike, PrecisionLike
from maskedlinear_core.arrays import dtype_name
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import embedding as embedding_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.precision import as_precision
from maskedlinear_torch import _compat, beside, rule, steps
from maskedlinear_torch.engine_choice import choose
from maskedlinear_torch.functional import _autocast, _check, check_matrix
from maskedlinear_torch.held_module import call_in_graph
from maskedlinear_torch.kinds import Submatrix
from maskedlinear_torch.module import Layer, MaskedLinear
from maskedlinear_torch.own_parameters import OwnParameters
from maskedlinear_torch.packed_module import PackedLinear
from maskedlinear_torch.tensors import plain as plain_tensor


class MaskedEmbedding(Layer, nn.Embedding):
    """A `torch.nn.Embedding` of which only the masked positions learn: rows are tokens.

    The weight is a full parameter with a masked gradient, as in `MaskedLinear`; `attend` is the head tied to it.

    Args:
        num_embeddings: How many tokens.
        embedding_dim: How many features each token has.
        padding_idx: A token that never learns, whatever the mask says.
        grad_mask: Over the weight (num_embeddings, embedding_dim), e.g. `rows(new_tokens)`. True = the gradient flows.
        seed: Draw the initial values with NumPy: the same bits as the JAX twin. None: torch's default.
        device: Device of the parameter and positions.
        dtype: float32, float64, bfloat16 or float16; None = torch's default dtype.

    Raises:
        TypeError, ValueError, IndexError: A wrong argument (contract S10).

    Example:
        >>> from maskedlinear_torch import rows
        >>> layer = MaskedEmbedding(4, 2, grad_mask=rows([3]), seed=0)
        >>> layer(torch.tensor([1, 3, 3])).sum().backward()
        >>> layer.weight.grad.tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 2.0]]
    """

    weight: Tensor
    bias: None
    # No subclass of MaskedLinear: what looks for linear layers (PEFT) would take it for one.
    grad_mask = MaskedLinear.grad_mask
    _home = MaskedLinear._home

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        grad_mask: MaskLike,
        seed: int | None = None,
        device: DeviceLike | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        plain = _drawn(num_embeddings, embedding_dim, padding_idx, seed, device, dtype)
        self._take_embedding(plain, _without_padding(grad_mask, plain))

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, *, grad_mask: MaskLike, precision: PrecisionLike = "native"
    ) -> Self:
        """Return a masked embedding around the very parameter of a plain one.

        Args:
            embedding: The layer; not sparse, without max_norm.
            grad_mask: As for the constructor.
            precision: Precision of `attend`, as for `masked_linear`.

        Raises:
            TypeError: `embedding` is no `torch.nn.Embedding`, or one with an option that no mask goes with.
        """
        check("from_embedding", embedding, packed=False)
        layer = cls.__new__(cls)
        layer._take_embedding(embedding, _without_padding(grad_mask, embedding))
        layer.precision = as_precision(precision)
        beside.take(layer, embedding)
        return layer.train(embedding.training)

    def to_embedding(self) -> nn.Embedding:
        """Return a plain embedding around the very parameter of this one."""
        plain = nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq, device="meta",
        )  # fmt: skip
        plain.weight = self.weight
        beside.take(plain, self)
        steps.unmasked.add(plain)
        return plain.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the tokens: (*batch, embedding_dim) of integers (*batch)."""
        if isinstance(input, torch.fx.Proxy):
            return call_in_graph(self, input)
        weight = self._read("weight")
        if _compat.is_distributed(weight) or getattr(input, "is_nested", False):
            view = rule.weight_view(rule.placed(self._positions(), weight), weight)
            looked_up = F.embedding(input, view, scale_grad_by_freq=self.scale_grad_by_freq)
            return _compat.summed(looked_up) if _compat.is_distributed(weight) else looked_up
        looked_up = F.embedding(input, weight, scale_grad_by_freq=self.scale_grad_by_freq)
        if not _compat.in_transform() and not (weight.requires_grad and torch.is_grad_enabled()):
            return looked_up
        trains = self._positions().mask(weight)
        trains = trains[0] if trains.shape[0] == 1 else trains[input]
        return torch.where(trains, looked_up, looked_up.detach())

    def attend(self, input: Tensor) -> Tensor:
        """Return x W^T, the head tied to the embedding: (*batch, num_embeddings) of (*batch, embedding_dim)."""
        return MaskedLinear.forward(self, input)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Describe sizes and mask."""
        return _described(self)

    def _take_embedding(self, plain: nn.Embedding, mask: masks.Mask) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.embedding_dim, plain.num_embeddings
        for name in ("num_embeddings", "embedding_dim", "padding_idx", "scale_grad_by_freq", "max_norm", "norm_type",
                     "sparse"):  # fmt: skip
            setattr(self, name, getattr(plain, name))
        self.weight = plain.weight
        self.register_parameter("bias", None)
        self._set_masks(mask, None)


class PackedEmbedding(PackedLinear):
    """A `torch.nn.Embedding` whose trainable tokens are a parameter of their own, over a matrix that is a constant.

    As `PackedLinear`: no optimizer can move a frozen entry. For whole tokens (`rows`), and for features of these
    (`submatrix`, `columns`), nothing of the vocabulary's size is computed: the gradient is that of the values.

    Args:
        num_embeddings: As for `MaskedEmbedding`.
        embedding_dim: As for `MaskedEmbedding`.
        padding_idx: As for `MaskedEmbedding`.
        grad_mask: As for `MaskedEmbedding`.
        seed: As for `MaskedEmbedding`.
        device: Device of the parameters and positions.
        dtype: As for `MaskedEmbedding`.
        values_dtype: Dtype of the values: the same (None), or float32 over a 16-bit matrix.

    Raises:
        TypeError, ValueError, IndexError: A wrong argument (contract S10).

    Example:
        >>> from maskedlinear_torch import rows
        >>> layer = PackedEmbedding(4, 2, grad_mask=rows([3]), seed=0)
        >>> layer(torch.tensor([1, 3, 3])).sum().backward()
        >>> layer.values.grad
        tensor([[2., 2.]])
    """

    padding_idx: int | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        grad_mask: MaskLike,
        seed: int | None = None,
        device: DeviceLike | None = None,
        dtype: torch.dtype | None = None,
        values_dtype: torch.dtype | None = None,
    ) -> None:
        plain = _drawn(num_embeddings, embedding_dim, padding_idx, seed, device, dtype)
        nn.Module.__init__(self)
        self._take_embedding(plain, grad_mask, values_dtype)

    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        *,
        grad_mask: MaskLike,
        values_dtype: torch.dtype | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a packed embedding over the memory of a plain one, which is not to be trained any more.

        Args:
            embedding: The layer; not sparse, without max_norm and scale_grad_by_freq. Or a `MaskedEmbedding`.
            grad_mask: As for the constructor.
            values_dtype: As for the constructor.
            precision: Precision of `attend`, as for `masked_linear`.

        Raises:
            TypeError: `embedding` is no `torch.nn.Embedding`, or one with an option that no mask goes with.
        """
        check("from_embedding", embedding, packed=True)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take_embedding(embedding, grad_mask, values_dtype)
        layer.precision = as_precision(precision)
        beside.take(layer, embedding)
        return layer.train(embedding.training)

    def to_embedding(self) -> nn.Embedding:
        """Return a plain embedding with the trained weight."""
        plain = nn.Embedding(self.out_features, self.in_features, self.padding_idx, device="meta")
        plain.weight = nn.Parameter(self.weight.detach().clone())
        beside.take(plain, self)
        steps.unmasked.add(plain)
        return plain.train(self.training)

    @property
    def num_embeddings(self) -> int:
        """How many tokens there are."""
        return self.out_features

    @property
    def embedding_dim(self) -> int:
        """How many features each token has."""
        return self.in_features

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the tokens: (*batch, embedding_dim) of integers (*batch)."""
        if isinstance(input, torch.fx.Proxy):
            return call_in_graph(self, input)
        steps.check_ddp(self)
        kind, base = self._positions(), plain_tensor(self.base).detach()
        if not isinstance(kind, Submatrix) or _compat.is_distributed(base) or getattr(input, "is_nested", False):
            kind = rule.placed(kind, base)
            looked_up = F.embedding(input, rule.weight_view(kind, self.values, base))
            return _compat.summed(looked_up) if _compat.is_distributed(base) else looked_up
        rows, columns = kind.rows, kind.columns
        looked_up, values = F.embedding(input, base), self.values.to(base.dtype)
        if values.numel() == 0:
            return looked_up
        if rows is None:
            return _with_columns(looked_up, F.embedding(input, values), columns)
        count = rows.shape[0]
        numbers = torch.arange(count, device=rows.device)
        slots = torch.full((self.out_features,), count, device=rows.device).index_copy(0, rows, numbers)[input]
        learned = _with_columns(looked_up, F.embedding(slots.clamp(max=count - 1), values), columns)
        return torch.where((slots < count)[..., None], learned, looked_up)

    def attend(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b, the head tied to the embedding: (*batch, num_embeddings) of (*batch, embedding_dim)."""
        input, base, bias = _autocast(input, plain_tensor(self.base), bias)
        _check("packed_linear", input, base, bias)
        products = choose(self._precision, "packed_linear", input, base)
        return rule.masked(self._positions(), input, base, bias, None, self.values, products)

    def extra_repr(self) -> str:
        """Describe sizes and mask."""
        return _described(self)

    def _take_embedding(self, plain: nn.Embedding, grad_mask: MaskLike, values_dtype: torch.dtype | None) -> None:
        linear = nn.Linear(plain.embedding_dim, plain.num_embeddings, bias=False, device="meta")
        linear.weight = plain.weight
        self.padding_idx = plain.padding_idx
        self._take_over(linear, _without_padding(grad_mask, plain), None, values_dtype)


class TiedHead(nn.Module):
    """The linear layer whose weight is that of a packed embedding: one matrix, one set of values, one mask.

    It holds no parameter but the bias. Its weight in the state_dict is the embedding's.
    """

    bias: nn.Parameter | None

    def __init__(self, embedding: PackedEmbedding, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.__dict__["_parameters"] = OwnParameters("TiedHead", ("weight",), self._parameters)
        self._embedding = (embedding,)  # in a tuple, so that it is no child of this module too
        self.bias = bias

    @property
    def embedding(self) -> PackedEmbedding:
        """The embedding whose weight this is."""
        return self._embedding[0]

    @property
    def weight(self) -> Tensor:
        """The weight of the embedding, with the values in their places."""
        return self._embedding[0].weight

    @weight.setter
    def weight(self, weight: Tensor) -> None:
        # Libraries tie weights anew at times: no more than that is allowed.
        if not torch.equal(weight, self.weight):
            embedding_checks.refuse_assignment()

    def forward(self, input: Tensor) -> Tensor:
        """Return y of shape (*batch, tokens) for x of shape (*batch, features)."""
        if isinstance(input, torch.fx.Proxy):
            return call_in_graph(self, input)
        return self._embedding[0].attend(input, self.bias)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; another weight, and one from which it would be computed, are refused."""
        if name == "weight":
            embedding_checks.refuse_assignment()
        if isinstance(self._parameters, OwnParameters):
            self._parameters.check(name)
        super().register_parameter(name, param)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute; the weight is the embedding's, and stays."""
        if name == "weight":
            packed_checks.refuse_computed("TiedHead", name)
        super().__delattr__(name)

    def extra_repr(self) -> str:
        """Describe sizes and mask."""
        return f"{_described(self._embedding[0])}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        own = {name: value for name, value in state_dict.items() if name != prefix + "weight"}
        super()._load_from_state_dict(own, prefix, *rest)


def check(name: str, embedding: Any, *, packed: bool) -> None:
    """Refuse what is no plain embedding, and options that move or count whole rows of the weight."""
    if type(embedding) not in (nn.Embedding, MaskedEmbedding):
        convert_checks.refuse_subclass(name, embedding, expected="a torch.nn.Embedding")
    if embedding.max_norm is not None:
        embedding_checks.refuse_max_norm(name)
    if embedding.sparse:
        embedding_checks.refuse_sparse(name)
    if packed and embedding.scale_grad_by_freq:
        embedding_checks.refuse_scaled(name)
    if not isinstance(embedding.weight, nn.Parameter):
        convert_checks.refuse_subclass(name, embedding, expected="an embedding whose weight is a parameter")
    module_checks.float_dtype(dtype_name(embedding.weight))
    check_matrix("from_embedding", embedding.weight)


def _drawn(
    num_embeddings: int, embedding_dim: int, padding_idx: int | None, seed: int | None, device: Any, dtype: Any
) -> nn.Embedding:
    num_embeddings = module_checks.features("num_embeddings", num_embeddings)
    embedding_dim = module_checks.features("embedding_dim", embedding_dim)
    module_checks.float_dtype(str(torch.get_default_dtype() if dtype is None else dtype).removeprefix("torch."))
    plain = nn.Embedding(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
    if seed is not None:
        weight, _ = initial.parameters(
            num_embeddings, embedding_dim, False, bound=initial.linear_bound(embedding_dim),
            seed=module_checks.seed(seed), dtype=dtype_name(plain.weight),
        )  # fmt: skip
        with torch.no_grad():
            plain.weight.copy_(torch.from_numpy(weight))
    return plain


def _without_padding(grad_mask: MaskLike, plain: nn.Embedding) -> masks.Mask:
    mask = constructors.as_mask(grad_mask)
    shape = plain.num_embeddings, plain.embedding_dim
    mask.canonical(shape)
    if plain.padding_idx is None:
        return mask
    return (mask & ~constructors.rows([plain.padding_idx])).packed(shape)


def _with_columns(looked_up: Tensor, values: Tensor, columns: Tensor | None) -> Tensor:
    # Rows that were looked up, with the values of some columns in their places.
    if columns is None:
        return values
    width = looked_up.shape[-1]
    numbers = torch.arange(columns.shape[0], device=columns.device)
    slots = torch.full((width,), columns.shape[0], device=columns.device).index_copy(0, columns, numbers)
    spread = values[..., slots.clamp(max=max(columns.shape[0] - 1, 0))]
    return torch.where(slots < columns.shape[0], spread, looked_up)


def _described(layer: Any) -> str:
    padding = "" if layer.padding_idx is None else f", padding_idx={layer.padding_idx}"
    return f"{layer.out_features}, {layer.in_features}{padding}, grad_mask={layer.grad_mask!r}"
