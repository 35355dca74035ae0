"""A captured pair of calls as two functions of the same arrays, whose outputs are in torch's layout."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.models.matching import feed, makes_channels, pair_outputs, rearranged
from parity.models.pairing import Pair
from parity.models.weights.matching import ORDER, VALUES


@dataclass(frozen=True)
class _Taken:
    """An input of JAX's module that is one of torch's.

    Attributes:
        at: Its place among JAX's inputs.
        number: Which of torch's arrays it is.
        order: Where each of its entries stands in that array.
        dtype: Of a mask: its own type.
        turned: Whether it is the mask the other way round.
    """

    at: int
    number: int
    order: np.ndarray
    dtype: str = ""
    turned: bool = False

    def of(self, array: Any) -> Any:
        """Return JAX's input for an array of torch's, traced or not."""
        moved = _placed(array, self.order)
        if not self.dtype:
            return moved
        moved = moved if moved.dtype == bool else moved != 0
        return (~moved if self.turned else moved).astype(self.dtype)


class Calls:
    """A module of torch beside its counterpart, in one call: what causes look at.

    Attributes:
        path: Of the torch module.
        jax_path: Of the JAX module.
        torch_module: The module itself.
        arrays: What both are called with in isolation, in torch's layout.
        torch_weights: Parameters and buffers of the torch module and of what is below it, by relative name.
        torch_buffers: The buffers among them, and those that no file holds.
        jax_state: The arrays that the JAX module held in this call, but for keys of random numbers.
        unpaired: Names of those that have no counterpart in JAX.
        by_order: Names of those that are paired by their order of definition alone.
        by_values: Names of those that only their values tell: a map that pairs by order may have loaded them.
        fixed: Arrays by their place that the JAX module does not take.
        inner: JAX's modules that stand in the place of torch's in it (`causes.inner`), or None.
    """

    def __init__(self, pair: Pair, call: int, inner: Any = None) -> None:
        self.inner = inner
        self._torch, self._jax = pair.torch_calls[call], pair.jax_calls[call]
        self.path, self.jax_path, self.torch_module = pair.torch.path, pair.jax.path, self._torch.module
        self._fed = feed(self._torch, self._jax)
        self._places = _alike(self._torch)
        self.arrays = tuple(np.asarray(self._torch.inputs[places[0]].value) for places in self._places)
        self.torch_weights = {
            name: value.detach().cpu().double().numpy() if value.is_floating_point() else value.cpu().numpy()
            for name, value in self.torch_module.state_dict(keep_vars=True).items()
        }
        # Views of NumPy, for a program that is read must not see how statistics are put back.
        views = [buffer.detach().numpy() for buffer in self.torch_module.buffers() if buffer.device.type == "cpu"]
        self._buffers = [(view, view.copy()) for view in views]
        self.torch_buffers = {
            name: value.detach() for name, value in self.torch_module.named_buffers() if value.device.type == "cpu"
        }
        self.jax_state = [  # keys of random numbers have a dtype that is none of NumPy's
            np.asarray(one)
            for one in self._jax.state
            if isinstance(getattr(one, "dtype", None), np.dtype) and one.dtype.kind in "fiub"
        ]
        prefix = f"{self.path}." if self.path else ""
        paired = {name for one in pair.weights for name in one.torch}
        self.unpaired = tuple(name for name in self.torch_weights if prefix + name not in paired)
        self.by_order = {
            name.removeprefix(prefix) for one in pair.weights if one.evidence == ORDER for name in one.torch
        }
        self.by_values = {
            name.removeprefix(prefix) for one in pair.weights if one.evidence == VALUES for name in one.torch
        }
        self._inputs = [*self._input_orders(), *self._mask_orders()]
        taken = {one.number for one in self._inputs}
        self.fixed = {number: one for number, one in enumerate(self.arrays) if number not in taken}
        self._outputs = self._output_orders()

    def _input_orders(self) -> Iterator[_Taken]:
        """Yield each JAX input that is one of torch's."""
        numbers = {self._torch.inputs[at].name: number for number, places in enumerate(self._places) for at in places}
        for at, leaf in enumerate(self._jax.inputs):
            source = self._fed.arrays.get(leaf.name)
            if source not in numbers or not leaf.is_array:
                continue
            array, value = self.arrays[numbers[source]], self._fed.values[at]
            for moved, order in _arranged(array, value.shape):
                if np.array_equal(moved.astype(value.dtype), value, equal_nan=value.dtype.kind == "f"):
                    yield _Taken(at, numbers[source], order)
                    break

    def _mask_orders(self) -> Iterator[_Taken]:
        """Yield each mask of JAX's module that is one of torch's, as it is or the other way round."""
        for at, leaf in enumerate(self._jax.inputs):
            if not leaf.is_array or leaf.name in self._fed.arrays or not is_mask(leaf.value):
                continue
            found = (
                _Taken(at, number, order, str(leaf.value.dtype), turned)
                for number, array in enumerate(self.arrays)
                if is_mask(array)
                for moved, order in _arranged(array, leaf.value.shape)
                for turned in (False, True)
                if np.array_equal((moved != 0) ^ turned, leaf.value != 0)
            )
            yield from itertools.islice(found, 1)

    def _output_orders(self) -> list[tuple[str, int, np.ndarray]]:
        """Return torch's name of each output, the place of JAX's, and where its entries stand there."""
        jax_out = self._jax.run(self._fed.values)
        places = {id(value): at for at, value in enumerate(jax_out.values())}
        found, _, _ = pair_outputs(
            self._torch.outputs, jax_out, moved=self._fed.moved, channels=makes_channels(self._torch.class_name)
        )
        orders = []
        for one in found:
            shape = self._torch.outputs[one.name].shape
            order = one.arranged(np.arange(int(np.prod(shape))).reshape(shape))
            orders.append((one.name, places[id(one.jax)], np.argsort(order, axis=None).reshape(shape)))
        return orders

    @property
    def taken(self) -> list[int]:
        """Which of the arrays that go into torch's module it is called with, among its arrays alone."""
        arrays = [at for at, leaf in enumerate(self._torch.inputs) if leaf.is_array]
        return [arrays.index(places[0]) for places in self._places]

    @property
    def given(self) -> list[str]:
        """Torch's names of the outputs."""
        return [name for name, _, _ in self._outputs]

    def torch_function(self, weights: Mapping[str, Any], *arrays: Any) -> tuple[Any, ...]:
        """Run the torch module on tensors, with some of its weights replaced, and return its tensors."""
        import torch

        from parity.models.capture.call import named_leaves

        values = self._torch.values
        for places, array in zip(self._places, arrays, strict=True):
            for at in places:
                own = getattr(torch, str(values[at].dtype), None)
                # A model that does not run in float64 has float32 weights, which take no float64.
                values[at] = array.to(own) if own is not None and array.is_floating_point() else array
        raw: list[Any] = []
        depth = [0]

        def enter(*_: Any) -> None:
            depth[0] += 1

        def leave(module: Any, inputs: Any, output: Any) -> None:
            depth[0] -= 1
            if not depth[0]:
                raw.append(output)

        handles = [
            torch.nn.modules.module.register_module_forward_pre_hook(enter),
            torch.nn.modules.module.register_module_forward_hook(leave),
        ]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # a whole encoder layer as one operator cannot be changed
        try:
            placed = contextlib.nullcontext() if self.inner is None else self.inner.placed()
            with replaced(self.torch_module, weights), placed:
                self._torch.run(values)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for handle in handles:
                handle.remove()
            for view, before in self._buffers:
                view[...] = before  # a changed program may train, and move statistics
        found = {name or "output": leaf for name, leaf in named_leaves(raw[-1]) if isinstance(leaf, torch.Tensor)}
        return tuple(found[name] for name, _, _ in self._outputs)

    def jax_function(self, weights: Mapping[str, Any], *arrays: Any) -> tuple[Any, ...]:
        """Run the JAX module on arrays, traced or not, and return its arrays in torch's layout."""
        values = list(self._fed.values)
        for one in self._inputs:
            values[one.at] = one.of(arrays[one.number])
        assert self._jax.trace is not None
        outputs = self._jax.trace(values)
        return tuple(_placed(outputs[at], order) for _, at, order in self._outputs)


def _placed(array: Any, order: np.ndarray) -> Any:
    """Return the entries of an array, traced or not, in an order: in one step.

    JAX's own indexing looks for negative indices first, with a comparison and a choice that are no part of the model.
    """
    if order.size == np.size(array) and np.array_equal(order.ravel(), np.arange(order.size)):
        return array.reshape(order.shape)
    if isinstance(array, np.ndarray):
        return array.ravel()[order.ravel()].reshape(order.shape)
    import jax

    dimensions = jax.lax.GatherDimensionNumbers((), (0,), (0,))
    return jax.lax.gather(array.ravel(), order[..., None], dimensions, (1,), mode="clip")


def is_mask(array: np.ndarray) -> bool:
    """Return whether an array is of True and False, or of ones and zeros, both there.

    Example:
        >>> is_mask(np.array([True, False])), is_mask(np.array([0, 1])), is_mask(np.array([0, 2]))
        (True, True, False)
    """
    return array.dtype.kind in "biu" and array.size > 1 and set(np.unique(array).tolist()) == {0, 1}


def _arranged(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield an array in each arrangement that has a shape, with the place that each entry comes from."""
    indices = np.arange(array.size).reshape(array.shape)
    yield from zip(rearranged(array, shape), rearranged(indices, shape), strict=True)


def _alike(call: Any) -> list[list[int]]:
    """Return the places of a call's arrays, those of equal ones together: query, key and value are one input."""
    found: list[list[int]] = []
    for at, leaf in enumerate(call.inputs):
        if not leaf.is_array:
            continue
        first = (places for places in found if _equal(call.inputs[places[0]].value, leaf.value))
        home = next(first, None) if leaf.value.size > 1 else None
        found.append([at]) if home is None else home.append(at)
    return found


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@contextlib.contextmanager
def replaced(module: Any, weights: Mapping[str, Any]) -> Iterator[None]:
    """Let a module have other weights, by name, within."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, value in weights.items():
            owner, _, last = name.rpartition(".")
            held = module.get_submodule(owner)
            where = held._parameters if last in held._parameters else held._buffers
            before.append((where, last, where[last]))
            where[last] = value
        yield
    finally:
        for where, last, value in reversed(before):
            where[last] = value
