"""Whole models: their linear layers and embeddings become masked ones, and plain ones again (contract S8, S13)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from maskedlinear_core import constructors, masks, patterns
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.patterns import Part
from maskedlinear_core.precision import Precision, as_precision
from maskedlinear_torch import _compat, beside, conv1d, moments, steps, tied_keys
from maskedlinear_torch import attention as attentions
from maskedlinear_torch.attention import Attention, MaskedMultiheadAttention
from maskedlinear_torch.embedding import MaskedEmbedding, PackedEmbedding, TiedHead
from maskedlinear_torch.maskable import has_own_forward, parts_of
from maskedlinear_torch.module import Layer, MaskedLinear
from maskedlinear_torch.packed_attention import InProjection, PackedMultiheadAttention
from maskedlinear_torch.packed_module import PackedLinear

Model = TypeVar("Model", bound=nn.Module)
"""A model of any class: what comes back is of it too."""


@dataclass(frozen=True)
class _Options:
    packed: bool
    values_dtype: torch.dtype | None
    precision: Precision
    optimizer: torch.optim.Optimizer | None


@overload  # a layer alone: what replaces it is of another class
def mask_linears(
    model: nn.Linear | nn.Embedding, masks: Mapping[str, MaskLike], *, packed: bool = ...,
    bias_masks: Mapping[str, BiasMaskLike] | None = ..., freeze_others: bool = ...,
    strict: bool = ..., optimizer: torch.optim.Optimizer | None = ...,
    values_dtype: torch.dtype | None = ..., precision: PrecisionLike = ...,
) -> Any: ...  # fmt: skip
@overload
def mask_linears(
    model: Model, masks: Mapping[str, MaskLike], *, packed: bool = ...,
    bias_masks: Mapping[str, BiasMaskLike] | None = ..., freeze_others: bool = ...,
    strict: bool = ..., optimizer: torch.optim.Optimizer | None = ...,
    values_dtype: torch.dtype | None = ..., precision: PrecisionLike = ...,
) -> Model: ...  # fmt: skip
def mask_linears(
    model: nn.Module,
    masks: Mapping[str, MaskLike],
    *,
    packed: bool = False,
    bias_masks: Mapping[str, BiasMaskLike] | None = None,
    freeze_others: bool = False,
    strict: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    values_dtype: torch.dtype | None = None,
    precision: PrecisionLike = "native",
) -> nn.Module:
    """Replace the linear layers of a model by masked ones, in place. The outputs stay the same, bit for bit.

    Converted are `torch.nn.Linear`, the `Conv1D` of transformers (its masks are over (out_features, in_features)
    too), the projections of `torch.nn.MultiheadAttention` by the names `q_proj`, `k_proj`, `v_proj` and `out_proj`
    inside of the attention's, and `torch.nn.Embedding`, whose rows are tokens, by a pattern that matches no linear
    layer. A layer that is masked already gets the new mask and keeps its form.

    All or nothing: on an error the model is as it was. A weight that two linear layers share stays shared if
    both get one mask and `packed` is False; that of an embedding and its head stays shared if both get one mask; any
    other tied weight is refused.

    Args:
        model: Any module; if it is itself a linear layer, the layer that replaces it is returned.
        masks: By pattern of the layer's dotted name (`fnmatch`): a mask, a bool array, or a callable(name, linear)
            that returns one, or None to leave the layer as it is. The first pattern that matches counts. What a mask
            names learns, also where the model was frozen before (`requires_grad_(False)`).
        packed: Make `PackedLinear` layers instead of `MaskedLinear`.
        bias_masks: By pattern, of the layers that get a mask: a bool vector (out_features,).
        freeze_others: Let every parameter outside of the masked layers' weights be constant, biases too unless
            `bias_masks` names them.
        strict: Refuse every layer that a pattern matches and that cannot be converted. By default only a pattern
            without wildcards does; what a wildcard leaves is listed by a `LeftOut` warning.
        optimizer: Where a packed layer's mask changes, its moments move along (see `PackedLinear.repack`). Where a
            layer is packed now, it steps with the layer's values instead of the weight, from no history.
        values_dtype: Dtype of packed values; None = the weight's.
        precision: Precision of the masked layers, as for `masked_linear`.

    Returns:
        The model.

    Raises:
        TypeError: No model, no mask, a layer of a subclass of `torch.nn.Linear`, or one whose weight is computed
            from other parameters (spectral norm, pruning).
        ValueError: A pattern that matches nothing, a mask that does not fit, or a tied weight.
        IndexError: A position outside of a weight.

    Example:
        >>> from maskedlinear_torch import columns
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> mask_linears(model, {"0": columns([1])}, packed=True)
        Sequential(
          (0): PackedLinear(in_features=4, out_features=3, bias=True, grad_mask=columns([1]))
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model)
    moments.check("mask_linears", optimizer)
    options = _Options(packed, values_dtype, as_precision(precision), optimizer)
    modules = dict(model.named_modules())
    parts = {
        name: part for prefix, module in modules.items() for name, part in parts_of(prefix, module, modules, packed)
    }

    def others() -> dict[str, str]:
        return {name: type(module).__name__ for name, module in modules.items() if name not in parts}

    owners = _owners(model)
    chosen = patterns.choose(
        parts, masks, strict=strict, others=others,
        check_tied=lambda name, chosen: _check_tied(name, chosen, parts, owners, packed),
    ).masks  # fmt: skip
    biases = patterns.choose_bias_masks(parts, chosen, bias_masks)
    made, changes = _make(modules, chosen, biases, options)
    if freeze_others:
        _check_freezing(modules, chosen, biases)
    model = _replace(model, made)
    for change in changes:
        change()
    tied_keys.leave_out(model, TiedHead)
    if freeze_others:
        _freeze_others(model, {name for name, mask in biases.items() if mask is not None}, optimizer)
    return model


@overload
def unmask_linears(model: MaskedLinear | PackedLinear | MaskedEmbedding | PackedEmbedding) -> Any: ...
@overload
def unmask_linears(model: Model) -> Model: ...
def unmask_linears(model: nn.Module) -> nn.Module:
    """Replace the masked layers of a model by plain ones with the trained weights, in place.

    Args:
        model: Any module; if it is itself a masked layer, the plain layer is returned.

    Returns:
        The model, all of whose converted layers require gradients.

    Raises:
        TypeError: No model.

    Example:
        >>> from maskedlinear_torch import columns
        >>> model = mask_linears(nn.Sequential(nn.Linear(4, 3)), {"0": columns([1])}, packed=True)
        >>> unmask_linears(model)
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
        )
    """
    if not isinstance(model, nn.Module):
        convert_checks.refuse_model("a torch.nn.Module", model, function="unmask_linears")
    for name, module in model.named_modules():
        if isinstance(module, Layer) and has_own_forward(module):
            convert_checks.refuse_own_forward(name, module)
    made: dict[int, nn.Module] = {}
    for layer in model.modules():
        plain: Any = None
        if isinstance(layer, MaskedEmbedding | PackedEmbedding):
            plain = layer.to_embedding().requires_grad_()
        elif isinstance(layer, InProjection):
            continue  # a part of its attention
        elif isinstance(layer, Layer):
            plain = layer.to_linear().requires_grad_()
        elif isinstance(layer, Attention):
            plain = layer.to_attention()
        if plain is not None:
            made[id(layer)] = plain
            _compat.take_hooks(plain, layer)
            _compat.give_attributes_back(plain, layer)
            beside.take(plain, layer)
    head: Any
    for layer in model.modules():
        if isinstance(layer, TiedHead):
            made[id(layer)] = head = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], device="meta")
            head.weight, head.bias = made[id(layer.embedding)].weight, layer.bias
            _compat.take_hooks(head.train(layer.training), layer)
            _compat.give_attributes_back(head, layer)
            beside.take(head, layer)
            steps.unmasked.add(head)
    tied_keys.restore(model, TiedHead)
    model = _replace(model, made)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.out_proj = _output_layer(module.out_proj)
    return model


def weights_of(model: nn.Module, what: str) -> dict[str, Any]:
    """Return the weights of a model's layers, or their gradients, each (out_features, in_features), by name.

    For `select.Scores`: of linear layers, Conv1D and embeddings, masked or not.

    Args:
        model: Any module.
        what: "weight" or "gradient"; a layer without a gradient is left out.

    Example:
        >>> {name: tuple(one.shape) for name, one in weights_of(nn.Sequential(nn.Linear(3, 2)), "weight").items()}
        {'0': (2, 3)}
    """
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        weight: Any = module._parameters.get("weight")
        if weight is None or not (isinstance(module, nn.Linear | nn.Embedding) or conv1d.is_conv1d(module)):
            continue
        array = weight if what == "weight" else weight.grad
        if array is not None:
            found[name] = array.detach().t() if conv1d.is_conv1d(module) else array.detach()
    return found


def _make(
    modules: Mapping[str, nn.Module],
    chosen: Mapping[str, masks.Mask],
    biases: Mapping[str, np.ndarray | None],
    options: _Options,
) -> tuple[dict[int, nn.Module], list[Callable[[], None]]]:
    # What replaces which module, and what is to be done to those that stay.
    made: dict[int, nn.Module] = {}
    changes: list[Callable[[], None]] = []
    inside: dict[str, dict[str, masks.Mask]] = {}
    of_weight: dict[int, Any] = {}  # what was made of an embedding, by its weight: the heads tied to it need it
    for name in sorted(chosen, key=lambda name: not isinstance(modules.get(name), nn.Embedding)):
        mask = chosen[name]
        prefix, _, last = name.rpartition(".")
        module = modules.get(name)
        if module is None:
            inside.setdefault(prefix, {})[last] = mask
            continue
        if isinstance(module, Layer) and not (options.packed and isinstance(module, MaskedLinear | MaskedEmbedding)):
            if isinstance(module, PackedLinear):
                module._refuse_sharded("repack")
            changes.append(_change(module, mask, biases[name], options.optimizer))
            continue
        embedding = of_weight.get(id(module._parameters.get("weight")))
        with convert_checks.naming(name):
            if embedding is None:
                new = _converted(module, mask, biases[name], options)
            elif options.packed:
                new = TiedHead(embedding, module.bias)  # type: ignore[arg-type]
            else:
                new = _converted(module, embedding.grad_mask, biases[name], options)
            beside.take(new, module)
        made[id(module)] = new
        if isinstance(module, nn.Embedding):
            of_weight[id(module.weight)] = new
        _compat.take_hooks(new, module)
        _compat.take_attributes(new, module)
        if not options.packed:
            changes.append(functools.partial(_let_learn, new, bias=biases[name] is not None))
        if options.packed and isinstance(new, Layer):
            how = f"mask_linears(packed=True) of {name!r}"
            old: Any = module
            changes += _taken_over(old.weight, getattr(old, "bias", None), new, how, options.optimizer)
        if type(modules.get(prefix)) is nn.MultiheadAttention and isinstance(new, MaskedLinear):
            inside.setdefault(prefix, {})
    for prefix, grad_masks in inside.items():
        bias_masks = {name: biases[f"{prefix}.{name}" if prefix else name] for name in grad_masks}
        new_attention, more = _attention(prefix, modules[prefix], grad_masks, bias_masks, options)
        changes += more
        if new_attention is not None:
            made[id(modules[prefix])] = new_attention
    return made, changes


def _attention(
    prefix: str,
    attention: Any,
    grad_masks: dict[str, masks.Mask],
    bias_masks: dict[str, np.ndarray | None],
    options: _Options,
) -> tuple[Any, list[Callable[[], None]]]:
    # What replaces an attention whose projections get masks, if anything does, and what is to be done.
    grad_masks, bias_masks = _with_the_frozen(attention, grad_masks, bias_masks)
    if isinstance(attention, PackedMultiheadAttention):
        attention.in_proj._refuse_sharded("repack")
        set_masks = functools.partial(attention.set_masks, grad_masks, bias_masks, options.optimizer)
        return None, [
            set_masks,
            functools.partial(
                _let_values_learn, attention.in_proj, bias=any(one is not None for one in bias_masks.values())
            ),
        ]
    if isinstance(attention, MaskedMultiheadAttention) or not options.packed:
        is_new = not isinstance(attention, MaskedMultiheadAttention)
        masked = MaskedMultiheadAttention.around(attention) if is_new else attention
        set_masks = functools.partial(masked.set_masks, grad_masks, bias_masks)
        return masked if is_new else None, [set_masks, functools.partial(_let_projections_learn, masked)]
    packed = PackedMultiheadAttention.around(
        attention, grad_masks, bias_masks, values_dtype=options.values_dtype, precision=options.precision
    )
    how = f"mask_linears(packed=True) of {prefix or 'the attention'!r}"
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    return packed, _taken_over(weight, bias, packed.in_proj, how, options.optimizer)


def _let_learn(layer: Any, *, bias: bool = False) -> None:
    """Let what a mask names require a gradient: it may have been frozen with all the rest before."""
    weight, own = layer.weight, []
    mask = layer._kind.mask(weight.t() if layer._is_turned else weight)
    if mask.is_meta or mask.any():
        own.append(weight)
    for parameter in [*own, layer.bias] if bias else own:
        if not parameter.is_inference():
            parameter.requires_grad_()


def _let_values_learn(layer: PackedLinear, *, bias: bool = False) -> None:
    """Let what a mask names require a gradient, likewise."""
    for parameter in [layer.values, layer.bias_values] if bias else [layer.values]:
        if parameter is not None and parameter.numel() and not parameter.is_inference():
            parameter.requires_grad_()


def _let_projections_learn(attention: MaskedMultiheadAttention) -> None:
    for name, trains in attention.trained_positions().items():
        parameter: Any = attention._parameters[name]
        if (trains.is_meta or trains.any()) and not parameter.is_inference():
            parameter.requires_grad_()


def _with_the_frozen(
    attention: Any, grad_masks: Mapping[str, masks.Mask], bias_masks: Mapping[str, np.ndarray | None]
) -> tuple[dict[str, masks.Mask], dict[str, np.ndarray | None]]:
    """Return the masks of attention. If its projections are one frozen parameter, those without a mask stay frozen."""
    weights, vectors = dict(grad_masks), {name: mask for name, mask in bias_masks.items() if mask is not None}
    if isinstance(attention, PackedMultiheadAttention):
        weight, bias = attention.in_proj.values, attention.in_proj.bias_values
    else:
        weight, bias = attention._parameters.get("in_proj_weight"), attention._parameters.get("in_proj_bias")
    if weights and weight is not None and not weight.requires_grad:
        weights = dict.fromkeys(attentions.PROJECTIONS, constructors.rows([])) | weights
    if vectors and bias is not None and not bias.requires_grad:
        vectors = dict.fromkeys(attentions.PROJECTIONS, np.zeros(attention.embed_dim, np.bool_)) | vectors
    return weights, {**dict.fromkeys(weights), **vectors}


def _taken_over(
    weight: nn.Parameter, bias: nn.Parameter | None, layer: Any, how: str, optimizer: torch.optim.Optimizer | None
) -> list[Callable[[], None]]:
    """Return what lets packed values take the place of parameters: in a step's checks, and in an optimizer."""
    pairs = [(weight, "values")]
    if bias is not None and layer.bias_values is not bias:  # all of it trains: the parameter itself
        pairs.append((bias, "bias_values"))
    changes: list[Callable[[], None]] = []
    for old, name in pairs:
        changes.append(functools.partial(steps.replaced, old, layer, name, how))
        if optimizer is not None:
            changes.append(functools.partial(moments.begin, optimizer, old, getattr(layer, name)))
    return changes


def _converted(module: Any, mask: masks.Mask, bias_mask: np.ndarray | None, options: _Options) -> nn.Module:
    given: dict[str, Any] = {"grad_mask": mask, "precision": options.precision}
    if options.packed:
        given["values_dtype"] = options.values_dtype
    if isinstance(module, nn.Embedding):
        return (PackedEmbedding if options.packed else MaskedEmbedding).from_embedding(module, **given)
    given["bias_mask"] = bias_mask
    if conv1d.is_conv1d(module):
        return (conv1d.packed_conv1d if options.packed else conv1d.masked_conv1d)(module, **given)
    if isinstance(module, MaskedLinear) and bias_mask is None:
        given["bias_mask"] = module.bias_mask
    return (PackedLinear if options.packed else MaskedLinear).from_linear(module, **given)


def _change(
    layer: Any, mask: masks.Mask, bias_mask: np.ndarray | None, optimizer: torch.optim.Optimizer | None
) -> Callable[[], None]:
    def change() -> None:
        if isinstance(layer, PackedLinear):
            layer.repack(mask, optimizer)
        else:
            layer.grad_mask = mask
        if bias_mask is not None and isinstance(layer, PackedLinear):
            layer._change_bias_mask(bias_mask, optimizer)
        elif bias_mask is not None:
            layer.bias_mask = bias_mask
        let_learn = _let_values_learn if isinstance(layer, PackedLinear) else _let_learn
        let_learn(layer, bias=bias_mask is not None)

    return change


def _replace(model: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    # A module may be registered in several places: all of them get the one that replaces it. What replaces a parent
    # holds the old children.
    for parent in [*model.modules(), *made.values()]:
        for name, child in list(parent._modules.items()):
            if id(child) in made:
                parent._modules[name] = made[id(child)]
    return made.get(id(model), model)


def _check_freezing(
    modules: Mapping[str, nn.Module], chosen: Mapping[str, masks.Mask], biases: Mapping[str, np.ndarray | None]
) -> None:
    # Attention that is packed and sharded gets no other masks: neither those asked for nor those of the rest.
    for name, module in modules.items():
        if isinstance(module, PackedMultiheadAttention):
            own = {part: f"{name}.{part}" if name else part for part in attentions.PROJECTIONS}
            weights = {part for part, full in own.items() if full in chosen} | module.grad_masks.keys()
            lines = {part for part, full in own.items() if biases.get(full) is not None} | module.bias_masks.keys()
            if any(some and len(some) < len(own) for some in (weights, lines)):
                module.in_proj._refuse_sharded("repack")


def _freeze_others(model: nn.Module, biases: set[str], optimizer: torch.optim.Optimizer | None) -> None:
    learns: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, Layer):
            weight = module.values if isinstance(module, PackedLinear) else module.weight
            learns |= {id(weight)} if weight.requires_grad else set()
            bias = module.bias_values if isinstance(module, PackedLinear) else module.bias
            learns |= {id(bias)} if bias is not None and name in biases else set()
        elif isinstance(module, PackedMultiheadAttention):
            module.freeze_rest(optimizer)
            learns |= {id(module.in_proj.bias_values)} if module.bias_masks else set()
        elif isinstance(module, MaskedMultiheadAttention):
            module.freeze_rest(optimizer)
            learns |= {id(module._parameters[own]) for own in module.trained_positions()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learns)
        if id(parameter) not in learns:
            parameter.grad = None  # an optimizer steps wherever a gradient is, be it zero or from before


def _owners(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    # Where each parameter stands: the module's name and its own. A packed layer's matrix belongs to that alone.
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((name, own))
    return owners


def _check_tied(
    name: str,
    chosen: Mapping[str, masks.Mask],
    parts: Mapping[str, Part],
    owners: Mapping[int, list[tuple[str, str]]],
    packed: bool,
) -> None:
    layer = parts[name].layer
    weight = layer._parameters.get("weight")
    if weight is None:  # attention's projections, and packed layers
        return
    others = [owner for owner in owners[id(weight)] if owner != (name, "weight")]
    alike = all(other in chosen and own == "weight" and chosen[other] == chosen[name] for other, own in others)
    with_embedding = sum(
        parts[other].is_embedding for other in (name, *(other for other, _ in others)) if other in parts
    )
    if others and not (alike and (with_embedding == 1 if packed else True)):
        convert_checks.refuse_tied(name, [".".join(filter(None, owner)) for owner in others])


def _output_layer(plain: Any) -> Any:
    # What attention makes for its output, with the parameters of a plain layer.
    if type(plain) is not nn.Linear:
        return plain
    layer = NonDynamicallyQuantizableLinear(plain.in_features, plain.out_features, device="meta")
    layer.weight, layer.bias = plain.weight, plain.bias
    _compat.take_hooks(layer, plain)
    return layer
