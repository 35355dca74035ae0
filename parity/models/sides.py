"""The two models of a comparison: their weights by name, and the calls of a run. These are models that can run here.

`parity.models.dump` does the same for a model that ran elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.models import perturb
from parity.models.capture.call import Call, Outputs
from parity.models.capture.jax_models import candidates
from parity.models.capture.jax_models import jax_model as jax_side
from parity.models.inputs import Call as Arguments
from parity.models.matching import pair_outputs, relative_distance
from parity.models.weights.jax_side import jax_tree
from parity.models.weights.torch_side import TorchTree
from parity.verdict.bounds import UNIT

Arrays = dict[str, np.ndarray]

ASK = ". inputs= is what both are called with: a tuple in order, a dict by name, or models.Inputs(torch=..., jax=...)"
"""What to do where a model does not run."""


@dataclass(frozen=True)
class Setting:
    """How both models run: the mode, whether in float64, the dtype of torch's model, and why not in float64."""

    mode: str
    double: bool
    native: str
    why: str = ""


class NotInFloat64(Exception):
    """One of the models does not run in float64; the message says which, and why."""


class LiveTorch:
    """A torch model that runs here.

    Args:
        model: The user's; it runs as a copy.

    Raises:
        TypeError: It is no `nn.Module`.
    """

    live = True
    autocast = ""

    def __init__(self, model: Any) -> None:
        import torch

        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"torch_model: expected an nn.Module, got {_kind(model)}")
        self.model, self.tree = model, TorchTree(model)

    def native(self) -> str:
        """Return the least precise dtype of the parameters, and of autocast where the model has run under it."""
        floats = [one.dtype for one in self.tree.leaves.values() if one.kind == "parameter" and one.dtype in UNIT]
        return max([*floats, *filter(None, [self.autocast])], key=lambda name: UNIT[name], default="float32")

    def perturbed(self, pairs: Any, seed: int) -> Arrays:
        """Return weights of order one, of those that are paired, by name."""
        layers = {name: leaf.layer for name, leaf in self.tree.leaves.items()}
        return perturb.perturbed(self.tree.weights(), layers, pairs, seed)

    def dropout(self) -> list[str]:
        """Return the paths of dropout layers that a model in training has."""
        from parity.models.capture.torch_modules import copied, without_dropout

        return without_dropout(copied(self.model).train())

    def dropout_of_training(self) -> list[str]:
        """Return the paths of dropout layers that drop as the model was handed over."""
        from parity.models.capture.torch_modules import dropping

        return list(dropping(self.model))

    def calls(
        self, inputs: Arguments, setting: Setting, changed: Mapping[str, np.ndarray] | None,
        exact: Mapping[str, np.ndarray] | None = None,
    ) -> list[Call]:  # fmt: skip
        """Run the model, with other values of some weights, and return the calls of its modules.

        Args:
            inputs: What it is called with.
            setting: How.
            changed: Weights by name, or None.
            exact: Weights in float64 that JAX's, which were computed of them and rounded, are made of exactly.

        Raises:
            NotInFloat64: It does not run in float64.
            ValueError: It does not run.
        """
        from parity.models.capture.torch_modules import TorchModel

        side = TorchModel(self.model, setting.mode, double=setting.double)
        for values in (changed, exact):
            TorchTree(side.model).write(values or {})
        try:
            calls = side.capture(*inputs)
            self.autocast = max(side.autocast & set(UNIT), key=lambda name: UNIT[name], default="")
            return calls
        except Exception as error:
            if setting.double:
                raise NotInFloat64(f"the torch model does not run in float64 ({said(error)})") from error
            raise ValueError(f"the torch model does not run on these inputs: {said(error)}{ASK}") from error


class LiveJax:
    """A JAX model that runs here.

    Args:
        model: The user's, of any kind that `jax_tree` reads; it runs as a copy.

    Raises:
        TypeError: It is of no kind that is known.

    Attributes:
        mapped: Whether it takes one example, and was mapped over the first axis; known after `calls`.
        notes: What else is to be said of how it was called, and of what it gave; known after `calls`.
    """

    live = True

    def __init__(self, model: Any) -> None:
        self.tree, self.mapped = jax_tree(model), False
        self.notes: list[str] = []
        self.model = self.tree.model

    def calls(
        self, inputs: Arguments, setting: Setting, changed: Mapping[str, np.ndarray] | None, wanted: Outputs | None
    ) -> list[Call]:
        """Run the model, with other values of some weights, and return the calls of its modules.

        Args:
            inputs: What it is called with.
            setting: How.
            changed: Weights by path, or None.
            wanted: What torch's model gave: of two ways to call a model the one is right that gives nearly that.

        Raises:
            NotInFloat64: It does not run in float64.
            ValueError: It does not run, or gives nothing that torch's model gives.
        """
        args, kwargs = arguments(inputs, double=setting.double)
        found: list[tuple[float, bool, list[Call]]] = []
        errors: list[Exception] = []
        gave = ""
        for mapped in candidates(self.tree.framework):
            try:
                model = self.model if changed is None else self.tree.replace(changed, double=setting.double)
                side = jax_side(
                    self.tree.framework, model, setting.mode, double=setting.double, mapped=mapped,
                    native=setting.native,
                )  # fmt: skip
                del model  # the side has a copy
                calls = side.capture(args, kwargs)
            except Exception as error:
                errors.append(error)
                continue
            out = root(calls).outputs
            gave = gave or shapes(out)
            placed, _, _ = pair_outputs(out if wanted is None else wanted, out)
            if placed:
                far = max(relative_distance(one.torch, one.jax) for one in placed)
                found.append((far, mapped, calls))
                if self.tree.framework == "function" and wanted is not None and _as_wanted(wanted, out):
                    break  # a function is called as it is; only one that cannot be is mapped
        if found:
            _, self.mapped, calls = min(found, key=lambda one: one[0])
            self.notes = []
            if self.mapped and len(found) > 1:
                self.notes.append(MAPPED)
            if wanted is not None:
                self.notes += _otherwise_arranged(wanted, root(calls).outputs)
            return calls
        if not gave:
            if setting.double:
                raise NotInFloat64(f"the JAX model does not run in float64 ({_both(errors)})")
            raise ValueError(f"the JAX model does not run on these inputs: {_both(errors)}{ASK}") from errors[-1]
        raise ValueError(
            f"the outputs do not correspond: the torch model gives {shapes(wanted or {})}; the JAX model {gave}"
        )


MAPPED = (
    "the JAX model was mapped over the first axis of its inputs, as one that takes one example: called with the batch "
    "as it is, it gives other numbers"
)


def _as_wanted(wanted: Outputs, given: Outputs) -> bool:
    """Return whether all outputs of torch's model have a namesake, or one in their place, of the same shape."""
    return [value.shape for value in wanted.values()] == [value.shape for value in given.values()]


def _otherwise_arranged(wanted: Outputs, given: Outputs) -> list[str]:
    """Return in words which outputs have other shapes than torch's: they are compared with their axes moved."""
    placed, _, _ = pair_outputs(wanted, given)
    found = [
        f"{one.name} is {list(torch)} in torch and {list(jax)} in JAX: compared in JAX's order of axes"
        for one in placed
        if one.name and (torch := wanted[one.name].shape) != (jax := one.jax.shape)
    ]
    if pairs := [f"{one.name} is {one.assumed}" for one in placed if one.assumed]:
        found.append(
            f"outputs of other names, in a dict, whose keys JAX sorts, were paired by values: {', '.join(pairs)}"
        )
    return found


def arguments(inputs: Arguments, *, double: bool) -> Arguments:
    """Return arguments of a JAX model: JAX arrays in place of NumPy's, floats in the precision that is asked for."""
    import jax
    import jax.numpy as jnp

    from parity.models.jax_function import argument_dtype

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        return jnp.asarray(leaf, argument_dtype(leaf, double=double))

    made: Arguments = jax.tree.map(moved, inputs)
    return made


def float64(jax_side: Any, *, on: bool) -> contextlib.AbstractContextManager[Any]:
    """Return what lets JAX have float64 within, where a JAX model runs here."""
    if not jax_side.live:
        return contextlib.nullcontext()
    import jax

    made: contextlib.AbstractContextManager[Any] = jax.enable_x64(on)
    return made


def _kind(model: Any) -> str:
    """Return what was given in the place of a torch model, with what to do."""
    if isinstance(model, type):
        return f"the class {model.__name__}: pass an instance"
    if isinstance(model, Mapping):
        return f"{type(model).__name__}, which looks like a state dict: pass the model that it is of"
    if any(base.__module__.startswith(("flax.", "equinox.")) for base in type(model).__mro__):
        return f"{type(model).__name__}, a model of JAX: torch's model comes first"
    return type(model).__name__


def root(calls: list[Call]) -> Call:
    """Return the call of the model itself."""
    return next(call for call in calls if not call.path)


def shapes(outputs: Outputs) -> str:
    """Return outputs as a message shows them."""
    return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items()) or "no array"


def said(error: Exception) -> str:
    """Return the first line of an error, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _both(errors: list[Exception]) -> str:
    """Return what was raised on the inputs as they are, and, where that was tried too, mapped over the first axis."""
    first, *rest = map(said, errors)
    return "; mapped over the first axis: ".join([first, *(one for one in rest if one != first)])
