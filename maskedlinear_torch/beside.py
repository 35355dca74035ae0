"""What users put into a layer beside what such a layer has: it goes along to the layer that replaces it (SPEC S8)."""

from __future__ import annotations

from torch import Tensor, nn

from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_torch.held_module import HeldModule

_OF_LAYERS = {
    "weight", "bias", "values", "base", "bias_values", "bias_base",
    "_position_0", "_position_1", "_position_2", "_bias_position",
}  # fmt: skip
"""What masked and packed linear layers and embeddings have."""


def parts(module: nn.Module) -> dict[str, nn.Parameter | Tensor | nn.Module]:
    """Return the parameters, buffers and modules that a user put into a layer, beside what such a layer has."""
    found = {**module._parameters, **module._buffers, **module._modules}
    own = _OF_LAYERS if isinstance(module, HeldModule) else {"weight", "bias", "embedding"}
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
