"""The private parts of torch that no public name replaces (tests/test_private_names_torch.py watches them)."""

from __future__ import annotations

import ctypes
import operator
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

VERSION = tuple(map(int, re.findall(r"\d+", torch.__version__)[:3]))
"""Of torch: three numbers."""


def in_functorch_transform() -> bool:
    """Tell whether a torch.func transform is running, in eager mode or while Dynamo traces one."""
    return torch._C._are_functorch_transforms_active()


def in_dual_level() -> bool:
    """Tell whether forward-mode dual numbers may be about (`torch.autograd.forward_ad.dual_level`)."""
    return forward_ad._current_level >= 0


def in_dispatch_mode() -> bool:
    """Tell whether a `TorchDispatchMode` is on, such as the one of fake tensors."""
    return torch._C._len_torch_dispatch_stack() > 0


def dispatch_modes() -> tuple[Any, ...]:
    """Return the dispatch modes that are on, the innermost last."""
    return tuple(map(torch._C._get_dispatch_stack_at, range(torch._C._len_torch_dispatch_stack())))


def in_tracing_mode() -> bool:
    """Tell whether a mode of torch's own is on that makes other tensors of real ones: fake, proxy or functional."""
    return torch._C._len_torch_dispatch_stack() > 0 and any(map(torch._C._get_dispatch_mode, _TRACING))


is_traced_by_jit: Callable[[], bool] = torch._C._is_tracing
"""Tell whether `torch.jit.trace` records: `torch.jit.is_tracing` in a fifth of its time."""


_TRACING = tuple(torch._C._TorchDispatchModeKey.__members__.values())


def is_held_once(tensor: torch.Tensor) -> bool:
    """Tell whether one Python object alone holds a tensor and its memory: no view, no graph of autograd, no alias."""
    memory = tensor.untyped_storage()  # holds it for the second time
    use_count: Any = getattr(tensor, "_use_count")  # noqa: B009  (unknown to type checkers)
    return use_count() == 1 and torch._C._storage_Use_Count(memory._cdata) == 2 and _counts_references()


def _counts_references() -> bool:
    # Without a global lock `sys.getrefcount` is no proof; from 3.14 on a local name may hold without being counted.
    # Python 3.11 and 3.12 always have the lock, and no name for the question.
    return sys.version_info < (3, 14) and getattr(sys, "_is_gil_enabled", lambda: True)()


def in_autocast() -> bool:
    """Tell whether autocast is on for any kind of device: one question where the public names ask two a device."""
    return torch._C._is_any_autocast_enabled()


def persistent_buffers(model: torch.nn.Module, *, remove_duplicate: bool = True) -> dict[str, torch.Tensor]:
    """Return the buffers that are part of a model's state_dict, by one name or by each of their names."""
    return {
        ".".join(filter(None, (prefix, name))): buffer
        for prefix, module in model.named_modules(remove_duplicate=remove_duplicate)
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def no_torch_function() -> AbstractContextManager[None]:
    """Let functions take tensors of a subclass for plain ones, and return plain ones."""
    return torch._C.DisableTorchFunctionSubclass()


def no_dispatch() -> AbstractContextManager[None]:
    """Let no mode and no subclass see what is called."""
    return torch._C._DisableTorchDispatch()


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
    # Both questions of above, in one call: this is asked several times in each step.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


unwrapped: Callable[[torch.Tensor], torch.Tensor] = torch._C._functorch.unwrap_if_dead
"""Return a tensor as what it stands for, if a transform of torch.func that is over has left it behind."""


def is_watched() -> bool:
    """Tell whether anything may see a call or change what it does: a transform, dispatch mode, autocast or tracer."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_any_autocast_enabled()
        or torch._C._is_tracing()
    )


def is_batched_by_autograd(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is one of a batch of cotangents (`is_grads_batched`): no transform of torch.func tells."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


def is_distributed(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is a DTensor, without importing that."""
    return hasattr(tensor, "device_mesh")


def is_group(value: Any) -> bool:
    """Tell whether a value is a process group; a build of torch may have none."""
    return torch.distributed.is_available() and isinstance(value, torch.distributed.ProcessGroup)


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


def summed(tensor: Any) -> Any:
    """Return a DTensor whose parts are no terms of a sum any more.

    What is looked up in a matrix that is cut by rows is such a sum, which torch lets be used once, and in its shape.
    The gradient is made whole too: torch's own rule refuses one that is a sum.
    """
    from torch.distributed.tensor import Replicate  # as above

    whole = [Replicate() if placement.is_partial() else placement for placement in tensor.placements]
    result = tensor.redistribute(placements=whole)
    if result.requires_grad:
        result.register_hook(summed)
    return result


def cut_like(tensor: torch.Tensor, other: Any) -> Any:
    """Return a tensor, the same on every device, as a DTensor cut as another is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)  # nothing is sent


def _memcmp() -> Any:
    try:
        found = ctypes.CDLL(None).memcmp
    except (AttributeError, OSError, TypeError):  # no such library under that name
        return None
    found.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    return found


MEMCMP = _memcmp()
"""Compares two places in memory in a third of the time of `torch.equal`; None where there is none under that name."""


writes: Callable[[torch.Tensor], int] = operator.attrgetter("_version")
"""Return how often a tensor was written to in place, but for writes to its `.data`.

A tensor of inference mode has no count.
"""


def version(tensor: torch.Tensor) -> int:
    """Return what `writes` does; 0 for a tensor that has no count."""
    return 0 if tensor.is_inference() else writes(tensor)


viewed: Callable[[torch.Tensor], torch.Tensor | None] = operator.attrgetter("_base")
"""Return the tensor that a tensor is a view of, as autograd knows it; None for one that is no view."""


def count_write(tensor: torch.Tensor) -> None:
    """Let autograd take a tensor for written to."""
    torch.autograd.graph.increment_version(tensor)


def has_joint_projection(attention: torch.nn.MultiheadAttention) -> bool:
    """Tell whether queries, keys and values have one weight (`in_proj_weight`)."""
    return attention._qkv_same_embed_dim


def stepped_with(optimizer: torch.optim.Optimizer) -> list[torch.Tensor] | None:
    """Return the list of parameters that LBFGS keeps beside its groups; None for an optimizer that keeps none."""
    found = getattr(optimizer, "_params", None)
    return found if isinstance(found, list) else None


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether somebody but `maskedlinear_torch.steps` is called before or after a step."""
    ours = "maskedlinear_torch.steps"
    hooks = [
        *optimizer._optimizer_step_pre_hooks.values(),
        *optimizer._optimizer_step_post_hooks.values(),
        *_global_optimizer_pre_hooks.values(),
        *_global_optimizer_post_hooks.values(),
    ]
    return any(getattr(hook, "__module__", None) != ours for hook in hooks)


def restart_lbfgs(optimizer: torch.optim.Optimizer) -> None:
    """Let LBFGS begin anew with the parameters that it has now: it keeps a list, a count and a history of its own."""
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer._params = optimizer.param_groups[0]["params"]
        optimizer._numel_cache = None
        optimizer.state.clear()


def replicate_like(weight: Any) -> Callable[[torch.Tensor | None], Any]:
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


def hardshrink_(tensor: torch.Tensor, bound: float) -> torch.Tensor:
    """Write +0 in the place of what is not larger than a bound, where nothing traces; else return a new tensor.

    The function has no form in place, and what its `out` may be is not documented.
    """
    if in_functorch_transform() or torch.compiler.is_compiling():
        return torch.nn.functional.hardshrink(tensor, bound)
    return torch.hardshrink(tensor, bound, out=tensor)


def int8_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product of two int8 matrices, or of each of two stacks of them, in int32."""
    if in_functorch_transform() and not torch.compiler.is_dynamo_compiling():
        return _Int8Product.apply(a, b)
    return _int8_product(a, b)


def _int8_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dim() > 2:
        if a.shape[0] == 0:
            return a.new_zeros((0, a.shape[1], b.shape[2]), dtype=torch.int32)
        return torch.stack([_int8_product(x, y) for x, y in zip(a, b, strict=True)])
    # CUDA takes more than 16 rows and multiples of 8 only, and on a CPU one column of a transpose is misread.
    (m, k), n = a.shape, b.shape[1]
    more_k = max(8 - k, -k % 8)
    a = torch.nn.functional.pad(a, (0, more_k, 0, max(24 - m, -m % 8)))
    return torch._int_mm(a, torch.nn.functional.pad(b, (0, max(8 - n, -n % 8), 0, more_k)))[:m, :n]


class _Int8Product(torch.autograd.Function):
    """`torch._int_mm` has no rule for vmap."""

    @staticmethod
    def forward(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return _int8_product(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], a: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, int | None]:
        left, right = (
            [tensor] * info.batch_size if dim is None else tensor.unbind(dim)
            for tensor, dim in zip((a, b), in_dims, strict=True)
        )
        return torch.stack([int8_product(x, y) for x, y in zip(left, right, strict=True)]), 0


def view_bits(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `tensor.view(dtype)`, for a dtype of the same size.

    Before torch 2.13 vmap has no rule for that view.
    """
    if VERSION >= (2, 13) or not in_functorch_transform() or torch.compiler.is_dynamo_compiling():
        return tensor.view(dtype)
    return _Bits.apply(tensor, dtype)


class _Bits(torch.autograd.Function):
    """`view_bits` where vmap meets it."""

    @staticmethod
    def forward(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return tensor.view(dtype).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.dtype], output: torch.Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], tensor: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, int | None]:
        return view_bits(tensor, dtype), in_dims[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None


def forward_mode_enabled() -> AbstractContextManager[None]:
    """Switch forward mode back on inside a `jvp` rule, which torch runs with it off.

    Without this the tangents of an outer level are dropped without an error (pytorch #197867).
    """
    return forward_ad._set_fwd_grad_enabled(True)


def remove_pre_hook(module: torch.nn.Module, hook: Callable[..., None]) -> None:
    """Remove a forward pre-hook by what it calls: copies of a module have no handle to theirs."""
    for number, found in list(module._forward_pre_hooks.items()):
        if found is hook:
            del module._forward_pre_hooks[number]


def take_hooks(new: torch.nn.Module, old: torch.nn.Module) -> None:
    """Hand a module's hooks to the one that replaces it: the very dicts, so that the handles still remove them."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def take_attributes(new: torch.nn.Module, old: torch.nn.Module) -> None:
    """Hand what others noted on a module, such as that it is initialised, to the one that replaces it."""
    noted = {name: value for name, value in vars(old).items() if not hasattr(new, name)}
    vars(new).update(noted, _noted=tuple(noted))


def give_attributes_back(plain: torch.nn.Module, layer: torch.nn.Module) -> None:
    """Hand what `take_attributes` took on to a plain module."""
    vars(plain).update({name: vars(layer)[name] for name in getattr(layer, "_noted", ()) if name in vars(layer)})


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


def active_ddp() -> Any:
    """Return the `DistributedDataParallel` whose forward runs now, or None."""
    return DistributedDataParallel._active_ddp_module


def parameters_of_ddp(wrapper: Any) -> list[torch.Tensor]:
    """Return the parameters whose gradients a `DistributedDataParallel` averages: those it found when it was made."""
    return list(wrapper._module_parameters)
