"""Modules of JAX in the place of torch's within a module: what still differs then is a fault of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from parity.models.causes.calls import Calls
from parity.models.pairing import Pair

MOST = 64
"""Modules that are put in others' places, for one module around them."""

SCHEMA = "(Tensor[] arrays, int number) -> Tensor[]"

Function = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]

HELD: dict[int, Function] = {}
"""What the operator runs, by the number that it is called with."""


@cache
def _operator() -> Any:
    """Return an operator that runs a JAX module: the programs of torch that are read show it as one step."""
    import torch

    def jax_module(arrays: list[Any], number: int) -> list[Any]:
        made = HELD[number]([array.detach().cpu().numpy() for array in arrays])
        return [torch.from_numpy(np.array(one)) for one in made]

    return torch.library.custom_op("parity::jax_module", jax_module, mutates_args=(), schema=SCHEMA)


class Inner:
    """JAX's modules within a torch module, each for its torch module.

    Args:
        pairs: Of modules in it that differ.
        within: The call of torch's module around them.
    """

    def __init__(self, pairs: Sequence[Pair], within: Any) -> None:
        self.calls: list[tuple[Any, list[Calls]]] = []
        for pair in pairs:
            inside = [
                at
                for at, (ours, _) in enumerate(zip(pair.torch_calls, pair.jax_calls, strict=False))
                if within.order < ours.order and ours.ended <= within.ended
            ]
            self.calls.append((pair.torch_calls[0].module, [Calls(pair, at) for at in inside]))

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """Let torch's modules give what JAX's give on the same inputs, within."""
        handles, numbers = [], []
        try:
            for module, calls in self.calls:
                made = [_Numbered(one) for one in calls]
                numbers += [one.number for one in made]
                handles.append(module.register_forward_hook(_hook(made), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for number in numbers:
                HELD.pop(number, None)


class _Numbered:
    """One call of a JAX module, under a number."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.number = max(HELD, default=-1) + 1
        HELD[self.number] = lambda arrays: [np.asarray(one) for one in calls.jax_function({}, *arrays)]


def _hook(calls: Sequence[_Numbered]) -> Any:
    """Return a hook that puts JAX's outputs in the place of torch's, call by call."""
    turn = [0]

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        import torch

        from parity.models.capture.call import is_container, mapped, named_leaves

        one = calls[turn[0] % len(calls)]
        turn[0] += 1
        given = [leaf for tree in (*args, *kwargs.values()) for _, leaf in named_leaves(tree, plain=True)]
        tensors = [leaf for leaf in given if isinstance(leaf, torch.Tensor)]
        made = _operator()([tensors[at] for at in one.calls.taken], one.number)
        new = {name: value for name, value in zip(one.calls.given, made, strict=True)}
        names = {id(leaf): name or "output" for name, leaf in named_leaves(output)}

        def put(tree: Any) -> Any:
            if is_container(tree):
                return mapped(tree, put)
            value = new.get(names.get(id(tree), ""))
            return tree if value is None else value.to(tree.dtype)

        return put(output)

    return hook
