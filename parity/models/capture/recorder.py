"""Calls of the modules of a JAX model, inside any transformation.

An identity operator sees the values. Under `jax.disable_jit` it runs with numbers, also inside of vmap, scan, cond,
remat and gradients. Its batching rule remembers which axes are batches, outermost first. So a module that is written
for one example, and mapped, is captured and run alone with the whole batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.models import _compat
from parity.models.capture.call import Call, Leaf, Outputs, named_leaves

Levels = tuple[tuple[bool, ...], ...]
"""Of each vmap, outermost first: which values it maps over, along their first axis."""


@dataclass(eq=False)  # one is itself alone, as a parameter of the operator must be
class Seen:
    """Values that the operator was run with, each run of it in `runs`."""

    runs: list[tuple[list[Any], Levels]] = field(default_factory=list)


def _see(*values: Any, seen: Any, levels: Levels) -> list[Any]:
    seen.runs.append((list(values), levels))
    return list(values)


def _batched(args: Sequence[Any], axes: Sequence[Any], *, seen: Any, levels: Levels) -> Any:
    mapped = [axis is not None for axis in axes]
    moved = [jnp.moveaxis(x, axis, 0) if of else x for x, axis, of in zip(args, axes, mapped, strict=True)]
    out = see_p.bind(*moved, seen=seen, levels=(tuple(mapped), *levels))
    return out, [0 if of else None for of in mapped]


see_p = _compat.identity_operator("parity_see", _see, _batched)


def see(values: list[Any], seen: Seen) -> list[Any]:
    """Note arrays, and return them: the same ones where all are numbers already."""
    if not any(isinstance(value, jax.core.Tracer) for value in values):
        seen.runs.append((values, ()))
        return values
    return list(see_p.bind(*values, seen=seen, levels=()))


@dataclass
class _Open:
    path: str
    order: int
    parent: int | None
    module: Any
    state: tuple[list[Any], Callable[[list[Any]], Callable[..., Any]]]
    names: list[str]
    arrays: list[int]
    leaves: list[Any]
    treedef: Any
    went_in: Seen
    came_out: Seen = field(default_factory=Seen)
    out_names: list[str] = field(default_factory=list)
    ended: int = 0
    method: str = "__call__"


class Recorder:
    """Notes the calls of modules while a model runs."""

    def __init__(self) -> None:
        self.done: list[_Open] = []
        self.stack: list[_Open] = []
        self.counter, self.ends = itertools.count(), itertools.count()

    def call(
        self, path: str, module: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
        state: tuple[list[Any], Callable[[list[Any]], Callable[..., Any]]], names: Sequence[str] = (),
        method: str = "__call__",
    ) -> Any:  # fmt: skip
        """Call a function that is a module's, and note the call.

        Args:
            path: Of the module.
            module: The module.
            function: What is called with `args` and `kwargs`.
            args: Positional arguments.
            kwargs: Keywords.
            state: The module's arrays, and what makes of such arrays a function that runs the module alone.
            names: Of the positional arguments.
            method: Which of the module's methods it is.
        """
        leaves, treedef = jax.tree.flatten((args, kwargs), is_leaf=_is_opaque)
        arrays = [at for at, leaf in enumerate(leaves) if _is_array(leaf)]
        held, rebuild = state
        went_in = Seen()
        given = [*held, *(leaves[at] for at in arrays)]
        found = see(given, went_in)
        if found is not given:
            for at, value in zip(arrays, found[len(held) :], strict=True):
                leaves[at] = value
            args, kwargs = jax.tree.unflatten(treedef, leaves)
        one = _Open(
            path, next(self.counter), self.stack[-1].order if self.stack else None, module, (held, rebuild),
            _names(args, kwargs, names, len(leaves)), arrays, leaves, treedef, went_in, method=method,
        )  # fmt: skip
        self.stack.append(one)
        try:
            whole = function(*args, **kwargs)
            out = out_before = without_state(whole)
            out_leaves, out_tree = jax.tree.flatten(out, is_leaf=_is_opaque)
            at_out = [at for at, leaf in enumerate(out_leaves) if _is_array(leaf)]
            given = [out_leaves[at] for at in at_out]
            found = see(given, one.came_out)
            if found is not given:
                for at, value in zip(at_out, found, strict=True):
                    out_leaves[at] = value
                out = jax.tree.unflatten(out_tree, out_leaves)
                whole = out if whole is out_before else (out, *whole[1:])
            one.out_names = output_names(out, [out_leaves[at] for at in at_out])
        finally:
            self.stack.remove(one)
        one.ended = next(self.ends)
        self.done.append(one)
        return whole

    def calls(self) -> list[Call]:
        """Return all calls whose values were seen, in the order in which they began."""
        found: list[Call] = []
        seen: dict[str, int] = {}
        for one in sorted(self.done, key=lambda one: one.order):
            for (values, levels), (out, _) in zip(one.went_in.runs, one.came_out.runs, strict=False):
                if any(isinstance(value, jax.core.Tracer) for value in (*values, *out)):
                    continue
                index = seen.get(one.path, 0)
                seen[one.path] = index + 1
                found.append(_call_of(one, index, values, levels, out))
        return found


def _call_of(one: _Open, index: int, values: list[Any], levels: Levels, out: list[Any]) -> Call:
    held, rebuild = one.state
    state = values[: len(held)]
    inputs = []
    given = dict(zip(one.arrays, values[len(held) :], strict=True))
    for at, (name, leaf) in enumerate(zip(one.names, one.leaves, strict=True)):
        inputs.append(Leaf(name, host(given[at]) if at in given else leaf))
    dtypes = {at: value.dtype for at, value in given.items() if hasattr(value, "dtype")}

    def trace(replaced: Sequence[Any], own: Sequence[Any] = state) -> list[Any]:
        def function(*arrays: Any) -> Any:
            module = rebuild(list(arrays[: len(held)]))
            leaves = list(replaced)
            for at, value in zip(one.arrays, arrays[len(held) :], strict=True):
                leaves[at] = value
            args, kwargs = jax.tree.unflatten(one.treedef, leaves)
            result = module(*args, **kwargs)
            return [leaf for leaf in jax.tree.leaves(without_state(result), is_leaf=_is_opaque) if _is_array(leaf)]

        for depth, mapped in reversed(list(enumerate(levels))):
            axes = tuple(0 if of else None for of in mapped)
            function = jax.vmap(function, in_axes=axes, axis_name=None if depth else "batch")
        arrays = [_device(replaced[at], dtypes.get(at)) for at in one.arrays]
        found: list[Any] = function(*own, *arrays)
        return found

    def run(replaced: Sequence[Any]) -> Outputs:
        with jax.disable_jit():
            return dict(zip(one.out_names, map(host, trace(replaced)), strict=True))

    outputs = dict(zip(one.out_names, map(host, out), strict=True))
    return Call(
        one.path, index, one.order, one.parent, inputs, outputs, run, one.ended, one.module, one.method, trace, state
    )


def without_state(out: Any) -> Any:
    """Return a result without the state that a module of Equinox returns beside it: it is no output of the model."""
    if type(out) is tuple and len(out) == 2 and _is_state(out[1]):
        return out[0]
    return out


def _is_state(value: Any) -> bool:
    return type(value).__name__ == "State" and type(value).__module__.startswith("equinox.")


def output_names(out: Any, arrays: Sequence[Any]) -> list[str]:
    """Return what the arrays of a result are called: JAX takes those of a dict in the order of its keys.

    Example:
        >>> one, other = jnp.zeros(1), jnp.ones(2)
        >>> output_names({"logits": one, "cache": other}, [other, one])
        ['cache', 'logits']
    """
    names: dict[int, list[str]] = {}
    for name, leaf in named_leaves(out):
        names.setdefault(id(leaf), []).append(name or "output")
    found = [names[id(leaf)].pop(0) if names.get(id(leaf)) else "" for leaf in arrays]
    return found if len(set(found)) == len(found) and "" not in found else [f"output[{at}]" for at in range(len(found))]


def host(value: Any) -> Any:
    """Return a JAX array as one of NumPy, bfloat16 as float32; a random key stays as it is."""
    if hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array  # types that NumPy lacks: bfloat16, float8


def _device(value: Any, dtype: Any) -> Any:
    if isinstance(value, np.ndarray) and dtype is not None and value.dtype != dtype:
        return jnp.asarray(value, dtype)
    return jnp.asarray(value) if isinstance(value, np.ndarray) else value


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _is_opaque(leaf: Any) -> bool:
    # Modules and generators of random numbers are handed on as they are: they are changed in place.
    return type(leaf).__module__.startswith(("flax.nnx", "flax.linen")) or hasattr(type(leaf), "_parity_opaque")


def _names(args: Any, kwargs: dict[str, Any], names: Sequence[str], count: int) -> list[str]:
    # Dicts are flattened in the order of their keys.
    named = [(names[i] if i < len(names) else f"input{i}", one) for i, one in enumerate(args)] + sorted(kwargs.items())
    found = []
    for name, one in named:
        for path, _ in jax.tree_util.tree_flatten_with_path(one, is_leaf=_is_opaque)[0]:
            found.append(name + jax.tree_util.keystr(path))
    return found if len(found) == count else [f"input{at}" for at in range(count)]


def has_batch(leaf: Any) -> bool:
    """Return whether an argument has an example in each entry: a key of random numbers, `uint32[2]`, is one for all.

    Example:
        >>> [has_batch(one) for one in (np.ones((2, 3)), jax.random.PRNGKey(0), 3.0)]
        [True, False, False]
    """
    is_key = str(getattr(leaf, "dtype", "")) == "uint32" and np.shape(leaf) in ((2,), (4,))
    return bool(getattr(leaf, "ndim", 0)) and not is_key


def over_batch(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of one example for each example: mapped over the first axis of every array."""
    leaves, treedef = jax.tree.flatten((args, kwargs))
    axes = [0 if has_batch(leaf) else None for leaf in leaves]
    arrays = [at for at, axis in enumerate(axes) if axis == 0]

    def one(*given: Any) -> Any:
        changed = list(leaves)
        for at, value in zip(arrays, given, strict=True):
            changed[at] = value
        positional, keywords = jax.tree.unflatten(treedef, changed)
        return function(*positional, **keywords)

    return jax.vmap(one, axis_name="batch")(*(jnp.asarray(leaves[at]) for at in arrays))
