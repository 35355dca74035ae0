"""What people use in torch, each as they write it: the dense layer, ours, and the rivals. Twin of jax_rivals.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import maskedlinear_torch as mt
from benchmarks import rows
from benchmarks.operands import Operands
from benchmarks.rows import Row

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Program:
    """A layer to be timed.

    Attributes:
        layer: Called with the input.
        gradient: The gradient of the weight after a backward, weight-shaped.
    """

    layer: nn.Module
    gradient: Callable[[], Tensor]


def programs(row: Row, operands: Operands, device: str) -> dict[str, Program]:
    """Return the programs of a row by name; the first is the dense layer, which all are compared with.

    Args:
        row: What is measured.
        operands: The weight and the bias that all of them start from.
        device: "cpu" or "cuda".
    """
    mask = rows.mask_of(row)
    array = torch.from_numpy(mask.to_array(row.weight_shape)).to(device)
    found = {
        "dense": dense(linear(row, operands, device)),
        "masked": masked(linear(row, operands, device), mask),
        "packed": packed(linear(row, operands, device), mask),
        "one-liner": one_liner(linear(row, operands, device), array),
        "masked afterwards": masked_afterwards(linear(row, operands, device), array),
        "densified": densified(linear(row, operands, device), array),
    }
    if row.shape == rows.LOOP and row.kind == "columns":
        found["seed's loop"] = loop(
            linear(row, operands, device), np.flatnonzero(mask.to_array(row.weight_shape).any(0))
        )
    return found


def linear(row: Row, operands: Operands, device: str) -> nn.Linear:
    """Return the plain layer on the row's operands."""
    outputs, inputs = row.weight_shape
    layer = nn.Linear(inputs, outputs, device=device, dtype=DTYPES[row.dtype])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(operands.w))
        layer.bias.copy_(torch.from_numpy(operands.b))
    return layer


def dense(layer: nn.Linear) -> Program:
    """Return the plain layer: nothing is frozen."""
    return Program(layer, lambda: _gradient(layer.weight))


def frozen(layer: nn.Linear) -> Program:
    """Return the plain layer whose weight does not learn."""
    layer.weight.requires_grad_(False)
    return Program(layer, lambda: torch.zeros_like(layer.weight))


def masked(linear: nn.Linear, mask: Any) -> Program:
    """Return our layer that masks the gradient of its weight."""
    layer = mt.MaskedLinear.from_linear(linear, grad_mask=mask)
    return Program(layer, lambda: _gradient(layer.weight))


def packed(linear: nn.Linear, mask: Any) -> Program:
    """Return our layer whose trainable entries are a leaf of their own."""
    layer = mt.PackedLinear.from_linear(linear, grad_mask=mask)
    zeros = torch.zeros_like(linear.weight)
    return Program(layer, lambda: mt.unpack(zeros, _gradient(layer.values), grad_mask=mask))


class OneLiner(nn.Module):
    """`where(mask, w, w.detach())`, which is what masking a gradient means."""

    mask: Tensor

    def __init__(self, linear: nn.Linear, mask: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.where(self.mask, self.weight, self.weight.detach()), self.bias)


def one_liner(linear: nn.Linear, mask: Tensor) -> Program:
    """Return the reference program as a layer."""
    layer = OneLiner(linear, mask)
    return Program(layer, lambda: _gradient(layer.weight))


def masked_afterwards(linear: nn.Linear, mask: Tensor) -> Program:
    """Return the plain layer with a gradient hook on its weight."""
    factor = mask.to(linear.weight.dtype)
    linear.weight.register_hook(lambda grad: grad * factor)
    return Program(linear, lambda: _gradient(linear.weight))


class Densified(nn.Module):
    """A sparse delta of trainable entries, added to a copy of the frozen weight: PEFT's SHiRA."""

    indices: Tensor

    def __init__(self, linear: nn.Linear, mask: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        indices = mask.nonzero().t().to(torch.int)
        self.register_buffer("indices", indices)
        self.values = nn.Parameter(linear.weight.new_zeros(indices.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.clone()
        weight += torch.sparse_coo_tensor(self.indices, self.values, weight.shape, check_invariants=False)
        return F.linear(x, weight, self.bias)


def densified(linear: nn.Linear, mask: Tensor) -> Program:
    """Return the layer as SHiRA computes it (`tests/test_bench_rivals.py` holds it to PEFT itself)."""
    layer = Densified(linear, mask)
    return Program(layer, lambda: torch.zeros_like(layer.weight).masked_scatter_(mask, _gradient(layer.values)))


class Loop(torch.autograd.Function):
    """The seed's idea: a dense gradient, then a walk in Python over its entries. Its faults are mended here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, location: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, location)
        return x.mm(weight.t()) + bias

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, location = ctx.saved_tensors
        d_weight = g.t().mm(x)
        for line in d_weight:
            for index in range(line.shape[0]):
                if index not in location:
                    line[index] = 0
        return g.mm(weight), d_weight, None, g.sum(0)


class Looping(nn.Module):
    """The seed's layer, for all columns instead of the first twenty and with the bias's gradient in its place."""

    def __init__(self, linear: nn.Linear, location: np.ndarray) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.location = torch.from_numpy(location)

    def forward(self, x: Tensor) -> Tensor:
        return Loop.apply(x, self.weight, self.location, self.bias)


def loop(linear: nn.Linear, location: np.ndarray) -> Program:
    """Return the layer of the seed."""
    layer = Looping(linear, location)
    return Program(layer, lambda: _gradient(layer.weight))


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
