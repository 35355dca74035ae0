"""A call (a function, a program, and the numbers that go in) and its outputs, for every framework alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.operator import trees
from parity.operator.transforms import Transform
from parity.operator.trees import is_float


@dataclass(frozen=True)
class Numbers:
    """The numbers of a call, in NumPy: floats are float64 arrays of values that the dtype holds exactly.

    Attributes:
        arguments: The arguments, as the functions take them.
        theta: Their floating leaves. A complex leaf is two: its real and its imaginary part. So every derivative is by
            real numbers, which both frameworks define alike (for complex numbers JAX's gradient is the conjugate of
            torch's).
        names: The name of each leaf of theta.
        owners: For each leaf of theta, the number of the argument that it belongs to.
        cotangents: One for each floating output.
        directions: Two tangents of theta, or more for a pair's own transforms.
        copies: Versions of each leaf of theta, stacked, for vmap: as many as `transforms.SCALES` has.
        scales: The factor u of each output in the test function <c u, f^2> / 2; empty for 1.
        more: Further arrays, or trees of them, by name, for a pair's own transforms.
        about: Anything that a pair's own oracle needs and no program does.
    """

    arguments: tuple[Any, ...]
    theta: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    owners: tuple[int, ...]
    cotangents: tuple[np.ndarray, ...] = ()
    directions: tuple[tuple[np.ndarray, ...], ...] = ()
    copies: tuple[np.ndarray, ...] = ()
    scales: tuple[np.ndarray, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    about: Any = None

    @classmethod
    def of(cls, arguments: tuple[Any, ...], names: tuple[str, ...]) -> Numbers:
        """Return the numbers of some arguments, whose names are given."""
        found = [
            (path, leaf, number)
            for number, (name, argument) in enumerate(zip(names, arguments, strict=True))
            for whole, array in trees.leaves(argument, name)
            if is_float(array)
            for path, leaf in parts(whole, array)
        ]
        return cls(
            arguments,
            tuple(np.asarray(leaf, np.float64) for _, leaf, _ in found),
            tuple(path for path, _, _ in found),
            tuple(number for _, _, number in found),
        )

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> Numbers:
        """Return the numbers with every floating array changed."""
        return replace(
            self,
            theta=tuple(map(change, self.theta)),
            cotangents=tuple(map(change, self.cotangents)),
            directions=tuple(tuple(map(change, direction)) for direction in self.directions),
            copies=tuple(map(change, self.copies)),
            scales=tuple(map(change, self.scales)),
            more={name: _mapped(tree, change, lambda leaf: leaf) for name, tree in self.more.items()},
        )

    @property
    def terms(self) -> int:
        """How many numbers a result can depend on: no sum of inputs is longer."""
        return max((leaf.size for leaf in self.theta), default=1)


@dataclass(frozen=True)
class Outputs:
    """What a program returned.

    Attributes:
        values: Arrays by name; floating ones as float64, complex ones as real and imaginary part.
        dtypes: The dtype that each came in.
        marks: What is no array and counts all the same: None, text, empty containers, as `trees.outputs` names them.
    """

    values: dict[str, np.ndarray]
    dtypes: dict[str, str] = field(default_factory=dict)
    marks: tuple[str, ...] = ()

    @classmethod
    def of(cls, leaves: Mapping[str, Any], numpy: Callable[[Any], np.ndarray], dtype: Callable[[Any], str]) -> Outputs:
        """Return a framework's arrays as NumPy's.

        Args:
            leaves: By name, from `trees.outputs`.
            numpy: Turns an array into NumPy's, floats into float64.
            dtype: Tells the name of its dtype.
        """
        arrays = {name: leaf for name, leaf in leaves.items() if leaf is not None}
        found = [
            (part, values, dtype(leaf)) for name, leaf in arrays.items() for part, values in parts(name, numpy(leaf))
        ]
        return cls(
            {name: values for name, values, _ in found},
            {name: kind for name, _, kind in found},
            tuple(name for name, leaf in leaves.items() if leaf is None),
        )


@dataclass(frozen=True)
class Failure:
    """What a framework raised instead.

    Attributes:
        text: In one line.
        raised: In all its words.
    """

    text: str
    raised: str = ""


@dataclass(frozen=True)
class Call:
    """A function under a transform, on numbers, in a dtype.

    Attributes:
        function: Function of one framework.
        transform: What is done to it.
        numbers: What goes in.
        dtype: That the floating numbers are given in.
        compiler: Options for the compiler: `backend` (torch.compile), `compiler_options` (XLA, eager operators too).
    """

    function: Callable[..., Any]
    transform: Transform
    numbers: Numbers
    dtype: str
    compiler: Mapping[str, Any] = field(default_factory=dict)
    _form: Any = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        # Places for the leaves, and which of them are floating: plain Python, as compilers trace what uses it.
        arguments = self.numbers.arguments
        kinds = ["complex" if leaf.dtype.kind == "c" else is_float(leaf) for _, leaf in trees.leaves(arguments)]
        object.__setattr__(self, "_form", (trees.rebuild(arguments, iter(range(len(kinds)))), kinds))

    @property
    def key(self) -> str:
        """What a compiled program depends on, besides its function."""
        shapes = [leaf.shape for leaf in (*self.numbers.theta, *self.numbers.cotangents)]
        return f"{self.transform.name} {self.dtype} {shapes}"

    def arrays(
        self, floating: Callable[[np.ndarray], Any], other: Callable[[np.ndarray], Any]
    ) -> dict[str, Any]:  # fmt: skip
        """Return the arrays that a program uses, as a framework's."""
        numbers = self.numbers
        return {
            "theta": tuple(map(floating, numbers.theta)),
            "constants": tuple(
                other(np.asarray(leaf)) for _, leaf in trees.leaves(numbers.arguments) if not is_float(leaf)
            ),
            "cotangents": tuple(map(floating, numbers.cotangents)),
            "directions": tuple(tuple(map(floating, direction)) for direction in numbers.directions),
            "copies": tuple(map(floating, numbers.copies)),
            "scales": tuple(map(floating, numbers.scales)),
            **{name: _mapped(tree, floating, other) for name, tree in numbers.more.items()},
        }

    def program(
        self, ops: Any, floating: Callable[[Any], bool], a: dict[str, Any],
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    ) -> dict[str, Any]:  # fmt: skip
        """Run the transform's program on framework arrays.

        Args:
            ops: The framework's names.
            floating: Whether an output of the function has derivatives.
            a: From `arrays`.
            wrap: What is made of the function before it is differentiated.
        """
        template, kinds = self._form
        fixed = dict(self.transform.keywords)

        def everything(constants: Any, *theta: Any, **keywords: Any) -> dict[str, Any]:
            left, right = iter(theta), iter(constants)
            merged = []
            for kind in kinds:
                leaf = next(left) if kind else next(right)
                merged.append(ops.complex(leaf, next(left)) if kind == "complex" else ops.copy(leaf))
            outputs = self.function(*trees.rebuild(template, iter(merged)), **fixed, **keywords)
            return trees.outputs(outputs)

        if self.transform.everything:
            return everything(a["constants"], *a["theta"])

        def differentiable(constants: Any, *theta: Any, **keywords: Any) -> tuple[Any, ...]:
            found: list[Any] = []
            for leaf in everything(constants, *theta, **keywords).values():
                if floating(leaf):
                    found += [leaf.real, leaf.imag] if ops.iscomplexobj(leaf) else [leaf]
            return tuple(found)

        # The constants are arguments: compiled alone, the function runs again on others.
        wrapped = wrap(differentiable)

        def f(*theta: Any, **keywords: Any) -> tuple[Any, ...]:
            return wrapped(a["constants"], *theta, **keywords)

        names = {"names": self.numbers.names, "owners": self.numbers.owners}
        return self.transform.program(ops, f, a | names)


def parts(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return an array with its name; of a complex one the real and the imaginary part.

    Example:
        >>> parts("x", np.array([1 + 2j]))
        [('x.real', array([1.])), ('x.imag', array([2.]))]
    """
    if array.dtype.kind != "c":
        return [(name, array)]
    return [(f"{name}.real", array.real.astype(np.float64)), (f"{name}.imag", array.imag.astype(np.float64))]


def _mapped(tree: Any, floating: Callable[[np.ndarray], Any], other: Callable[[np.ndarray], Any]) -> Any:
    arrays = [np.asarray(leaf) for _, leaf in trees.leaves(tree)]
    return trees.rebuild(tree, iter([floating(leaf) if is_float(leaf) else other(leaf) for leaf in arrays]))
