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


_options: dict[int, Mapping[str, Any]] = {}
_usual: list[Callable[..., Any]] = []
_lock = threading.Lock()
"""The options of each thread that gave some, and what JAX does without."""


@contextlib.contextmanager
def xla_options(options: Mapping[str, Any]) -> Iterator[None]:
    """Give XLA these options in whatever it compiles, also where no `jax.jit` of ours could take `compiler_options`.

    Eager JAX compiles every operator by itself, and has no argument for options. What other threads compile is as ever.
    """
    from jax._src import compiler

    here = threading.get_ident()
    with _lock:
        before = _options.get(here)
        _options[here] = options
        if not _usual:
            _usual.append(compiler.get_compile_options)
            compiler.get_compile_options = _with_options
    try:
        yield
    finally:
        with _lock:
            _options.pop(here)
            if before is not None:
                _options[here] = before
            if not _options:
                compiler.get_compile_options = _usual.pop()


def _with_options(*args: Any, **keywords: Any) -> Any:
    options = _options.get(threading.get_ident())
    if options is not None:
        keywords["env_options_overrides"] = {**options, **(keywords.get("env_options_overrides") or {})}
    return _usual[0](*args, **keywords)


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
