"""Weights that a function brings along: of a module, of a closure, of what it calls. They become inputs.

Everything runs in several dtypes, and what is brought along has one. So arrays of floats are found (in an `nn.Module`,
a Flax or an Equinox module, in closures, globals, partials and bound methods of the user's own code), paired between
the frameworks by their values, in any order of axes, and given to both functions as one more argument: they are rounded
and cast as other inputs are, and differentiated. An array that only one side has, or whose partner is not certain, is
cast and not differentiated.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

NEAR = 2.0**-22
"""Two arrays are one if they differ by less, relative: one of them may have been rounded to float32."""

DEEPEST = 6
"""Functions in functions that are looked into."""


class Side(Protocol):
    """What a framework knows of the objects that hold its arrays (execution/torch_brought.py, jax_brought.py)."""

    def holds(self, value: Any) -> bool:
        """Return whether an object is an array of floats, or a module or tree that may have some."""

    def swapped(self, value: Any, path: str, swap: Callable[[str, Any], Any]) -> Any:
        """Return an object of the same kind, in which each array of floats is what `swap(path, array)` returns."""

    def numpy(self, array: Any) -> np.ndarray:
        """Return an array as float64."""

    def array(self, values: np.ndarray, like: Any) -> Any:
        """Return NumPy's numbers as an array of the dtype and device of another."""

    def transposed(self, array: Any, axes: Sequence[int]) -> Any:
        """Return an array with its axes in another order."""

    def first_float(self, arguments: Any) -> Any:
        """Return the first array of floats among arguments, or None."""


@dataclass(frozen=True)
class Found:
    """Arrays that a function brings along, by path, and whose they are."""

    side: Side
    arrays: dict[str, Any]

    @classmethod
    def of(cls, function: Any, side: Side) -> Found:
        """Find them."""
        arrays: dict[str, Any] = {}

        def note(path: str, array: Any) -> Any:
            arrays.setdefault(path, array)
            return array

        _swapped(function, "", side, note, {}, 0)
        return cls(side, arrays)


@dataclass(frozen=True)
class Shared:
    """An array that both functions bring along.

    Attributes:
        name: Its path in torch.
        values: Its numbers, as torch has them.
        torch: Its paths in torch: tied weights have several.
        jax: Its paths in JAX, with the order of its axes there.
    """

    name: str
    values: np.ndarray
    torch: tuple[str, ...]
    jax: tuple[tuple[str, tuple[int, ...]], ...]


class Lifted:
    """A function whose weights are its last argument, a dict of arrays by name."""

    def __init__(
        self, function: Callable[..., Any], found: Found, places: Mapping[str, tuple[str, tuple[int, ...] | None]]
    ) -> None:
        self.__wrapped__, self._found, self._places = function, found, places
        # What is not lifted is cast: from here, as inside of a transform a tensor may have no numbers to read.
        self._own = {path: found.side.numpy(array) for path, array in found.arrays.items() if path not in places}
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function with these weights in the place of its own."""
        *given, weights = arguments
        side = self._found.side
        like = side.first_float(given)
        like = next(iter(weights.values()), None) if like is None else like

        def swap(path: str, array: Any) -> Any:
            if path not in self._places:
                return array if like is None or path not in self._own else side.array(self._own[path], like)
            name, axes = self._places[path]
            return weights[name] if axes is None else side.transposed(weights[name], axes)

        return _swapped(self.__wrapped__, "", side, swap, {}, 0)(*given, **keywords)


@dataclass(frozen=True)
class Lift:
    """Both functions with their weights as an argument.

    Attributes:
        torch: Of torch, taking one argument more.
        jax: Of JAX.
        weights: That argument; empty where nothing is shared.
        alone: Paths of arrays of which the other side has none, or no certain one, by framework.
    """

    torch: Callable[..., Any]
    jax: Callable[..., Any]
    weights: dict[str, np.ndarray]
    alone: dict[str, tuple[str, ...]]


def lift(torch_function: Any, jax_function: Any) -> Lift | None:
    """Return both functions with what they bring along lifted out, or None where they bring nothing."""
    sides = _sides()
    empty: dict[str, Found] = {}
    for name, function in (("torch", torch_function), ("jax", jax_function)):
        if name in sides:
            empty[name] = Found.of(function, sides[name])
    if not any(found.arrays for found in empty.values()) or len(empty) < 2:
        return None
    shared = list(_shared(empty["torch"], empty["jax"]))
    of_torch = {path: (one.name, None) for one in shared for path in one.torch}
    of_jax = {path: (one.name, axes) for one in shared for path, axes in one.jax}
    alone = {
        "torch": tuple(path for path in empty["torch"].arrays if path not in of_torch),
        "jax": tuple(path for path in empty["jax"].arrays if path not in of_jax),
    }
    return Lift(
        Lifted(torch_function, empty["torch"], of_torch),
        Lifted(jax_function, empty["jax"], of_jax),
        {one.name: one.values for one in shared},
        alone,
    )


def _sides() -> dict[str, Side]:
    """Return what knows the frameworks' objects: of those that are imported, as others can have made nothing."""
    sides: dict[str, Side] = {}
    if "torch" in sys.modules:
        from parity.execution.torch_brought import TorchSide

        sides["torch"] = TorchSide()
    if "jax" in sys.modules:
        from parity.execution.jax_brought import JaxSide

        sides["jax"] = JaxSide()
    return sides


def _shared(torch: Found, jax: Found) -> Iterator[Shared]:
    """Yield the arrays that both bring along: equal in value, in some order of axes, and no others like them."""
    theirs = _distinct(torch)
    mine = _distinct(jax)
    for paths, values in theirs:
        equal = [(found, axes) for found, other in mine if (axes := _order(values, other)) is not None]
        rivals = [found for found, other in theirs if _order(values, other) is not None]
        if len(equal) > 1 or len(rivals) > 1:
            equal = _by_name(paths, rivals, equal)
        if len(equal) != 1 or values.size < 1:
            continue
        ((found, axes),) = equal
        yield Shared(paths[0], values, tuple(paths), tuple((path, axes) for path in found))


def _distinct(found: Found) -> list[tuple[list[str], np.ndarray]]:
    """Return arrays with their paths: one object under several paths is one array."""
    by_object: dict[int, tuple[list[str], np.ndarray]] = {}
    for path, array in found.arrays.items():
        by_object.setdefault(id(array), ([], found.side.numpy(array)))[0].append(path)
    return list(by_object.values())


def _order(values: np.ndarray, other: np.ndarray) -> tuple[int, ...] | None:
    """Return the order of axes in which an array has another's numbers, or None."""
    if sorted(values.shape) != sorted(other.shape) or values.ndim > 5:
        return None
    for axes in itertools.permutations(range(values.ndim)):
        turned = values.transpose(axes)
        if turned.shape == other.shape and np.allclose(turned, other, rtol=NEAR, atol=0):
            return axes
    return None


Equal = list[tuple[list[str], tuple[int, ...]]]


def _by_name(paths: list[str], rivals: list[list[str]], equal: Equal) -> Equal:
    """Return the one of several equal arrays whose name is most like; none where two are."""
    if len(equal) != len(rivals):
        return []

    def like(one: list[str], other: list[str]) -> float:
        return difflib.SequenceMatcher(None, _plain(one[0]), _plain(other[0])).ratio()

    best = max(equal, key=lambda one: like(paths, one[0]))
    back = max(rivals, key=lambda one: like(one, best[0]))
    scores = sorted((like(paths, one[0]) for one in equal), reverse=True)
    certain = back is paths and (len(scores) < 2 or scores[0] > scores[1])
    return [best] if certain else []


_SAME = (("weight", "w"), ("kernel", "w"), ("scale", "w"), ("embedding", "w"), ("bias", "b"), ("_proj", ""))


def _plain(path: str) -> str:
    for word, short in _SAME:
        path = path.replace(word, short)
    return path.lower().strip("./")


def _swapped(
    value: Any, path: str, side: Side, swap: Callable[[str, Any], Any], seen: dict[int, Any], depth: int
) -> Any:  # fmt: skip
    """Return a function, or what it reaches, with each array that it brings along swapped."""
    if id(value) in seen:
        return seen[id(value)]
    if depth > DEEPEST:
        return value

    def inner(part: Any, name: str) -> Any:
        return _swapped(part, f"{path}.{name}" if path else name, side, swap, seen, depth + 1)

    if side.holds(value):
        made = side.swapped(value, path, swap)
    elif isinstance(value, functools.partial):
        keywords = {name: inner(part, name) for name, part in value.keywords.items()}
        made = functools.partial(
            inner(value.func, ""), *(inner(a, str(i)) for i, a in enumerate(value.args)), **keywords
        )
    elif isinstance(value, types.MethodType) and side.holds(value.__self__):
        made = getattr(inner(value.__self__, ""), value.__func__.__name__)
    elif isinstance(value, types.FunctionType) and _is_own(value):
        seen[id(value)] = value  # one that calls itself
        made = _function(value, inner)
    elif type(value) in (list, tuple):
        parts = [inner(part, str(i)) for i, part in enumerate(value)]
        made = type(value)(parts) if any(a is not b for a, b in zip(parts, value, strict=True)) else value
    elif type(value) is dict:
        changed = {key: inner(part, str(key)) for key, part in value.items()}
        made = changed if any(changed[key] is not value[key] for key in value) else value
    elif hasattr(value, "__wrapped__") and _is_own(value.__wrapped__) and not isinstance(value, type):
        # jax.jit and others like it: the function is compiled, if at all, with what calls it.
        bare = inner(value.__wrapped__, "")
        made = value if bare is value.__wrapped__ else bare
    else:
        return value
    seen[id(value)] = made
    return made


def _is_own(function: Any) -> bool:
    """Return whether a function is of the user's code, and no library's."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    file = code.co_filename.replace("\\", "/")
    return "/site-packages/" not in file and not file.startswith(sys.prefix) and not file.startswith("<frozen")


def _function(function: types.FunctionType, inner: Callable[[Any, str], Any]) -> types.FunctionType:
    """Return a function whose cells, defaults and globals are swapped; itself where none of them holds arrays."""
    code = function.__code__
    cells = []
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            made = inner(cell.cell_contents, name)
        except ValueError:  # not filled yet
            cells.append(cell)
            continue
        cells.append(cell if made is cell.cell_contents else types.CellType(made))
    names = [name for name in _names(code) if name in function.__globals__]
    globals_ = {name: inner(function.__globals__[name], name) for name in names}
    changed = {name: made for name, made in globals_.items() if made is not function.__globals__[name]}
    defaults = None if function.__defaults__ is None else tuple(inner(d, "default") for d in function.__defaults__)
    same = all(a is b for a, b in zip(cells, function.__closure__ or (), strict=True))
    alike = defaults is None or all(a is b for a, b in zip(defaults, function.__defaults__ or (), strict=True))
    if same and alike and not changed:
        return function
    made = types.FunctionType(code, {**function.__globals__, **changed}, function.__name__, defaults, tuple(cells))
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _names(code: types.CodeType) -> list[str]:
    """Return the names that code, and functions made in it, look up."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return list(dict.fromkeys((*code.co_names, *inner)))
