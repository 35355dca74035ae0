"""The weights in a function: of a module, of a closure, of functions that it calls. They become inputs.

Functions run in several dtypes, and the weights in them have one. So arrays of floats are found (in an `nn.Module`,
a Flax or an Equinox module, in closures, globals, partials and bound methods of the user's own code), paired between
the frameworks by their values, in any order of axes, and given to both functions as one more argument: they are rounded
and cast as other inputs are, and differentiated. Buffers, frozen parameters, and arrays whose partner or order of axes
is not certain, are cast and not differentiated.
"""

from __future__ import annotations

import copy
import difflib
import functools
import itertools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

    def swapped(self, value: Any, path: str, swap: Callable[..., Any]) -> Any:
        """Return an object of the same kind, in which each array of floats is what `swap(path, array)` returns.

        It is `swap(path, array, learns=False)` for a buffer and for a frozen parameter.
        """

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
    """Arrays that a function brings along, by path, and whose they are; the paths of those that do not learn."""

    side: Side
    arrays: dict[str, Any]
    fixed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, function: Any, side: Side) -> Found:
        """Find them."""
        found = cls(side, {})

        def note(path: str, array: Any, learns: bool = True) -> Any:
            found.arrays.setdefault(path, array)
            if not learns:
                found.fixed.add(path)
            return array

        _swapped(function, "", side, note, {}, 0)
        return found


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
        self, function: Callable[..., Any], found: Found, places: Mapping[str, tuple[str, tuple[int, ...] | None]],
        fixed: Mapping[str, np.ndarray],
    ) -> None:  # fmt: skip
        self.__wrapped__, self._found, self._places = function, found, places
        # What is not lifted is cast: from here, as inside of a transform a tensor may have no numbers to read.
        own = {path: found.side.numpy(array) for path, array in found.arrays.items() if path not in places}
        self.own = {**own, **fixed}
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function with these weights in the place of its own."""
        *given, weights = arguments
        side = self._found.side
        like = side.first_float(given)
        like = next(iter(weights.values()), None) if like is None else like

        def swap(path: str, array: Any, learns: bool = True) -> Any:
            if path not in self._places:
                # A copy in any case: a function may write to its buffers, and the user's are not touched.
                return side.array(self.own[path], array if like is None else like) if path in self.own else array
            name, axes = self._places[path]
            return weights[name] if axes is None else side.transposed(weights[name], axes)

        return _swapped(self.__wrapped__, "", side, swap, {}, 0)(*given, **keywords)


@dataclass(frozen=True)
class Lift:
    """Both functions with their weights as an argument.

    Attributes:
        torch: The torch function, which takes one argument more.
        jax: The JAX function, likewise.
        weights: That argument; empty where nothing is shared.
        alone: Paths of arrays that are cast alone, by framework: the other side has none, or no certain one, or
            they do not learn.
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
    paired = list(_shared(empty["torch"], empty["jax"]))
    shared = [one for one in paired if empty["torch"].fixed.isdisjoint(one.torch)]
    # Both have the same numbers in what does not learn as well, though one may have been rounded.
    buffers = [one for one in paired if not empty["torch"].fixed.isdisjoint(one.torch)]
    fixed = {path: one.values.transpose(axes) for one in buffers for path, axes in one.jax}
    of_torch = {path: (one.name, None) for one in shared for path in one.torch}
    of_jax = {path: (one.name, axes) for one in shared for path, axes in one.jax}
    alone = {
        "torch": tuple(path for path in empty["torch"].arrays if path not in of_torch),
        "jax": tuple(path for path in empty["jax"].arrays if path not in of_jax),
    }
    return Lift(
        Lifted(torch_function, empty["torch"], of_torch, {}),
        Lifted(jax_function, empty["jax"], of_jax, fixed),
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
    """Yield the arrays that both bring along: equal in value, in one order of axes alone, and no others like them."""
    theirs = _distinct(torch)
    mine = _distinct(jax)
    for paths, values in theirs:
        equal = [(found, orders) for found, other in mine if (orders := _orders(values, other))]
        rivals = [found for found, other in theirs if _orders(values, other)]
        if len(equal) > 1 or len(rivals) > 1:
            equal = _by_name(paths, rivals, equal)
        if len(equal) != 1 or len(equal[0][1]) != 1 or values.size < 1:
            continue
        ((found, (axes,)),) = equal
        yield Shared(paths[0], values, tuple(paths), tuple((path, axes) for path in found))


def _distinct(found: Found) -> list[tuple[list[str], np.ndarray]]:
    """Return arrays with their paths: one object under several paths is one array."""
    by_object: dict[int, tuple[list[str], np.ndarray]] = {}
    for path, array in found.arrays.items():
        by_object.setdefault(id(array), ([], found.side.numpy(array)))[0].append(path)
    return list(by_object.values())


def _orders(values: np.ndarray, other: np.ndarray) -> list[tuple[int, ...]]:
    """Return the orders of axes in which an array has another's numbers.

    Zeros, the identity and other symmetric arrays have them in several, and only one is the order of the axes' meaning.
    Orders that differ in axes of length one are the same.
    """
    if sorted(values.shape) != sorted(other.shape) or values.ndim > 5:
        return []
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for axes in itertools.permutations(range(values.ndim)):
        turned = values.transpose(axes)
        if turned.shape == other.shape and np.allclose(turned, other, rtol=NEAR, atol=0):
            found.setdefault(tuple(axis for axis in axes if values.shape[axis] > 1), axes)
    return list(found.values())


Equal = list[tuple[list[str], list[tuple[int, ...]]]]


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
    value: Any, path: str, side: Side, swap: Callable[..., Any], seen: dict[int, Any], depth: int
) -> Any:  # fmt: skip
    """Return a function, or what it reaches, with each array that it brings along swapped."""
    if id(value) in seen:
        return seen[id(value)]
    if depth > DEEPEST or isinstance(value, Lifted):
        return value

    def inner(part: Any, name: str) -> Any:
        return _swapped(part, f"{path}.{name}" if path else name, side, swap, seen, depth + 1)

    seen[id(value)] = made = value  # what holds itself ends here
    if side.holds(value):
        made = side.swapped(value, path, swap)
    elif isinstance(value, functools.partial):
        keywords = {name: inner(part, name) for name, part in value.keywords.items()}
        made = functools.partial(
            inner(value.func, ""), *(inner(a, str(i)) for i, a in enumerate(value.args)), **keywords
        )
    elif isinstance(value, types.MethodType):
        owner = inner(value.__self__, "")
        if side.holds(value.__self__):
            made = getattr(owner, value.__func__.__name__)
        elif (bare := inner(value.__func__, "")) is not value.__func__ or owner is not value.__self__:
            made = types.MethodType(bare, owner)
    elif isinstance(value, types.FunctionType) and _is_own(value):
        made = _function(value, inner, seen)
    elif isinstance(value, list | tuple):
        parts = [inner(part, str(i)) for i, part in enumerate(value)]
        if any(a is not b for a, b in zip(parts, value, strict=True)):
            made = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    elif isinstance(value, Mapping) and _is_plain(value):
        changed = {key: inner(part, str(key)) for key, part in value.items()}
        if any(changed[key] is not value[key] for key in changed):
            made = copy.copy(value) if isinstance(value, dict) else changed
            if made is not changed:
                made.update(changed)
    elif hasattr(value, "__wrapped__") and _is_own(value.__wrapped__) and not isinstance(value, type):
        # jax.jit and others like it: the function is compiled, if at all, with what calls it.
        bare = inner(value.__wrapped__, "")
        made = value if bare is value.__wrapped__ else bare
    elif _is_own_object(value):
        changed = {name: inner(part, name) for name, part in vars(value).items()}
        if any(changed[name] is not part for name, part in vars(value).items()):
            made = copy.copy(value)
            vars(made).update(changed)
    seen[id(value)] = made
    return made


_LIBRARIES = tuple({f"{path}/".replace("\\", "/") for path in map(sysconfig.get_path, ("stdlib", "platstdlib"))})


def _is_own_file(file: str) -> bool:
    """Return whether a file is of the user's code, and of no library."""
    file = file.replace("\\", "/")
    libraries = "/site-packages/" in file or "/dist-packages/" in file or file.startswith(_LIBRARIES)
    return not libraries and not file.startswith("<frozen")


def _is_own(function: Any) -> bool:
    """Return whether a function is of the user's code, and no library's."""
    code = getattr(function, "__code__", None)
    return code is not None and _is_own_file(code.co_filename)


def _is_own_object(value: Any) -> bool:
    """Return whether a value is an instance of a class of the user's, with attributes of its own."""
    if isinstance(value, type | types.ModuleType) or not hasattr(value, "__dict__"):
        return False
    name = type(value).__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    return name == "__main__" or (file is not None and _is_own_file(file))


def _is_plain(value: Mapping[Any, Any]) -> bool:
    """Return whether a mapping holds its values itself: it is of Python's, or of the user's code."""
    return isinstance(value, dict | types.MappingProxyType) or _is_own_object(value)


def _function(
    function: types.FunctionType, inner: Callable[[Any, str], Any], seen: dict[int, Any]
) -> types.FunctionType:  # fmt: skip
    """Return a function whose cells, defaults and globals are swapped; itself where none of them holds arrays.

    A function that calls itself calls the one that is made.
    """
    code = function.__code__
    cells, globals_ = tuple(types.CellType() for _ in code.co_freevars), dict[str, Any]()
    made = types.FunctionType(code, globals_, function.__name__, None, cells)
    seen[id(function)] = made
    changed = False

    def swapped(part: Any, name: str) -> Any:
        nonlocal changed
        found = inner(part, name)
        changed |= found is not part and found is not made
        return found

    for name, cell, new in zip(code.co_freevars, function.__closure__ or (), cells, strict=True):
        try:
            held = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        new.cell_contents = swapped(held, name)
    names = [name for name in _names(code) if name in function.__globals__]
    others = {name: swapped(function.__globals__[name], name) for name in names}
    defaults = None if function.__defaults__ is None else tuple(swapped(d, "default") for d in function.__defaults__)
    keywords = {name: swapped(part, name) for name, part in (function.__kwdefaults__ or {}).items()}
    if not changed:
        return function
    globals_.update({**function.__globals__, **others})
    made.__defaults__, made.__kwdefaults__ = defaults, keywords or None
    return made


def _names(code: types.CodeType) -> list[str]:
    """Return the names that code, and functions made in it, look up."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return list(dict.fromkeys((*code.co_names, *inner)))
