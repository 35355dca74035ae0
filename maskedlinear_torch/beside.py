"""Parameters, buffers and modules that users add to a layer: they move to the layer that replaces it (contract S8)."""

from __future__ import annotations

from torch import Tensor, nn

from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_torch.held_module import HeldModule

_OF_ALL = {"weight", "bias", "parametrizations"}

_OF_MASKED = {"_position_0", "_position_1", "_position_2", "_bias_position"}

_OF_PACKED = {"values", "base", "bias_values", "bias_base"}
"""What packed linear layers and embeddings have."""

_COMPUTED_FROM = ("orig", "mask", "g", "u", "v")
"""How pruning and norms call what they compute a parameter from: the result goes along, and these would do nothing."""


def parts(module: nn.Module) -> dict[str, nn.Parameter | Tensor | nn.Module]:
    """Return the parameters, buffers and modules that a user put into a layer, beside what such a layer has."""
    computed = [name for name in ("weight", "bias") if name not in module._parameters]
    own = {*_OF_ALL, *(f"{name}_{suffix}" for name in computed for suffix in _COMPUTED_FROM)}
    if isinstance(module, HeldModule):
        own |= _OF_MASKED | (_OF_PACKED if getattr(module, "_is_packed", False) else set())
    found = {**module._parameters, **module._buffers, **module._modules}
    return {name: one for name, one in found.items() if name not in own and one is not None}


def take(new: nn.Module, old: nn.Module) -> None:
    """Put the parameters, buffers and modules that a user put into a layer into the one that replaces it.

    Raises:
        TypeError: The new layer has something else of that name.
    """
    for name, one in parts(old).items():
        if getattr(new, name, None) is one:
            continue
        if hasattr(new, name):
            convert_checks.refuse_part(type(new).__name__, name)
        if isinstance(one, nn.Parameter):
            new.register_parameter(name, one)
        elif isinstance(one, nn.Module):
            new.add_module(name, one)
        else:
            new.register_buffer(name, one, persistent=name not in old._non_persistent_buffers_set)
