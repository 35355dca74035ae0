"""One call of one module: what went in, what came out, and how to run the module alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

Outputs = dict[str, np.ndarray]


@dataclass
class Leaf:
    """A value that goes into a call: an array on the host, or anything else as it is."""

    name: str
    value: Any

    @property
    def is_array(self) -> bool:
        """Whether it is an array."""
        return isinstance(self.value, np.ndarray)

    @property
    def is_float(self) -> bool:
        """Whether it is an array of floats."""
        return self.is_array and is_float(self.value)


@dataclass(frozen=True)
class Stored:
    """What is kept of a call that was made elsewhere, and cannot be run here.

    Attributes:
        owner: The module's class, with the Python module that it is of.
        low: The types below float64 that the module computes in, with the operators that do.
        moved: What rounding does to each output, relative to the unit of the type; empty where it was not measured.
    """

    owner: str
    low: Mapping[str, Sequence[str]]
    moved: Mapping[str, np.ndarray]


@dataclass
class Call:
    """One call of one module.

    Attributes:
        path: Of the module; "" for the model itself.
        index: Which call of this path it is, from 0 on.
        order: When it began, among all calls of the run.
        parent: `order` of the call that it was made in, or None.
        inputs: What went in, in order.
        outputs: What came out: arrays on the host, by name.
        run: Takes values in place of those of `inputs`, runs the module alone, and returns its outputs.
        ended: When it ended, among all calls.
        module: The module, as it was while it ran.
        method: Which of its methods was called.
        trace: In JAX: the same as `run` for values that may be traced, and for other arrays in the place of `state`.
        state: In JAX: the arrays that the module held in this call.
        graph: In torch: takes values, tensors among them, runs the module with gradients, and returns its tensors.
        stored: Of a call that was made elsewhere: `run` raises then.
        moved: Whether the model has its images' channels at another place than the other framework's model.
    """

    path: str
    index: int
    order: int
    parent: int | None
    inputs: list[Leaf]
    outputs: Outputs
    run: Callable[[Sequence[Any]], Outputs]
    ended: int = 0
    module: Any = None
    method: str = "__call__"
    trace: Callable[..., list[Any]] | None = None
    state: Sequence[Any] = ()
    graph: Callable[[Sequence[Any]], dict[str, Any]] | None = None
    stored: Stored | None = None
    moved: bool = False

    @property
    def owner(self) -> str:
        """The module's class, with the Python module that it is of."""
        cls = type(self.module)
        return self.stored.owner if self.stored is not None else f"{cls.__module__}.{cls.__qualname__}"

    @property
    def class_name(self) -> str:
        """The name of the module's class."""
        return self.owner.rpartition(".")[2]

    def forget(self, *, outputs: bool) -> None:
        """Let go of the inputs, of the model, and of the `outputs` where asked: the call cannot be run any more."""
        self.stored = Stored(self.owner, {}, {})
        self.inputs, self.module, self.trace, self.graph, self.state = [], None, None, None, ()
        self.outputs = {} if outputs else self.outputs
        self.run = _forgotten

    @property
    def forgotten(self) -> bool:
        """Whether `forget` was called."""
        return self.run is _forgotten

    @property
    def values(self) -> list[Any]:
        """What went in, without names."""
        return [leaf.value for leaf in self.inputs]


def _forgotten(values: Sequence[Any]) -> Outputs:
    raise RuntimeError("the module was let go of after it was judged")


def is_float(array: np.ndarray) -> bool:
    """Return whether an array holds floats, those of ml_dtypes included."""
    return array.dtype.kind == "f" or array.dtype.name in ("bfloat16",)


def is_container(tree: Any) -> bool:
    """Return whether a value is a plain container, which can be built again."""
    return type(tree) in (list, tuple, dict) or (isinstance(tree, tuple) and hasattr(tree, "_fields"))


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return a plain container with its parts changed; anything else as it is."""
    if not is_container(tree):
        return tree
    if hasattr(tree, "_fields"):
        return type(tree)(*(change(part) for part in tree))
    if isinstance(tree, dict):
        return {name: change(part) for name, part in tree.items()}
    return type(tree)(change(part) for part in tree)


def named_leaves(tree: Any, name: str = "", *, plain: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested containers, with names as one would write them.

    Args:
        tree: Of lists, tuples, dicts, and, unless `plain`, of other mappings and dataclasses.
        name: What the tree is called.
        plain: Whether only plain containers are looked into.
    """
    if tree is None:
        return
    if plain and not is_container(tree):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, part in tree.items():
            yield from named_leaves(part, f"{name}.{key}" if name else str(key), plain=plain)
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        for key in tree._fields:
            yield from named_leaves(getattr(tree, key), f"{name}.{key}" if name else key, plain=plain)
    elif isinstance(tree, list | tuple):
        for at, part in enumerate(tree):
            yield from named_leaves(part, f"{name}[{at}]", plain=plain)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for one in fields(tree):
            yield from named_leaves(getattr(tree, one.name, None), f"{name}.{one.name}" if name else one.name)
    else:
        yield name, tree


def output_leaves(tree: Any) -> dict[str, Any]:
    """Return the arrays or tensors of what a model returned, by name."""
    return {name or "output": leaf for name, leaf in named_leaves(tree) if hasattr(leaf, "shape")}
