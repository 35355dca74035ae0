"""The worlds of JAX: how its functions are run. Twin of torch_backend.py, function by function."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.execution import jax_eager, jax_programs, jax_rounding
from parity.execution._compat import QUICKLY, known_xla_options, one_ir_context, xla_options
from parity.execution.calls import Call, Outputs
from parity.execution.plan import AT_SPECIAL_POINTS, ONCE
from parity.execution.programs import Reading, Steps
from parity.operator import transforms
from parity.records import Cell

FRAMEWORK = "jax"
VERSION = jax.__version__

DTYPES = {name: jnp.dtype(name) for name in ("float32", "float64", "bfloat16", "float16")}

CACHED = 800
"""Programs after which JAX forgets what it compiled: it keeps all of them in memory."""

AGAIN = 0.25
"""Programs that an eager run counts for where the program ran before: few compile anything then."""

_programs = [0.0]
"""How many were counted since JAX forgot."""

_anew: list[tuple[float, int, str]] = []
"""How large movements are, the seed, and what alone is rounded anew; empty where nothing is."""


class Ops:
    """The names that the programs of transforms.py use."""

    framework = FRAMEWORK
    energy = staticmethod(transforms.energy)
    inner = staticmethod(transforms.inner)

    grad = staticmethod(jax.grad)
    jvp = staticmethod(jax.jvp)
    vmap = staticmethod(jax.vmap)
    jacrev: Any = staticmethod(jax.jacrev)
    jacfwd: Any = staticmethod(jax.jacfwd)
    hessian: Any = staticmethod(jax.hessian)
    complex = staticmethod(jax.lax.complex)
    iscomplexobj = staticmethod(jnp.iscomplexobj)

    @staticmethod
    def copy(leaf: Any) -> Any:
        """Return an array for a function to have: none can write into JAX's."""
        return leaf

    @staticmethod
    def linear(input: Any, weight: Any, bias: Any = None) -> Any:
        """Compute the framework's own linear layer (S2)."""
        return input @ weight.T if bias is None else input @ weight.T + bias

    @staticmethod
    def vjp(f: Callable[..., Any], *theta: Any) -> tuple[Any, Callable[[Any], Any]]:
        """Differentiate, with cotangents of any floating dtype, as torch does: a loss may be of float32 in any case."""
        outputs, pull = jax.vjp(f, *theta)

        def pulled(cotangents: Any) -> Any:
            return pull(jax.tree.map(lambda cotangent, output: cotangent.astype(output.dtype), cotangents, outputs))

        return outputs, pulled

    @staticmethod
    def backward(f: Callable[..., Any], theta: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
        """Differentiate in the framework's ordinary way, accumulating over the cotangents."""
        gradients = [Ops.vjp(f, *theta)[1](cotangent) for cotangent in cotangents]
        return tuple(sum(parts[1:], start=parts[0]) for parts in zip(*gradients, strict=True))


class EagerOps(Ops):
    """The same where every operation is a program of its own: few of them for what is not the function's."""

    jacrev = staticmethod(jax_eager.jacrev)
    jacfwd = staticmethod(jax_eager.jacfwd)
    hessian = staticmethod(jax_eager.hessian)
    energy = staticmethod(jax_eager.energy)
    inner = staticmethod(jax_eager.inner)


def devices() -> tuple[str, ...]:
    """Return the devices that are present."""
    return ("cpu", "cuda") if any(device.platform in ("gpu", "cuda") for device in jax.devices()) else ("cpu",)


@contextlib.contextmanager
def settings(x64: bool = False) -> Iterator[None]:
    """Set what decides precision: float32 products in float32, never TF32; float64 on request. Restored afterwards."""
    with jax.default_matmul_precision("highest"), jax.enable_x64(x64):
        yield


def call(asked: Call, world: str, device: str, kept: dict[str, Any]) -> Outputs:
    """Run a transform's program on a function and return what came out, as NumPy.

    Args:
        asked: The function, the program, and the numbers.
        world: "jax-eager" or "jax-jit".
        device: "cpu" or "cuda".
        kept: Compiled programs, by the call's key: the same ones run again on other numbers.
    """
    with settings(x64=asked.dtype == "float64"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = _run_as_remembered(asked, world, device, kept)
        if outputs is None:
            jax.clear_caches()
            outputs = _run(asked, world, device, kept)
    return outputs


def _run_as_remembered(asked: Call, world: str, device: str, kept: dict[str, Any]) -> Outputs | None:
    """Run a program; None where JAX finds two types in it, perhaps as it remembers one of another setting of x64.

    It remembers the integers of a NumPy array that a function brings along as it saw them first. A function whose
    types do not go together raises again once that is forgotten.
    """
    try:
        return _run(asked, world, device, kept)
    except TypeError as error:
        if "same dtypes" not in str(error):
            raise
        return None


def _run(asked: Call, world: str, device: str, kept: dict[str, Any]) -> Outputs:
    arrays = _arrays(asked, device)
    if _anew:
        size, seed, only = _anew[-1]
        program = functools.partial(asked.program, Ops, is_float)
        return _outputs(jax_rounding.run(program, arrays, size, seed, kept, _form(asked, arrays), only=only))
    if world == "jax-eager":
        key = f"{world} {device} {_form(asked, arrays)}"
        ran = key in kept
        forget_now_and_then(AGAIN if ran else 1)
        kept[key] = None
        with _options(asked), contextlib.nullcontext() if ran else one_ir_context():
            return _outputs(asked.program(EagerOps, is_float, arrays))
    key = f"{world} {device} {asked.key}"
    if key not in kept:
        forget_now_and_then()
        kept[key] = _jitted(asked)
    return _outputs(kept[key](arrays))


def compiler(cell: Cell) -> dict[str, Any]:
    """Return the options that XLA compiles a cell with where its pair names none.

    A function and its derivative are compiled as users compile them. Of the other transforms the graph is in question:
    it goes through all passes of XLA, and code is then made of it in a third of the time. So is the code of operators
    that eager JAX compiles one by one in another dtype than `ONCE`: nothing is fused there, and float32 shows what
    XLA's own optimizations do to an operator. There "backward" has the operators of the derivative, compiled already.
    """
    if cell.world == "jax-eager":
        of_users = cell.dtype == ONCE and cell.transform in (*AT_SPECIAL_POINTS, "backward")
    else:
        of_users = cell.transform in AT_SPECIAL_POINTS
    return {} if of_users or cell.device != "cpu" else {"compiler_options": known_xla_options(QUICKLY)}


def prepare(asked: Call, world: str, device: str, kept: dict[str, Any], pool: Executor) -> None:
    """Trace a program now, and compile it beside whatever runs next: XLA compiles without Python's lock.

    Args:
        asked: As in `call`, which waits for what was prepared, and finds the same program.
        world: "jax-jit"; nothing is prepared for another.
        device: "cpu" or "cuda".
        kept: As in `call`.
        pool: Pool of threads that compile.
    """
    key = f"{world} {device} {asked.key}"
    if world != "jax-jit" or key in kept:
        return
    with settings(x64=asked.dtype == "float64"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _jitted(asked)
        lowered = program.lower(_arrays(asked, device))
        forget_now_and_then()
        kept[key] = _Ahead(program, pool.submit(lowered.compile))


class _Ahead:
    """A program that is compiled in another thread."""

    def __init__(self, program: Any, compiled: Future[Any]) -> None:
        self._program, self._compiled = program, compiled

    def __call__(self, arrays: dict[str, Any]) -> Any:
        try:
            return self._compiled.result()(arrays)
        except TypeError:
            # Of other shapes than it was compiled for: what is no float has no part in the key.
            return self._program(arrays)


def _form(asked: Call, arrays: Any) -> str:
    """Return what a program that is compiled for all arrays of these shapes depends on, besides its function."""
    return f"{asked.key} {[(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arrays)]}"


@contextlib.contextmanager
def _options(asked: Call) -> Iterator[None]:
    options = asked.compiler.get("compiler_options")
    if not options:
        yield
        return
    # JAX keeps what it compiled by its settings, not by these options: another name of the same precision is another
    # setting.
    with xla_options(options), jax.default_matmul_precision("float32"):
        yield


def _jitted(asked: Call) -> Any:
    return jax.jit(lambda a: asked.program(Ops, is_float, a), **asked.compiler)


def _arrays(asked: Call, device: str) -> dict[str, Any]:
    # Converted by NumPy, whose values the dtype holds exactly: JAX would compile a program for each shape. All of them
    # are put on the device in one call, which costs half of what one call for each does.
    made: list[np.ndarray] = []
    asked.arrays(lambda values: made.append(np.asarray(values, DTYPES[asked.dtype])), made.append)
    placed = iter(jax.device_put(made, on(device)))
    return asked.arrays(lambda values: next(placed), lambda values: next(placed))


@contextlib.contextmanager
def rounding(size: float, seed: int, *, lower: bool = False, only: str = "") -> Iterator[None]:
    """In this context every result is rounded anew, at random (`jax_rounding`).

    Args:
        size: Size of the movement, relative.
        seed: Seed of the random numbers.
        lower: As in torch; here every type is moved by one size.
        only: What alone is rounded anew (`jax_rounding.run`).
    """
    _anew.append((size, seed, only))
    try:
        yield
    finally:
        _anew.pop()


def read(
    asked: Call, device: str, kept: dict[str, Any], *, ranges: bool = False, x64: bool | None = None
) -> Reading:  # fmt: skip
    """Return what a transform's program does inside; with `ranges` also where it leaves the range, on the numbers.

    Args:
        asked: As in `call`.
        device: "cpu" or "cuda".
        kept: As in `call`.
        ranges: Whether every operator runs.
        x64: Whether floats of 64 bits are JAX's default; None where the call is in float64.
    """

    def program(a: dict[str, Any]) -> dict[str, Any]:
        return asked.program(Ops, is_float, a)

    with settings(x64=asked.dtype == "float64" if x64 is None else x64), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = _arrays(asked, device)
        if not ranges:
            return jax_programs.read(program, arrays)
        key = f"ranges {device} {x64} {_form(asked, arrays)}"
        if key not in kept:
            kept[key] = jax_programs.ranges(program, arrays)
        found: Reading = kept[key](arrays)
        return found


def steps(asked: Call, device: str) -> Steps:
    """Return the operators of a transform's program with the shapes of their results."""
    with settings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = _arrays(asked, device)
        return jax_programs.steps(jax.make_jaxpr(lambda a: asked.program(Ops, is_float, a))(arrays).jaxpr)


def made_wide(asked: Call, device: str) -> set[str]:
    """Return the names of outputs that are float64 though floats of 32 bits go in, where JAX does so by itself."""
    with settings(x64=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = jax.eval_shape(lambda a: asked.program(Ops, is_float, a), _arrays(asked, device))
    return {name for name, leaf in found.items() if leaf is not None and leaf.dtype == jnp.float64}


def is_float(leaf: Any) -> bool:
    """Return whether an output has derivatives."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def on(name: str) -> Any:
    """Return a device by its name here, "cpu" or "cuda"."""
    return jax.devices("cpu" if name == "cpu" else "gpu")[0]


def forget_now_and_then(programs: float = 1) -> None:
    """Count programs, and let JAX forget what it compiled after many."""
    _programs[0] += programs
    if _programs[0] >= CACHED:
        _programs[0] = 0
        jax.clear_caches()


def _outputs(outputs: dict[str, Any]) -> Outputs:
    return Outputs.of(outputs, _numpy, _dtype)


def _numpy(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    floating = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return array.astype(np.float64) if floating else array


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype) if isinstance(leaf, jax.Array) else type(leaf).__name__
