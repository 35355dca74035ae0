"""Masked layers for Equinox models: drop-ins for `equinox.nn.Linear` (contract S8)."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from typing import Any, TypeVar, overload

import jax
from jax import Array
from jax.typing import DTypeLike

from maskedlinear_core import constructors, files
from maskedlinear_core import storage as core_storage
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike, Rename, Source
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.stored import renamed
from maskedlinear_jax import convert, embedding, module, new_tokens, norms, packed_module, storage
from maskedlinear_jax.constant import Constant
from maskedlinear_jax.freeze import assert_frozen as assert_frozen
from maskedlinear_jax.freeze import grad_masks as grad_masks
from maskedlinear_jax.freeze import hold_frozen as hold_frozen
from maskedlinear_jax.freeze import keep_frozen as keep_frozen
from maskedlinear_jax.storage import packed_arrays as packed_arrays
from maskedlinear_jax.storage import packed_bytes as packed_bytes
from maskedlinear_jax.storage import save_packed as save_packed
from maskedlinear_jax.summary import summary as summary

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError("maskedlinear_jax.equinox needs equinox: pip install 'maskedlinear[equinox]'") from error


__all__ = [
    "MaskedEmbedding",
    "MaskedLinear",
    "PackedEmbedding",
    "PackedLinear",
    "assert_frozen",
    "grad_masks",
    "hold_frozen",
    "keep_frozen",
    "load_packed",
    "mask_linears",
    "merged",
    "packed_arrays",
    "packed_bytes",
    "save_packed",
    "summary",
    "train_new_tokens",
    "unmask_linears",
]


def __dir__() -> list[str]:
    return __all__


Model = TypeVar("Model", bound=eqx.Module)
"""A model of any class: what comes back is of it too, but for a layer alone and for lists and dicts of layers."""


@jax.tree_util.register_pytree_with_keys_class
class MaskedLinear(module.MaskedLinear):
    """`maskedlinear_jax.MaskedLinear`, called as Equinox calls its layers.

    Positions are integer leaves: `equinox.partition(model, equinox.is_inexact_array)` and
    `equinox.filter_grad` leave them alone.

    Example:
        >>> from maskedlinear_jax import columns
        >>> linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> layer = MaskedLinear.from_linear(linear, grad_mask=columns([0]))
        >>> eqx.filter_grad(lambda layer: layer(jax.numpy.ones(3)).sum())(layer).weight
        Array([[1., 0., 0.],
               [1., 0., 0.]], dtype=float32)
    """

    def __call__(self, input: Array, *, forward_mode: bool = False, key: Array | None = None) -> Array:
        """Return y of shape (*batch, out_features); `key` is ignored, as by `equinox.nn.Linear`."""
        _refuse_norms(self)
        return super().__call__(input, forward_mode=forward_mode)

    def to_linear(self) -> eqx.nn.Linear:  # type: ignore[override]
        """Return an `equinox.nn.Linear` around the very arrays of this layer."""
        return _plain(self)


@jax.tree_util.register_pytree_with_keys_class
class PackedLinear(packed_module.PackedLinear):
    """`maskedlinear_jax.PackedLinear`, called as Equinox calls its layers.

    The matrix and the positions are integer leaves: `equinox.is_inexact_array` selects the values and the bias.

    Example:
        >>> from maskedlinear_jax import columns
        >>> linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> layer = PackedLinear.from_linear(linear, grad_mask=columns([0]))
        >>> [leaf.shape for leaf in jax.tree.leaves(eqx.filter(layer, eqx.is_inexact_array))]
        [(2, 1), (2,)]
    """

    def __call__(self, input: Array, *, forward_mode: bool = False, key: Array | None = None) -> Array:
        """Return y of shape (*batch, out_features); `key` is ignored, as by `equinox.nn.Linear`."""
        _refuse_norms(self)
        return super().__call__(input, forward_mode=forward_mode)

    @property
    def weight(self) -> Array:
        """The whole weight (out_features, in_features)."""
        _refuse_norms(self)
        return super().weight

    def to_linear(self) -> eqx.nn.Linear:  # type: ignore[override]
        """Return an `equinox.nn.Linear` with the trained weight."""
        return _plain(self)


@jax.tree_util.register_pytree_with_keys_class
class MaskedEmbedding(embedding.MaskedEmbedding):
    """`maskedlinear_jax.MaskedEmbedding`, called as Equinox calls its embeddings.

    Example:
        >>> from maskedlinear_jax import rows
        >>> plain = eqx.nn.Embedding(4, 2, key=jax.random.key(0))
        >>> layer = MaskedEmbedding.from_embedding(plain, grad_mask=rows([3]))
        >>> tokens = jax.numpy.array([1, 3])
        >>> eqx.filter_grad(lambda layer: jax.vmap(layer)(tokens).sum())(layer).weight.tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """

    def __call__(self, input: Array, *, key: Array | None = None) -> Array:  # type: ignore[override]
        """Return the row of a token; `key` is ignored, as by `equinox.nn.Embedding`."""
        _refuse_norms(self)
        return super().__call__(input)

    def to_embedding(self) -> eqx.nn.Embedding:  # type: ignore[override]
        """Return an `equinox.nn.Embedding` around the very array of this layer."""
        return eqx.nn.Embedding(weight=self.weight)

    @staticmethod
    def _look_up(table: Array, input: Array, **fill: Any) -> Array:
        return jax.numpy.asarray(table)[input]  # as equinox.nn.Embedding: beyond the table is the last row


@jax.tree_util.register_pytree_with_keys_class
class PackedEmbedding(embedding.PackedEmbedding):
    """`maskedlinear_jax.PackedEmbedding`, called as Equinox calls its embeddings.

    Example:
        >>> from maskedlinear_jax import rows
        >>> plain = eqx.nn.Embedding(4, 2, key=jax.random.key(0))
        >>> layer = PackedEmbedding.from_embedding(plain, grad_mask=rows([3]))
        >>> layer.values.shape, bool((layer(3) == plain(3)).all())
        ((1, 2), True)
    """

    def __call__(self, input: Array, *, key: Array | None = None) -> Array:  # type: ignore[override]
        """Return the row of a token; `key` is ignored, as by `equinox.nn.Embedding`."""
        _refuse_norms(self)
        return super().__call__(input)

    @property
    def weight(self) -> Array:
        """The whole weight (num_embeddings, embedding_dim)."""
        _refuse_norms(self)
        return super().weight

    def to_embedding(self) -> eqx.nn.Embedding:  # type: ignore[override]
        """Return an `equinox.nn.Embedding` with the trained weight."""
        return eqx.nn.Embedding(weight=self.weight)

    @staticmethod
    def _look_up(table: Array, input: Array, **fill: Any) -> Array:
        return jax.numpy.asarray(table)[input]


@overload
def mask_linears(
    model: eqx.nn.Linear | eqx.nn.Embedding, masks: Mapping[str, MaskLike], *, packed: bool = ...,
    bias_masks: Mapping[str, BiasMaskLike] | None = ..., freeze_others: bool = ...,
    strict: bool = ..., values_dtype: DTypeLike | None = ..., precision: PrecisionLike = ...,
) -> Any: ...  # fmt: skip
@overload
def mask_linears(
    model: Model, masks: Mapping[str, MaskLike], *, packed: bool = ...,
    bias_masks: Mapping[str, BiasMaskLike] | None = ..., freeze_others: bool = ...,
    strict: bool = ..., values_dtype: DTypeLike | None = ..., precision: PrecisionLike = ...,
) -> Model: ...  # fmt: skip
@overload
def mask_linears(
    model: Any, masks: Mapping[str, MaskLike], *, packed: bool = ...,
    bias_masks: Mapping[str, BiasMaskLike] | None = ..., freeze_others: bool = ...,
    strict: bool = ..., values_dtype: DTypeLike | None = ..., precision: PrecisionLike = ...,
) -> Any: ...  # fmt: skip
def mask_linears(
    model: Any,
    masks: Mapping[str, MaskLike],
    *,
    packed: bool = False,
    bias_masks: Mapping[str, BiasMaskLike] | None = None,
    freeze_others: bool = False,
    strict: bool = False,
    values_dtype: DTypeLike | None = None,
    precision: PrecisionLike = "native",
) -> Any:
    """Return an Equinox model whose `equinox.nn.Linear` layers are masked ones.

    As `maskedlinear_jax.mask_linears`; names are dotted paths, e.g. "layers.0".

    Raises:
        TypeError, ValueError, IndexError: As there; a layer with "scalar" features is refused.

    Example:
        >>> from maskedlinear_jax import columns
        >>> model = eqx.nn.MLP(4, 2, 8, depth=1, key=jax.random.key(0))
        >>> mask_linears(model, {"layers.0": columns([1])}).layers[0]
        MaskedLinear(in_features=4, out_features=8, bias=True, grad_mask=columns([1]))
    """
    if convert.is_from(model, "flax"):
        convert_checks.refuse_model("an Equinox model", model, "maskedlinear_jax.nnx.mask_linears")
    ties, follow = _shared(model)
    # A norm that is frozen is a constant as a whole, and no layer inside of it could learn.
    computed = _computed(model, whole=freeze_others)
    converted = convert.convert(
        _open(model), masks, _ADAPTER, packed=packed, bias_masks=bias_masks, freeze_others=freeze_others,
        strict=strict, values_dtype=values_dtype, precision=precision, ties=ties, follow=follow,
        check=lambda name: convert_checks.refuse_computed(name, remedy=_UNNORMED) if name in computed else None,
    )  # fmt: skip
    if freeze_others:  # a norm computes with its layer's weight: as a whole it is a constant
        normed = iter([node for node in jax.tree.leaves(model, is_leaf=_is_norm) if _is_norm(node)])
        whole = lambda node: Constant(next(normed)) if _is_norm(node) else node  # noqa: E731
        converted = jax.tree.map(whole, converted, is_leaf=_is_norm)
    return _close(converted)


@overload
def train_new_tokens(
    model: eqx.nn.Embedding, *, first: int, embedding: str | None = ..., packed: bool = ..., freeze_others: bool = ...
) -> Any: ...
@overload
def train_new_tokens(
    model: Model, *, first: int, embedding: str | None = ..., packed: bool = ..., freeze_others: bool = ...
) -> Model: ...
@overload
def train_new_tokens(
    model: Any, *, first: int, embedding: str | None = ..., packed: bool = ..., freeze_others: bool = ...
) -> Any: ...
def train_new_tokens(
    model: Any, *, first: int, embedding: str | None = None, packed: bool = True, freeze_others: bool = True
) -> Any:
    """Return an Equinox model of whose tokens the new ones learn: see `maskedlinear_jax.train_new_tokens`.

    A head that `equinox.nn.Shared` ties to the embedding stays tied.

    Example:
        >>> model = train_new_tokens({"tokens": eqx.nn.Embedding(6, 4, key=jax.random.key(0))}, first=4)
        >>> model["tokens"].values.shape
        (2, 4)
    """
    masks = new_tokens.new_tokens(convert.embeddings(_open(model), _ADAPTER), first, embedding)
    ties, _ = _shared(model)
    masks |= {other: mask for name, mask in masks.items() for other in ties.get(name, [])}
    return mask_linears(model, masks, packed=packed, freeze_others=freeze_others)


@overload
def unmask_linears(model: Model) -> Model: ...
@overload
def unmask_linears(model: Any) -> Any: ...
def unmask_linears(model: Any) -> Any:
    """Return an Equinox model whose masked layers are `equinox.nn.Linear` with the trained weights."""
    return _close(convert.unmask_linears(_open(model)))


@overload
def merged(model: Model) -> Model: ...
@overload
def merged(model: Any) -> Any: ...
def merged(model: Any) -> Any:
    """Return an Equinox model for inference: each packed layer is an `equinox.nn.Linear` with the trained weight.

    As `maskedlinear_jax.merged`; a packed embedding becomes an `equinox.nn.Embedding`. `equinox.nn.Linear` adds up W x
    in an order of its own, so the last bits of its output may differ from the packed layer's.

    Raises:
        TypeError: A model of Flax.

    Example:
        >>> from maskedlinear_jax import columns
        >>> model = eqx.nn.MLP(4, 2, 8, depth=1, key=jax.random.key(0))
        >>> model = mask_linears(model, {"layers.0": columns([1])}, packed=True)
        >>> x = jax.numpy.ones(4)
        >>> type(merged(model).layers[0]).__name__, bool(jax.numpy.allclose(merged(model)(x), model(x)))
        ('Linear', True)
    """
    if convert.is_from(model, "flax"):
        convert_checks.refuse_model("an Equinox model", model, "maskedlinear_jax.nnx.merged", "merged")
    return _close(convert.merge(_open(model)))


@overload
def load_packed(path: Source, model: None = ..., *, rename: Rename = ...) -> dict[str, Any]: ...
@overload
def load_packed(path: Source, model: eqx.nn.Linear | eqx.nn.Embedding, *, rename: Rename = ...) -> Any: ...
@overload
def load_packed(path: Source, model: Model, *, rename: Rename = ...) -> Model: ...
@overload
def load_packed(path: Source, model: Any, *, rename: Rename = ...) -> Any: ...
def load_packed(path: Source, model: Any = None, *, rename: Rename = None) -> Any:
    """Return a model with everything that was stored, over the weights it was trained on.

    As `maskedlinear_jax.load_packed`; an `equinox.nn.Linear` of a stored name becomes a masked layer.

    Raises:
        StorageError, OSError: As there.

    Example:
        >>> import tempfile
        >>> from maskedlinear_jax import columns
        >>> plain = eqx.nn.MLP(4, 2, 8, depth=1, key=jax.random.key(0))
        >>> trained = mask_linears(plain, {"layers.0": columns([1])}, packed=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_packed(f"{folder}/model.safetensors", trained)
        ...     load_packed(f"{folder}/model.safetensors", plain).layers[0]
        PackedLinear(in_features=4, out_features=8, bias=True, grad_mask=columns([1]))
    """
    if model is None or isinstance(path, Mapping):
        return storage.load_packed(path, model, rename=rename)
    data = files.read(path)
    stored = renamed(core_storage.from_bytes(data), rename).layers
    for form in ("masked", "packed"):
        # Layers of which nothing learns, for the stored ones to take the place of.
        names = {name for name, layer in stored.items() if layer.form == form}
        plain = names & convert.plain_layers(model, _ADAPTER).keys()
        nothing: dict[str, Any] = {glob.escape(name): constructors.columns([]) for name in plain}
        ties, _ = _shared(model)
        for name in plain & ties.keys():  # those that get its weight have its mask, and are in no file
            nothing |= {glob.escape(one): stored[name].mask for one in (name, *ties[name])}
        model = mask_linears(model, nothing, packed=form == "packed") if nothing else model
    return storage.load(data, model, rename, _ADAPTER.forms)


_COMPUTES = (eqx.nn.WeightNorm, eqx.nn.SpectralNorm)
"""What computes a layer's weight anew in each forward."""

_UNNORMED = "take the layer out of equinox.nn.WeightNorm or equinox.nn.SpectralNorm first"

_NORMS = norms.codes_of(one for norm in _COMPUTES for one in (norm.__init__, norm.__call__))


def _refuse_norms(layer: Any) -> None:
    def is_normed(variables: dict[str, Any]) -> bool:
        # A norm is of the layer that it is put over; those inside of that one keep their weights.
        return isinstance(variables.get("layer", getattr(variables.get("self"), "layer", None)), type(layer))

    norms.refuse_inside(_NORMS, layer, "weight", _UNNORMED, is_normed)


def _is_norm(node: Any) -> bool:
    return isinstance(node, _COMPUTES)


def _computed(model: Any, *, whole: bool) -> set[str]:
    # The names of the layers that norms are put over, or of all inside of norms.
    def name_of(*path: Any) -> str:
        return jax.tree_util.keystr(path, simple=True, separator=".")

    def ends(node: Any) -> bool:
        return _is_part(node) or (not whole and _is_norm(node))

    found: set[str] = set()
    for path, norm in jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_norm):
        if not _is_norm(norm):
            continue
        over = (*path, jax.tree_util.GetAttrKey("layer"))
        for inner, node in jax.tree_util.tree_leaves_with_path(norm.layer, is_leaf=ends):
            if whole or not inner:
                found.add(name_of(*over, *inner))
            if not whole and _is_norm(node):
                found |= {f"{name_of(*over, *inner)}.{name}" for name in _computed(node, whole=False)}
    return found


class _Opened(eqx.Module):
    """A `equinox.nn.Shared` with the shared weight in all of its places."""

    pytree: Any
    where: Any = eqx.field(static=True)
    get: Any = eqx.field(static=True)


def _open(model: Any) -> Any:
    def is_shared(node: Any) -> bool:
        return isinstance(node, eqx.nn.Shared)

    def opened(node: Any) -> Any:
        return _Opened(node(), node.where, node.get) if is_shared(node) else node

    return jax.tree.map(opened, model, is_leaf=is_shared)


def _close(model: Any) -> Any:
    def is_opened(node: Any) -> bool:
        return isinstance(node, _Opened)

    def closed(node: Any) -> Any:
        return eqx.nn.Shared(node.pytree, node.where, node.get) if is_opened(node) else node

    return jax.tree.map(closed, model, is_leaf=is_opened)


def _shared(model: Any) -> tuple[dict[str, list[str]], set[str]]:
    # The layers that share a weight by `equinox.nn.Shared`, each with the others, and those that get it.
    holders: dict[int, list[str]] = {}
    opened = []  # kept while arrays are told apart by their identity
    follow: set[str] = set()
    groups: list[list[str]] = []
    nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, eqx.nn.Shared))
    for path, node in nodes:
        if not isinstance(node, eqx.nn.Shared):
            continue
        opened.append(node())
        packed, mine = [], []
        for tree, seen in ((opened[-1], True), (node.pytree, False)):
            for inner, layer in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_part):
                name = jax.tree_util.keystr(
                    (*path, jax.tree_util.GetAttrKey("pytree"), *inner), simple=True, separator="."
                )
                weight = getattr(layer, "weight", None) if _is_part(layer) else None
                if seen and weight is not None:
                    holders.setdefault(id(weight), []).append(name)
                elif type(weight).__name__ == "SharedNode":
                    mine.append(name)
                elif isinstance(layer, PackedLinear | PackedEmbedding):
                    packed.append(name)  # whose weight is made anew in each place
        follow.update(mine)
        groups += [packed + mine] if packed else []
    groups += [names for names in holders.values() if len(names) > 1]
    return {name: [one for one in names if one != name] for names in groups for name in names}, follow


def _is_part(node: Any) -> bool:
    own = MaskedLinear | PackedLinear | MaskedEmbedding | PackedEmbedding
    return isinstance(node, eqx.nn.Linear | eqx.nn.Embedding | own)


def _is_linear(node: Any) -> bool:
    return isinstance(node, eqx.nn.Linear)


def _check_linear(name: str, linear: Any) -> None:
    if type(linear) is not eqx.nn.Linear:
        convert_checks.refuse_subclass(name, linear)
    if "scalar" in (linear.in_features, linear.out_features):
        convert_checks.refuse_option(
            name, "an equinox.nn.Linear", '"scalar" features', "give it features as numbers, or leave it out"
        )
    convert_checks.not_stacked(name, linear.weight.ndim, 2)


def _is_embedding(node: Any) -> bool:
    return isinstance(node, eqx.nn.Embedding)


def _check_embedding(name: str, layer: Any) -> None:
    if type(layer) is not eqx.nn.Embedding:
        convert_checks.refuse_subclass(name, layer, expected="an equinox.nn.Embedding")
    convert_checks.not_stacked(name, layer.weight.ndim, 2)


def _shape(linear: Any) -> tuple[int, int]:
    return linear.weight.shape[0], linear.weight.shape[1]


def _is_whole(node: Any) -> bool:
    # These hand their arrays to jax.lax, which takes nothing else.
    return isinstance(node, eqx.nn.Conv | eqx.nn.ConvTranspose)


def _plain(layer: Any) -> Any:
    shape = layer.in_features, layer.out_features
    empty = eqx.filter_eval_shape(eqx.nn.Linear, *shape, use_bias=layer.bias is not None, key=jax.random.key(0))
    linear = eqx.tree_at(lambda linear: linear.weight, empty, layer.weight)
    return linear if layer.bias is None else eqx.tree_at(lambda linear: linear.bias, linear, layer.bias)


_ADAPTER = convert.Adapter(
    (
        convert.Form(_is_linear, _check_linear, _shape, MaskedLinear, PackedLinear),
        convert.Form(_is_embedding, _check_embedding, _shape, MaskedEmbedding, PackedEmbedding, is_embedding=True),
    ),
    _is_whole,
)
