"""What a JAX program does inside: the dtypes in which it computes, and where it leaves the range.

This is read from the jaxpr, and from those of the functions that it calls. Twin of torch_programs.py, as far as the
frameworks allow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from parity.execution._compat import QUICKLY, bind, file_names, function_names, known_xla_options
from parity.execution.programs import Reading, Steps

_MOVES = """
broadcast_in_dim reshape transpose convert_element_type copy squeeze slice concatenate pad select_n gather
dynamic_slice dynamic_update_slice rev iota stop_gradient device_put expand_dims split real imag
optimization_barrier sharding_constraint
"""
MOVES = frozenset(_MOVES.split())
"""Primitives that move or choose numbers: what they have is of no account, unless something is computed with it."""

SUMS = ("dot_general", "conv_general_dilated")
"""Sums of products: they are zero, of numbers that are not, where the products are lost."""

FLUSHING = ("mul", "div", "exp", "integer_pow", "pow", "square", "convert_element_type", *SUMS)
"""Primitives whose results can be subnormal where nothing else is."""

SPECIAL = "/jax/_src/scipy/special.py"
"""Where the functions of jax.scipy.special are written."""

INLINED = ("jaxpr", "call_jaxpr")
"""Where a primitive that calls a function once keeps its jaxpr."""

ONCE = frozenset(("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2"))
"""Primitives that call a function once (tests/test_private_names_parity.py watches their names)."""


def read(function: Callable[..., Any], *arguments: Any) -> Reading:
    """Return which types a function computes in, without running it.

    Example:
        >>> read(lambda x: jnp.exp(x.astype("bfloat16")), jnp.ones(2)).types
        {'bfloat16': ['exp']}
    """
    return read_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def read_jaxpr(jaxpr: Any) -> Reading:
    """Return which types a program computes in."""
    reading = Reading()
    _read(jaxpr, reading, "")
    return reading


def ranges(function: Callable[..., Any], arrays: Any) -> Callable[[Any], Reading]:
    """Return what reads a program on arrays such as these: its types, and the operators that leave the range on them.

    It is compiled once, with every operator by itself: none is made one with another.
    """
    closed = jax.make_jaxpr(function)(arrays)
    reading = Reading()
    _read(closed.jaxpr, reading, "")
    names: list[str] = []

    def left(arrays: Any) -> list[tuple[Any, Any]]:
        notes: list[tuple[str, Any, Any]] = []

        def compute(eqn: Any, inputs: list[Any]) -> list[Any]:
            found: list[Any] = jax.lax.optimization_barrier(bind(eqn, inputs, eqn.params))
            name = eqn.primitive.name
            notes.extend((name, *_range(name, inputs, out)) for out in found if _is_float(out))
            return found

        evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arrays), compute)
        names[:] = [name for name, _, _ in notes]
        return [(large, small) for _, large, small in notes]

    # How the code is made of it is not in question.
    compiled = jax.jit(left, compiler_options=known_xla_options(QUICKLY))

    def on(arrays: Any) -> Reading:
        seen = list(zip(names, compiled(arrays), strict=True)) if names else []
        return replace(
            reading,
            large={name for name, (large, _) in seen if large},
            small={name for name, (_, small) in seen if small},
        )

    compiled.lower(arrays)  # which finds the names
    return on


def _read(jaxpr: Any, reading: Reading, within: str, wanted: Sequence[bool] = ()) -> None:
    """Read what the results that are wanted are computed of; all are, unless it is said."""
    live = {id(one) for one, keep in zip(jaxpr.outvars, wanted or [True] * len(jaxpr.outvars), strict=True) if keep}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(id(one) in live for one in eqn.outvars):
            live |= {id(one) for one in eqn.invars}
    for eqn in jaxpr.eqns:
        needed = [id(one) in live for one in eqn.outvars]
        if not (eqn.effects or any(needed)):
            continue
        name = eqn.primitive.name
        inner = list(_jaxprs(eqn.params.values()))
        called = str(eqn.params.get("name", "")) if inner else ""
        for one in inner:
            once = name in ONCE and len(one.outvars) == len(needed)
            _read(one, reading, called.strip("_<>").replace("lambda", "") or within, needed if once else ())
        if name == "convert_element_type":
            _note_cast(eqn, reading)
        if inner or name in MOVES:
            continue
        reading.special.update(function_names(eqn, SPECIAL))
        for variable in eqn.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
                reading.note(str(dtype), f"{name} in {within}" if within and within != name else name)


def steps(jaxpr: Any) -> Steps:
    """Return the operators of a program with the shapes of their results, those of functions that it calls included."""
    found: Steps = []
    for eqn in jaxpr.eqns:
        found += [(eqn.primitive.name, tuple(variable.aval.shape)) for variable in eqn.outvars]
        for inner in _jaxprs(eqn.params.values()):
            found += steps(inner)
    return found


def _note_cast(eqn: Any, reading: Reading) -> None:
    source, target = (str(variable.aval.dtype) for variable in (eqn.invars[0], eqn.outvars[0]))
    if not hasattr(eqn.invars[0], "val"):  # a constant
        reading.cast(source, target, library_of(file_names(eqn)))


def library_of(files: Sequence[str]) -> str:
    """Return the library whose code made an equation of its own accord, or an empty text: then the user's code did.

    Args:
        files: Files of the code, from where it was made to where it was called.

    Example:
        >>> library_of(["/env/site-packages/jax/_src/lax/lax.py", "/env/site-packages/jax/_src/nn/functions.py"])
        'jax.nn'
        >>> library_of(["/env/site-packages/jax/_src/lax/lax.py", "/home/me/model.py"])
        ''
    """
    for file in files:
        _, _, inside = file.replace("\\", "/").rpartition("/site-packages/")
        if not inside:
            return ""
        package, *more = inside.split("/")
        if package != "jax":
            return package
        if more[:2] == ["_src", "nn"]:
            return "jax.nn"
    return ""


def _jaxprs(parameters: Any) -> Any:
    for value in parameters:
        if hasattr(value, "jaxpr") and hasattr(value, "consts"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)


def evaluate(
    jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any], compute: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Return what a program gives, computed equation by equation, those of the functions that it calls included.

    Args:
        jaxpr: The program.
        constants: Values of its constant variables.
        arguments: Values of its arguments.
        compute: Returns the results of an equation on its operands; `_compat.bind` does as JAX does.
    """
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def value(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else known[variable]

    for eqn in jaxpr.eqns:
        inputs = [value(variable) for variable in eqn.invars]
        inner = next((eqn.params[name] for name in INLINED if name in eqn.params), None)
        if inner is not None and eqn.primitive.name in ONCE:
            body, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            found = evaluate(body, consts, inputs, compute)
        else:
            found = compute(eqn, inputs)
        known |= dict(zip(eqn.outvars, found, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


def _range(name: str, inputs: Sequence[Any], out: Any) -> tuple[Any, Any]:
    """Return whether a result is no longer finite, of finite inputs, and whether it is lost to zero."""
    floats = [one for one in inputs if _is_float(one)]
    large = ~jnp.isfinite(out).all() & jnp.all(jnp.array([jnp.isfinite(one).all() for one in floats], bool))
    # XLA flushes what is subnormal, so nothing of it is left to see: zero, of factors that are not.
    factors = [one for one in floats if name in SUMS or jnp.shape(one) in ((), jnp.shape(out))]
    if name not in FLUSHING or not factors:
        return large, False
    return large, (out == 0).any() & jnp.all(jnp.array([(jnp.asarray(one) != 0).all() for one in factors]))


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact) and jnp.size(value) > 0
