"""Names of torch and JAX that are not public (tests/test_private_names_parity.py watches them)."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,  # each part of a small program costs as much as all of it
}
"""Options of XLA: the graph goes through all of its passes, and code is then made in a third of the time."""


def decomposition_of(operator: Any) -> Callable[..., Any] | None:
    """Return the function that computes one of torch's operators of simpler ones, or None where torch knows none."""
    from torch._decomp import decomposition_table

    return decomposition_table.get(operator)


def file_names(equation: Any) -> list[str]:
    """Return the files of the code that made an equation of a jaxpr, from where it was made to where it was called."""
    traceback = equation.source_info.traceback
    return [] if traceback is None else [frame.file_name for frame in traceback.frames]


def function_names(equation: Any, file: str) -> list[str]:
    """Return the functions of a file, by the end of its name, whose code made an equation of a jaxpr."""
    traceback = equation.source_info.traceback
    frames = [] if traceback is None else traceback.frames
    return [one.function_name for one in frames if one.file_name.replace("\\", "/").endswith(file)]


def bind(equation: Any, operands: Sequence[Any], parameters: Mapping[str, Any]) -> list[Any]:
    """Return the results of an equation of a jaxpr on other operands, with other parameters.

    (`get_bind_params` gave functions beside the parameters before jax 0.9.2.)
    """
    found = equation.primitive.get_bind_params(parameters)
    functions, bound = found if isinstance(found, tuple) else ((), found)
    results = equation.primitive.bind(*functions, *operands, **bound)
    return list(results) if equation.primitive.multiple_results else [results]


def torch_dispatch_mode() -> type:
    """Return the class whose `__torch_dispatch__` sees every ATen operator that runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


_changed: dict[str, tuple[dict[int, Callable[..., Any]], Callable[..., Any]]] = {}
_lock = threading.Lock()
"""By name of a function of JAX: what it is in each thread that changes it, and what it is in all others."""


@contextlib.contextmanager
def _changed_here(module: Any, name: str, change: Callable[..., Any]) -> Iterator[None]:
    """Call `change(usual, ...)` in the place of a module's function `usual(...)`, in this thread alone."""
    here = threading.get_ident()
    with _lock:
        threads, usual = _changed.setdefault(name, ({}, getattr(module, name)))
        before = threads.get(here)
        threads[here] = change

        def called(*args: Any, **keywords: Any) -> Any:
            there = threads.get(threading.get_ident())
            return usual(*args, **keywords) if there is None else there(usual, *args, **keywords)

        setattr(module, name, called)
    try:
        yield
    finally:
        with _lock:
            threads.pop(here)
            if before is not None:
                threads[here] = before
            if not threads:
                setattr(module, name, usual)
                _changed.pop(name)


@contextlib.contextmanager
def xla_options(options: Mapping[str, Any]) -> Iterator[None]:
    """Give XLA these options in whatever it compiles, also where no `jax.jit` of ours could take `compiler_options`.

    Eager JAX compiles every operator by itself, and has no argument for options. What other threads compile is as ever.
    """
    from jax._src import compiler

    def with_options(usual: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        keywords["env_options_overrides"] = {**options, **(keywords.get("env_options_overrides") or {})}
        return usual(*args, **keywords)

    with _changed_here(compiler, "get_compile_options", with_options):
        yield


@contextlib.contextmanager
def one_ir_context() -> Iterator[None]:
    """Lower what this thread compiles in one MLIR context.

    JAX makes a context for each program, with all dialects in it: for a single operator that is half of its lowering.
    """
    from jax._src.interpreters import mlir

    made: list[Any] = []

    def make(usual: Callable[[], Any]) -> Any:
        if not made:
            made.append(usual())
        return made[0]

    with _changed_here(mlir, "make_ir_context", make):
        yield


def known_xla_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that this XLA has. They are no public interface: jax 0.12 has fewer than 0.10."""
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: bool | int | str) -> bool:
    import jax

    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except Exception as error:
        if name not in str(error):
            raise
        return False
    return True
