"""The weight and the bias of a packed layer as what is written to: writes go to what learns and to what does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_torch import _compat, lowering, rule
from maskedlinear_torch.tensors import Constant, Merged, as_bits

if TYPE_CHECKING:
    from maskedlinear_torch.packed_module import PackedLinear


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


def cut(
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
        prefix: Of the names.
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


def say_frozen(layer: PackedLinear, destination: dict[str, Any], prefix: str) -> None:
    """Let a state_dict have what is frozen under the names of parameters, and no weight of which nothing learns."""
    own = prefix and prefix[: -len(layer._joint)] + "."
    for name, base, learned in (("weight", "base", "values"), ("bias", "bias_base", "bias_values")):
        parts = {one: layer._parameters.get(one) for one in (base, learned)}
        for one, part in parts.items():
            if part is not None and not part.requires_grad:
                destination[own + one] = part.detach()
        values = parts[learned]
        if values is not None and not (values.requires_grad and values.numel()):
            del destination[prefix + name]


def load_parts(
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
