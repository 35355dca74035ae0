"""Norms before sublayers on one side, after the sum on the other; and before or after the pooling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from parity.execution._compat import torch_dispatch_mode
from parity.explanation._compat import torch_schema
from parity.models.causes.context import Context
from parity.records import Diagnosis

FIX = "Put the norms in one place: x + f(norm(x)) is norms first, norm(x + f(x)) norms last."


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield a proved other place of the norms of a layer: torch's layer is run with its norms moved."""
    calls = [name for name in context.calls if name and "." not in name]
    norms = [name for name in calls if _is_norm(context.pair.torch_module.get_submodule(name))]
    if not norms or len(norms) == len(calls):
        return
    for moved, mine, theirs in ((_to_last, "first", "last"), (_to_first, "last", "first")):
        if context.agree(lambda *arrays, m=moved: m(context, norms, calls, arrays)):
            yield Diagnosis(
                "norm order",
                f"Norms come {theirs} in JAX ({', '.join(norms)}), {mine} in torch; with them moved in torch the two "
                "agree.",
                FIX,
            )
            return
    last = norms[-1:]
    for pooled, mine, theirs in ((_before_pooling, "after", "before"), (_after_pooling, "before", "after")):
        if context.agree(lambda *arrays, m=pooled: m(context, last, arrays)):
            yield Diagnosis(
                "norm order",
                f"{last[0]} stands {theirs} the pooling in JAX, {mine} it in torch; with it moved in torch the two "
                "agree.",
                "Pool and normalise in one order.",
            )
            return


POOLS = ("aten::mean", "aten::amax", "aten::sum")


def _before_pooling(context: Context, norms: list[str], arrays: Any) -> Any:
    """Run the model with a norm on what is pooled."""

    def pool(state: _State, func: Any, args: Any, kwargs: Any) -> Any:
        x, width = args[0], next(iter(state.modules[norms[0]].parameters())).shape[0]
        channels = -1 if x.shape[-1] == width else 1
        normed = state.apply(norms[0], x.movedim(channels, -1)).movedim(-1, channels)
        return func(normed, *args[1:], **kwargs)

    return _with_pooling(context, norms, arrays, pool)


def _after_pooling(context: Context, norms: list[str], arrays: Any) -> Any:
    """Run the model with a norm on the result of the pooling."""
    return _with_pooling(
        context, norms, arrays, lambda state, func, args, kwargs: state.apply(norms[0], func(*args, **kwargs))
    )


def _with_pooling(context: Context, norms: list[str], arrays: Any, pool: Any) -> Any:
    """Run the model without its norm, and with another function for the one pooling among its own operations."""
    pooled = 0
    with _bypassed(norms) as state:

        class Pooling(torch_dispatch_mode()):  # type: ignore[misc]
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal pooled
                if state.busy or torch_schema(func).name not in POOLS or len(state.depth) != 1:
                    return func(*args, **(kwargs or {}))
                pooled += 1
                return pool(state, func, args, kwargs or {})

        with Pooling():
            found = context.torch(*arrays)
    if pooled != 1:
        raise ValueError(f"expected one pooling that the norm can be moved past, there are {pooled}")
    return found


def _is_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower() or type(module).__name__ in ("LayerNorm", "RMSNorm")


def _to_last(context: Context, norms: list[str], calls: list[str], arrays: Any) -> Any:
    """Run the layer with each norm after the sum that follows it."""
    with _bypassed(norms) as state:
        norm_of = iter(norms)
        depth = state.depth

        class Sums(torch_dispatch_mode()):  # type: ignore[misc]
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                if torch_schema(func).name == "aten::add" and len(depth) == 1 and _are_streams(args):
                    name = next(norm_of, None)
                    return result if name is None else state.apply(name, result)
                return result

        with Sums():
            found = context.torch(*arrays)
        if next(norm_of, None) is not None:
            raise ValueError("expected a sum after each norm: one that comes after none was left out, not moved")
        return found


def _to_first(context: Context, norms: list[str], calls: list[str], arrays: Any) -> Any:
    """Run the layer with each norm on what the first module of its sublayer takes."""
    firsts: dict[str, str] = {}
    left, fresh = list(norms), True
    for name in calls:
        if name in norms:
            fresh = True
        elif fresh and left:
            firsts[name] = left.pop(0)
            fresh = False
    with _bypassed(norms, firsts):
        return context.torch(*arrays)


def _are_streams(args: Any) -> bool:
    return (
        len(args) > 1
        and all(isinstance(one, torch.Tensor) and one.ndim > 1 for one in args[:2])
        and (args[0].shape == args[1].shape)
    )


class _State:
    def __init__(self) -> None:
        self.depth: list[str] = []
        self.modules: dict[str, Any] = {}
        self.busy = False

    def apply(self, name: str, x: Any) -> Any:
        """Run a norm that is bypassed otherwise."""
        self.busy = True
        try:
            return self.modules[name](x)
        finally:
            self.busy = False


@contextlib.contextmanager
def _bypassed(norms: list[str], firsts: dict[str, str] | None = None) -> Iterator[_State]:
    """Let norms return what they take, within; those of `firsts` are applied to what a module takes first."""
    from torch.nn.modules import module as hooks

    state, names = _State(), {}

    def enter(module: Any, inputs: Any) -> Any:
        if not state.depth:
            names.update({id(one): name for name, one in module.named_modules()})
            state.modules = dict(module.named_modules())
        name = names.get(id(module), "?")
        state.depth.append(name)
        if firsts and not state.busy and name in firsts:
            state.depth.append("norm")
            normed = state.apply(firsts[name], inputs[0])
            state.depth.pop()
            return (normed, *inputs[1:])
        return None

    def leave(module: Any, inputs: Any, outputs: Any) -> Any:
        name = state.depth.pop()
        return inputs[0] if name in norms and not state.busy else None

    handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        yield state
    finally:
        for handle in handles:
            handle.remove()
