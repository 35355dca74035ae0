"""The worlds of torch: how its functions are run. Twin of jax_backend.py, function by function."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from parity.execution import torch_programs
from parity.execution.calls import Call, Outputs
from parity.execution.programs import Reading, Steps
from parity.execution.torch_formulas import FORMULAS
from parity.operator import transforms
from parity.records import Cell

FRAMEWORK = "torch"
VERSION = torch.__version__

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


class Ops:
    """The names that the programs of transforms.py use."""

    framework = FRAMEWORK
    energy = staticmethod(transforms.energy)
    inner = staticmethod(transforms.inner)

    grad = staticmethod(torch.func.grad)
    vjp = staticmethod(torch.func.vjp)
    vmap = staticmethod(torch.func.vmap)
    jacrev = staticmethod(torch.func.jacrev)
    complex = staticmethod(torch.complex)
    iscomplexobj = staticmethod(torch.is_complex)
    linear = staticmethod(F.linear)
    # A function may write into what it is given, as layers with inplace=True do: torch refuses that of a leaf.
    copy = staticmethod(torch.clone)

    @staticmethod
    def jvp(f: Callable[..., Any], theta: Any, directions: Any) -> tuple[Any, Any]:
        """Return a function's results, and their tangents in the dtype that they have themselves.

        torch's forward mode may give another: float64 for a float32 number less a Python one.
        """
        outputs, tangents = torch.func.jvp(f, theta, directions)  # type: ignore[misc] # three with has_aux alone
        return outputs, _in_dtype_of(outputs, tangents)

    @staticmethod
    def jacfwd(f: Callable[..., Any], argnums: Any) -> Callable[..., Any]:
        """Return the Jacobian of a function of a tuple in forward mode, in the dtypes of its results."""

        def twice(*theta: Any) -> Any:
            outputs = f(*theta)
            return outputs, outputs

        def columns(*theta: Any) -> Any:
            found, outputs = torch.func.jacfwd(twice, argnums, has_aux=True)(*theta)
            return tuple(_in_dtype_of((output,) * len(row), row) for output, row in zip(outputs, found, strict=True))

        return columns

    @staticmethod
    def hessian(f: Callable[..., Any], argnums: Any) -> Callable[..., Any]:
        """Return the Hessian of a function of one number."""
        return Ops.jacfwd(torch.func.jacrev(f, argnums), argnums)

    @staticmethod
    def backward(f: Callable[..., Any], theta: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
        """Differentiate in the framework's ordinary way, accumulating over the cotangents."""
        leaves = tuple(leaf.clone().requires_grad_() for leaf in theta)
        for cotangent in cotangents:
            torch.autograd.backward(f(*leaves), cotangent)
        return tuple(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)


def _in_dtype_of(output: Any, tangent: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(map(_in_dtype_of, output, tangent))
    return tangent if tangent.dtype == output.dtype else tangent.to(output.dtype)


def devices() -> tuple[str, ...]:
    """Return the devices that are present."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@contextlib.contextmanager
def settings(x64: bool = False) -> Iterator[None]:
    """Set what decides precision: float32 products in float32, never TF32; floats that nobody names, as JAX's x64 does.

    Restored afterwards.
    """
    before, default = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float64 if x64 else torch.float32)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_default_dtype(default)


def _tensor(values: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.array(values)).to(device)


def compiler(cell: Cell) -> dict[str, Any]:
    """Return the options that a cell is compiled with where its pair names none: torch's own."""
    return {}


def call(asked: Call, world: str, device: str, kept: dict[str, Any], x64: bool | None = None) -> Outputs:
    """Run a transform's program on a function and return what came out, as NumPy.

    Args:
        asked: The function, the program, and the numbers.
        world: "torch-eager" or "torch-compiled".
        device: "cpu" or "cuda".
        kept: Compiled programs, by the call's key: the same ones run again on other numbers.
        x64: Whether floats of 64 bits are torch's default; None where the call is in float64.
    """
    array = functools.partial(_tensor, device=device)
    with settings(x64=asked.dtype == "float64" if x64 is None else x64), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = asked.arrays(lambda values: array(values).to(DTYPES[asked.dtype]), array)
        if world == "torch-eager":
            return _outputs(asked.program(Ops, is_float, arrays))
        key = f"{world} {device} {asked.key}"
        if key not in kept:
            torch.compiler.reset()
            kept[key] = _compiled(asked)
        try:
            return _outputs(kept[key](arrays))
        except AssertionError as error:
            if UNGUARDED not in str(error) or asked.transform.name != "vjp":
                raise
            torch.compiler.reset()
            kept[key] = _compiled(asked, Outside)
            return _outputs(kept[key](arrays))


UNGUARDED = "Guard failed on the same frame"
"""What torch.compile says of a NumPy array of the function's, where it compiles a derivative by torch.func as well."""


class Outside(Ops):
    """The names, with a derivative that is taken outside of what is compiled."""

    @staticmethod
    def vjp(f: Callable[..., Any], *theta: Any) -> Any:  # type: ignore[override] # without auxiliary outputs
        """Return a function's results, and what differentiates them in the framework's ordinary way."""
        leaves = tuple(leaf.clone().requires_grad_() for leaf in theta)
        outputs = f(*leaves)

        def pull(cotangents: Any) -> Any:
            found = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True, materialize_grads=True)
            return tuple(found)

        return outputs, pull


def _compiled(asked: Call, ops: Any = Ops) -> Callable[[dict[str, Any]], dict[str, Any]]:
    options = {"fullgraph": True, **asked.compiler}
    if asked.transform.outside or ops is Outside:
        # The ordinary way is to compile the function and differentiate outside; on other numbers it is the same one.
        once: list[Callable[..., Any]] = []

        def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
            if not once:
                once.append(torch.compile(f, **options))
            return once[0]

        return lambda a: asked.program(ops, is_float, a, compiled)

    def program(a: dict[str, Any]) -> dict[str, Any]:
        return asked.program(Ops, is_float, a)

    return torch.compile(program, **options)


@contextlib.contextmanager
def rounding(size: float, seed: int, *, lower: bool = False, alike: bool = False) -> Iterator[None]:
    """In this context every result is rounded anew, at random (`torch_programs.Rounding`).

    Attention is computed by its formula: the backward of torch's fused kernel cannot be taken apart.
    """
    with sdpa_kernel(SDPBackend.MATH), torch_programs.Rounding(size, seed, lower=lower, alike=alike):
        yield


@contextlib.contextmanager
def in_parts() -> Iterator[None]:
    """In this context fused operators are taken apart into the formulas that they stand for."""
    with sdpa_kernel(SDPBackend.MATH), torch_programs.Rounding(0.0, 0, formulas=FORMULAS):
        yield


def read(
    asked: Call, device: str, kept: dict[str, Any], *, ranges: bool = False, x64: bool | None = None
) -> Reading:  # fmt: skip
    """Return what a transform's program does inside, and where it leaves the range: it is run on the numbers."""
    with torch_programs.Reader() as reader:
        call(asked, "torch-eager", device, kept, x64)
    return reader.reading


def steps(asked: Call, device: str) -> Steps:
    """Return the operators of a transform's program with the shapes of their results: it is run on the numbers."""
    with torch_programs.Listed() as listed:
        call(asked, "torch-eager", device, {})
    return listed.steps


def has_own_rules(asked: Call, device: str) -> bool:
    """Return whether a function has derivatives that its author wrote (autograd.Function, torch.library, hooks)."""
    array = functools.partial(_tensor, device=device)
    hooked = mock.patch.object(torch.Tensor, "register_hook", autospec=True, side_effect=torch.Tensor.register_hook)
    with settings(x64=True), warnings.catch_warnings(), hooked as hooks:
        warnings.simplefilter("ignore")
        arrays = asked.arrays(lambda values: array(values).to(torch.float64).requires_grad_(), array)
        outputs = asked.program(Ops, is_float, arrays)
    if hooks.called:
        return True
    ahead = [leaf.grad_fn for leaf in outputs.values() if isinstance(leaf, torch.Tensor)]
    seen: set[Any] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.FunctionCtx):
            return True
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
    return False


def made_wide(asked: Call, device: str) -> set[str]:
    """Return the names of outputs that are float64 though floats of 32 bits go in, where that is torch's default."""
    found = call(asked, "torch-eager", device, {}, x64=True)
    return {name for name, dtype in found.dtypes.items() if dtype == "float64"}


def is_float(leaf: Any) -> bool:
    """Return whether an output has derivatives."""
    return isinstance(leaf, torch.Tensor) and (leaf.dtype.is_floating_point or leaf.dtype.is_complex)


def _outputs(outputs: dict[str, Any]) -> Outputs:
    return Outputs.of(outputs, _numpy, _dtype)


def _numpy(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, torch.Tensor):
        return np.asarray(leaf)
    leaf = leaf.detach()
    if leaf.dtype.is_floating_point:
        leaf = leaf.to(torch.float64)
    return leaf.numpy(force=True)  # zeros that are not stored, conjugates and negatives too


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype).removeprefix("torch.") if isinstance(leaf, torch.Tensor) else type(leaf).__name__
