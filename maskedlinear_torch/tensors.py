"""Special tensors: a constant that never learns, positions that nothing averages, a weight that passes on writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_torch import _compat


class Constant(nn.Parameter):
    """A parameter that never requires a gradient, whoever asks for one: `model.requires_grad_(True)` passes it by.

    `has_aliases` tells that its memory was handed out in a way that hides later writes from its version counter, and
    `assigned` how often another memory, shape or dtype was set as its data, which that does not count.
    """

    has_aliases = False
    assigned = 0

    def __new__(cls, data: Tensor, requires_grad: bool = False, **noted: Any) -> Constant:
        """Return a constant over the memory of `data`; `noted` is of one that it takes the place of (accelerate)."""
        return super().__new__(cls, data.detach() if isinstance(data, Constant) else data, False)

    def requires_grad_(self, requires_grad: bool = True) -> Constant:
        """Change nothing."""
        return self

    @property
    def requires_grad(self) -> bool:
        """False. Setting it changes nothing."""
        return False

    @requires_grad.setter
    def requires_grad(self, requires_grad: bool) -> None:
        pass

    @property
    def data(self) -> Tensor:
        """The same memory with a version counter of its own."""
        self.has_aliases = True
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, data: Tensor) -> None:
        self.assigned += 1
        Tensor.data.__set__(self, data)  # type: ignore[attr-defined]

    def numpy(self, *, force: bool = False) -> Any:
        """Return the same memory as a NumPy array."""
        self.has_aliases = True
        return super().numpy(force=force)

    def __array__(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the same memory as a NumPy array."""
        self.has_aliases = True
        return super().__array__(*arguments, **keywords)

    def __deepcopy__(self, memo: dict[int, Any]) -> Constant:
        """Return a constant over a copy of the memory."""
        if id(self) not in memo:
            memo[id(self)] = Constant(self.detach().clone(memory_format=torch.preserve_format))
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the numbers."""
        return Constant, (self.detach(),)


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor that torch's own modes take: where they trace they refuse a class of ours."""
    if torch.compiler.is_dynamo_compiling():
        return tensor
    if type(tensor) is Constant and _compat.in_tracing_mode():
        with _compat.no_dispatch():
            return Tensor.data.__get__(tensor)  # type: ignore[attr-defined]
    return tensor


class PositionsBuffer(Tensor):
    """What a layer registers as a buffer in place of its positions: it has no numbers that could be averaged or cast.

    Positions must be among the buffers where models are stacked for `torch.func.vmap`; there, and only there, this is
    replaced by them.
    """

    positions: Tensor

    @staticmethod
    def of(positions: Tensor) -> PositionsBuffer:
        """Return the buffer that stands for positions, on their device."""
        buffer = torch.empty(0, dtype=torch.uint8, device=positions.device).as_subclass(PositionsBuffer)
        buffer.positions = positions
        return buffer

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function on no numbers, and `torch.stack` on the positions."""
        if func is torch.stack:
            tensors, *rest = args
            return torch.stack([getattr(tensor, "positions", tensor) for tensor in tensors], *rest, **(kwargs or {}))
        with _compat.no_torch_function():
            result = func(*args, **(kwargs or {}))
            if func in _COPIES and type(result) is Tensor:  # it stands for the same positions
                result = result.as_subclass(PositionsBuffer)
                result.positions = args[0].positions
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> PositionsBuffer:
        """Return a buffer for a copy of the positions."""
        return PositionsBuffer.of(self.positions.clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the positions."""
        return PositionsBuffer.of, (self.positions,)

    def __repr__(self, **keywords: Any) -> str:  # type: ignore[override]
        """Describe the positions."""
        return f"PositionsBuffer({self.positions!r})"


_COPIES = (Tensor.detach, Tensor.clone, Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.data.__get__)  # type: ignore[attr-defined]


_WRITE_ALL = (Tensor.copy_, Tensor.fill_, Tensor.zero_)


def _covers(one: Tensor, root: Tensor) -> bool:
    # Views of as many entries may name some of them twice (expand).
    same = sorted(zip(one.stride(), one.shape, strict=True)) == sorted(zip(root.stride(), root.shape, strict=True))
    return one.numel() == root.numel() and (same or one.is_contiguous())


class Whole(Protocol):
    """A part of a layer that is put together of what learns and what does not: its weight or its bias."""

    def is_of(self, layer: Any) -> bool:
        """Tell whether it is a part of that very layer."""

    def versions(self) -> tuple[Any, ...]:
        """Return what changes when the part does."""

    def write(self, whole: Tensor) -> None:
        """Let the part have these numbers."""

    def learn(self, learns: bool) -> None:
        """Let the part require a gradient, or not."""


class _Link(NamedTuple):
    part: Whole
    name: str
    root: Tensor
    versions: list[tuple[Any, ...]]


class Merged(Tensor):
    """A whole weight or bias: reads as any tensor does, and what is written to it is written to the layer.

    Views of it, its `.data` and what `detach` returns write through as well. Other results are plain tensors. A
    `torch.nn.Parameter` made of it is one of its own: what is written to that is not written to the layer.
    """

    link: _Link
    is_view = False
    is_apart = False

    @property
    def _is_param(self) -> bool:  # what `torch.nn.Parameter` sets on a tensor of another class
        return self.is_apart

    @_is_param.setter
    def _is_param(self, is_parameter: bool) -> None:
        self.is_apart = is_parameter

    @staticmethod
    def of(root: Tensor, part: Whole, name: str) -> Merged:
        """Return the numbers of `root`, to be written through to a part of a layer."""
        merged = root.as_subclass(Merged)
        merged.link = _Link(part, name, root.detach(), [part.versions()])
        return merged

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function on plain numbers, then write to the layer what it wrote."""
        kwargs = kwargs or {}
        with _compat.no_torch_function():
            first = args[0] if args else None
            if isinstance(first, Merged) and not first.is_apart:
                if func == Tensor.data.__set__:  # type: ignore[attr-defined]
                    return first._set_data(args[1])
                if func in (Tensor.requires_grad_, Tensor.requires_grad.__set__) and not first.is_view:  # type: ignore[attr-defined]
                    return first._set_learns(*args[1:], **kwargs)
            merged = list(_merged((args, kwargs)))
            before = [(one, _compat.version(one), one._history()) for one in merged]
            result = func(*args, **kwargs)
            for one, version, history in before:
                if _compat.version(one) != version:
                    is_all = one is first and func in _WRITE_ALL and _covers(one, one.link.root)
                    one._write_through(history is not None and one._history() is not history, is_all)
            return _linked(result, [one.link for one in merged])

    def _history(self) -> Any:
        # What autograd knows of the memory: a write that is recorded changes it.
        base = _compat.viewed(self)
        return (self if base is None else base).grad_fn

    def _set_data(self, data: Tensor) -> None:
        if data.data_ptr() == self.data_ptr() and data.shape == self.shape and data.stride() == self.stride():
            return
        packed_checks.written(self.link.name, tuple(self.shape), str(self.dtype), tuple(data.shape), str(data.dtype))
        with torch.no_grad():
            self.copy_(data)
        self._write_through(False)

    def _set_learns(self, requires_grad: bool = True) -> Merged:
        self.link.part.learn(requires_grad)
        return self

    def _write_through(self, is_recorded: bool, is_all: bool = False) -> None:
        part, name, root, versions = self.link
        if is_recorded:
            packed_checks.refuse_recorded_write(name)
        if part.versions() != versions[0] and not is_all:  # what writes all of it does not go by what was read
            packed_checks.refuse_stale_write(name)
        part.write(root)
        versions[0] = part.versions()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return the numbers as a plain tensor."""
        with _compat.no_torch_function():
            copied: Tensor = self.detach().as_subclass(Tensor).clone()
            memo[id(self)] = copied = nn.Parameter(copied, self.requires_grad) if self.is_apart else copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the numbers as a plain tensor."""
        with _compat.no_torch_function():
            plain = self.detach().as_subclass(Tensor)
            return (nn.Parameter(plain, self.requires_grad) if self.is_apart else plain).__reduce_ex__(protocol)

    def __repr__(self, **keywords: Any) -> str:  # type: ignore[override]
        """Describe the numbers."""
        with _compat.no_torch_function():
            return repr(self.as_subclass(Tensor))


def _merged(tree: Any) -> Iterator[Merged]:
    if isinstance(tree, Merged):
        if not tree.is_apart:
            yield tree
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _merged(branch)
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from _merged(branch)


def _linked(result: Any, links: list[_Link]) -> Any:
    # What shares the memory of the whole can be written to; an array of NumPy cannot tell us, so it is read only.
    if type(result) in (list, tuple):
        return type(result)(_linked(one, links) for one in result)
    if isinstance(result, np.ndarray):
        start = result.__array_interface__["data"][0]
        if any(start - link.root.data_ptr() in range(max(link.root.nbytes, 1)) for link in links):
            result.flags.writeable = False
    elif type(result) is Tensor and result.layout is torch.strided:
        memory = result.untyped_storage().data_ptr()
        for link in links:
            if memory and memory == link.root.untyped_storage().data_ptr():
                result = result.as_subclass(Merged)
                result.link, result.is_view = link, True
                break
    return result


def holds_same_bits(tensor: Tensor, bits: Tensor) -> bool:
    """Tell whether a tensor has these bits, as `as_bits` gives them, without gaps in memory."""
    if tensor.shape != bits.shape or tensor.itemsize != bits.itemsize:
        return False
    if tensor.is_cpu and tensor.is_contiguous() and _compat.MEMCMP is not None:
        return _compat.MEMCMP(tensor.data_ptr(), bits.data_ptr(), bits.nbytes) == 0
    return torch.equal(as_bits(tensor), bits)


def as_bits(tensor: Tensor) -> Tensor:
    """Return the bits of floats as integers, in the same memory."""
    return tensor.detach().view(_BITS[tensor.element_size()])


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_quantized(tensor: Tensor) -> bool:
    """Tell whether a tensor has few values that stand for floats: torch's own, or of a class that reads them itself."""
    if torch.compiler.is_dynamo_compiling():
        return False
    return tensor.is_quantized or type(tensor).dequantize is not Tensor.dequantize


def check_dense(function: str, **tensors: Tensor | None) -> None:
    """Refuse tensors that are sparse, nested, quantized or of another layout.

    Args:
        function: Name of the public function, for messages.
        tensors: By the name of the argument.
    """
    for name, tensor in tensors.items():
        if tensor is not None and is_quantized(tensor):
            kind = (
                str(tensor.dtype).removeprefix("torch.")
                if type(tensor).__module__ == "torch"
                else type(tensor).__name__
            )
            call_checks.refuse_quantized(name, kind, function=function)
        if tensor is not None and (tensor.is_nested or tensor.layout is not torch.strided):
            layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            call_checks.refuse_layout(name, layout, function=function)
