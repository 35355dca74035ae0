"""Layers that JAX does not run, or runs twice: a loop that ends too early, a call that is written again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from parity.models.causes.context import Context
from parity.records import Diagnosis

MOST = 40
"""How many layers are tried."""

Change = Callable[[Any, tuple[Any, ...], Any], Any]


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield a proved child that is left out or runs again: torch's module is run so."""
    names = [name for name in dict.fromkeys(context.calls) if name and name != "?"][:MOST]
    for name in names:
        for change, cause, text, how in (
            (_skipped, "module left out", f"JAX does not run {name}, which torch runs", "left out"),
            (_twice, "module run twice", f"JAX runs {name} twice in a row, which torch runs once", "run twice"),
        ):
            if context.late:
                return
            if context.agree(lambda *arrays, n=name, c=change: _run(context, n, c, arrays)):
                yield Diagnosis(
                    cause,
                    f"{text}; with it {how} in torch the two agree.",
                    "Run every layer once: count the turns of the loop.",
                )
                return


def _run(context: Context, name: str, change: Change, arrays: Any) -> Any:
    with _hooked(context.pair.torch_module.get_submodule(name), change):
        return context.torch(*arrays)


def _skipped(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
    first = output[0] if isinstance(output, tuple) else output
    if not inputs or not isinstance(inputs[0], torch.Tensor) or inputs[0].shape != first.shape:
        raise ValueError("expected a layer that keeps the shape of its input")
    return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]


def _twice(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
    first = output[0] if isinstance(output, tuple) else output
    return module.forward(first, *inputs[1:])


@contextlib.contextmanager
def _hooked(module: Any, change: Change) -> Iterator[None]:
    handle = module.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()
