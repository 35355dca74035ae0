"""A pair: one operator as a torch function and as a JAX function, with the numbers that go in."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from parity.engine import trees

Known = Sequence[Mapping[str, str]]
"""Entries with patterns for transform, world, dtype and data (fnmatch), and a reason."""

PATTERNS = ("transform", "world", "dtype", "data")


@dataclass(frozen=True)
class Pair:
    """One operator in both frameworks.

    Attributes:
        torch: A function of torch tensors.
        jax: The same function of JAX arrays.
        inputs: The arguments: a tuple of NumPy arrays or of nested dicts, lists and tuples of them; or a function
            of a seed that returns one. What is floating is differentiated, integers and bools are not.
        name: To read and to filter by.
        group: What reports sort by.
        transforms: Names from `parity.engine.transforms`; None for those that fit.
        dtypes: Names of dtypes; None for float64, float32 and bfloat16.
        worlds: Names of worlds; None for all.
        data: Kinds of data (`parity.engine.data`); None for all.
        oracle: A NumPy float64 function that says what is right; None where the two are held to one another.
        known: Differences that are known and right, each a dict with patterns for `transform`, `world`, `dtype` and
            `data`, and a `reason`. They are no failures; an entry that holds for no cell is one.
        note: What a reader of the report should know.

    Raises:
        TypeError: A function cannot be called, or an input is not of NumPy.
        ValueError: There is no floating input, or an entry of `known` has no reason.

    Example:
        >>> Pair(torch=abs, jax=abs, inputs=(np.ones(3),), name="abs").make(0)[0].shape
        (3,)
    """

    torch: Callable[..., Any]
    jax: Callable[..., Any]
    inputs: Any
    name: str = ""
    group: str = ""
    transforms: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    worlds: Sequence[str] | None = None
    data: Sequence[str] | None = None
    oracle: Callable[..., Any] | None = None
    known: Known | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("torch", "jax"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name}: expected a function, got {type(getattr(self, name)).__name__}")
        if self.oracle is not None and not callable(self.oracle):
            raise TypeError(f"oracle: expected a NumPy function, got {type(self.oracle).__name__}")
        if not self.name:
            object.__setattr__(self, "name", getattr(self.torch, "__name__", "pair").removeprefix("torch_"))
        for entry in self.known or ():
            unknown = set(entry) - {*PATTERNS, "reason"}
            if unknown or not entry.get("reason"):
                problem = f"unknown {', '.join(sorted(unknown))}" if unknown else "no reason"
                raise ValueError(
                    f"known: expected dicts of {', '.join(PATTERNS)} (patterns) and reason, got one with {problem}: "
                    f"{dict(entry)}"
                )
        self.make(0)

    def make(self, seed: int) -> tuple[Any, ...]:
        """Return the arguments for a seed, checked."""
        made = self.inputs(seed) if callable(self.inputs) else self.inputs
        if isinstance(made, np.ndarray):
            raise TypeError("inputs: expected a tuple of arguments, got a bare array; write (array,)")
        if not isinstance(made, tuple | list):
            raise TypeError(f"inputs: expected a tuple of NumPy arrays, got {type(made).__name__}")
        found = list(trees.leaves(tuple(made)))
        for path, leaf in found:
            if not isinstance(leaf, np.ndarray | np.generic):
                hint = "what is no array belongs into the functions (functools.partial)"
                if hasattr(leaf, "__array__"):
                    hint = "convert it with np.asarray"
                raise TypeError(f"inputs{path}: expected a NumPy array, got {type(leaf).__name__}; {hint}")
            if leaf.dtype.kind == "c":
                raise TypeError(f"inputs{path}: expected real numbers, got {leaf.dtype}: pass real and imaginary part")
            if leaf.dtype.kind not in "fiub" and str(leaf.dtype) != "bfloat16":
                raise TypeError(f"inputs{path}: expected floats, integers or bools, got {leaf.dtype}")
        if not any(is_float(leaf) for _, leaf in found):
            raise ValueError(
                "inputs: expected at least one array of floats, got none: there is nothing to differentiate"
            )
        return tuple(made)

    def names(self) -> tuple[str, ...]:
        """Return what the arguments are called in the torch function, as far as it tells."""
        count = len(self.make(0))
        try:
            parameters = [
                p.name for p in inspect.signature(self.torch).parameters.values()
                if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            ]  # fmt: skip
        except (TypeError, ValueError):
            parameters = []
        return tuple(parameters[i] if i < len(parameters) else f"input{i}" for i in range(count))


def is_float(leaf: Any) -> bool:
    """Return whether an input is differentiated."""
    return leaf.dtype.kind == "f" or str(leaf.dtype) == "bfloat16"


def check_names(what: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise ValueError, with the nearest name, unless every given name is known."""
    if isinstance(given, str):
        raise ValueError(f"{what}: expected a list of names, got the string {given!r}; write [{given!r}]")
    for name in given or ():
        if name not in known:
            _unknown(what, name, known)


def _unknown(what: str, name: str, known: Sequence[str]) -> NoReturn:
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what}: expected some of {', '.join(known)}, got {name!r}{hint}")
