"""A pair: one operator as a torch function and as a JAX function, with the numbers that go in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from parity.execution.calls import Numbers
from parity.names import nearest
from parity.operator import brought, transforms, trees
from parity.operator.args import Adapted, Args
from parity.operator.faults import ask
from parity.operator.known import PATTERNS, matches
from parity.operator.oracle import Exact, Oracle
from parity.operator.tolerance import Tolerance
from parity.operator.transforms import Transform
from parity.operator.trees import is_float as is_float
from parity.records import Cell
from parity.signatures import positional

Inputs = tuple[Any, ...] | list[Any] | Args | Callable[[int], Any]
Known = Sequence[Mapping[str, Any]]
"""Entries with patterns for transform, world, dtype and data (fnmatch), and a reason; perhaps error or crashes."""

Frozen = Callable[[str, str, Numbers], np.ndarray | None] | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Deferred:
    """A function that is made anew for each run: a pair can be planned where its framework is missing.

    Attributes:
        make: Returns the function; it may import the framework.

    Example:
        >>> Deferred(lambda: abs)(-2)
        2
    """

    make: Callable[[], Callable[..., Any]]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Make the function and call it."""
        return self.make()(*arguments, **keywords)


@dataclass(frozen=True)
class Pair:
    """One operator in both frameworks.

    Attributes:
        torch: A function of torch tensors.
        jax: The same function of JAX arrays.
        inputs: The arguments: a tuple of NumPy arrays or of nested dicts, lists and tuples of them, or `Args` with
            keywords and what is no array; or a function of a seed that returns one. What is floating is
            differentiated, integers and bools are not.
        name: To read and to filter by.
        group: What reports sort by.
        transforms: Names from `parity.operator.transforms`, and `Transform`s of the pair's own; None for those
            that fit.
        dtypes: Names of dtypes; None for float64, float32 and bfloat16.
        worlds: Names of worlds; None for all.
        data: Kinds of data: of `parity.operator.data`, or of the pair's own `numbers`; None for all of the former.
        oracle: A NumPy float64 function that computes the right result of the function, or an `Oracle` with the right
            answer of each transform; None to compare the two functions with each other.
        known: Differences that you expect, each a dict with patterns for `transform`, `world`, `dtype` and
            `data`, and a `reason`. They are not failures. An entry that no cell confirms is one. With `error`, a
            regular expression, every such cell must raise an error whose text matches. With `crashes=True` such
            cells would end the process, and are not run.
        note: A remark for readers of the report.
        exact: The kinds of data on which the oracle's answers must be met bit for bit.
        frozen: Which entries of an output must be +0.0 bit for bit: bool arrays by name of output, or a function of
            the transform, the output and the numbers that returns one, or None for no entry.
        numbers: Makes the `Numbers` for a kind of data, a dtype (whose values they must be) and a seed. What it leaves
            out is drawn at random. For a kind of `parity.operator.data` it may return None: then all is drawn.
        runs: Which cells there are of all that could be; None for the usual ones.
        compiler: Options of the compiled worlds for a cell: `backend` and others of torch.compile, or
            `compiler_options` and others of jax.jit.
        cell: Makes the pair's cells: `Cell`, or what says more than it.
        form: Everything that a compiled program depends on besides the numbers. Pairs of equal form share compiled
            programs. None if the pair shares none.
        tolerance: By how much results may differ in addition to rounding, with the reason, which is printed.
        weights: How many arrays the functions brought along, which are the last argument now (`brought`).

    Raises:
        TypeError: A function cannot be called, an input is not of NumPy, or an option has a wrong type.
        ValueError: There is no input, an entry of `known` has no reason, an exact kind has no oracle, `frozen` names a
            derivative by something that is not an argument, or two transforms have one name.

    Example:
        >>> Pair(torch=abs, jax=abs, inputs=(np.ones(3),), name="abs").make(0)[0].shape
        (3,)
    """

    torch: Callable[..., Any]
    jax: Callable[..., Any]
    inputs: Inputs
    name: str = ""
    group: str = ""
    transforms: Sequence[str | Transform] | None = None
    dtypes: Sequence[str] | None = None
    worlds: Sequence[str] | None = None
    data: Sequence[str] | None = None
    oracle: Callable[..., Any] | Oracle | None = None
    known: Known | None = None
    note: str = ""
    exact: Mapping[str, Exact] | None = None
    frozen: Frozen | None = None
    numbers: Callable[[str, str, int], Numbers | None] | None = None
    runs: Callable[[Any], bool] | None = None
    compiler: Callable[[Any], Mapping[str, Any]] | None = None
    cell: Callable[..., Cell] = Cell
    form: Any = None
    tolerance: Tolerance | None = None
    weights: int = field(init=False, default=0)
    _names: tuple[str, ...] = field(init=False, default=(), repr=False)

    def __post_init__(self) -> None:
        for name in ("torch", "jax"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name}: expected a function, got {type(getattr(self, name)).__name__}")
        if not (self.oracle is None or callable(self.oracle) or isinstance(self.oracle, Oracle)):
            raise TypeError(f"oracle: expected a NumPy function or an Oracle, got {type(self.oracle).__name__}")
        if self.exact and not isinstance(self.oracle, Oracle):
            raise ValueError(
                f"exact: expected an Oracle whose answers are met on {', '.join(self.exact)}, got "
                f"{'no oracle' if self.oracle is None else 'a function'}; write oracle=Oracle({{transform: answer}})"
            )
        self._adapt()
        self._lift()
        if not (self.tolerance is None or isinstance(self.tolerance, Tolerance)):
            raise TypeError(
                f"tolerance: expected a Tolerance with a reason, got {self.tolerance!r:.80}; write "
                "parity.Tolerance(reason, rtol=...)"
            )
        if not self.name:
            object.__setattr__(self, "name", getattr(self.torch, "__name__", "pair").removeprefix("torch_"))
        for entry in self.known or ():
            unknown = set(entry) - {*PATTERNS, "reason", "error", "crashes"}
            if unknown or not entry.get("reason"):
                problem = f"unknown {', '.join(sorted(unknown))}" if unknown else "no reason"
                raise ValueError(
                    f"known: expected dicts of {', '.join(PATTERNS)} (patterns) and reason, got one with {problem}: "
                    f"{dict(entry)}"
                )
        self._check_promises()
        self.make(0)

    def _adapt(self) -> None:
        """Make functions of arrays alone of functions that take keywords and what is no array (`Args`)."""
        inputs = self.inputs
        first = inputs(0) if callable(inputs) else inputs
        if not isinstance(first, Args):
            return
        made = (lambda seed: inputs(seed).arrays) if callable(inputs) else first.arrays
        object.__setattr__(self, "inputs", made)
        for name in ("torch", "jax"):
            object.__setattr__(self, name, first.adapted(getattr(self, name)))

    def _lift(self) -> None:
        """Make the weights that the functions bring along one more argument (`brought`)."""
        made_here = self.numbers or self.exact or self.frozen or self.oracle or self.runs
        if made_here or isinstance(self.torch, Deferred) or isinstance(self.jax, Deferred):
            return
        lifted = brought.lift(self.torch, self.jax)
        if lifted is None:
            return
        inputs, names = self.inputs, self.names()
        if callable(inputs):
            object.__setattr__(self, "inputs", lambda seed: (*inputs(seed), lifted.weights))
        else:
            object.__setattr__(self, "inputs", (*self.make(0), lifted.weights))
        if not self.name:
            object.__setattr__(self, "name", getattr(self.torch, "__name__", type(self.torch).__name__).lower())
        object.__setattr__(self, "torch", lifted.torch)
        object.__setattr__(self, "jax", lifted.jax)
        object.__setattr__(self, "weights", len(lifted.weights))
        object.__setattr__(self, "_names", (*names, "weights"))
        alone = [f"{path} in {side}" for side, paths in lifted.alone.items() for path in paths]
        if alone:
            # They are cast to what is computed in, and no input: in 16 bits they are rounded, in float64 they are not.
            if self.dtypes is None:
                object.__setattr__(self, "dtypes", ("float64", "float32"))
            note = f"brought along, and not differentiated (no certain partner, or no weight): {', '.join(alone)}"
            object.__setattr__(self, "note", f"{self.note}; {note}" if self.note else note)
        if self.worlds is None:
            # torch.compile cannot trace how modules and closures are given other weights.
            object.__setattr__(self, "worlds", ("torch-eager", "jax-eager", "jax-jit"))

    def _check_promises(self) -> None:
        if not (self.exact is None or _is_dict_of(self.exact, Exact)):
            raise TypeError(f"exact: expected a dict of Exact by kind of data, got {self.exact!r:.80}")
        names = self.transform_names or ()
        twice = [] if isinstance(names, str) else sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(f"transforms: expected each name once, got {', '.join(twice)} again")
        if self.frozen is None or callable(self.frozen):
            return
        if not _is_dict_of(self.frozen, np.ndarray):
            raise TypeError(f"frozen: expected bool arrays by name of output, or a function, got {self.frozen!r:.80}")
        if self.numbers is None:  # which may give the arguments other names
            known = Numbers.of(self.make(0), self.names()).names
            for output in self.frozen:
                # "by x", "output by x", "by x by y"
                for name in f" {output}".split(" by ")[1:]:
                    if name not in known:
                        _unknown(f"frozen: {output!r}: by", name, known)

    def brings(self, transform: str) -> bool:
        """Return whether a transform is of the pair's own."""
        return any(isinstance(one, Transform) and one.name == transform for one in self.transforms or ())

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
            if leaf.dtype.kind == "c" and leaf.dtype.itemsize <= 16:
                continue
            if leaf.dtype.kind not in "fiub" and str(leaf.dtype) != "bfloat16":
                raise TypeError(f"inputs{path}: expected floats, complex numbers, integers or bools, got {leaf.dtype}")
        if not found:
            raise ValueError("inputs: expected at least one array, got none")
        if not any(leaf.size for _, leaf in found):
            shapes = ", ".join(str(leaf.shape) for _, leaf in found)
            raise ValueError(f"inputs: expected an array with elements, got {shapes}: nothing would be compared")
        return tuple(made)

    @property
    def transform_names(self) -> Sequence[str] | None:
        """The names of the transforms, or None where those run that fit."""
        asked = self.transforms
        if asked is None or isinstance(asked, str):
            return asked  # a string is refused where cells are planned
        return tuple(one.name if isinstance(one, Transform) else one for one in asked)

    def transform(self, name: str) -> Transform:
        """Return a transform by its name: the pair's own before the shared one."""
        own = (one for one in self.transforms or () if isinstance(one, Transform) and one.name == name)
        return next(own, None) or transforms.get(name)

    def in_theory(self, transform: str, kind: str) -> bool:
        """Return whether the pair's oracle alone judges a transform on a kind of data: no float64 run stands in."""
        if not isinstance(self.oracle, Oracle) or transform not in self.oracle.answers:
            return False
        exact = kind in (self.exact or {})
        return exact or transform in self.oracle.majorants or not self.transform(transform).values

    def frozen_in(self, transform: str, output: str, numbers: Numbers) -> np.ndarray | None:
        """Return which entries of an output must be +0.0, or None."""
        if callable(self.frozen):
            return ask("frozen", self.frozen, transform, output, numbers)
        return None if self.frozen is None else self.frozen.get(output)

    def listed(self, cell: Cell) -> Mapping[str, Any] | None:
        """Return the entry of `known` that lists a cell as one that raises or crashes, or None."""
        return next((e for e in self.known or () if ("error" in e or e.get("crashes")) and matches(e, cell)), None)

    def names(self) -> tuple[str, ...]:
        """Return what the arguments are called in the torch function, as far as it tells."""
        if self._names:
            return self._names
        if isinstance(self.torch, Adapted):
            return self.torch.names
        count = len(self.make(0))
        parameters = positional(self.torch)
        return tuple(parameters[i] if i < len(parameters) else f"input{i}" for i in range(count))


def _is_dict_of(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, kind) for one in value.values())


def check_names(what: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise ValueError, with the nearest name, unless every given name is known."""
    if isinstance(given, str):
        raise ValueError(f"{what}: expected a list of names, got the string {given!r}; write [{given!r}]")
    for name in given or ():
        if name not in known:
            _unknown(what, name, known)


def _unknown(what: str, name: str, known: Sequence[str]) -> NoReturn:
    raise ValueError(f"{what}: expected some of {', '.join(known)}, got {name!r}{nearest(name, known)}")
