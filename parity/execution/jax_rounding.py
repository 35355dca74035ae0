"""How rounding moves a JAX program: every rounded result in it is moved.

Twin of `Rounding` in torch_programs.py. It measures what the formula of a JAX function loses, if torch has another
formula. An example is the derivative of `0.5 * minimum(x, d)**2 + d * (x - minimum(x, d))`: JAX adds d and subtracts it
again, so a small x is lost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from parity.execution._compat import QUICKLY, bind, function_names, known_xla_options
from parity.execution.jax_programs import MOVES, SPECIAL, evaluate

_EXACT = """
abs neg sign max min argmax argmin reduce_max reduce_min sort clamp floor ceil round eq ne lt le gt ge and or not
is_finite cummax cummin reduce_and reduce_or nextafter top_k scatter copysign
"""
EXACT = frozenset(_EXACT.split()) | MOVES
"""Primitives that move, choose or compare numbers: their results are not rounded."""

_BASIC = """
add sub mul div rem sqrt square integer_pow add_any
"""
BASIC = frozenset(_BASIC.split())
"""Arithmetic that is rounded once."""

_SUMS = """
reduce_sum dot_general cumsum cumlogsumexp conv_general_dilated reduce_window_sum scatter-add scatter_add
"""
SUMS = frozenset(_SUMS.split())
"""Sums of many products."""

FUNCTIONS = 4.0
"""Units that all else may be off by."""


def run(
    function: Callable[..., Any], arrays: Any, size: float, seed: int, programs: dict[str, Any], key: str, *,
    only: str = "",
) -> Any:  # fmt: skip
    """Return what a function gives with every rounding made anew, at random.

    Args:
        function: Function of a pytree of arrays; it returns a dict of arrays.
        arrays: They.
        size: Size of the movement, relative.
        seed: Seed of the random numbers.
        programs: Where programs are kept: each is compiled once for all movements.
        key: What the program depends on, the shapes of the arrays included.
        only: "scalars": single numbers that depend on no array alone are rounded anew, as 1 - b**t of an optimizer;
            "special NAME NAME": what these functions of jax.scipy.special compute.
    """
    key = f"rounding {only} {key}"
    if key not in programs:
        programs[key] = _program(function, arrays, only)
    program, count = programs[key]
    rng = np.random.Generator(np.random.PCG64([seed, 11]))
    return program(arrays, size, rng.uniform(-1.0, 1.0, count))


def _program(function: Callable[..., Any], arrays: Any, only: str) -> tuple[Callable[..., Any], int]:
    """Return a function of arrays, a size and noise, compiled, and how many numbers of noise it takes."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(arrays)
    counted = _Noise(None)
    functions = set(only.split()[1:])

    def program(noise: _Noise, arrays: Any, size: Any) -> Any:
        free: dict[int, Any] = {}  # by identity, what depends on no array

        def compute(eqn: Any, inputs: list[Any]) -> list[Any]:
            name = eqn.primitive.name
            is_free = all(not isinstance(one, jax.core.Tracer) or id(one) in free for one in inputs)
            is_moved = name not in EXACT
            if only == "scalars":
                is_moved &= is_free and _is_single(eqn, inputs)
            if functions:
                is_moved &= not functions.isdisjoint(function_names(eqn, SPECIAL))
            if is_moved and name not in BASIC:
                factor = math.sqrt(max((np.size(one) for one in inputs), default=1)) if name in SUMS else FUNCTIONS
                inputs = [_moved(one, factor * size, noise) for one in inputs]
            found = bind(eqn, inputs, eqn.params)
            if is_moved:
                found = [_moved(one, size, noise) for one in found]
            if is_free:
                free.update((id(one), one) for one in found)
            return found

        found = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arrays), compute)
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    jax.eval_shape(functools.partial(program, counted), arrays, 1.0)
    # How the code is made of it is not in question: what is measured is what movements do.
    options = known_xla_options(QUICKLY)
    made = jax.jit(lambda arrays, size, noise: program(_Noise(noise), arrays, size), compiler_options=options)
    return made, counted.taken


def _is_single(eqn: Any, inputs: list[Any]) -> bool:
    """Return whether an equation makes single numbers of single numbers."""
    return all(np.size(one) == 1 for one in inputs) and all(one.aval.size == 1 for one in eqn.outvars)


class _Noise:
    """Random numbers from -1 to 1, handed out in order; without numbers they are counted."""

    def __init__(self, numbers: Any) -> None:
        self._numbers = numbers
        self.taken = 0

    def take(self, shape: tuple[int, ...]) -> Any:
        start, self.taken = self.taken, self.taken + math.prod(shape)
        return 0.0 if self._numbers is None else self._numbers[start : self.taken].reshape(shape)


def _moved(values: Any, amount: Any, noise: _Noise) -> Any:
    dtype = jax.numpy.result_type(values)
    if not jax.numpy.issubdtype(dtype, jax.numpy.inexact):
        return values
    return (values * (1 + amount * noise.take(np.shape(values)))).astype(dtype)
