"""Whole models: their linear layers and embeddings become masked ones, and plain ones again (contract S8, S13)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from maskedlinear_core import constructors, masks, patterns
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.patterns import Part
from maskedlinear_core.precision import Native, as_precision
from maskedlinear_jax.bits import as_bits
from maskedlinear_jax.constant import Constant, is_float
from maskedlinear_jax.embedding import MaskedEmbedding, PackedEmbedding
from maskedlinear_jax.module import MaskedLinear
from maskedlinear_jax.packed_module import PackedLinear
from maskedlinear_jax.stacked import depth


class Form(NamedTuple):
    """How the plain layers of one class are read, and what replaces them.

    Attributes:
        is_layer: Tells the layers, and those of subclasses.
        check: Takes a name and such a layer; raises if it cannot be converted.
        shape: Shape of a layer's weight (out_features, in_features).
        masked: The class that replaces it; has `from_linear` and `to_linear`.
        packed: The same in packed form.
        is_embedding: Whether it is an embedding.
    """

    is_layer: Callable[[Any], bool]
    check: Callable[[str, Any], None]
    shape: Callable[[Any], tuple[int, int]]
    masked: Any
    packed: Any
    is_embedding: bool = False


class Adapter(NamedTuple):
    """The layers of a library.

    Attributes:
        forms: Its layers that can be masked.
        is_whole: Tells the parts of a model that only take arrays, so that they become a `Constant` as a whole.
    """

    forms: tuple[Form, ...]
    is_whole: Callable[[Any], bool] = lambda node: False


@dataclass(frozen=True)
class _Options:
    packed: bool
    values_dtype: Any
    precision: Any


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
    """Return a pytree model whose linear layers are masked ones. The outputs stay the same, bit for bit.

    For models of this package's layers; `maskedlinear_jax.equinox` and `maskedlinear_jax.nnx` have it for these
    libraries. A layer that is masked already gets the new mask and keeps its form. A weight that stands in two
    places is refused.

    Args:
        model: A pytree with layers of which all learns (see `MaskedLinear.to_linear`).
        masks: By pattern of the layer's dotted path (`fnmatch`): a mask, a bool array, or a callable(name, linear)
            that returns one, or None to leave the layer as it is. The first pattern that matches counts.
        packed: Make `PackedLinear` layers instead of `MaskedLinear`.
        bias_masks: By pattern, of the layers that get a mask: a bool vector (out_features,).
        freeze_others: Make everything else constant: other linear layers become packed ones of which nothing learns,
            every other float array a `Constant`, and a bias learns only where `bias_masks` says so.
        strict: Refuse every layer that a pattern matches and that cannot be converted. By default only a pattern
            without wildcards does; what a wildcard leaves is listed by a `LeftOut` warning.
        values_dtype: Dtype of packed values; None = the weight's.
        precision: Precision of the masked layers, as for `masked_linear`.

    Returns:
        The new model; the old one is untouched. `repack_state` takes the state of its optimizer along.

    Raises:
        TypeError: No mask, or a model of another library.
        ValueError: A pattern that matches nothing, a mask that does not fit, or a tied weight.
        IndexError: A position outside of a weight.

    Example:
        >>> from maskedlinear_jax import columns
        >>> model = {"in": MaskedLinear(4, 3, grad_mask=columns([]), seed=0).to_linear()}
        >>> mask_linears(model, {"in": columns([1])}, packed=True)
        {'in': PackedLinear(in_features=4, out_features=3, bias=True, grad_mask=columns([1]))}
    """
    return convert(
        model, masks, OWN, packed=packed, bias_masks=bias_masks, freeze_others=freeze_others, strict=strict,
        values_dtype=values_dtype, precision=precision,
    )  # fmt: skip


def unmask_linears(model: Any) -> Any:
    """Return a pytree model whose masked layers are plain ones with the trained weights.

    What `freeze_others` made constant is as it was before, too.

    Args:
        model: Any pytree.

    Example:
        >>> from maskedlinear_jax import columns
        >>> unmask_linears([PackedLinear(4, 3, grad_mask=columns([1]), seed=0)])
        [MaskedLinear(in_features=4, out_features=3, bias=True, grad_mask=columns(slice(None, None, None)))]
    """

    def plain(path: Any, node: Any) -> Any:
        if isinstance(node, Constant):
            return node.value
        if _is_layer(node) and _has_own_call(node):
            convert_checks.refuse_own_forward(_name(path), node)
        if _is_layer(node):
            convert_checks.one_layer("unmask_linears", _name(path), depth(node))
        return node.to_linear() if _is_layer(node) else node

    not_of_flax(model, "unmask_linears")
    stops = lambda node: _is_layer(node) or isinstance(node, Constant)  # noqa: E731
    return jax.tree_util.tree_map_with_path(plain, model, is_leaf=stops)


def merged(model: Any) -> Any:
    """Return a pytree model for inference: each packed layer is a plain one with the trained weight.

    A packed layer writes its values into a copy of its matrix in each call. This makes the copy once, so that a
    forward costs what the plain layer's does, with the same bits. The model itself is unchanged: go on training that
    one, and merge it anew. Layers of reproducible precision stay as they are: their copy is little beside the rest.

    Args:
        model: Any pytree; the adapters have this function for their libraries.

    Raises:
        TypeError: A model of Equinox, Flax or torch.

    Example:
        >>> import jax.numpy as jnp
        >>> from maskedlinear_jax import columns
        >>> layer = PackedLinear(4, 3, grad_mask=columns([1]), seed=0)
        >>> bool((merged(layer)(jnp.ones(4)) == layer(jnp.ones(4))).all())
        True
    """
    _check_library(model, "merged")
    return merge(model)


def merge(model: Any) -> Any:
    """Do what `merged` does with a model of any library."""

    def plain(path: Any, node: Any) -> Any:
        merges = isinstance(node, PackedLinear) and isinstance(node.precision, Native) and not _has_own_call(node)
        if merges:
            convert_checks.one_layer("merged", _name(path), depth(node))
        return node.to_linear() if merges else node

    return jax.tree_util.tree_map_with_path(plain, model, is_leaf=_is_layer)


def embeddings(model: Any, adapter: Adapter) -> dict[str, int]:
    """Return how many tokens each embedding of a pytree has, by its dotted path."""
    nodes = _nodes(model, adapter)[0].items()
    parts = {name: part for name, node in nodes if (part := _part(name, node, adapter)) is not None}
    return {name: part.shape[0] for name, part in parts.items() if part.is_embedding}


def convert(
    model: Any,
    masks: Mapping[str, MaskLike],
    adapter: Adapter,
    *,
    packed: bool,
    bias_masks: Mapping[str, BiasMaskLike] | None,
    freeze_others: bool,
    strict: bool,
    values_dtype: Any,
    precision: Any,
    ties: Mapping[str, list[str]] | None = None,
    follow: Collection[str] = (),
    check: Callable[[str], None] = lambda name: None,
) -> Any:
    """Replace the plain layers of one library in a pytree, and the masks of layers that are masked already.

    `ties` holds the layers that share a weight in a way that stays, each with the others; those in `follow` get the
    weight of another, so that in packed form they stay as they are. `check` takes a name, and raises if that layer
    cannot have a mask for what lies around it.
    """
    ties = ties or {}
    options = _Options(packed, values_dtype, as_precision(precision))
    named, structure = _nodes(model, adapter)
    parts = {name: part for name, node in named.items() if (part := _part(name, node, adapter, packed, check))}
    if not parts:
        _check_library(model)
    owners = _owners(model)
    chosen = patterns.choose(
        parts, masks, strict=strict, others=lambda: _others(model, parts),
        check_tied=lambda name, chosen: _check_tied(name, chosen, parts, owners, ties),
    ).masks  # fmt: skip
    biases = patterns.choose_bias_masks(parts, chosen, bias_masks)

    def replacement(name: str, node: Any) -> Any:
        if name in follow and (name not in chosen or (packed and biases[name] is None)):
            own = freeze_others and not _is_layer(node)  # its weight is another's, its bias is its own
            freezes = lambda leaf: own and is_float(leaf) and leaf is not node.weight  # noqa: E731
            return jax.tree.map(lambda leaf: Constant(leaf) if freezes(leaf) else leaf, node)
        if name in chosen:
            bias_mask = biases[name]
            if freeze_others and bias_mask is None and parts[name].has_bias:
                bias_mask = np.zeros(parts[name].shape[0], np.bool_)
            return _converted(name, node, chosen[name], bias_mask, adapter, options)
        return _constant(parts.get(name), node, adapter) if freeze_others else node

    return jax.tree.unflatten(structure, [replacement(name, node) for name, node in named.items()])


def plain_layers(model: Any, adapter: Adapter) -> dict[str, Any]:
    """Return the plain layers of one library by their dotted paths."""
    return {name: node for name, node in _nodes(model, adapter)[0].items() if _form(node, adapter) is not None}


def leaves_of(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return the leaves of a pytree with their paths, for `select.Scores` and `select.model_top_k`.

    Example:
        >>> [path for path, _ in leaves_of([{"weight": 1.0}])]
        [('0', 'weight')]
    """
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf) for path, leaf in found]


def check_own(name: str, layer: Any) -> None:
    """Refuse a layer of this package whose forward is a user's own: one that replaces it would not have it.

    Raises:
        TypeError: It is one.
    """
    if _has_own_call(layer):
        convert_checks.refuse_subclass(name, layer)


def is_from(node: Any, library: str) -> bool:
    """Tell whether a value is of a class of a library, or of a subclass, without importing that.

    Example:
        >>> is_from(3, "equinox")
        False
    """
    return any(base.__module__.partition(".")[0] == library for base in type(node).__mro__)


def _part(
    name: str, node: Any, adapter: Adapter, packed: bool = False, check: Callable[[str], None] = lambda name: None
) -> Part | None:
    form = _form(node, adapter)
    if form is not None:

        def fits() -> None:
            check(name)
            form.check(name, node)

        has_bias = getattr(node, "bias", None) is not None
        return Part(node, form.shape(node), fits, form.is_embedding, has_bias)
    if _is_layer(node):

        def fits_form() -> None:
            check(name)
            convert_checks.not_stacked(name, 2 + depth(node), 2)
            if packed and isinstance(node, MaskedLinear):  # one of another form would lose its forward
                check_own(name, node)

        is_embedding = isinstance(node, MaskedEmbedding | PackedEmbedding)
        has_bias = node.bias is not None
        return Part(node, (node.out_features, node.in_features), fits_form, is_embedding, has_bias)
    return None


def _converted(
    name: str, node: Any, mask: masks.Mask, bias_mask: np.ndarray | None, adapter: Adapter, options: _Options
) -> Any:
    form = _form(node, adapter)
    if form is None and not (options.packed and isinstance(node, MaskedLinear)):
        return _changed(name, node, mask, bias_mask)
    if form is None:
        is_embedding = isinstance(node, MaskedEmbedding)
        form = next(one for one in adapter.forms if isinstance(node, one.masked) and one.is_embedding == is_embedding)
        bias_mask = node.bias_mask if bias_mask is None else bias_mask
    given = {"grad_mask": mask, "precision": options.precision}
    if not form.is_embedding:
        given["bias_mask"] = bias_mask
    if options.packed:
        return form.packed.from_linear(node, **given, values_dtype=options.values_dtype)
    return form.masked.from_linear(node, **given)


def _changed(name: str, layer: Any, mask: masks.Mask, bias_mask: np.ndarray | None) -> Any:
    # A masked layer with another mask, in the form that it has.
    if not isinstance(layer, PackedLinear):
        convert_checks.warn_of_frozen(name, layer.grad_mask, mask, (layer.out_features, layer.in_features))
        changed = {"grad_mask": mask} | ({} if bias_mask is None else {"bias_mask": bias_mask})
        return layer.replace(**changed)
    layer = layer.repack(mask)
    if bias_mask is None:
        return layer
    bias = layer.bias
    values = bias[np.flatnonzero(bias_mask)]
    return layer.replace(bias_values=values, bias_mask=bias_mask, bias_bits=as_bits(bias))


def _constant(part: Part | None, node: Any, adapter: Adapter) -> Any:
    # What else there is, learning no more. Linear layers are packed: another mask can be set later.
    form = _form(node, adapter)
    if _is_layer(node) and form is None:
        return node
    if form is not None and part is not None:
        try:
            part.check()
        except (TypeError, ValueError):
            return Constant(node)
        given: dict[str, Any] = {"grad_mask": constructors.columns([])}
        if not form.is_embedding and node.bias is not None:
            given["bias_mask"] = np.zeros(form.shape(node)[0], np.bool_)
        return form.packed.from_linear(node, **given)
    return Constant(node) if adapter.is_whole(node) or is_float(node) else node


def _form(node: Any, adapter: Adapter) -> Form | None:
    return next((form for form in adapter.forms if form.is_layer(node)), None)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _nodes(model: Any, adapter: Adapter) -> tuple[dict[str, Any], Any]:
    def is_node(node: Any) -> bool:
        return _form(node, adapter) is not None or _is_layer(node) or isinstance(node, Constant) or whole(node)

    whole = adapter.is_whole
    nodes, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_node)
    named = ((jax.tree_util.keystr(path, simple=True, separator="."), node) for path, node in nodes)
    return convert_checks.by_name(named), structure


def _others(model: Any, parts: Mapping[str, Part]) -> dict[str, str]:
    # The class of every node above or beside of the layers, by dotted path.
    found: dict[str, str] = {}

    def visit(path: tuple[Any, ...], node: Any) -> None:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in parts:
            return
        found[name] = type(node).__name__
        children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda inner: inner is not node)[0]
        for keys, child in children:
            if keys:
                visit((*path, *keys), child)

    visit((), model)
    return found


def _owners(model: Any) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        if isinstance(leaf, Array):
            owners.setdefault(id(leaf), []).append(jax.tree_util.keystr(path, simple=True, separator="."))
    return owners


def _check_tied(
    name: str,
    chosen: Mapping[str, masks.Mask],
    parts: Mapping[str, Part],
    owners: Mapping[int, list[str]],
    ties: Mapping[str, list[str]],
) -> None:
    if name in ties:
        if not all(other in chosen and chosen[other] == chosen[name] for other in ties[name]):
            convert_checks.refuse_tied(name, ties[name])
        return
    found = owners.get(id(getattr(parts[name].layer, "weight", None)), [])
    if len(found) > 1:
        convert_checks.refuse_tied(name, found)


def _check_library(model: Any, function: str = "mask_linears") -> None:
    # A model without a layer that this function knows: perhaps one of a library that has a function of its own.
    for library, package in _ADAPTERS.items():
        nodes = jax.tree.leaves(model, is_leaf=lambda node: is_from(node, library))  # noqa: B023
        for node in nodes:
            if is_from(node, library):
                use = f"{package}.{function}" if package != "maskedlinear_torch" or function == "mask_linears" else None
                convert_checks.refuse_model("a pytree of this package's layers", node, use, function)


_ADAPTERS = {
    "equinox": "maskedlinear_jax.equinox",
    "flax": "maskedlinear_jax.nnx",
    "torch": "maskedlinear_torch",
}


def _is_layer(node: Any) -> bool:
    return isinstance(node, MaskedLinear | PackedLinear)


def has_weight(node: Any) -> bool:
    """Tell the layers with a weight of their own: `equinox.nn.Shared` leaves a mark in the place of a shared one."""
    return _is_layer(node) and type(vars(node).get("weight")).__name__ != "SharedNode"


def not_of_flax(model: Any, function: str) -> None:
    """Refuse a model of Flax, whose layers only its adapter knows.

    Raises:
        TypeError: It is one.
    """
    if is_from(model, "flax"):
        convert_checks.refuse_model("a pytree of layers", model, f"{_ADAPTERS['flax']}.{function}", function)


def _has_own_call(node: Any) -> bool:
    return type(node).__call__.__module__.partition(".")[0] != __name__.partition(".")[0]


def _is_own(node: Any) -> bool:
    return isinstance(node, MaskedLinear) and not isinstance(node, MaskedEmbedding) and _all_learns(node)


def _is_own_embedding(node: Any) -> bool:
    return isinstance(node, MaskedEmbedding) and _all_learns(node)


def _all_learns(layer: MaskedLinear) -> bool:
    return layer.grad_mask == constructors.columns(slice(None))


def _shape(layer: Any) -> tuple[int, int]:
    return layer.weight.shape[0], layer.weight.shape[1]


OWN = Adapter((
    Form(_is_own, check_own, _shape, MaskedLinear, PackedLinear),
    Form(_is_own_embedding, check_own, _shape, MaskedEmbedding, PackedEmbedding, is_embedding=True),
))  # fmt: skip
"""The layers of this package."""
