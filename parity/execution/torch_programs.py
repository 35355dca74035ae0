"""What a torch program does inside: the operators that it runs, their dtypes, and how rounding moves it.

A `TorchDispatchMode` sees every operator, those of derivatives included. Twin of jax_programs.py, as far as the
frameworks allow.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from parity.execution._compat import decomposition_of, torch_dispatch_mode
from parity.execution.programs import Reading, Steps
from parity.verdict.bounds import FLUSHED, UNIT

TorchDispatchMode: Any = torch_dispatch_mode()

UNITS = {getattr(torch, name): unit for name, unit in UNIT.items()} | {
    torch.complex128: UNIT["float64"], torch.complex64: UNIT["float32"],
}  # fmt: skip

REAL = {torch.complex128: torch.float64, torch.complex64: torch.float32}

_EXACT = """
abs alias amax amin aminmax arange argmax argmin as_strided bernoulli bucketize cat ceil clamp clamp_max clamp_min
clone complex conj_physical constant_pad_nd copy copysign cummax cummin detach diag_embed diagonal_copy dropout
embedding empty_like eye fill fill_ flip floor fmax fmin fmod frac full_like gather hardtanh heaviside im2col index
index_copy index_fill index_put index_select isnan kthvalue leaky_relu lift_fresh masked_fill masked_scatter
masked_select max max_pool2d_with_indices max_pool3d_with_indices maximum median min minimum mode nan_to_num
native_dropout neg nextafter nonzero ones_like pixel_shuffle pixel_unshuffle put real reflection_pad1d
reflection_pad2d relu repeat replication_pad1d replication_pad2d resolve_conj resolve_neg roll round scatter
diagonal_backward diagonal_scatter select_backward select_scatter sgn sign signbit slice_backward slice_scatter sort
stack take threshold threshold_backward topk trace_copy tril triu trunc unfold_backward unique_dim
upsample_nearest1d upsample_nearest2d
view_as_complex view_as_real where zeros_like zero _unsafe_view _unsafe_index _unsafe_masked_index unsqueeze
_unique2 hardtanh_backward broadcast_in_dim collapse_view iota convert_element_type expand eq ne lt le gt ge isinf isin
logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor searchsorted any all
"""
EXACT = frozenset(_EXACT.split())
"""Operators that move, choose or compare numbers: their results are not rounded."""

_BASIC = """
add sub rsub mul div true_divide reciprocal sqrt square remainder
"""
BASIC = frozenset(_BASIC.split())
"""Arithmetic that is rounded once."""

IN_PLACE = frozenset(("lerp", "addcmul", "addcdiv", "add", "sub"))
"""Operators of more than one rounding that optimizers write in place: x + a y cancels though a y is rounded."""

_TRANSCENDENTAL = """
acos acosh asin asinh atan atan2 atanh cos cosh erf erfc exp exp2 expm1 log log10 log1p log2 pow rsqrt sigmoid sin
sinc sinh tan tanh sigmoid_backward tanh_backward
"""
TRANSCENDENTAL = frozenset(_TRANSCENDENTAL.split())
"""Functions that good libraries give to a few units of the result."""

_MOVES = """
alias detach lift_fresh view to _to_copy convert_element_type unsqueeze squeeze expand permute transpose t clone
broadcast_in_dim _unsafe_view reshape slice select cat stack zeros_like ones_like new_zeros
"""
MOVES = frozenset(_MOVES.split())
"""Operators that move numbers only: what type they have is of no account, unless something is computed with it."""

WHOLE = ("linalg", "cholesky", "lu_", "qr", "svd", "eig", "triangular", "inverse", "ormqr", "lstsq", "_fft")
"""Parts of names of operators whose errors are small beside the whole matrix."""

_ATOMIC = """
mm bmm addmm baddbmm addmv mv dot vdot addr convolution convolution_backward sum mean prod cumsum cumprod
cdist_forward _cdist_forward scatter_add index_add embedding_dense_backward avg_pool2d matmul einsum bilinear
"""
ATOMIC = frozenset(_ATOMIC.split())
"""Sums and products: decomposed they would be no more than they are."""

BLOCK = 65521
"""Random numbers that are drawn for one array: a larger one has them again, each time with a sign that is drawn.

A sum of movements has the variance that it would have if all were drawn. As it is a prime, numbers a power of two apart
are moved by different ones.
"""

OWN = 2.0**-50
"""The movement of float64, with `lower`: a few units, as its own rounding is part of the run."""

FUNCTIONS, SPECIAL = 4.0, 4.0
"""Units that a function and that a special function may be off by."""


def _counts(tensor: torch.Tensor) -> bool:
    # Whether it is whole numbers or halves of less than 4096, and not one number all over: counts and positions.
    if tensor.is_complex() or not 1 < tensor.numel() <= BLOCK:
        return False
    twice = tensor * 2
    return bool(((twice == twice.round()) & (twice.abs() < 8192)).all()) and bool(tensor.min() != tensor.max())


class Rounding(TorchDispatchMode):
    """Rounds anew, at random: every result that is rounded is moved by up to a unit, and what goes into sums as well.

    Fused operators are taken apart first, where torch tells of what parts they are (`decomposition_of`). What is too
    small for the dtype whose unit the movement is, is lost.

    Args:
        size: Size of the movement, relative; with `lower` in units of each number's own type.
        seed: Seed of the random numbers.
        lower: Whether numbers are moved by units of the type that they have in the program.
        formulas: Formulas of operators, by name, that replace torch's own parts.
        counts: Whether counts and positions stay: no type rounds them, and moved they are cut to other whole numbers.
        alike: Whether all numbers of a result are moved by one part of their size, as by a constant that was rounded.
    """

    def __init__(
        self, size: float, seed: int, *, lower: bool = False, formulas: Mapping[str, Callable[..., Any]] | None = None,
        counts: bool = False, alike: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.counts, self.alike = counts, alike
        self.size, self.lower, self.formulas = size, lower, formulas or {}
        self.lost = max((FLUSHED[name] for name, unit in UNIT.items() if unit == size and not lower), default=0.0)
        self.random = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and move what it gives."""
        kwargs = kwargs or {}
        name = name_of(func)
        base = name.removesuffix("_")
        inputs = _tensors((*args, *kwargs.values()))
        if base in EXACT or not inputs:
            return self._cast(func(*args, **kwargs), inputs)
        in_place = name.endswith("_") and not name.endswith("__")
        simple = (base in BASIC or base in TRANSCENDENTAL) and kwargs.get("alpha", 1) == 1
        whole = simple or base in ATOMIC or (in_place and base not in IN_PLACE)
        if not whole or (base in self.formulas and not in_place):
            parts = self.formulas.get(base) or decomposition_of(func)
            if parts is not None:
                try:
                    with self:
                        return parts(*args, **kwargs)
                except Exception:  # a decomposition that does not know these arguments
                    pass
        if not (simple or base in BASIC or self.alike) and not in_place and not _is_view(func):
            args = self._moved_inputs(func, base, args)
        once = base in BASIC or (self.alike and base in ATOMIC)
        factor = 1.0 if once else FUNCTIONS if base in TRANSCENDENTAL else SPECIAL
        return self._moved(func(*args, **kwargs), inputs, factor, in_place)

    def _cast(self, out: Any, inputs: list[torch.Tensor]) -> Any:
        # A copy into a smaller type is rounded, other movements are not.
        if not self.lower or not isinstance(out, torch.Tensor) or not inputs:
            return out
        return self._noisy(out, 1.0) if self._unit(out) > max(map(self._unit, inputs)) > 0 else out

    def _unit(self, tensor: torch.Tensor) -> float:
        return UNITS.get(tensor.dtype, 0.0)

    def _amount(self, tensor: torch.Tensor) -> float:
        unit = self._unit(tensor)
        if not self.lower:
            # By a unit numbers of a small type would often round back to where they were.
            return max(self.size, 2 * unit) if 0 < unit <= self.size else self.size
        return self.size * (2 * unit if unit > UNIT["float64"] else OWN)

    def _noise(self, tensor: torch.Tensor, amount: float) -> torch.Tensor:
        # Float64 noise: in a smaller type a small movement would be lost.
        drawn = self._drawn(tensor, amount, 0.0)
        return torch.complex(drawn, self._drawn(tensor, amount, 0.0)) if tensor.is_complex() else drawn

    def _drawn(self, tensor: torch.Tensor, amount: float, middle: float) -> torch.Tensor:
        size = tensor.numel()
        if self.alike:
            drawn = torch.empty((), dtype=torch.float64).uniform_(-amount, amount, generator=self.random)
            return (drawn + middle).to(tensor.device)
        drawn = torch.empty(min(size, BLOCK), dtype=torch.float64).uniform_(0.0, 2 * amount, generator=self.random)
        drawn.sub_(amount)
        if size > BLOCK:
            signs = torch.randint(2, (-(-size // BLOCK), 1), generator=self.random).double().mul_(2).sub_(1)
            drawn = torch.addcmul(torch.tensor(middle, dtype=torch.float64), signs, drawn).reshape(-1)[:size]
        else:
            drawn.add_(middle)
        drawn = drawn.reshape(tensor.shape)
        return drawn if tensor.device.type == "cpu" else drawn.to(tensor.device)

    def _noisy(self, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        if self.counts and _counts(tensor):
            return tensor
        amount = factor * self._amount(tensor)
        if tensor.dtype == torch.float64:
            moved = tensor * self._drawn(tensor, amount, 1.0)  # in the layout that the tensor has
            # What is smaller than `lost` becomes zero, in one operator: no number lies between that and the next.
            return torch.hardshrink(moved, math.nextafter(self.lost, 0.0)) if self.lost else moved
        moved = (tensor * (1 + self._noise(tensor, amount))).to(tensor.dtype)
        return torch.where(moved.abs() < self.lost, 0, moved) if self.lost else moved

    def _moved_inputs(self, func: Any, base: str, args: Any) -> Any:
        tensors = [leaf for leaf in _tensors(args) if leaf.dtype in UNITS]
        if not tensors:
            return args
        pointwise = torch.Tag.pointwise in func.tags
        factor = SPECIAL if pointwise else math.sqrt(_terms(base, tensors))
        whole = any(part in base for part in WHOLE)

        def move(leaf: Any) -> Any:
            if not (isinstance(leaf, torch.Tensor) and leaf.dtype in UNITS) or _place(leaf) is None:
                return leaf  # zeros that are not stored: of a product of them torch.dot reads what is not there
            if whole and leaf.ndim:
                axes = tuple(range(max(leaf.ndim - 2, 0), leaf.ndim))
                size = leaf.abs().nan_to_num(posinf=0.0).amax(axes, keepdim=True) if leaf.numel() else leaf.abs()
                return (leaf + size * self._noise(leaf, factor * self._amount(leaf))).to(leaf.dtype)
            return self._noisy(leaf, factor)

        return _mapped(args, move)

    def _moved(self, out: Any, inputs: list[torch.Tensor], factor: float, in_place: bool) -> Any:
        places = {_place(leaf) for leaf in inputs} - {None}

        def move(leaf: Any) -> Any:
            if not (isinstance(leaf, torch.Tensor) and leaf.dtype in UNITS) or not leaf.numel():
                return leaf
            if in_place:
                with contextlib.suppress(RuntimeError):  # a number that is repeated cannot be written to
                    leaf.copy_(self._noisy(leaf, factor))
                return leaf
            if (place := _place(leaf)) is None or place in places:
                return leaf  # a view
            return self._noisy(leaf, factor)

        return _mapped(out, move)


class Reader(TorchDispatchMode):
    """Notes the types of the numbers that a program computes with, and which operators leave the range.

    Args:
        used: Whether a cast counts only where something is computed of it; then the program's results must be read
            inside of the mode.
    """

    def __init__(self, *, used: bool = False) -> None:
        super().__init__()
        self.reading, self.used = Reading(), used
        self._unused: dict[int, tuple[Any, tuple[str, str, str]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and note what it gives."""
        kwargs = kwargs or {}
        base = name_of(func).removesuffix("_")
        inputs = _tensors((*args, *kwargs.values()))
        for leaf in inputs:
            if id(leaf) in self._unused:
                self.reading.cast(*self._unused.pop(id(leaf))[1])
        parts = None if base in EXACT | BASIC | TRANSCENDENTAL | ATOMIC else decomposition_of(func)
        out = func(*args, **kwargs)
        if parts is not None and not name_of(func).endswith("_"):
            try:
                with self:
                    parts(*args, **kwargs)
            except Exception:  # a decomposition that does not know these arguments
                pass
        if base in ("_to_copy", "to", "convert_element_type") and isinstance(out, torch.Tensor):
            for leaf in inputs[:1]:
                made = _type(leaf), _type(out), _library()
                if self.used:
                    self._unused[id(out)] = out, made  # which keeps it, so that no other has its id
                else:
                    self.reading.cast(*made)
                with contextlib.suppress(RuntimeError):  # numbers that are not stored: forward mode asks for shapes
                    if out.dtype in UNITS and leaf.dtype in UNITS and _vanishes(out, [leaf]):
                        self.reading.small.add(base)
        if base.startswith("special_"):
            self.reading.special.add(base.removeprefix("special_"))
        if base.startswith(IN_SINGLE):
            self.reading.note("float32", base)
            self.reading.cast("float64", "float32", "torch")
        for leaf in _tensors(out):
            if leaf.dtype in UNITS and inputs and base not in MOVES:
                self.reading.note(_type(leaf), base)
                with contextlib.suppress(RuntimeError):  # numbers that are not stored
                    if 0 not in [one for one in args if isinstance(one, int | float)]:
                        self._note_range(base, leaf, inputs)
        return out

    def _note_range(self, name: str, out: torch.Tensor, inputs: list[torch.Tensor]) -> None:
        real = torch.view_as_real(out.resolve_conj()) if out.is_complex() else out
        if real.numel() and bool(torch.isfinite(real).all()):
            tiny = torch.finfo(REAL.get(out.dtype, out.dtype)).tiny
            if bool(((real != 0) & (real.abs() < tiny)).any()) or (name in PRODUCTS and _vanishes(out, inputs)):
                self.reading.small.add(name)
            return
        if all(bool(torch.isfinite(leaf).all()) for leaf in inputs if leaf.dtype in UNITS):
            self.reading.large.add(name)


class Listed(TorchDispatchMode):
    """Lists the operators that run, with the shapes of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: Steps = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and list what it gives."""
        out = func(*args, **(kwargs or {}))
        self.steps += [(name_of(func), tuple(leaf.shape)) for leaf in _tensors(out)]
        return out


IN_SINGLE = ("fake_quantize_", "_fake_quantize_")
"""Operators whose kernels compute in float32, whatever type they are given: scales and quotients are C++ floats."""

PRODUCTS = ("mul", "square", "pow", "exp", "mm", "bmm", "addmm", "dot", "mv", "convolution")
"""Operators whose results are zero, of numbers that are not, where they are too small to be held."""


def _vanishes(out: torch.Tensor, inputs: list[torch.Tensor]) -> bool:
    """Return whether zeros come of numbers of which none is zero."""
    floats = [leaf for leaf in inputs if leaf.dtype in UNITS]
    return bool((out == 0).any()) and all(bool((leaf != 0).all()) for leaf in floats)


@functools.cache
def name_of(func: Any) -> str:
    """Return the name of an operator, without its namespace and overload.

    Example:
        >>> name_of(torch.ops.aten.add_.Tensor)
        'add_'
    """
    return str(func).split(".")[1]


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _library() -> str:
    """Return the library other than torch whose code is running, or an empty text: then the user's own is."""
    frame = sys._getframe(1)
    while frame is not None:
        _, _, inside = frame.f_code.co_filename.replace("\\", "/").rpartition("/site-packages/")
        package = inside.split("/")[0]
        if not inside and not frame.f_globals.get("__name__", "").startswith(("parity.", "torch")):
            return ""
        if inside and package != "torch":
            return package
        frame = frame.f_back  # type: ignore[assignment] # None ends the loop
    return ""


def _place(tensor: torch.Tensor) -> int | None:
    """Return where a tensor's numbers are, or None where it has none (zeros that are not stored)."""
    try:
        return tensor.untyped_storage().data_ptr() if tensor.numel() else None
    except RuntimeError:
        return None


def _is_view(func: Any) -> bool:
    return bool(getattr(func, "is_view", False))


def _terms(base: str, tensors: list[torch.Tensor]) -> int:
    """Return how many numbers each result is summed from: no fewer than it is, and not many more."""
    if "conv" in base:
        return max(leaf.numel() // max(leaf.shape[1] if leaf.ndim > 1 else 1, 1) for leaf in tensors)
    if base in ("sum", "mean", "prod"):
        return max(leaf.numel() for leaf in tensors)
    return max((max(leaf.shape, default=1) for leaf in tensors), default=1)


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    found: list[torch.Tensor] = []
    for part in tree if isinstance(tree, list | tuple) else ():
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif isinstance(part, list | tuple):
            found += _tensors(part)
    return found


def _mapped(tree: Any, change: Any) -> Any:
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(part, change) for part in tree)
    return change(tree)
