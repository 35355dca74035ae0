"""What transforms.py needs of JAX where nothing is compiled as a whole: few programs for all but the function itself.

Eager JAX compiles one program for each operation, shape and dtype. In the cells of a small function two thirds of these
programs do not belong to the function: they make the basis of a Jacobian, reorder its rows, and sum up a test function.
Here NumPy makes the basis and reorders the rows, and the test function is one program. The function itself is
differentiated as before: by `jax.vjp`, `jax.jvp` and `jax.vmap`, operation by operation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import numpy as np

Function = Callable[..., Any]


def jacrev(f: Function, argnums: Sequence[int]) -> Function:
    """Return the Jacobian of a function in reverse mode, as `jax.jacrev` with all arguments does."""
    _expect_all(argnums)

    def rows(*theta: Any) -> Any:
        outputs, pull = jax.vjp(f, *theta)
        leaves, tree = jax.tree.flatten(outputs)
        found = jax.vmap(pull)(jax.tree.unflatten(tree, _basis(leaves)))
        # Of each argument, the rows of all outputs; of each output, one part for each argument.
        parts = [
            [_placed(part, leaf.shape, of) for part, of in zip(_split(all_rows, leaves), leaves, strict=True)]
            for all_rows, leaf in zip(found, theta, strict=True)
        ]
        return jax.tree.unflatten(tree, [tuple(of_output) for of_output in zip(*parts, strict=True)])

    return rows


def jacfwd(f: Function, argnums: Sequence[int]) -> Function:
    """Return the Jacobian of a function in forward mode, as `jax.jacfwd` with all arguments does."""
    _expect_all(argnums)

    def columns(*theta: Any) -> Any:
        found = jax.vmap(lambda *directions: jax.jvp(f, theta, directions)[1])(*_basis(theta))
        return jax.tree.map(
            lambda rows: tuple(
                _like(np.moveaxis(np.asarray(part), 0, -1).reshape(rows.shape[1:] + leaf.shape), rows)
                for part, leaf in zip(_split(rows, theta), theta, strict=True)
            ),
            found,
        )

    return columns


def hessian(f: Function, argnums: Sequence[int]) -> Function:
    """Return the Hessian of a function of one number, as `jax.hessian` with all arguments does."""
    return jacfwd(jax.grad(f, tuple(argnums)), argnums)


@jax.jit
def energy(factors: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Return <c, y^2> / 2."""
    return reduce(operator.add, [(c * y**2).sum() for c, y in zip(factors, outputs, strict=True)]) * 0.5


@jax.jit
def inner(left: Sequence[Any], right: Sequence[Any]) -> Any:
    """Return <left, right>."""
    return reduce(operator.add, [(x * y).sum() for x, y in zip(left, right, strict=True)])


def _expect_all(argnums: Sequence[int]) -> None:
    if list(argnums) != list(range(len(argnums))):
        raise ValueError(f"argnums: expected all arguments, got {tuple(argnums)}")


def _basis(leaves: Sequence[Any]) -> list[Any]:
    """Return the unit vectors of all leaves together, one after the other: of each leaf, a stack of its parts."""
    sizes = [leaf.size for leaf in leaves]
    total, start, found = sum(sizes), 0, []
    for leaf, size in zip(leaves, sizes, strict=True):
        # From bool, as NumPy has no arithmetic in bfloat16; what is no float has no derivative.
        dtype = leaf.dtype if jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact) else jax.dtypes.float0
        ones = np.eye(total, size, -start, dtype=bool).astype(dtype).reshape((total, *leaf.shape))
        found.append(ones if dtype == jax.dtypes.float0 else jax.device_put(ones, next(iter(leaf.devices()))))
        start += size
    return found


def _split(rows: Any, leaves: Sequence[Any]) -> list[np.ndarray]:
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    return np.split(np.asarray(rows), ends)


def _placed(part: np.ndarray, shape: tuple[int, ...], of: Any) -> Any:
    return _like(part.reshape(of.shape + shape), of)


def _like(values: np.ndarray, array: Any) -> Any:
    return jax.device_put(values, next(iter(array.devices())))
