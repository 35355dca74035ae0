"""Whole NNX models: their layers become masked ones, and plain ones again (contract S8, S13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from maskedlinear_core import patterns
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.patterns import Part
from maskedlinear_core.precision import Native, as_precision
from maskedlinear_jax import moments
from maskedlinear_jax.convert import Form, is_from
from maskedlinear_jax.new_tokens import new_tokens
from maskedlinear_jax.nnx_embedding import MaskedEmbed, PackedEmbed, check_embed
from maskedlinear_jax.nnx_general import MaskedLinearGeneral, PackedLinearGeneral, check_general, shape_of
from maskedlinear_jax.nnx_layers import (
    COMPUTES,
    UNNORMED,
    Layer,
    MaskedLinear,
    PackedLinear,
    _check_plain,
    has_own_call,
    is_normed,
    move_moments,
    take_beside,
)
from maskedlinear_jax.nnx_variables import FrozenParam

Model = TypeVar("Model", bound=nnx.Module)
"""A model of any class: what comes back is of it too."""

Places = dict[str, "Place"]


class Place(NamedTuple):
    """A node of a model, the node that holds it, and under which key."""

    node: Any
    parent: Any
    key: Any
    is_computed: bool


@overload  # a layer alone: what replaces it is of another class
def mask_linears(
    model: nnx.Linear | nnx.LinearGeneral | nnx.Embed, masks: Mapping[str, MaskLike], *, packed: bool = ...,
    bias_masks: Mapping[str, BiasMaskLike] | None = ..., freeze_others: bool = ...,
    strict: bool = ..., optimizer: nnx.Optimizer[Any] | None = ...,
    values_dtype: DTypeLike | None = ..., precision: PrecisionLike = ...,
) -> Any: ...  # fmt: skip
@overload
def mask_linears(
    model: Model, masks: Mapping[str, MaskLike], *, packed: bool = ...,
    bias_masks: Mapping[str, BiasMaskLike] | None = ..., freeze_others: bool = ...,
    strict: bool = ..., optimizer: nnx.Optimizer[Any] | None = ...,
    values_dtype: DTypeLike | None = ..., precision: PrecisionLike = ...,
) -> Model: ...  # fmt: skip
def mask_linears(
    model: nnx.Module,
    masks: Mapping[str, MaskLike],
    *,
    packed: bool = False,
    bias_masks: Mapping[str, BiasMaskLike] | None = None,
    freeze_others: bool = False,
    strict: bool = False,
    optimizer: nnx.Optimizer[Any] | None = None,
    values_dtype: DTypeLike | None = None,
    precision: PrecisionLike = "native",
) -> nnx.Module:
    """Replace the `nnx.Linear` layers of a model by masked ones, in place.

    As `maskedlinear_jax.mask_linears`; names are dotted paths, e.g. "encoder.layers.0.query". With `freeze_others`
    every other `nnx.Param` becomes a `Frozen`, which `wrt=nnx.Param` does not see.

    Args:
        model: Any module.
        masks: As there.
        packed: As there.
        bias_masks: As there.
        freeze_others: As there.
        strict: As there.
        optimizer: Optimizer of this model. Where a mask of a packed layer changes, its moments move along, in place.
            Where a layer is packed now, it steps with the layer's values instead of the kernel, from no history.
        values_dtype: As there.
        precision: As there.

    Returns:
        The model; if it is itself a linear layer, what replaces it.

    Raises:
        TypeError, ValueError, IndexError: As there. On an error the model is as it was.

    Example:
        >>> from maskedlinear_jax import columns
        >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu)
        >>> mask_linears(model, {"layers.0": columns([1])}, packed=True).layers[0].values.get_value().shape
        (3, 1)
    """
    if not isinstance(model, nnx.Module):
        use = "maskedlinear_jax.equinox.mask_linears" if is_from(model, "equinox") else None
        convert_checks.refuse_model("a flax.nnx.Module", model, use)
    moments.check("mask_linears", optimizer)
    chosen_precision = as_precision(precision)
    found = places(model, (Layer, *(form.masked.plain for form in FORMS)))
    parts = {name: _part(name, place, packed) for name, place in found.items()}
    owners = _owners(model)
    chosen = patterns.choose(
        parts, masks, strict=strict, others=lambda: _others(model, parts),
        check_tied=lambda name, chosen: _check_tied(name, parts[name].layer, owners),
    ).masks  # fmt: skip
    biases = patterns.choose_bias_masks(parts, chosen, bias_masks)
    made: dict[str, Any] = {}
    changes: dict[str, tuple[Any, np.ndarray | None]] = {}
    for name, mask in chosen.items():
        node: Any = found[name].node
        form = form_of(node)
        if isinstance(node, Layer) and not (packed and isinstance(node, form.masked)):
            changes[name] = mask, biases[name]
            continue
        given: dict[str, Any] = {"grad_mask": mask, "precision": chosen_precision}
        if not form.is_embedding:
            given["bias_mask"] = biases[name]
        if isinstance(node, Layer):
            if not form.is_embedding and biases[name] is None:
                given["bias_mask"] = node.bias_mask
            node = node.to_linear()
        kind = form.packed if packed else form.masked
        with convert_checks.naming(name):
            made[name] = kind.from_linear(node, **given, **({"values_dtype": values_dtype} if packed else {}))
            take_beside(made[name], found[name].node, form.masked.plain)
    model = replace(model, found, made)
    moved: dict[moments.Path, Any] = {}
    for name, (mask, bias_mask) in changes.items():
        moved |= found[name].node._change(mask, bias_mask, tuple(name.split(".")) if name else ())
    if freeze_others:
        _freeze_others(model, {name for name, mask in biases.items() if mask is not None})
    if optimizer is not None:
        move_moments(optimizer, model, moved, has_others=freeze_others or (packed and bool(made)))
    return model


@overload
def train_new_tokens(
    model: nnx.Embed, *, first: int, embedding: str | None = ..., packed: bool = ..., freeze_others: bool = ...
) -> Any: ...
@overload
def train_new_tokens(
    model: Model, *, first: int, embedding: str | None = ..., packed: bool = ..., freeze_others: bool = ...
) -> Model: ...
def train_new_tokens(
    model: nnx.Module,
    *,
    first: int,
    embedding: str | None = None,
    packed: bool = True,
    freeze_others: bool = True,
) -> nnx.Module:
    """Let the new tokens of an NNX model learn, and nothing else, in place: see `maskedlinear_jax.train_new_tokens`.

    Example:
        >>> import jax
        >>> model = nnx.Sequential(nnx.Embed(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
        >>> model = train_new_tokens(model, first=4)
        >>> [leaf.shape for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
        [(2, 4)]
    """
    if not isinstance(model, nnx.Module):
        convert_checks.refuse_model("a flax.nnx.Module", model, function="train_new_tokens")
    found = places(model, (nnx.Embed, MaskedEmbed, PackedEmbed))
    tokens = {name: place.node.num_embeddings for name, place in found.items()}
    masks = new_tokens(tokens, first, embedding)
    return mask_linears(model, masks, packed=packed, freeze_others=freeze_others)


def weights_of(model: nnx.Module, what: str) -> dict[str, Any]:
    """Return the weights of a model's layers (out_features, in_features) by name, in the order of definition.

    For `select.Scores`. The gradients of NNX are a State, which names its leaves.
    """
    found: dict[str, Any] = {}

    def visit(node: Any, path: tuple[str, ...]) -> None:
        form = next((form for form in FORMS if isinstance(node, (form.masked.plain, form.masked, form.packed))), None)
        if form is not None:
            own: Any = node.to_linear() if isinstance(node, Layer) else node
            table = own.embedding[...] if form.is_embedding else own.kernel[...]
            rows, columns = form.shape(own)
            found[".".join(path)] = table if form.is_embedding else table.reshape(columns, rows).T
            return
        children = enumerate(node) if isinstance(node, nnx.List) else vars(node).items()
        for name, child in children:
            if isinstance(child, nnx.Module):
                visit(child, (*path, str(name)))

    visit(model, ())
    return found


@overload
def unmask_linears(model: Layer) -> Any: ...
@overload
def unmask_linears(model: Model) -> Model: ...
def unmask_linears(model: nnx.Module) -> nnx.Module:
    """Replace the masked layers of a model by `nnx.Linear` with the trained kernels, in place.

    What `freeze_others` made constant is an `nnx.Param` again.
    """
    if not isinstance(model, nnx.Module):
        convert_checks.refuse_model("a flax.nnx.Module", model, function="unmask_linears")
    found = places(model, Layer)
    made = _plain(found, "unmask_linears")
    model = replace(model, found, made)
    _set_variables(
        model, lambda variable: FrozenParam.back(variable) if isinstance(variable, FrozenParam) else variable
    )
    return model


@overload
def merged(model: Layer) -> Any: ...
@overload
def merged(model: Model) -> Model: ...
def merged(model: nnx.Module) -> nnx.Module:
    """Return another model for inference: each packed layer is a plain one of NNX with the trained kernel.

    As `maskedlinear_jax.merged`. Both models share what is not merged, as arrays and not as variables.

    Raises:
        TypeError: No NNX model.

    Example:
        >>> import jax.numpy as jnp
        >>> from maskedlinear_jax import columns
        >>> layer = PackedLinear(4, 3, grad_mask=columns([1]), rngs=nnx.Rngs(0))
        >>> bool((merged(layer)(jnp.ones(4)) == layer(jnp.ones(4))).all())
        True
    """
    if not isinstance(model, nnx.Module):
        convert_checks.refuse_model("a flax.nnx.Module", model, function="merged")
    other = nnx.merge(*nnx.split(model))
    packed = {name: place for name, place in places(other, Layer).items() if place.node.is_packed}
    found = {name: place for name, place in packed.items() if isinstance(place.node.arithmetic, Native)}
    plain = _plain({name: one for name, one in found.items() if not has_own_call(one.node)}, "merged")
    return replace(other, found, plain)


def form_of(node: Any) -> Form:
    """Return the form of a plain or masked layer."""
    return next(form for form in FORMS if isinstance(node, (form.masked.plain, form.masked, form.packed)))


def matrix_of(layer: Any) -> Any:
    """Return the variable of a masked layer that has its weight's shape."""
    return getattr(layer, "base" if layer.is_packed else "embedding" if form_of(layer).is_embedding else "kernel")


def depth_of(layer: Any) -> int:
    """Return along how many axes masked layers are stacked (`nnx.vmap`, `nnx.scan`)."""
    own = len((*layer.in_axes, *layer.out_axes)) if hasattr(layer, "in_axes") else 2
    return int(matrix_of(layer).ndim) - own


def places(model: nnx.Module, kind: Any) -> Places:
    """Return each node of a kind by its dotted path."""
    by_path = dict(nnx.iter_graph(model))
    return {
        ".".join(map(str, path)): Place(
            node,
            by_path[path[:-1]] if path else None,
            path[-1] if path else None,
            any(isinstance(one, COMPUTES) and is_normed(one, node) for one in map(by_path.get, _above(path))),
        )
        for path, node in by_path.items()
        if isinstance(node, kind)
    }


def _above(path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [path[:n] for n in range(len(path))]


def check_ties(model: nnx.Module, layers: Mapping[str, Any]) -> None:
    """Refuse plain layers of a model, by name, that share their weight with others."""
    owners = _owners(model)
    for name, layer in layers.items():
        _check_tied(name, layer, owners)


def replace(model: nnx.Module, found: Mapping[str, Place], made: Mapping[str, Any]) -> nnx.Module:
    """Put other nodes into the places of some, wherever a module has them; return the model, or what replaces it."""
    modules = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)]
    for name, layer in made.items():
        node, parent, key, _ = found[name]
        if parent is None:
            return layer
        # A graph has each node once; a module may have it under two names.
        beside = [(other, one) for other in modules for one, value in vars(other).items() if value is node]
        for other, one in beside:
            if (other, one) != (parent, key):
                setattr(other, one, layer)
        if isinstance(key, str) and isinstance(parent, nnx.Module) and not isinstance(parent, nnx.List):
            setattr(parent, key, layer)
        else:
            parent[key] = layer
    return model


def _part(name: str, place: Place, packed: bool) -> Part:
    node, form = place.node, form_of(place.node)
    has_bias = any(vars(node).get(one) is not None for one in ("bias", "bias_values"))

    def check() -> None:
        if place.is_computed:
            convert_checks.refuse_computed(name, remedy=UNNORMED)
        if not isinstance(node, Layer):
            form.check(name, node)
        elif packed and isinstance(node, form.masked) and has_own_call(node):
            convert_checks.refuse_subclass(name, node)  # one of another form would lose its forward
        else:
            convert_checks.not_stacked(name, 2 + depth_of(node), 2)

    shape = (node.out_features, node.in_features) if isinstance(node, Layer) else form.shape(node)
    return Part(node, shape, check, form.is_embedding, has_bias)


def _plain(found: Places, function: str) -> dict[str, Any]:
    # Plain layers for masked ones, with what users put into these.
    made: dict[str, Any] = {}
    for name, place in found.items():
        if has_own_call(place.node):
            convert_checks.refuse_own_forward(name, place.node)
        if place.node.is_packed:
            convert_checks.one_layer(function, name, depth_of(place.node))
        made[name] = place.node.to_linear()
        take_beside(made[name], place.node, form_of(place.node).masked.plain)
    return made


def _others(model: nnx.Module, parts: Mapping[str, Part]) -> dict[str, str]:
    named = ((".".join(map(str, path)), node) for path, node in nnx.iter_graph(model))
    return {name: type(node).__name__ for name, node in named if name not in parts}


def _owners(model: nnx.Module) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            for own, value in vars(node).items():
                if isinstance(value, nnx.Variable):
                    owners.setdefault(id(value), []).append(".".join(map(str, (*path, own))))
    return owners


def _check_tied(name: str, layer: Any, owners: Mapping[int, list[str]]) -> None:
    for own in ("kernel", "embedding"):
        found = owners.get(id(vars(layer).get(own)), [])
        if len(found) > 1:
            convert_checks.refuse_tied(name, found)


def _freeze_others(model: nnx.Module, biases: set[str]) -> None:
    learns: set[int] = set()
    for path, node in nnx.iter_graph(model):
        if isinstance(node, Layer):
            own = vars(node)
            name = ".".join(map(str, path))
            wanted = ["values", "kernel", "embedding", *(["bias", "bias_values"] if name in biases else [])]
            learns |= {id(own[one]) for one in wanted if isinstance(own.get(one), nnx.Param)}
    frozen: dict[int, Any] = {}

    def freeze(variable: Any) -> Any:
        if not isinstance(variable, nnx.Param) or id(variable) in learns:
            return variable
        return frozen.setdefault(id(variable), FrozenParam(variable.get_value(), **variable.get_metadata()))

    _set_variables(model, freeze)


def _set_variables(model: nnx.Module, change: Any) -> None:
    # Of every node its variables, each by what a function makes of it.
    for _, node in list(nnx.iter_graph(model)):
        if isinstance(node, nnx.Module):
            for own, value in list(vars(node).items()):
                if isinstance(value, nnx.Variable) and (changed := change(value)) is not value:
                    setattr(node, own, changed)


def _shape(linear: Any) -> tuple[int, int]:
    return linear.out_features, linear.in_features


def _embed_shape(embed: Any) -> tuple[int, int]:
    return embed.num_embeddings, embed.features


FORMS: tuple[Form, ...] = (
    Form(lambda node: isinstance(node, nnx.Linear), _check_plain, _shape, MaskedLinear, PackedLinear),
    Form(
        lambda node: isinstance(node, nnx.LinearGeneral),
        check_general,
        shape_of,
        MaskedLinearGeneral,
        PackedLinearGeneral,
    ),
    Form(
        lambda node: isinstance(node, nnx.Embed),
        check_embed,
        _embed_shape,
        MaskedEmbed,
        PackedEmbed,
        is_embedding=True,
    ),
)
"""The layers of NNX that can be masked."""
