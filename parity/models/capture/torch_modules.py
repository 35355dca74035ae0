"""Calls of the modules of a torch model, seen by hooks."""

from __future__ import annotations

import contextlib
import copy
import itertools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.models.capture.call import Call, Leaf, Outputs, is_container, mapped, named_leaves
from parity.models.inputs import to_host
from parity.models.shelf import Mapped
from parity.signatures import positional

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def dropping(model: nn.Module) -> dict[str, nn.Module]:
    """Return the dropout of a model that drops as the model is now, by path."""
    return {path: one for path, one in model.named_modules() if isinstance(one, DROPOUT) and one.p and one.training}


def without_dropout(model: nn.Module) -> list[str]:
    """Turn off the dropout of a model that trains, and return its modules: the frameworks draw other random numbers."""
    found = dropping(model)
    for one in found.values():
        one.eval()
    return list(found)


def prepared(model: nn.Module, mode: str, *, double: bool) -> tuple[nn.Module, torch.dtype]:
    """Return a copy of a model in a mode, with its dropout off, as float64 where `double`; and its float dtype."""
    made = copied(model)
    made.train(mode == "train")
    without_dropout(made)
    if double:
        made.double()
    floats = [value.dtype for value in made.parameters() if value.is_floating_point()]
    return made, torch.float64 if double else floats[0] if floats else torch.float32


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, whose functions see the copy as well: a lambda keeps what it closes over."""
    memo: dict[int, Any] = {}
    made: nn.Module = copy.deepcopy(model, memo)
    done: dict[int, Any] = {}

    def bound(value: Any) -> Any:
        if isinstance(value, types.MethodType):
            function = bound(value.__func__)
            return value if function is value.__func__ else types.MethodType(function, value.__self__)
        cells = value.__closure__ if isinstance(value, types.FunctionType) else None
        if id(value) not in done:
            done[id(value)] = value
            held = [one.cell_contents if _is_set(one) else None for one in cells or ()]
            new = [_of_copy(one, memo, bound) for one in held]
            if any(one is not other for one, other in zip(new, held, strict=True)):
                closure = tuple(map(types.CellType, new))
                other = types.FunctionType(
                    value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
                )
                other.__kwdefaults__ = value.__kwdefaults__
                done[id(value)] = other
        return done[id(value)]

    for module in made.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType | types.MethodType):
                vars(module)[name] = bound(value)
            elif isinstance(value, dict):
                value.update({key: bound(one) for key, one in value.items() if isinstance(one, types.FunctionType)})
    return made


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False


def _of_copy(value: Any, memo: dict[int, Any], bound: Callable[[Any], Any]) -> Any:
    """Return what the copy of a model has in the place of something that a function of it holds."""
    if isinstance(value, types.FunctionType | types.MethodType):
        return bound(value)
    held = isinstance(value, nn.Module | torch.Tensor | list | dict)
    return copy.deepcopy(value, memo) if held and (id(value) in memo or isinstance(value, list | dict)) else value


class TorchModel:
    """A copy of a torch model, in a mode and a dtype: the user's own is not touched.

    Args:
        model: The user's.
        mode: "eval" or "train".
        double: Whether floats become float64.

    Attributes:
        autocast: Types that modules are asked to compute in, by `torch.autocast`, known after `capture`: in float64 it
            changes nothing.
    """

    def __init__(self, model: nn.Module, mode: str, *, double: bool) -> None:
        self.model, self.dtype = prepared(model, mode, double=double)
        self.modules: dict[str, nn.Module] = dict(self.model.named_modules())
        self.autocast: set[str] = set()
        self.shelved = Mapped()

    def capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
        """Run the model and return the calls of its modules, in the order in which they began."""
        recorder = _Recorder(self)
        handles = []
        for path, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(recorder.enter(path), with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(recorder.leave(path), with_kwargs=True, always_call=False))
        try:
            with torch.no_grad(), _statistics_kept(self.model):
                self.model(*self.tensors(args), **self.tensors(kwargs))
        finally:
            for handle in handles:
                handle.remove()
        self.shelved.take(self.model)
        return sorted(recorder.calls, key=lambda call: call.order)

    def run(self, module: nn.Module, args: Any, kwargs: Any) -> Outputs:
        """Run one of the modules alone and return its outputs."""
        try:
            with torch.no_grad(), _statistics_kept(module):
                return outputs_of(module(*self.tensors(args), **self.tensors(kwargs)))
        finally:
            self.shelved.rest()

    def tensors(self, tree: Any) -> Any:
        """Return a tree with tensors in place of arrays: each one's own, for a module may write to it."""
        if isinstance(tree, np.ndarray):
            tensor = torch.from_numpy(np.array(tree))
            return tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return mapped(tree, self.tensors) if is_container(tree) else _fresh(tree)


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Put running statistics back: a norm that trains moves them, and what is run next begins where the user's does."""
    norms = [one for one in module.modules() if one.training and getattr(one, "running_mean", None) is not None]
    found = [value for one in norms for name, value in one.named_buffers(recurse=False) if name in STATISTICS]
    before = [value.clone() for value in found]
    try:
        yield
    finally:
        for value, was in zip(found, before, strict=True):
            value.copy_(was)


@contextlib.contextmanager
def noisy(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Let a module return other numbers within: with noise as large as they are. Yields what was changed so far."""
    changed: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(0)

    def change(tree: Any) -> Any:
        if isinstance(tree, torch.Tensor) and tree.is_floating_point() and tree.any():
            changed.append(tree)
            noise = torch.randn(tree.shape, generator=generator, dtype=torch.float64).to(tree)
            return tree + tree.abs().mean() * noise
        return mapped(tree, change) if is_container(tree) else tree

    handle = module.register_forward_hook(lambda _, given, output: change(output))
    try:
        yield changed
    finally:
        handle.remove()


class _Recorder:
    def __init__(self, owner: TorchModel) -> None:
        self.owner = owner
        self.calls: list[Call] = []
        self.open: list[tuple[int, str, Any]] = []
        self.counter, self.ends = itertools.count(), itertools.count()
        self.seen: dict[str, int] = {}

    def enter(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    self.owner.autocast.add(str(torch.get_autocast_dtype(device)).removeprefix("torch."))
            # Cloned at once: modules that write in place would change what was captured.
            self.open.append((next(self.counter), path, (_host(args), _host(kwargs))))

        return hook

    def leave(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            while self.open and self.open[-1][1] != path:
                self.open.pop()  # a call that raised, which the model caught
            if not self.open:
                return
            order, _, (positional, keywords) = self.open.pop()
            index = self.seen.get(path, 0)
            self.seen[path] = index + 1
            inputs, rebuild = _inputs(module, positional, keywords)

            def run(values: Sequence[Any]) -> Outputs:
                return self.owner.run(module, *rebuild(values))

            def graph(values: Sequence[Any]) -> dict[str, Any]:
                given, named = rebuild(values)
                with torch.enable_grad():
                    made = module(*given, **named)
                found = {name or "output": leaf for name, leaf in named_leaves(made)}
                return {name: leaf for name, leaf in found.items() if isinstance(leaf, torch.Tensor)}

            parent = self.open[-1][0] if self.open else None
            self.calls.append(
                Call(path, index, order, parent, inputs, outputs_of(output), run, next(self.ends), module, graph=graph)
            )

        return hook


def outputs_of(tree: Any) -> Outputs:
    """Return the tensors of what a module returned, on the host, by name."""
    found = {}
    for name, leaf in named_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            found[name or "output"] = to_host(leaf)
    return found


def _inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Leaf], Any]:
    names = _parameter_names(module)
    named = [(names[i] if i < len(names) else f"input{i}", one) for i, one in enumerate(args)] + list(kwargs.items())
    leaves = [Leaf(path, leaf) for name, one in named for path, leaf in named_leaves(one, name, plain=True)]

    def rebuild(values: Sequence[Any]) -> tuple[Any, Any]:
        given = iter(values)

        def put(tree: Any) -> Any:
            if tree is None:
                return None
            return mapped(tree, put) if is_container(tree) else next(given)

        return tuple(put(one) for one in args), {name: put(one) for name, one in kwargs.items()}

    return leaves, rebuild


def _parameter_names(module: nn.Module) -> list[str]:
    return positional(module.forward)


def _host(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return to_host(tree)
    return mapped(tree, _host) if is_container(tree) else _fresh(tree)


def _fresh(value: Any) -> Any:
    """Return a copy of what a module may write to (a cache of keys and values), and anything else as it is."""
    if isinstance(value, nn.Module) or callable(value) or value is None or isinstance(value, str | int | float):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # what cannot be copied is handed on
        return value
