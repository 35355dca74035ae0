"""What an entry of the atlas is made of, and the inputs that entries share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from parity.operator.pair import Pair
from parity.suites.atlas.examples import EXAMPLES

ROWS, COLUMNS = 4, 6
"""Of most matrices: an even count along each axis, small enough that every derivative is quick."""

Inputs = Callable[[int], tuple[Any, ...]]


def entry(
    name: str,
    torch: Callable[..., Any],
    jax: Callable[..., Any],
    inputs: Inputs,
    *,
    why: str = "",
    where: Sequence[tuple[str, ...]] = (),
    docs: Sequence[str] = (),
    **options: Any,
) -> Pair:
    """Return a pair: an operator as people write it in each framework.

    Args:
        name: Name of the operator; with what is added to the default arguments, if anything is.
        torch: As written in torch.
        jax: As written in JAX.
        inputs: A function of a seed.
        why: The reason that they differ, if they do.
        where: The cells in which they do: a pattern of transform, patterns of data with spaces between them, and a
            pattern of world if it is not those of JAX. In each cell that these match the two must differ.
        docs: The names that both documentations have of it.
        **options: Other fields of `parity.Pair`.
    """
    known = [
        {"transform": transform, "data": kind, "world": world[0] if world else "jax-*", "reason": why}
        for transform, data, *world in where
        for kind in data.split()
    ]
    shown = " ".join(map(str, EXAMPLES[name])) if why else ""
    note = f"{why} {shown} {' and '.join(map(address, docs))}" if why else ""
    return Pair(torch=torch, jax=jax, inputs=inputs, name=name, note=note, known=known or None, **options)


def address(name: str) -> str:
    """Return where a name is documented.

    Example:
        >>> address("jax.nn.gelu")
        'https://docs.jax.dev/en/latest/_autosummary/jax.nn.gelu.html'
    """
    if name.startswith("https:"):
        return name
    if name.startswith("torch.special."):
        return f"https://docs.pytorch.org/docs/stable/special.html#{name}"
    if name.startswith("torch."):
        return f"https://docs.pytorch.org/docs/stable/generated/{name}.html"
    if name.startswith("optax."):
        return f"https://optax.readthedocs.io/en/latest/api/losses.html#{name}"
    return f"https://docs.jax.dev/en/latest/_autosummary/{name}.html"


def group(name: str, entries: Iterable[Pair]) -> tuple[Pair, ...]:
    """Return entries as a group."""
    return tuple(dataclasses.replace(pair, group=name) for pair in entries)


def normal(*shapes: tuple[int, ...]) -> Inputs:
    """Return inputs of standard normal arrays, one for each shape."""

    def make(seed: int) -> tuple[np.ndarray, ...]:
        draw = np.random.default_rng(seed)
        return tuple(draw.standard_normal(shape) for shape in shapes)

    return make


def uniform(low: float, high: float, *shapes: tuple[int, ...]) -> Inputs:
    """Return inputs of arrays that are uniform between two numbers, one for each shape."""

    def make(seed: int) -> tuple[np.ndarray, ...]:
        draw = np.random.default_rng(seed)
        return tuple(draw.uniform(low, high, shape) for shape in shapes)

    return make


def joined(*parts: Inputs) -> Inputs:
    """Return the inputs of several makers, one after the other."""
    return lambda seed: tuple(array for at, part in enumerate(parts) for array in part(seed + 1000 * at))


def integers(low: int, high: int, *shapes: tuple[int, ...]) -> Inputs:
    """Return inputs of int32 arrays of numbers from low to below high."""

    def make(seed: int) -> tuple[np.ndarray, ...]:
        draw = np.random.default_rng(seed)
        return tuple(draw.integers(low, high, shape).astype(np.int32) for shape in shapes)

    return make


def definite(size: int) -> Inputs:
    """Return a symmetric positive definite matrix, well conditioned."""

    def make(seed: int) -> tuple[np.ndarray, ...]:
        root = np.random.default_rng(seed).standard_normal((size, size))
        return (root @ root.T / size + np.eye(size),)

    return make


def invertible(size: int, *more: tuple[int, ...]) -> Inputs:
    """Return a square matrix far from singular, and normal arrays of further shapes."""

    def make(seed: int) -> tuple[np.ndarray, ...]:
        draw = np.random.default_rng(seed)
        matrix = draw.standard_normal((size, size)) / size + 2 * np.eye(size)
        return matrix, *(draw.standard_normal(shape) for shape in more)

    return make


matrix = normal((ROWS, COLUMNS))
two_matrices = normal((ROWS, COLUMNS), (ROWS, COLUMNS))
positive = uniform(0.25, 4.0, (ROWS, COLUMNS))
