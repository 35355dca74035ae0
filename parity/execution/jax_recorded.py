"""Eager JAX on many numbers: a program's operations are recorded once, and run again one by one.

Eager JAX differentiates a function anew each time that it runs: of a small function this takes twenty times as long as
the operations do. They are the same each time, unless the function asks for its numbers. So a program runs as it is
the first time; the second time it is recorded as well, and both must give the same bits; from then on what was
recorded runs, each operation compiled by itself, as eager JAX does it. What cannot be recorded, or gave other bits,
runs as it is each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

Program = Callable[[dict[str, Any]], dict[str, Any]]


class Recorded:
    """A program, and its operations once they are known.

    Args:
        program: Of arrays by name, always of the same shapes and dtypes.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._runs = 0
        self._operations: Program | None = None

    def __call__(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Run the program, or its operations."""
        if self._operations is not None:
            return self._operations(arrays)
        outputs = self._program(arrays)
        self._runs += 1
        if self._runs == 2 and all(isinstance(leaf, jax.Array) for leaf in outputs.values()):
            operations = _operations(self._program, arrays)
            if operations is not None and _same(operations, arrays, outputs):
                self._operations = operations
        return outputs


def _operations(program: Program, arrays: dict[str, Any]) -> Program | None:
    """Return a program that runs the operations of another one, or None where they depend on the numbers."""
    try:
        recorded, shapes = jax.make_jaxpr(program, return_shape=True)(arrays)
    except Exception:  # the function asks for the numbers, or does what only arrays can
        return None
    tree, evaluated = jax.tree.structure(shapes), jaxpr_as_fun(recorded)

    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        outputs = evaluated(*jax.tree.leaves(arrays))
        # An output that is a constant is one of NumPy in the record.
        found: dict[str, Any] = jax.tree.unflatten(tree, map(jax.numpy.asarray, outputs))
        return found

    return run


def _same(operations: Program, arrays: dict[str, Any], outputs: dict[str, Any]) -> bool:
    again = operations(arrays)
    return again.keys() == outputs.keys() and all(
        again[name].dtype == leaf.dtype and np.asarray(again[name]).tobytes() == np.asarray(leaf).tobytes()
        for name, leaf in outputs.items()
    )
