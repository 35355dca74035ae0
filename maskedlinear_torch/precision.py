"""The precisions: how the rule's products are computed, native or reproducible (SPEC S2, S9)."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskedlinear_core import guard
from maskedlinear_core import precision as core
from maskedlinear_core.checks import precision as checks
from maskedlinear_torch import _compat, integer_products, reproducible_products
from maskedlinear_torch.kinds import FULL, Arrays, Kind, flat
from maskedlinear_torch.reproducible_products import How, Operands


@dataclass(frozen=True)
class Native:
    """The framework's own products and their derivatives."""

    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.linear(x, w, b)

    def back(self, g: Tensor, w: Tensor) -> Tensor:
        return g @ w

    def product(
        self, kind: Kind, arrays: Arrays, g: Tensor, kept: Tensor, row_max: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        return kind.weight_grad(g, kept, *arrays)

    def tangent(self, kind: Kind, arrays: Arrays, x: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
        return kind.apply(kind.gather_input(x, *arrays), values, shape[0], *arrays)

    def total(self, g: Tensor) -> Tensor:
        return flat(g).sum(0)

    def spread(self, b: Tensor, x: Tensor) -> Tensor:
        return b.expand(*x.shape[:-1], *b.shape)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def row_max(self, x: Tensor, kept: Tensor) -> Tensor | None:
        """Return what the derivatives of a product need of a row of which not all is kept: nothing."""
        return None


@dataclass(frozen=True)
class Reproducible:
    """Every product as exact integers, rounded as SPEC S9 says."""

    how: How

    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        shape = (w.shape[0], w.shape[1])
        product = reproducible_products.Tangent(self.how, FULL, torch.float32, shape, is_cut=False)
        y = reproducible_products.apply(product, Operands(x, w, None), (None, None))
        if b is not None:
            y = reproducible_products.settle(y + self.spread(b, x).float())
        return y.to(x.dtype)

    def back(self, g: Tensor, w: Tensor) -> Tensor:
        shape = (w.shape[0], w.shape[1])
        return reproducible_products.apply(
            reproducible_products.Pull(self.how, FULL, g.dtype, shape), Operands(g, w, None), (None, None)
        )

    def product(
        self, kind: Kind, arrays: Arrays, g: Tensor, kept: Tensor, row_max: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        return reproducible_products.apply(
            reproducible_products.Product(self.how, kind, g.dtype, shape), Operands(g, kept, row_max), arrays
        )

    def tangent(self, kind: Kind, arrays: Arrays, x: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
        tangent = reproducible_products.Tangent(self.how, kind, x.dtype, shape, is_cut=False)
        return reproducible_products.apply(tangent, Operands(x, values, None), arrays)

    def total(self, g: Tensor) -> Tensor:
        return reproducible_products.total(self.how, g)

    def spread(self, b: Tensor, x: Tensor) -> Tensor:
        return reproducible_products.spread(self.how, b, x.shape[:-1])

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return reproducible_products.settle(a + b)

    def row_max(self, x: Tensor, kept: Tensor) -> Tensor | None:
        """Return the largest magnitudes of the rows of which not all is kept."""
        return None if kept is x else integer_products.largest(x.float(), -1)


Precision = Native | Reproducible
NATIVE = Native()


def resolve(precision: Any, function: str, input: Tensor, weight: Tensor) -> Precision:
    """Return the precision that is asked for, with the engine that suits a tensor's device.

    Args:
        precision: "native", "reproducible" or `reproducible(...)`.
        function: Name of the public function, for messages.
        input: x, for the lengths of the sums to come.
        weight: W, for its device and dtype.

    Raises:
        TypeError, ValueError: No precision, no group of workers, a dtype without a reproducible answer, more bits
            than there are, or sums too long for an engine that was asked for.
        RuntimeError: The device fails the known-answer test.
    """
    if type(precision) is core.Native or (type(precision) is str and precision == "native"):
        return NATIVE
    settings = core.as_precision(precision)
    if isinstance(settings, core.Native):
        return NATIVE
    checks.dtype(function, str(weight.dtype).removeprefix("torch."))
    if _compat.is_distributed(weight):
        checks.refuse_sharded()
    if settings.group is not None:
        checks.group(settings.group, _compat.is_group(settings.group), "a torch.distributed.ProcessGroup")
    engine = _engine(settings.engine, weight.device)
    for terms in (*weight.shape, input.shape[:-1].numel()):
        core.check_terms(settings, engine, terms)
    _known_answer(engine, str(weight.device))
    return Reproducible(How(settings, _ENGINES[engine]))


_ENGINES: dict[str, integer_products.Float64 | integer_products.Digits] = {
    "float64": integer_products.Float64(),
    "float32": integer_products.FLOAT32,
    "int8": integer_products.INT8,
}


def _engine(asked: core.Engine, device: torch.device) -> core.Engine:
    if asked != "auto":
        return asked
    return "float64" if _has_fast_float64(device) else "float32"


def _has_fast_float64(device: torch.device) -> bool:
    if device.type == "cuda":
        # Half the rate of float32: P100, V100, A100, H100 and H200, B200. Elsewhere it is 1/32 or 1/64.
        return torch.cuda.get_device_capability(device) in ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
    return device.type in ("cpu", "meta")


@_compat.constant_to_compiler
def _known_answer(engine: str, device: str) -> bool:
    if torch.device(device).type != "meta":
        _tested(engine, device, *_flags())
    return True


@functools.cache
def _tested(engine: str, device: str, *flags: Any) -> None:
    problem = guard.problem()

    def answer() -> Any:
        x, w = (torch.from_numpy(array).to(device) for array in (problem.x, problem.w))
        with torch.no_grad():
            return Reproducible(How(core.Reproducible(), _ENGINES[engine])).linear(x, w).cpu().numpy()

    # In a thread of its own: there no transform, tracer or autocast is active.
    with ThreadPoolExecutor(1) as thread:
        wrong = guard.difference(thread.submit(answer).result())
    if wrong:
        checks.refuse_device(device, engine, wrong)


def _flags() -> tuple[Any, ...]:
    # What changes how the device multiplies, so that the test is made again when one is changed.
    matmul = torch.backends.cuda.matmul
    return torch.get_float32_matmul_precision(), str(matmul.allow_fp16_reduced_precision_reduction)
