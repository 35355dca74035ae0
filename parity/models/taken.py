"""Gradients of one model for its weights and its inputs, in one framework: the other need not be installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.models.capture.call import output_leaves
from parity.models.inputs import Call as Arguments
from parity.models.shelf import LARGE, Shelf

if TYPE_CHECKING:
    from parity.models.jax_function import JaxFunction
    from parity.models.torch_function import TorchFunction

Loss = Callable[[Any], Any]

INPUT = "input "
"""What the names of inputs begin with, among those of weights."""


class LossIsNoNumber(ValueError):
    """A loss that the user gave is no single number."""


@dataclass
class Taken:
    """Gradients of one model: by weight and by input, None where the framework gives none."""

    weights: Mapping[str, np.ndarray | None]
    inputs: Mapping[str, np.ndarray | None]
    loss: float

    def flat(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield those that there are by name, those of inputs last."""
        for prefix, found in (("", self.weights), (INPUT, self.inputs)):
            for name, value in found.items():
                if value is not None:
                    yield prefix + name, value


@dataclass
class Elsewhere:
    """Gradients of a model that ran elsewhere.

    Attributes:
        taken: The gradients, of the random projection of `factors`.
        trained: Names of the weights that learn.
        low: Types below float64 that the model computes in, forward and backward.
        moved: What rounding does to each gradient, relative to the unit of the type; empty where it was not measured.
        seed: Of the projection.
    """

    taken: Taken
    trained: frozenset[str]
    low: tuple[str, ...]
    moved: Mapping[str, np.ndarray]
    seed: int


def factor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return what an output is multiplied by in the random projection: the same wherever the model runs.

    Example:
        >>> bool(np.array_equal(factor(0, "y", (2,)), factor(0, "y", (2,))))
        True
    """
    return np.random.Generator(np.random.PCG64([seed, *name.encode()])).standard_normal(shape)


def projection_in_torch(factors: Mapping[str, np.ndarray]) -> Loss:
    """Return the sum of torch's outputs, each times its factors."""

    def loss(outputs: Any) -> Any:
        import torch

        found = output_leaves(outputs)
        return sum((found[n] * torch.from_numpy(f).to(found[n].dtype)).sum() for n, f in factors.items())

    return loss


def projection_in_jax(factors: Mapping[str, np.ndarray]) -> Loss:
    """Return the sum of JAX's outputs, each times its factors."""

    def loss(outputs: Any) -> Any:
        import jax.numpy as jnp

        found = output_leaves(outputs)
        return sum(jnp.sum(found[n] * jnp.asarray(f, found[n].dtype)) for n, f in factors.items())

    return loss


def of_torch(function: TorchFunction, inputs: Arguments, loss: Loss) -> Taken:
    """Return the gradients of a torch model, whose statistics stay.

    Raises:
        ValueError: The loss is no single number.
    """
    import torch

    with function.kept():
        args, kwargs = function.tensors(inputs, grad=True)
        given = {name: leaf for name, leaf in input_leaves(args, kwargs).items() if leaf.is_floating_point()}
        trained = function.trained
        value = loss(function(args, kwargs))
        if not isinstance(value, torch.Tensor):
            raise LossIsNoNumber(f"the loss of torch's outputs: expected a tensor, got {type(value).__name__}")
        if value.numel() != 1:
            raise LossIsNoNumber(f"the loss of torch's outputs: expected one number, got shape {tuple(value.shape)}")
        everything = [*trained.values(), *given.values()]
        found: list[Any] = [None] * len(everything)
        weights = Shelf()
        if value.requires_grad:
            with _kept_early(trained, weights):
                found = list(torch.autograd.grad(value.reshape(()), everything, allow_unused=True))
        for name, one in zip(trained, found, strict=False):
            if name not in weights:
                weights[name] = _host(one)
        rest = found[len(trained) :]
        return Taken(weights, dict(zip(given, map(_host, rest), strict=True)), float(value.detach()))


@contextlib.contextmanager
def _kept_early(trained: Mapping[str, Any], shelf: Shelf) -> Iterator[None]:
    """Put large gradients on a shelf as soon as each is whole: never are all of them in memory."""

    def keeping(name: str) -> Callable[[Any], Any]:
        def hook(gradient: Any) -> Any:
            shelf[name] = _host(gradient)
            return gradient.new_zeros(()).expand_as(gradient)  # what is returned of it takes no memory

        return hook

    large = {name: one for name, one in trained.items() if one.nbytes >= LARGE}
    handles = [one.register_hook(keeping(name)) for name, one in large.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _host(tensor: Any) -> np.ndarray | None:
    import torch

    if tensor is None:
        return None
    value = tensor.detach().cpu()
    return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())


def jax_value(
    function: JaxFunction, arguments: Arguments, loss: Loss, values: Mapping[str, Any], given: Mapping[str, Any]
) -> Any:
    """Return JAX's loss, as a function of the weights by path and of the inputs by name.

    Raises:
        ValueError: The loss is no single number.
    """
    import jax.numpy as jnp

    args, kwargs = with_inputs(arguments, given)
    found = loss(function(values, args, kwargs)[0])
    if np.shape(found) not in ((), (1,)):
        raise LossIsNoNumber(f"the loss of JAX's outputs: expected one number, got shape {np.shape(found)}")
    return jnp.reshape(found, ())


def _of_values(function: JaxFunction, arguments: Arguments, loss: Loss) -> tuple[Any, Any, Any]:
    import jax.numpy as jnp

    inputs = {n: v for n, v in input_leaves(*arguments).items() if jnp.issubdtype(v.dtype, jnp.floating)}

    def value(values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        return jax_value(function, arguments, loss, values, given)

    return value, function.parameters, inputs


def of_jax(function: JaxFunction, arguments: Arguments, loss: Loss, *, spent: bool = False) -> Taken:
    """Return the gradients of a JAX model.

    Args:
        function: The model.
        arguments: What it is called with.
        loss: Of its outputs.
        spent: Whether the function is not used again: gradients then take the memory of its large weights.

    Raises:
        ValueError: The loss is no single number.
    """
    import jax

    from parity.models import programs

    value, parameters, inputs = _of_values(function, arguments, loss)
    kept, large = dict(parameters), {}
    if spent:
        large = {path: kept.pop(path) for path in function.own if parameters[path].nbytes >= LARGE}
    del parameters

    def whole(large: Mapping[str, Any], kept: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        number, (weights, given) = jax.value_and_grad(value, argnums=(0, 1))({**large, **kept}, given)
        return number, {path: weights[path] for path in large}, {path: weights[path] for path in kept}, given

    run = programs.compiled(whole, large, kept, inputs, donate=(0,) if large else ())
    number, first, weights, given = run(large, kept, inputs)
    del large
    weights |= first
    first.clear()
    held = Shelf((path, np.asarray(weights.pop(path))) for path in list(weights))
    return Taken(held, {name: np.asarray(one) for name, one in given.items()}, float(number))


def low_in_torch(function: TorchFunction, inputs: Arguments, loss: Loss) -> tuple[str, ...]:
    """Return the types below float64 that a torch model computes in, forward and backward."""
    from parity.execution import torch_programs

    reader = torch_programs.Reader()
    with reader:
        of_torch(function, inputs, loss)
    return tuple(reader.reading.below("float64"))


def low_in_jax(function: JaxFunction, arguments: Arguments, loss: Loss) -> tuple[str, ...]:
    """Return the types below float64 that a JAX model computes in, forward and backward."""
    import jax

    from parity.execution import jax_programs

    value, parameters, inputs = _of_values(function, arguments, loss)
    return tuple(jax_programs.read(jax.grad(value, argnums=(0, 1)), parameters, inputs).below("float64"))


def input_leaves(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays among arguments by position or keyword."""
    named = {**{str(at): one for at, one in enumerate(args)}, **kwargs}
    return dict(output_leaves(named))


def with_inputs(arguments: Arguments, given: Mapping[str, Any]) -> Arguments:
    """Return arguments with other arrays at some names."""

    def put(tree: Any, name: str) -> Any:
        if name in given:
            return given[name]
        if isinstance(tree, Mapping):
            return {key: put(part, f"{name}.{key}" if name else str(key)) for key, part in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(put(part, f"{name}[{at}]") for at, part in enumerate(tree))
        return tree

    args, kwargs = arguments
    named = put({**{str(at): one for at, one in enumerate(args)}, **kwargs}, "")
    return tuple(named[str(at)] for at in range(len(args))), {key: named[key] for key in kwargs}
