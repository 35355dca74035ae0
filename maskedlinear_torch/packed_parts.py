"""The weight and bias of a packed layer: what is written to them or loaded goes to the parts they are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_torch import _compat, lowering, rule
from maskedlinear_torch.tensors import Constant, Merged, as_bits

if TYPE_CHECKING:
    from maskedlinear_torch.packed_module import PackedLinear


PARTS = ("values", "base", "bias_values", "bias_base")
"""The layer's own parameters, which a state_dict has as `weight` and `bias`."""


class Weight(NamedTuple):
    """The weight of a layer, as what is written to (`tensors.Whole`)."""

    layer: PackedLinear

    def is_of(self, layer: Any) -> bool:
        """Tell whether it is a part of that very layer."""
        return layer is self.layer

    def versions(self) -> tuple[Any, ...]:
        """Return what changes when the weight does."""
        base, values, mask = self.layer.base, self.layer.values, self.layer._mask
        return id(base), _compat.version(base), id(values), _compat.version(values), id(mask)

    @torch.no_grad()
    def write(self, whole: Tensor) -> None:
        """Let the weight be `whole`; values of a wider dtype are rounded only where they differ from it."""
        layer = self.layer
        if _compat.is_distributed(layer.base):
            taken = rule.placed(layer._positions(), layer.base).pack(whole)
            layer.base.copy_(whole)
            layer.values.copy_(taken.to(layer.values.dtype))
            return
        taken = layer._positions().pack(whole)
        same = as_bits(taken) == as_bits(layer.values.to(taken.dtype))
        layer.base.copy_(whole)
        layer.values.copy_(torch.where(same, layer.values, taken.to(layer.values.dtype)))

    def learn(self, learns: bool) -> None:
        """Let the values require a gradient, or not."""
        self.layer.values.requires_grad_(learns)


class Bias(NamedTuple):
    """The bias of a layer, as what is written to (`tensors.Whole`)."""

    layer: PackedLinear

    def is_of(self, layer: Any) -> bool:
        """Tell whether it is a part of that very layer."""
        return layer is self.layer

    def versions(self) -> tuple[Any, ...]:
        """Return what changes when the bias does."""
        parts = self.layer.bias_base, self.layer.bias_values
        return tuple([None if part is None else (id(part), _compat.version(part)) for part in parts])

    @torch.no_grad()
    def write(self, whole: Tensor) -> None:
        """Let the bias be `whole`."""
        layer = self.layer
        assert layer.bias_values is not None, "asked for only where there is a bias"
        if layer.bias_base is None:
            layer.bias_values.copy_(whole)
        else:
            layer.bias_base.copy_(whole)
            index = layer._bias_index()
            index = _compat.replicate_like(whole)(index) if _compat.is_distributed(whole) else index
            layer.bias_values.copy_(whole.index_select(0, index))

    def learn(self, learns: bool) -> None:
        """Let the bias require a gradient, or not."""
        assert self.layer.bias_values is not None, "asked for only where there is a bias"
        self.layer.bias_values.requires_grad_(learns)


def seen(read: Callable[[], Any], part: Weight | Bias, name: str) -> Any:
    """Return the weight or the bias of a layer as what can be written to.

    Args:
        read: What puts it together.
        part: What writes go to.
        name: What it is called, for messages.
    """
    # Only eager code on real numbers writes in place.
    if torch.compiler.is_dynamo_compiling() or _compat.in_transform() or _compat.in_tracing_mode():
        return read()
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():  # a tensor made there does not count its writes
            whole = read()
    else:
        whole = read()
    if _compat.is_distributed(whole) or whole.is_meta or type(whole) is not Tensor or whole.is_inference():
        return whole
    return Merged.of(whole, part, name)


def load(
    layer: PackedLinear,
    state_dict: Mapping[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Load a state_dict into a layer.

    A weight and a bias are loaded as a plain layer's, and then taken apart. The layer's own parts are loaded under the
    names of `named_parameters`, by which people save what learns. What a subclass adds is loaded as any module's.

    Args:
        layer: The layer.
        state_dict: As for `torch.nn.Module._load_from_state_dict`, and so the others.
        prefix: See above.
        local_metadata: See above.
        strict: See above.
        missing_keys: See above.
        unexpected_keys: See above.
        error_msgs: See above.
    """
    keys = missing_keys, unexpected_keys, error_msgs
    own = {prefix + name for name in PARTS if layer._parameters.get(name) is not None}
    whole = {name: value for name, value in state_dict.items() if name in (prefix + "weight", prefix + "bias")}
    parts = {name: value for name, value in state_dict.items() if name in own}
    rest = {name: value for name, value in state_dict.items() if name not in whole and name not in own}
    if _compat.is_distributed(layer.base):
        whole, parts = _cut(layer, whole, parts, prefix, error_msgs)
    with _without_parts(layer):
        nn.Module._load_from_state_dict(layer, rest, prefix, dict(local_metadata), strict, *keys)
    assign = bool(local_metadata.get("assign_to_params_buffers"))
    plain = nn.Linear(
        layer.in_features, layer.out_features, layer.bias_values is not None, device="meta", dtype=layer.base.dtype
    )
    with torch.no_grad():
        if whole and not assign:
            plain.weight = nn.Parameter(layer._whole_weight().detach().clone())  # sharded as the layer is
            if plain.bias is not None:
                plain.bias = nn.Parameter(layer._whole_bias().detach().clone())
        plain._load_from_state_dict(whole, prefix, dict(local_metadata), strict, *keys)
        if not plain.weight.is_meta:
            _take_weight(layer, plain.weight, assign)
        if layer.bias_values is not None and not plain.bias.is_meta:
            _take_bias(layer, plain.bias, assign)
        _load_parts(layer, parts, prefix, local_metadata, missing_keys, error_msgs)


@contextlib.contextmanager
def _without_parts(layer: PackedLinear) -> Iterator[None]:
    # The parts come back in their places, whatever was loaded in between.
    before = dict(layer._parameters)
    for name in PARTS:
        layer._parameters.pop(name, None)
    try:
        yield
    finally:
        after = {name: layer._parameters.get(name, value) for name, value in before.items()}
        layer._parameters.clear()
        layer._parameters.update(after)


def _take_weight(layer: PackedLinear, weight: Tensor, assign: bool) -> None:
    if not assign:
        Weight(layer).write(weight)
        return
    learns = layer.values.requires_grad
    layer.base = Constant(weight.detach())
    layer._set_masks(layer._mask, layer._bias_values)
    values = layer._positions().pack(layer.base.detach()).to(layer.values.dtype)
    layer.values = nn.Parameter(values, requires_grad=learns)


def _take_bias(layer: PackedLinear, bias: Tensor, assign: bool) -> None:
    if not assign:
        Bias(layer).write(bias)
        return
    assert layer.bias_values is not None, "asked for only where there is a bias"
    learns, layer.bias_values = layer.bias_values.requires_grad, None
    layer._take_bias_over(bias)
    Bias(layer).learn(learns)


def _cut(
    layer: PackedLinear,
    whole: Mapping[str, Any],
    parts: Mapping[str, Any],
    prefix: str,
    error_msgs: list[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is loaded into a sharded layer, with whole tensors cut as the layer's own parts are.

    Every process has the same whole tensors then, as `set_model_state_dict(full_state_dict=True)` of
    torch.distributed.checkpoint gives them, together with the layer's own parts as they are.

    Args:
        layer: The layer.
        whole: The weight and the bias, by prefix and name.
        parts: What is loaded of the layer's parts, likewise.
        prefix: Prefix of the names.
        error_msgs: As for `torch.nn.Module.load_state_dict`.
    """
    given, changed, own = dict(whole), dict(parts), layer._parameters
    as_it_is = bool(parts) and all(value is own[name.removeprefix(prefix)] for name, value in parts.items())
    if as_it_is and not _is_said_everywhere(bool(given), own["base"]):
        # torch broadcasts what has a parameter's name alone: the first process loads the weight, the others themselves.
        error_msgs.append(packed_checks.not_broadcast(type(layer).__name__, prefix))
    for name, base, learned in (("weight", "base", "values"), ("bias", "bias_base", "bias_values")):
        value, like = given.get(prefix + name), own.get(learned if own.get(base) is None else base)
        if not isinstance(value, Tensor) or _compat.is_distributed(value) or like is None or value.shape != like.shape:
            continue
        taken = value = given.pop(prefix + name).detach()
        if name == "weight":
            kind = lowering.resolve(layer._mask, (layer.out_features, layer.in_features), value.device, packed=True)
            taken = kind.pack(value)
        elif layer._bias_values is not None:
            taken = value[torch.from_numpy(layer._bias_values).to(value.device)]
        for one, tensor in ((base, value), (learned, taken)):
            if (old := own.get(one)) is not None:
                changed[prefix + one] = _compat.cut_like(tensor.contiguous(), old)
    return given, changed


def _load_parts(
    layer: PackedLinear,
    parts: Mapping[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    missing_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Load what learns, and the matrix and bias beside it, under the names that `named_parameters` gives them.

    Args:
        layer: The layer. What is loaded whole is in it already.
        parts: What is loaded, by prefix and name.
        prefix: As for `torch.nn.Module.load_state_dict`, and so the others. A weight or bias all of whose parts are
            here is taken out of the missing ones.
        local_metadata: See above.
        missing_keys: See above.
        error_msgs: See above.
    """
    if not parts:
        return
    own, holder = layer._parameters, nn.Module()
    before = {name: own[name] for name in (key.removeprefix(prefix) for key in parts)}
    holder._parameters.update(before)
    holder._load_from_state_dict(dict(parts), prefix, dict(local_metadata), True, [], [], error_msgs)
    for name, old in before.items():
        new = holder._parameters[name]
        if new is not old and new is not None and old is not None:  # load_state_dict(assign=True)
            fits = new.detach().to(old.dtype)
            own[name] = Constant(fits) if isinstance(old, Constant) else nn.Parameter(fits, old.requires_grad)
    for name, made_of in (("weight", ("base", "values")), ("bias", ("bias_base", "bias_values"))):
        if all(own.get(part) is None or part in before for part in made_of) and prefix + name in missing_keys:
            missing_keys.remove(prefix + name)


def _is_said_everywhere(yes: bool, like: Any) -> bool:
    # Whether all processes that hold parts of a DTensor say the same: each of them asks.
    said = torch.tensor([float(yes), 1.0], device=like.device_mesh.device_type)
    for dim in range(like.device_mesh.ndim):
        torch.distributed.all_reduce(said, group=like.device_mesh.get_group(dim))
    return said[0].item() in (0.0, said[1].item())
