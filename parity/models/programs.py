"""Whether a JAX function is compiled as one program or runs operator by operator: whichever is ready sooner.

A small program of JAX takes longer to compile than to run. Operator by operator, each operator of each shape is
compiled once, so a model of many equal layers is quick. A model whose layers all differ is quicker as one program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from parity.execution._compat import QUICKLY, known_xla_options

ALONE = 0.03
"""Seconds that it takes to compile one operator alone."""

WITHIN = 0.004
"""Seconds that one more operator takes in a program, without optimization."""


def compiled(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Return a function that runs as one program where that is quicker, else as it is.

    Args:
        function: A pure function of arrays.
        arguments: Such as it will be called with.
        donate: Places of arguments whose memory results may take, if it is one program.

    Example:
        >>> import jax.numpy as jnp
        >>> float(compiled(jnp.sum, jnp.ones(3))(jnp.ones(3)))
        3.0
    """
    operators = list(_operators(jax.make_jaxpr(function)(*arguments).jaxpr))
    if not donate and ALONE * len(set(operators)) <= WITHIN * len(operators):
        return function

    return jax.jit(function, donate_argnums=donate, compiler_options=known_xla_options(QUICKLY))


def _operators(jaxpr: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the operators of a program and of those in it, with the shapes and settings that they are compiled for."""
    for equation in jaxpr.eqns:
        inner = [part for value in equation.params.values() for part in _programs(value)]
        if inner:
            for part in inner:
                yield from _operators(part)
        else:
            shapes = tuple(str(getattr(one, "aval", "")) for one in equation.invars)
            yield equation.primitive.name, shapes, str(equation.params)


def _programs(value: Any) -> Iterator[Any]:
    if hasattr(value, "jaxpr"):
        value = value.jaxpr
    if hasattr(value, "eqns"):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _programs(part)
