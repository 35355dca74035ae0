"""The weights of a torch model by name, and how to write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.models.weights.tree import BUFFER, PARAMETER, STATISTIC, Leaf, Parts

STATISTICS = ("running_mean", "running_var")
FLAGS = ("groups", "num_heads", "num_layers", "bidirectional", "hidden_size", "batch_first")


class TorchTree:
    """The named parameters and buffers of a torch model; a tied weight is there once, with its other names.

    Example:
        >>> import torch
        >>> TorchTree(torch.nn.Linear(3, 2)).leaves["weight"].shape
        (2, 3)
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._tensors: dict[str, Any] = {}
        self.leaves: dict[str, Leaf] = {}
        names: dict[int, str] = {}
        aliases: dict[str, list[str]] = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        found: list[tuple[str, Any, str]] = []
        for prefix, module in modules.items():
            start = f"{prefix}." if prefix else ""
            found += [(start + key, value, PARAMETER) for key, value in module._parameters.items() if value is not None]
            found += [
                (start + key, value, STATISTIC if key in STATISTICS else BUFFER)
                for key, value in module._buffers.items()
                if value is not None
            ]
        for name, tensor, kind in found:
            if id(tensor) in names:
                aliases[names[id(tensor)]].append(name)
                continue
            names[id(tensor)] = name
            aliases[name] = []
            self._tensors[name] = tensor
            owner = modules[name.rpartition(".")[0]]
            self.leaves[name] = Leaf(
                name, split(name), tuple(tensor.shape), dtype_name(tensor), kind, layer_of(owner), flags_of(owner)
            )
        for name, others in aliases.items():
            self.leaves[name] = self.leaves[name].tied([split(other) for other in others], others)

    def weights(self) -> dict[str, np.ndarray]:
        """Return every parameter and buffer as an array, on the CPU the tensor's own memory; bfloat16 as float32."""
        return {name: array_of(tensor) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Any:
        """Return the parameter or buffer itself."""
        return self._tensors[name]

    def write(self, values: Mapping[str, np.ndarray]) -> None:
        """Write values into the model, in place; nothing is written when one of them does not fit."""
        import torch

        for name, value in values.items():
            if tuple(value.shape) != self.leaves[name].shape:
                raise ValueError(f"{name}: expected shape {self.leaves[name].shape}, got {tuple(value.shape)}")
        with torch.no_grad():
            for name, value in values.items():
                self._tensors[name].copy_(torch.from_numpy(np.array(value)))


def torch_weights(model: Any) -> dict[str, np.ndarray]:
    """Return the named parameters and buffers of a torch model as arrays, tied ones once."""
    return TorchTree(model).weights()


def split(name: str) -> Parts:
    """Return a name taken apart at its dots."""
    return tuple(int(part) if part.isdecimal() else part for part in name.split("."))


def dtype_name(tensor: Any) -> str:
    """Return the name of a tensor's dtype, as NumPy and JAX have it."""
    return str(tensor.dtype).removeprefix("torch.")


def array_of(tensor: Any) -> np.ndarray:
    """Return a tensor as an array on the host; types that NumPy lacks as float32.

    Raises:
        ValueError: It is on the meta device.
    """
    import torch

    if tensor.is_meta:
        raise ValueError(
            "the torch model: expected weights with numbers, got one on the meta device: make the model on a device, or"
            " load its state dict with assign=True"
        )

    value = tensor.detach().cpu()
    if value.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        value = value.float()
    return np.asarray(value.numpy())


def layer_of(module: Any) -> str:
    """Return the name of the framework's layer class that a module is or extends, or ""."""
    for base in type(module).__mro__:
        if base.__module__.startswith("torch.nn.modules.") and base.__name__ not in GENERAL:
            return LAZY.get(base.__name__, base.__name__)
        if base.__name__ == "Conv1D" and hasattr(module, "nf"):
            return "Conv1D (transformers)"
    return ""


GENERAL = ("Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict")
LAZY = {"NonDynamicallyQuantizableLinear": "Linear"}


def flags_of(module: Any) -> dict[str, Any]:
    """Return the settings of a layer that decide the layout of its weights."""
    return {key: getattr(module, key) for key in FLAGS if isinstance(getattr(module, key, None), int | bool)}
