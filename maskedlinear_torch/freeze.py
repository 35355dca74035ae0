"""Frozen for good: what an optimizer may not move (contract S8)."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskedlinear_core import frozen
from maskedlinear_core.annotations import MaskLike, SupportsArray
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_core.masks import Mask
from maskedlinear_torch import _compat, beside, steps
from maskedlinear_torch.attention import MaskedMultiheadAttention
from maskedlinear_torch.embedding import TiedHead
from maskedlinear_torch.frozen_entries import INHERITED, Held
from maskedlinear_torch.module import Layer
from maskedlinear_torch.packed_module import PackedLinear
from maskedlinear_torch.parameter import MaskedParameter


class Hold:
    """What `hold_frozen` returns: `remove()` lets go, `renew()` takes the weights as they are now."""

    def __init__(self, models: list[nn.Module]) -> None:
        self._models, self._look = models, _Look(id(self))
        self._handles = [model.register_forward_pre_hook(self._look, prepend=True) for model in models]
        for model in models:
            _released.discard(model)
            steps.watch(model, self._look)
            self._look(model)

    def renew(self) -> None:
        """Hold the frozen entries as they are now: after frozen weights were written on purpose, in place."""
        for layer in _held_layers(self._models):
            layer._held.renew(layer)

    def remove(self) -> None:
        """Let optimizers move everything again, unless another hold has the same layers."""
        for handle in self._handles:
            handle.remove()
        for model in self._models:
            _released.add(model)
            steps.unwatch(model, self._look)
        for layer in dict.fromkeys([*_held_layers(self._models), *steps.held_for(id(self))]):
            layer._held.holders -= {id(self), INHERITED}
            if not layer._held.holders:
                layer._held.restore(layer)
                layer._held = None
                _compat.remove_pre_hook(layer, _call_the_layer)
        self._handles, self._models = [], []  # again it does nothing


class _Look:
    """Hold the masked layers of a model that are not held yet: before each forward and each step."""

    def __init__(self, holder: int) -> None:
        self.holder = holder
        self.known: dict[str, int] = {}

    def __call__(self, model: nn.Module, args: Any = None) -> None:
        if torch.compiler.is_compiling() or (self.holder == INHERITED and model in _released):
            return
        modules = dict(model.named_modules())
        held = {name: layer for name, layer in modules.items() if _can_be_held(layer)}
        for name in self.known.keys() - held.keys():
            self._check_replaced(name, modules.get(name), held)
        for name, layer in held.items():
            _hold(layer, name, self.holder)
            assert layer._held is not None
            if name.endswith(f".{steps.ADAPTED}"):
                layer._held.lie_under_an_adapter()
            layer._held.restore_parts(layer)
        self.known = {name: id(layer) for name, layer in held.items()}

    def _check_replaced(self, name: str, now: nn.Module | None, held: dict[str, Any]) -> None:
        # A masked layer that is not there any more, and a plain one that learns has its name.
        if not isinstance(now, nn.Linear | nn.Embedding) or now in steps.unmasked:
            return
        if now.weight.requires_grad and self.known[name] not in map(id, held.values()):
            frozen_checks.refuse_plain(name, type(now).__name__)

    def __reduce__(self) -> Any:
        return _Look, (INHERITED,)


_released: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def hold_frozen(optimizer: Any, *models: nn.Module) -> Hold:
    """Keep the frozen entries of masked layers bit for bit as they are, whatever optimizer steps.

    A masked gradient is not a frozen weight: weight decay, momentum from before, and optimizers that mix entries
    (Muon) still move it. The layers of `models` themselves keep the values of their frozen entries from here on:

    - A forward reads these, whatever was written to the parameter: by an optimizer's step or by calls of another name
      (SAM's `first_step`), in place or through `.data`, by an average or a swap of weights.
    - The parameter itself is put back after every `step` of any torch optimizer that has it, before a forward that
      sees it changed, and by `state_dict()`. torch does not count writes through `.data`: a step looks for them at a
      few hundred entries, and the next forward or `state_dict()` undoes one that the step missed.
    - Copies of a held model, by deepcopy or pickle, are held. So are layers that are added to it later, new masks,
      new parameter groups, and masked layers of any other model that such an optimizer steps.

    The optimizer's state is its own, with two exceptions at frozen entries: a copy of the weight in it (an average,
    the iterate of a schedule-free method) stays equal to the weight, and the moments of torch's own optimizers stay
    what they were. So a column that begins to learn later starts fresh.

    Changes on purpose are taken over, and held from then on: `load_state_dict`, another `Parameter` as the layer's
    `weight`, another mask, and `.to()`. A write in place to frozen entries is undone, unless you call `renew()` of the
    hold after it. Under an adapter (PEFT's LoRA) a weight that takes no gradient belongs to the adapter: what it merges
    into the weight stays. A penalty on `layer.weight` in a loss has a gradient at frozen entries, because only the
    layer's own product is masked. These entries are held like all others.

    It costs a copy of each masked weight. `PackedLinear` needs none of this.

    Args:
        optimizer: What steps: a torch optimizer, or what wraps one (Accelerate's, Lookahead).
        models: Modules that are or contain masked layers.

    Returns:
        A handle; `remove()` lets go.

    Raises:
        TypeError: `optimizer` is no optimizer and wraps none, or a model is no module.
        ValueError: No masked layer has a parameter in the optimizer, or a layer's weight is computed from other
            parameters (weight norm, a parametrization), which cannot be held.

    Example:
        >>> from maskedlinear_torch import MaskedLinear, columns
        >>> layer = MaskedLinear(3, 2, grad_mask=columns([0]), seed=0)
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
        >>> hold = hold_frozen(optimizer, layer)
        >>> before = layer.weight.detach().clone()
        >>> layer(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> assert_frozen({"weight": before}, {"weight": layer.weight}, {"weight": columns([0])})
        4
    """
    known = steps.parameters_of(optimizer)
    if isinstance(optimizer, nn.Module) or not (known and callable(getattr(optimizer, "step", None))):
        frozen_checks.refuse_optimizer("a torch.optim.Optimizer", optimizer)
    for model in models:
        if not isinstance(model, nn.Module):
            frozen_checks.refuse_optimizer("modules after the optimizer", model)
    layers = {layer: name for model in models for name, layer in model.named_modules() if _can_be_held(layer)}
    for layer, name in layers.items():
        _check(layer, name)
    wraps = not isinstance(optimizer, torch.optim.Optimizer)  # its inner optimizer may have copies (master weights)
    if not layers or not (wraps or any(id(one) in known for layer in layers for one in layer.parameters())):
        frozen_checks.refuse_nothing_held()
    return Hold(list(models))


def grad_masks(model: nn.Module) -> dict[str, Mask | np.ndarray | bool | None]:
    """Return what trains in a model, by the names of its state_dict.

    Args:
        model: Any module.

    Returns:
        The mask of each weight and the bool vector of each bias of the masked and packed layers; None for every
        other parameter that requires a gradient, which trains as a whole; False for one that does not.

    Example:
        >>> from maskedlinear_torch import MaskedLinear, columns
        >>> grad_masks(nn.Sequential(MaskedLinear(3, 2, grad_mask=columns([0])), nn.Linear(2, 1, bias=False)))
        {'0.weight': columns([0]), '0.bias': None, '1.weight': None}
    """
    masks: dict[str, Any] = {}
    # A module that is in several places is in the state_dict by each of its names.
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, Layer):
            dot = f"{prefix}{module._joint}" if prefix else ""
            learned: Any = module.values if isinstance(module, PackedLinear) else module.weight
            mask: Any = module._mask
            if module._is_turned:
                mask = mask.to_array((module.out_features, module.in_features)).T
            masks[f"{dot}weight"] = mask if learned.requires_grad else False
            if module.bias is not None:
                masks[f"{dot}bias"] = module.bias_mask if module.bias.requires_grad else False
            for name, one in beside.parts(module).items():
                if isinstance(one, nn.Parameter):
                    masks[f"{prefix}.{name}" if prefix else name] = None if one.requires_grad else False
            continue
        trains: dict[str, Any] = {}
        if isinstance(module, MaskedMultiheadAttention | MaskedParameter):
            trains = dict(module.trained_positions())
        for name, parameter in module.named_parameters(recurse=False):
            masks[f"{dot}{name}"] = trains.get(name) if parameter.requires_grad else False
        if isinstance(module, TiedHead):
            masks[f"{dot}weight"] = module.embedding.grad_mask if module.embedding.values.requires_grad else False
    return masks


def assert_frozen(
    before: Mapping[str, SupportsArray] | SupportsArray | nn.Module,
    after: Mapping[str, SupportsArray] | SupportsArray | nn.Module,
    masks: Mapping[str, MaskLike | bool | None] | MaskLike | None = None,
) -> int:
    """Prove that every frozen entry has the bits it had.

    Args:
        before: A state_dict from before (a copy: a module's own tensors move along), a module, or one tensor.
        after: A state_dict from now, a module, or one tensor.
        masks: What trains, by name (or the mask of the one tensor): a mask for a weight, a bool vector for a bias,
            None for all of it. Names that are not there are wholly frozen. Left out, they are asked of the module (see
            `grad_masks`), whose buffers (running statistics) are taken to train.

    Returns:
        How many frozen entries were compared.

    Raises:
        FrozenMoved: Some entry changed; the text names it. It is an AssertionError.
        ValueError: The names or shapes differ, or nothing is frozen.
        TypeError: No masks, and no module to ask; or no arrays by name.

    Example:
        >>> from maskedlinear_torch import columns
        >>> assert_frozen({"w": torch.ones(1, 2)}, {"w": torch.tensor([[1.0, 2.0]])}, {"w": columns([1])})
        1
    """
    sides: dict[str, dict[str, Any]] = {}
    for name, side in (("before", before), ("after", after)):
        if isinstance(side, nn.Module):
            if masks is None:
                masks = dict.fromkeys(_compat.persistent_buffers(side, remove_duplicate=False)) | grad_masks(side)
            sides[name] = {key: value for key, value in side.state_dict().items() if isinstance(value, Tensor)}
        else:
            sides[name] = _by_name(side)
    if masks is None:
        frozen_checks.refuse_masks(after)
    return frozen.assert_same_bits(sides["before"], sides["after"], _by_name(masks))


def _by_name(side: Any) -> dict[str, Any]:
    # A tensor, or its mask, goes by no name, as a pytree that is a leaf does in JAX.
    if isinstance(side, Mapping):
        return dict(side)
    if isinstance(side, Tensor | np.ndarray | Mask):
        return {"": side}
    pairs: list[Any] = list(side) if isinstance(side, Iterable) else [None]
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        frozen_checks.refuse_side(side)
    return dict(pairs)


def _can_be_held(module: Any) -> bool:
    return isinstance(module, Layer | MaskedMultiheadAttention | MaskedParameter) and not getattr(
        module, "_is_packed", False
    )


def _check(layer: Any, name: str) -> None:
    for own in layer._held_names():
        if own not in layer._parameters:
            frozen_checks.refuse_computed(name, own)


def _hold(layer: Any, name: str, holder: int) -> None:
    if layer._held is None:
        _check(layer, name)
        layer._held = Held(layer)
        layer.register_forward_pre_hook(_call_the_layer)
        steps.join(layer)
    layer._held.holders.add(holder)


steps.hold_also = _hold


def _held_layers(models: list[nn.Module]) -> list[Any]:
    found = {layer: None for model in models for layer in model.modules() if _can_be_held(layer)}
    return [layer for layer in found if layer._held is not None]


def _call_the_layer(layer: nn.Module, args: Any) -> None:
    # Does nothing, but that it is there: torch's fast path of transformers in eval mode reads the parameters of layers
    # past their forward, unless one of them has a hook. A held layer reads the frozen entries in its forward.
    del layer, args
