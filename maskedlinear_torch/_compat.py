"""The private parts of torch that no public name replaces, in one place (tests/test_private_names.py watches them)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.autograd import forward_ad


def in_functorch_transform() -> bool:
    """Tell whether a torch.func transform is running, in eager mode or while Dynamo traces one."""
    return torch._C._are_functorch_transforms_active()


def in_dual_level() -> bool:
    """Tell whether forward-mode dual numbers may be about (`torch.autograd.forward_ad.dual_level`)."""
    return forward_ad._current_level >= 0


def primal(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without the tangent of the innermost forward-mode level."""
    try:
        return forward_ad.unpack_dual(tensor).primal
    except RuntimeError:  # "Batching rule not implemented": a vmap is inside of that level
        return _Primal.apply(tensor)


class _Primal(torch.autograd.Function):
    """`primal` where vmap meets it first: the same, of all that is batched."""

    @staticmethod
    def forward(tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("only vmap is asked for")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], tensor: torch.Tensor) -> tuple[torch.Tensor, int | None]:
        return primal(tensor), in_dims[0]


def in_transform() -> bool:
    """Tell whether anything but ordinary reverse mode may be differentiating or batching."""
    return in_functorch_transform() or in_dual_level()


def is_distributed(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is a DTensor, without importing that."""
    return hasattr(tensor, "device_mesh")


def on_each_device(
    operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tensor: Any, index: Any, dim: int
) -> Any:
    """Apply a linear operation on the parts of a DTensor, not cut along `dim`, and return a DTensor placed alike."""
    from torch.distributed.tensor import DTensor, Replicate  # not on import: it takes a second

    whole = [Replicate() if placement.is_shard(dim % tensor.dim()) else placement for placement in tensor.placements]
    part = tensor.redistribute(placements=whole).to_local()
    return DTensor.from_local(operation(part, index.to_local()), tensor.device_mesh, whole, run_check=False)


def placed_like(tensor: Any, other: Any) -> Any:
    """Return a DTensor placed as another is."""
    return tensor.redistribute(placements=other.placements)


def beside(weight: Any) -> Callable[[torch.Tensor | None], Any]:
    """Return what puts positions, the same on every device, on the devices that hold the parts of a DTensor."""
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * weight.device_mesh.ndim

    def put(tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else DTensor.from_local(tensor, weight.device_mesh, everywhere, run_check=False)

    return put


def constant_to_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let Dynamo run a function as it traces, as a constant: `torch.compiler.assume_constant_result`.

    That one imports Dynamo, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def forward_mode_enabled() -> AbstractContextManager[None]:
    """Switch forward mode back on inside a `jvp` rule, which torch runs with it off.

    Without this the tangents of an outer level are dropped without an error (pytorch #197867).
    """
    return forward_ad._set_fwd_grad_enabled(True)


def take_hooks(new: torch.nn.Module, old: torch.nn.Module) -> None:
    """Hand a module's hooks to the one that replaces it: the very dicts, so that the handles still remove them."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
