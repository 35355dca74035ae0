"""The torch side of the masked linear layer, for the worlds of parity. Twin of jax_side.py, function by function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import maskedlinear_torch
from maskedlinear_core import constructors
from maskedlinear_core.annotations import PrecisionLike
from maskedlinear_torch import lowering
from parity.execution.torch_backend import DTYPES
from parity.execution.torch_backend import FRAMEWORK as FRAMEWORK
from parity.execution.torch_backend import devices as devices


def _packed(input: Any, weight: Any, bias: Any = None, *, grad_mask: Any, **keywords: Any) -> Any:
    # The matrix is a constant to packed_linear: all that flows to the weight flows through its values.
    values = maskedlinear_torch.pack(weight, grad_mask=grad_mask)
    return maskedlinear_torch.packed_linear(input, weight, values, bias, grad_mask=grad_mask, **keywords)


SUBJECTS = {False: maskedlinear_torch.masked_linear, True: _packed}
"""What is tested, by whether the case is packed."""


class Parts:
    """What wrong twins are made of (sabotage.py)."""

    where = staticmethod(torch.where)
    zeros_like = staticmethod(torch.zeros_like)
    stop_gradient = staticmethod(torch.Tensor.detach)
    pack = staticmethod(maskedlinear_torch.pack)
    packed_linear = staticmethod(maskedlinear_torch.packed_linear)

    @staticmethod
    def cast(array: Any, dtype: str) -> Any:
        """Return the array in another dtype."""
        return array.to(DTYPES[dtype])

    @staticmethod
    def name(array: Any) -> str:
        """Return the name of an array's dtype."""
        return str(array.dtype).removeprefix("torch.")

    @staticmethod
    def fold(step: Callable[..., Any], total: Any, *rows: Any) -> Any:
        """Return the total after a step for each row."""
        for parts in zip(*rows, strict=True):
            total = step(total, *parts)
        return total

    @staticmethod
    def dense(mask: Any, weight: Any) -> Any:
        """Return a mask, traced or not, as the framework's bool array of the weight's shape."""
        shape = (weight.shape[0], weight.shape[1])
        kind = lowering.resolve(constructors.as_mask(mask), shape, weight.device)
        return kind.mask(weight).expand(shape)

    @staticmethod
    def under_vmap(array: Any) -> Any:
        """Return whether the array is batched, as a bool array."""
        return torch.tensor("BatchedTensor" in repr(array))

    @staticmethod
    def rule(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
        """Return an op with forward(x, W, b) and backward(x, W, b, M, m, g) -> (d_x, d_W, d_b), right or wrong."""

        class Rule(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(x: Any, w: Any, b: Any, mask: Any, bias_mask: Any) -> Any:
                return forward(x, w, b)

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                ctx.save_for_backward(*inputs)

            @staticmethod
            def backward(ctx: Any, g: Any) -> Any:
                return (*backward(*ctx.saved_tensors, g), None, None)

        return Rule.apply

    @staticmethod
    def slice_saved_in_setup_context(x: Any, w: Any, b: Any, columns: Any) -> Any:
        """Return the layer by a rule that saves x[..., c] made in setup_context: double backward misses it."""

        class Rule(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(x: Any, w: Any, b: Any, columns: Any) -> Any:
                return F.linear(x, w, b)

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                x, w, _, columns = inputs
                ctx.save_for_backward(x.index_select(-1, columns), w, columns)

            @staticmethod
            def backward(ctx: Any, g: Any) -> Any:
                kept, w, columns = ctx.saved_tensors
                flat = g.reshape(-1, g.shape[-1])
                d_w = torch.zeros_like(w).index_copy(1, columns, flat.t() @ kept.reshape(-1, kept.shape[-1]))
                view = w.detach().index_copy(1, columns, w.index_select(1, columns))
                return g @ view, d_w, flat.sum(0), None

        return Rule.apply(x, w, b, columns)

    @staticmethod
    def stale_vmap_dimension(x: Any, w: Any, b: Any, mask: Any) -> Any:
        """Return the layer by a rule whose vmap takes the batched axis of x for the first, wherever it is."""

        class Rule(torch.autograd.Function):
            @staticmethod
            def forward(x: Any, w: Any, b: Any, mask: Any) -> Any:
                return F.linear(x, w, b)

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                ctx.save_for_backward(*inputs)

            @staticmethod
            def vmap(info: Any, in_dims: Any, x: Any, w: Any, b: Any, mask: Any) -> Any:
                return Rule.apply(x.select(in_dims[0] or 0, 0), w, b, mask), None

            @staticmethod
            def backward(ctx: Any, g: Any) -> Any:
                x, w, _, mask = ctx.saved_tensors
                return g @ w, torch.where(mask, g.t() @ x, 0), g.sum(0), None

        return Rule.apply(x, w, b, mask)


def product(x: np.ndarray, w: np.ndarray, precision: str, bits: int | None = None) -> np.ndarray:
    """Return x w^T in float32, by the framework's own product or by the reproducible one."""
    left, right = torch.from_numpy(x), torch.from_numpy(w)
    if precision == "native":
        return _values(F.linear(left, right))
    how = maskedlinear_torch.reproducible(bits=bits)
    return _values(maskedlinear_torch.masked_linear(left, right, grad_mask=constructors.columns([]), precision=how))


def step(shape: tuple[int, int, int], mask: Any, precision: PrecisionLike, how: str) -> Callable[[], None]:
    """Return forward and backward of a layer on random numbers, to be timed; mask None is the plain layer."""
    x, w, b, g = _operands(shape)
    if mask is None:
        layer: Callable[..., Any] = F.linear
    else:
        layer = functools.partial(maskedlinear_torch.masked_linear, grad_mask=mask, precision=precision)
    layer = torch.compile(layer, fullgraph=True) if how == "compiled" else layer

    def run() -> None:
        torch.autograd.grad(layer(x, w, b), (x, w, b), g)

    return run


def two_products(shape: tuple[int, int, int]) -> Callable[[], None]:
    """Return what no reproducible step by float64 products can do without: two of them for each product."""
    x, w, _, g = (operand.detach().double() for operand in _operands(shape))

    def run() -> None:
        for _ in range(2):
            _ = F.linear(x, w), g @ w, g.t() @ x

    return run


def _operands(shape: tuple[int, int, int]) -> list[torch.Tensor]:
    batch, outputs, inputs = shape
    draw = torch.Generator().manual_seed(0)
    sizes = ((batch, inputs), (outputs, inputs), (outputs,), (batch, outputs))
    return [torch.randn(size, generator=draw, requires_grad=True) for size in sizes]


def _values(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).cpu().numpy()


def weight_penalty(f: Callable[..., Any], theta: tuple[Any, ...], cotangent: Any) -> tuple[Any, ...]:
    """Differentiate |d_W|^2 / 2 in the framework's ordinary way: it depends on the input alone."""
    leaves = tuple(leaf.clone().requires_grad_() for leaf in theta)
    (gradient,) = torch.autograd.grad(f(*leaves), leaves[1:2], cotangent, create_graph=True)
    penalty = (gradient**2).sum() * 0.5
    # As below: the input's gradient has to be there.
    (d_input,) = torch.autograd.grad(penalty, leaves[:1], retain_graph=True)
    return d_input, *torch.autograd.grad(penalty, leaves[1:], allow_unused=True, materialize_grads=True)


def gradient_penalty(f: Callable[..., Any], theta: tuple[Any, ...], cotangent: Any) -> tuple[Any, ...]:
    """Differentiate |d_x|^2 / 2 in the framework's ordinary way."""
    leaves = tuple(leaf.clone().requires_grad_() for leaf in theta)
    (gradient,) = torch.autograd.grad(f(*leaves), leaves[:1], cotangent, create_graph=True)
    penalty = (gradient**2).sum() * 0.5
    # The penalty depends on the weight alone. Not allow_unused for it: a graph cut off would pass as zero.
    (d_weight,) = torch.autograd.grad(penalty, leaves[1:2], retain_graph=True)
    others = torch.autograd.grad(
        penalty, (leaves[0], *leaves[2:]), allow_unused=True, materialize_grads=True
    )  # fmt: skip
    return others[0], d_weight, *others[1:]
