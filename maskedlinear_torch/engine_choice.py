"""Which products a call gets, by precision, dtype, device and lengths; and the test of the device (contract S9)."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from maskedlinear_core import guard
from maskedlinear_core import precision as core
from maskedlinear_core.checks import precision as checks
from maskedlinear_torch import _compat, integer_products
from maskedlinear_torch.products import NATIVE, Products, ReproducibleProducts
from maskedlinear_torch.tensors import check_dense


def choose(precision: Any, function: str, input: Tensor, weight: Tensor) -> Products:
    """Return the products of the precision that is asked for, by the engine that suits a tensor's device.

    Args:
        precision: "native", "reproducible" or `reproducible(...)`.
        function: Name of the public function, for messages.
        input: x, for the lengths of the sums to come.
        weight: W, for its device and dtype.

    Raises:
        TypeError, ValueError: No precision, no group of workers, a dtype without a reproducible answer, more bits
            than there are, or sums too long for an engine that was asked for.
        RuntimeError: The device fails the known-answer test, or this version of torch answers wrongly.
    """
    if type(precision) is core.Native or (type(precision) is str and precision == "native"):
        return NATIVE
    settings = core.as_precision(precision)
    if isinstance(settings, core.Native):
        return NATIVE
    checks.dtype(function, str(weight.dtype).removeprefix("torch."))
    check_dense(function, input=input)
    if _compat.VERSION < (2, 12, 1) and torch.compiler.is_compiling():
        checks.refuse_version(
            function,
            "torch",
            torch.__version__,
            "2.12.1",
            "is not known to compile these gradients rightly: 2.11 makes zeros of them",
        )
    if _compat.is_distributed(weight):
        checks.refuse_sharded()
    if settings.group is not None:
        checks.group(settings.group, _compat.is_group(settings.group), "a torch.distributed.ProcessGroup")
    engine = _engine(settings.engine, weight.device)
    for terms in (*weight.shape, input.shape[:-1].numel()):
        core.check_terms(settings, engine, terms)
    _known_answer(engine, str(weight.device))
    return ReproducibleProducts(settings, integer_products.ENGINES[engine])


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
            return (
                ReproducibleProducts(core.Reproducible(), integer_products.ENGINES[engine]).linear(x, w).cpu().numpy()
            )

    # In a thread of its own: there no transform, tracer or autocast is active.
    with ThreadPoolExecutor(1) as thread:
        wrong = guard.difference(thread.submit(answer).result())
    if wrong:
        checks.refuse_device(device, engine, wrong)


def _flags() -> tuple[Any, ...]:
    # What changes how the device multiplies, so that the test is made again when one is changed.
    matmul = torch.backends.cuda.matmul
    return torch.get_float32_matmul_precision(), str(matmul.allow_fp16_reduced_precision_reduction)
