"""Gradients of a loss for every paired weight and for the inputs: whole models, beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.execution import jax_programs, torch_programs
from parity.models import programs, weighing
from parity.models.capture.call import output_leaves
from parity.models.inputs import Call as Arguments
from parity.models.jax_function import JaxFunction, device_arrays
from parity.models.matching import pair_outputs, rearranged, relative_distance, typical
from parity.models.torch_function import Arrays, TorchFunction
from parity.models.weights.pairs import WeightPair
from parity.models.weights.tree import PARAMETER, View
from parity.models.weights.unequal import explain
from parity.models.weights.weight_map import WeightMap
from parity.verdict.bounds import UNIT

Loss = Callable[[Any], Any] | tuple[Callable[[Any], Any], Callable[[Any], Any]] | None
"""A function of the outputs that works on both frameworks' arrays, a pair of such (torch, JAX), or None."""

SMALL = 1e-6
"""Errors of gradients are relative to at least this part of the model's largest: a key's bias has none but rounding."""

INPUT = "input "
"""What the names of inputs begin with, among those of weights."""


class Gradient(weighing.Compared):
    """The gradient of the loss for one weight or input, in both models."""


@dataclass
class Taken:
    """Gradients of one model: by weight and by input, None where the framework gives none."""

    weights: dict[str, np.ndarray | None]
    inputs: dict[str, np.ndarray | None]
    loss: float


class Backward:
    """Both models as functions whose gradients are compared.

    Args:
        torch_model: The torch model.
        jax_model: The JAX model, with the same weights.
        inputs: The arguments of both, with NumPy arrays.
        weights: The map of weights.
        loss: See `Loss`; None for a random projection of all outputs.
        mode: "eval" or "train".
        seed: Of the projection.
        double: Whether both run in float64.
        mapped: Whether the JAX model takes one example.
        native: The dtype of torch's model.
        least: The least precise type in which a module was judged: tables of float32 are read in no program.
        outputs: What both models gave on these inputs, by name, where that is known.

    Raises:
        ValueError: The outputs do not correspond, or the loss is no single number.
    """

    def __init__(
        self, torch_model: Any, jax_model: Any, inputs: tuple[Arguments, Arguments], weights: WeightMap, *,
        loss: Loss = None, mode: str = "eval", seed: int = 0, double: bool = True, mapped: bool = False,
        native: str = "float32", least: str = "float64",
        outputs: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None = None,
    ) -> None:  # fmt: skip
        self.least = least
        self.torch = TorchFunction(torch_model, mode, double=double)
        self.jax = JaxFunction(jax_model, mode, double=double, mapped=mapped, native=native)
        self.weights, self.inputs, self.double, self.native = weights, inputs, double, native
        self.args = device_arrays(inputs[1], double=double)
        self.outputs = outputs
        self.losses = self._losses(loss, seed)

    def _outputs(self) -> tuple[Arrays, Arrays]:
        """Return what both models give."""
        if self.outputs is not None:
            return dict(self.outputs[0]), dict(self.outputs[1])
        # In the mode that counts a call changes the statistics: of a copy, and the JAX function keeps nothing.
        with torch.no_grad():
            copied = TorchFunction(
                self.torch.model, "train" if self.torch.model.training else "eval", double=self.double
            )
            ours = {n: _host(leaf) for n, leaf in output_leaves(copied(*copied.tensors(self.inputs[0]))).items()}
        out, _ = self.jax(self.jax.parameters, *self.args)
        return ours, {name: np.asarray(leaf) for name, leaf in output_leaves(out).items()}

    def _losses(self, loss: Loss, seed: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        if isinstance(loss, tuple):
            return loss
        if loss is not None:
            return loss, loss
        ours, theirs = self._outputs()
        random = np.random.Generator(np.random.PCG64(seed))
        names, factors = list(theirs), {}
        placed, _, _ = pair_outputs(ours, theirs, moved=self._moved())
        for one in placed:
            if one.torch.dtype.kind == "f":
                factor = random.standard_normal(ours[one.name].shape)
                jax_name = next(name for name in names if theirs[name] is one.jax)
                factors[one.name, jax_name] = factor, one.arranged(factor)
        if not factors:
            raise ValueError("the outputs do not correspond: no float output of one model is one of the other's")

        def torch_loss(outputs: Any) -> Any:
            found = output_leaves(outputs)
            return sum((found[n] * torch.from_numpy(f[0]).to(found[n].dtype)).sum() for (n, _), f in factors.items())

        def jax_loss(outputs: Any) -> Any:
            found = output_leaves(outputs)
            return sum(jnp.sum(found[n] * jnp.asarray(f[1], found[n].dtype)) for (_, n), f in factors.items())

        return torch_loss, jax_loss

    def _moved(self) -> bool:
        pairs = zip(self.inputs[0][0], self.inputs[1][0], strict=False)
        return any(getattr(a, "ndim", 0) > 2 and np.shape(a) != np.shape(b) for a, b in pairs)

    def of_torch(self) -> Taken:
        """Return torch's gradients."""
        with self.torch.kept():
            return self._of_torch()

    def _of_torch(self) -> Taken:
        args, kwargs = self.torch.tensors(self.inputs[0], grad=True)
        given = {name: leaf for name, leaf in _input_leaves(args, kwargs).items() if leaf.is_floating_point()}
        trained = self.torch.trained
        loss = self.losses[0](self.torch(args, kwargs))
        if loss.numel() != 1:
            raise ValueError(f"the loss of torch's outputs: expected one number, got shape {tuple(loss.shape)}")
        everything = [*trained.values(), *given.values()]
        found: Sequence[Any] = [None] * len(everything)
        if loss.requires_grad:
            found = torch.autograd.grad(loss.reshape(()), everything, allow_unused=True)
        values = [None if one is None else _host(one, copy=False) for one in found]  # nobody else has them
        weights = dict(zip(trained, values[: len(trained)], strict=True))
        return Taken(weights, dict(zip(given, values[len(trained) :], strict=True)), float(loss.detach()))

    def jax_value(self, values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Return JAX's loss, as a function of the weights by path and of the inputs by name."""
        args, kwargs = _with_inputs(self.args, given)
        loss = self.losses[1](self.jax(values, args, kwargs)[0])
        if np.shape(loss) not in ((), (1,)):
            raise ValueError(f"the loss of JAX's outputs: expected one number, got shape {np.shape(loss)}")
        return jnp.reshape(loss, ())

    def of_jax(self) -> Taken:
        """Return JAX's gradients."""
        inputs = {n: v for n, v in _input_leaves(*self.args).items() if jnp.issubdtype(v.dtype, jnp.floating)}
        run = programs.compiled(jax.value_and_grad(self.jax_value, argnums=(0, 1)), self.jax.parameters, inputs)
        value, (weights, given) = run(self.jax.parameters, inputs)
        return Taken(
            {path: np.asarray(one) for path, one in weights.items()},
            {name: np.asarray(one) for name, one in given.items()},
            float(value),
        )

    def dtype(self) -> str:
        """Return the least precise type that either side computes in, forward and backward."""
        if not self.double:
            return "float32"
        reader = torch_programs.Reader()
        with reader:
            self.of_torch()
        inputs = {n: v for n, v in _input_leaves(*self.args).items() if jnp.issubdtype(v.dtype, jnp.floating)}
        theirs = jax_programs.read(jax.grad(self.jax_value, argnums=(0, 1)), self.jax.parameters, inputs)
        found = [name for one in (reader.reading, theirs) for name in one.below("float64")]
        return max([*found, self.least], key=lambda name: UNIT[name])

    def compare(self) -> list[Gradient]:
        """Return the gradients of every paired parameter, in torch's order, then those of the inputs."""
        ours, theirs = self.of_torch(), self.of_jax()
        floor = SMALL * max((typical(value) for value in _flat(ours).values()), default=0.0)
        judge = weighing.Weighing(
            lambda: _flat(self.of_torch()), self.dtype, order=1, double=self.double, floor=floor, native=self.native
        )
        made = [self._weight(group, ours, theirs, judge) for group in groups(self.weights.pairs)]
        return [*made, *self._inputs(ours, theirs, judge)]

    def _weight(self, group: list[WeightPair], ours: Taken, theirs: Taken, judge: weighing.Weighing) -> Gradient:
        names = list(dict.fromkeys(str(view) for pair in group for view in pair.torch_views))
        paths = list(dict.fromkeys(str(view) for pair in group for view in pair.jax_views))
        about = " + ".join(names), ", ".join(paths)
        views = list(dict.fromkeys(view for pair in group for view in pair.torch_views))
        frozen = [view.name for view in views if view.name not in self.torch.trained]
        want = [_part(view, ours.weights.get(view.name)) for view in views]
        got = _gathered(group, views, theirs.weights)
        if got is None:
            return Gradient(
                *about, "not judged", reason="paired by a function of yours: how a gradient goes is not known"
            )
        flows = any(np.any(one) for one in got)
        if frozen:
            text = "frozen in torch (requires_grad=False)"
            if flows:
                text += ", not in JAX, which gives it a gradient: leave it out of what you differentiate and train"
            return Gradient(*about, "not judged", reason=text)
        filled = [np.zeros_like(theirs_) if one is None else one for one, theirs_ in zip(want, got, strict=True)]
        alive = any(np.any(one) for one in filled)
        keys = [view.name for view in views]
        result = judge.of([(key, view.of) for key, view in zip(keys, views, strict=True)], filled, got)
        made = Gradient(*about, result.verdict, result.error, result.ratio)
        if made.verdict == "differs":
            made.reason = (
                "no gradient reaches it in JAX: stop_gradient, or it is not used" if alive and not flows
                else "no gradient reaches it in torch: detached, or it is not used" if flows and not alive
                else explain(filled[0], got[0])[1]
            )  # fmt: skip
        return made

    def _inputs(self, ours: Taken, theirs: Taken, judge: weighing.Weighing) -> list[Gradient]:
        made = []
        host = _input_leaves(*self.inputs[0]), _input_leaves(*self.inputs[1])
        for (name, want), (other, got) in zip(ours.inputs.items(), theirs.inputs.items(), strict=False):
            choices = rearranged(host[0][name], host[1][other].shape)
            place = next((k for k, one in enumerate(choices) if relative_distance(one, host[1][other]) == 0), None)
            if place is None or got is None:
                text = "the two take other inputs here, so their gradients do not correspond"
                made.append(Gradient(INPUT + name, INPUT + other, "not judged", reason=text))
                continue

            def arranged(array: np.ndarray, place: int = place, shape: tuple[int, ...] = got.shape) -> np.ndarray:
                return rearranged(array, shape)[place]

            filled = np.zeros_like(got) if want is None else arranged(want)
            result = judge.of([(INPUT + name, arranged)], [filled], [got])
            text = explain(filled, got)[1] if result.verdict == "differs" else ""
            made.append(Gradient(INPUT + name, INPUT + other, result.verdict, result.error, result.ratio, text))
        return made


def gradients(
    torch_model: Any, jax_model: Any, inputs: tuple[Arguments, Arguments], weights: WeightMap, **options: Any
) -> list[Gradient]:
    """Compare the gradients of two models with the same weights; see `Backward` for the options.

    Example:
        >>> import parity
        >>> from parity.models.inputs import of_both
        >>> layer = torch.nn.Linear(3, 2)
        >>> params = {"w": jnp.asarray(layer.weight.detach().T), "b": jnp.asarray(layer.bias.detach())}
        >>> port = (lambda p, x: x @ p["w"] + p["b"], params)
        >>> found = gradients(layer, port, of_both((np.ones((4, 3), np.float32),)), parity.map_weights(layer, port))
        >>> [(one.torch, one.verdict in ("identical", "within bound")) for one in found]
        [('weight', True), ('bias', True), ('input 0', True)]
    """
    with jax.enable_x64(options.get("double", True)):
        return Backward(torch_model, jax_model, inputs, weights, **options).compare()


def groups(pairs: Sequence[WeightPair]) -> list[list[WeightPair]]:
    """Return the pairs of parameters, those that share a weight together: tied on one side, two on the other."""
    by_view: dict[tuple[str, str], int] = {}
    made: list[list[WeightPair]] = []
    for pair in pairs:
        if pair.kind != PARAMETER:
            continue
        keys = [("torch", str(view)) for view in pair.torch_views] + [("jax", str(view)) for view in pair.jax_views]
        home = next((by_view[key] for key in keys if key in by_view), len(made))
        if home == len(made):
            made.append([])
        made[home].append(pair)
        by_view |= dict.fromkeys(keys, home)
    return made


def _gathered(
    group: Sequence[WeightPair], views: Sequence[View], found: Mapping[str, np.ndarray | None]
) -> list[np.ndarray] | None:
    """Return JAX's gradients as torch has them, one for each part of torch's weights: of tied ones the sum."""
    total: dict[View, np.ndarray] = {}
    seen: set[View] = set()
    for pair in group:
        part = pair.jax_part({path: value for path, value in found.items() if value is not None})
        made = pair.transform.gradient(part, pair.torch_shapes)
        if made is None:
            return None
        if pair.jax_views[0] in seen:  # one weight in JAX, several in torch: their gradients add up to its own
            continue
        seen.add(pair.jax_views[0])
        for view, value in zip(pair.torch_views, made, strict=True):
            total[view] = total[view] + value if view in total else value
    return [total[view] for view in views if view in total]


def _part(view: View, value: np.ndarray | None) -> np.ndarray | None:
    return None if value is None else view.of(value)


def _flat(taken: Taken) -> Arrays:
    named = {**taken.weights, **{INPUT + name: value for name, value in taken.inputs.items()}}
    return {name: value for name, value in named.items() if value is not None}


def _input_leaves(args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arrays among arguments by position or keyword."""
    named = {**{str(at): one for at, one in enumerate(args)}, **kwargs}
    return {name: leaf for name, leaf in output_leaves(named).items()}


def _with_inputs(arguments: Arguments, given: Mapping[str, Any]) -> Arguments:
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


def _host(tensor: Any, *, copy: bool = True) -> np.ndarray:
    value = tensor.detach().cpu()
    array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.array(array) if copy else np.asarray(array)
