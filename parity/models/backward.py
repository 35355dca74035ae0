"""Gradients of a loss for every paired weight and for the inputs: whole models, beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from parity.models import taken, weighing
from parity.models.capture.call import output_leaves
from parity.models.inputs import Call as Arguments
from parity.models.matching import Output, pair_outputs, rearranged, relative_distance, typical
from parity.models.shelf import Shelf, give_back
from parity.models.taken import Elsewhere, Taken
from parity.models.weights.pairs import WeightPair
from parity.models.weights.tree import PARAMETER, View
from parity.models.weights.unequal import explain
from parity.models.weights.weight_map import WeightMap
from parity.verdict.bounds import UNIT

if TYPE_CHECKING:
    from parity.models.jax_function import JaxFunction
    from parity.models.torch_function import Arrays, TorchFunction

Loss = Callable[[Any], Any] | tuple[Callable[[Any], Any], Callable[[Any], Any]] | None
"""A function of the outputs that works on both frameworks' arrays, a pair of such (torch, JAX), or None."""

SMALL = 1e-6
"""Errors of gradients are relative to at least this part of the model's largest: a key's bias has none but rounding."""


class Gradient(weighing.Compared):
    """The gradient of the loss for one weight or input, in both models."""


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
        exact: Weights of torch's model in float64, by name, where JAX's were computed of them and rounded.
        elsewhere: The gradients of a model that ran elsewhere, by "torch" or "jax".

    Raises:
        ValueError: The outputs do not correspond, or the loss is no single number.
    """

    def __init__(
        self, torch_model: Any, jax_model: Any, inputs: tuple[Arguments, Arguments], weights: WeightMap, *,
        loss: Loss = None, mode: str = "eval", seed: int = 0, double: bool = True, mapped: bool = False,
        native: str = "float32", least: str = "float64",
        outputs: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None = None,
        exact: Mapping[str, np.ndarray] | None = None, elsewhere: Mapping[str, Elsewhere] | None = None,
    ) -> None:  # fmt: skip
        self.least, self.elsewhere, self._comparing = least, elsewhere or {}, False
        self.seed = next((one.seed for one in self.elsewhere.values()), seed)
        self._made: dict[str, Any] = {}
        self._make = {
            "torch": lambda: _torch_function(torch_model, mode, double=double, exact=exact),
            "jax": lambda: _jax_function(jax_model, mode, double=double, mapped=mapped, native=native),
        }
        self.weights, self.inputs, self.double, self.native = weights, inputs, double, native
        self.args = inputs[1] if "jax" in self.elsewhere else _on_device(inputs[1], double=double)
        self.outputs = outputs
        self.losses = self._losses(loss)

    @property
    def torch(self) -> TorchFunction:
        """A copy of the torch model: made when it is first asked for, and after `rest`."""
        made: TorchFunction = self._side("torch")
        return made

    @property
    def jax(self) -> JaxFunction:
        """A copy of the JAX model, likewise."""
        made: JaxFunction = self._side("jax")
        return made

    def _side(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._make[name]()
        return self._made[name]

    def rest(self) -> None:
        """Let go of the copies of both models while they are compared; they are made again where they are needed."""
        if self._comparing:
            self._made.clear()
            give_back()

    def _outputs(self) -> tuple[Arrays, Arrays]:
        """Return what both models give."""
        if self.outputs is not None:
            return dict(self.outputs[0]), dict(self.outputs[1])
        import torch

        # In the mode that counts a call changes the statistics: they are put back, and the JAX function keeps nothing.
        with torch.no_grad(), self.torch.kept():
            found = output_leaves(self.torch(*self.torch.tensors(self.inputs[0])))
            ours = {name: _host(leaf) for name, leaf in found.items()}
        out, _ = self.jax(self.jax.parameters, *self.args)
        return ours, {name: np.asarray(leaf) for name, leaf in output_leaves(out).items()}

    def _losses(self, loss: Loss) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        if isinstance(loss, tuple):
            return loss
        if loss is not None:
            return loss, loss
        ours, theirs = self._outputs()
        placed, *alone = pair_outputs(ours, theirs, moved=self._moved())
        mine, other = {}, {}
        for one in placed:
            if one.torch.dtype.kind == "f":
                name = next(name for name in theirs if theirs[name] is one.jax)
                if "jax" in self.elsewhere:
                    other[name] = taken.factor(self.seed, name, theirs[name].shape)
                    mine[one.name] = _turned_back(one, other[name], ours[one.name].shape)
                else:
                    mine[one.name] = taken.factor(self.seed, one.name, ours[one.name].shape)
                    other[name] = one.arranged(mine[one.name])
        if not mine:
            raise ValueError("the outputs do not correspond: no float output of one model is one of the other's")
        for side, names, outputs in zip(("torch", "jax"), alone, (ours, theirs), strict=True):
            lone = [name for name in names if outputs[name].dtype.kind == "f"]
            if lone and side in self.elsewhere:
                raise ValueError(
                    f"the gradients that were kept are of the output {lone[0]!r} too, which only one gives"
                )
        return taken.projection_in_torch(mine), taken.projection_in_jax(other)

    def _moved(self) -> bool:
        pairs = zip(self.inputs[0][0], self.inputs[1][0], strict=False)
        return any(getattr(a, "ndim", 0) > 2 and np.shape(a) != np.shape(b) for a, b in pairs)

    def of_torch(self) -> Taken:
        """Return torch's gradients."""
        if "torch" in self.elsewhere:
            return self.elsewhere["torch"].taken
        return taken.of_torch(self.torch, self.inputs[0], self.losses[0])

    def jax_value(self, values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Return JAX's loss, as a function of the weights by path and of the inputs by name."""
        return taken.jax_value(self.jax, self.args, self.losses[1], values, given)

    def of_jax(self) -> Taken:
        """Return JAX's gradients."""
        if "jax" in self.elsewhere:
            return self.elsewhere["jax"].taken
        return taken.of_jax(self.jax, self.args, self.losses[1], spent=self._comparing)

    def dtype(self) -> str:
        """Return the least precise type that either side computes in, forward and backward."""
        if not self.double:
            return "float32"
        found = [name for one in self.elsewhere.values() for name in one.low]
        if "torch" not in self.elsewhere:
            found += taken.low_in_torch(self.torch, self.inputs[0], self.losses[0])
            self.rest()
        if "jax" not in self.elsewhere:
            found += taken.low_in_jax(self.jax, self.args, self.losses[1])
            self.rest()
        return max([*found, self.least], key=lambda name: UNIT[name])

    def compare(self) -> list[Gradient]:
        """Return the gradients of every paired parameter, in torch's order, then those of the inputs."""
        self._comparing = True
        known = self.elsewhere.get("torch")
        self._trained = set(self.torch.trained) if known is None else known.trained
        ours = self.of_torch()
        self.rest()  # never two models and two sets of gradients at once: each is twice the size of a model
        theirs = self.of_jax()
        self.rest()
        floor = SMALL * max((typical(value) for _, value in ours.flat()), default=0.0)
        judge = weighing.Weighing(
            lambda: Shelf(self.of_torch().flat()), self.dtype, order=1, double=self.double, floor=floor,
            native=self.native, known=None if known is None else known.moved,
        )  # fmt: skip
        made = [self._weight(group, ours, theirs, judge) for group in groups(self.weights.pairs)]
        return [*made, *self._inputs(ours, theirs, judge)]

    def _weight(self, group: list[WeightPair], ours: Taken, theirs: Taken, judge: weighing.Weighing) -> Gradient:
        names = list(dict.fromkeys(str(view) for pair in group for view in pair.torch_views))
        paths = list(dict.fromkeys(str(view) for pair in group for view in pair.jax_views))
        about = " + ".join(names), ", ".join(paths)
        views = list(dict.fromkeys(view for pair in group for view in pair.torch_views))
        frozen = [view.name for view in views if view.name not in self._trained]
        want = [_part(view, ours.weights.get(view.name)) for view in views]
        got = _gathered(group, views, cast("Mapping[str, np.ndarray]", theirs.weights))  # JAX gives each one a number
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
            made.reason = _why(filled[0], got[0], alive=alive, flows=flows)
        return made

    def _inputs(self, ours: Taken, theirs: Taken, judge: weighing.Weighing) -> list[Gradient]:
        made = []
        host = taken.input_leaves(*self.inputs[0]), taken.input_leaves(*self.inputs[1])
        for (name, want), (other, got) in zip(ours.inputs.items(), theirs.inputs.items(), strict=False):
            choices = rearranged(host[0][name], host[1][other].shape)
            place = next((k for k, one in enumerate(choices) if relative_distance(one, host[1][other]) == 0), None)
            if place is None or got is None:
                text = "the two take other inputs here, so their gradients do not correspond"
                made.append(Gradient(taken.INPUT + name, taken.INPUT + other, "not judged", reason=text))
                continue

            def arranged(array: np.ndarray, place: int = place, shape: tuple[int, ...] = got.shape) -> np.ndarray:
                return rearranged(array, shape)[place]

            filled = np.zeros_like(got) if want is None else arranged(want)
            result = judge.of([(taken.INPUT + name, arranged)], [filled], [got])
            text = ""
            if result.verdict == "differs":
                text = _why(filled, got, alive=bool(np.any(filled)), flows=bool(np.any(got)))
            made.append(
                Gradient(taken.INPUT + name, taken.INPUT + other, result.verdict, result.error, result.ratio, text)
            )
        return made


def _why(want: np.ndarray, got: np.ndarray, *, alive: bool, flows: bool) -> str:
    """Return how gradients differ: by whether torch's and JAX's are more than zeros."""
    if alive != flows:
        side, how = ("JAX", "stop_gradient") if alive else ("torch", "detached")
        return f"no gradient reaches it in {side}: {how}, or it is not used"
    return explain(want, got)[1]


def gradients(
    torch_model: Any, jax_model: Any, inputs: tuple[Arguments, Arguments], weights: WeightMap, **options: Any
) -> list[Gradient]:
    """Compare the gradients of two models with the same weights; see `Backward` for the options.

    Example:
        >>> import jax.numpy as jnp, parity, torch
        >>> from parity.models.inputs import of_both
        >>> layer = torch.nn.Linear(3, 2)
        >>> params = {"w": jnp.asarray(layer.weight.detach().T), "b": jnp.asarray(layer.bias.detach())}
        >>> port = (lambda p, x: x @ p["w"] + p["b"], params)
        >>> found = gradients(layer, port, of_both((np.ones((4, 3), np.float32),)), parity.map_weights(layer, port))
        >>> [(one.torch, one.verdict in ("identical", "within bound")) for one in found]
        [('weight', True), ('bias', True), ('input 0', True)]
    """
    import jax

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
    group: Sequence[WeightPair], views: Sequence[View], found: Mapping[str, np.ndarray]
) -> list[np.ndarray] | None:
    """Return JAX's gradients as torch has them, one for each part of torch's weights: of tied ones the sum."""
    total: dict[View, np.ndarray] = {}
    seen: set[View] = set()
    for pair in group:
        made = pair.transform.gradient(pair.jax_part(found), pair.torch_shapes)
        if made is None:
            return None
        if pair.jax_views[0] in seen:  # one weight in JAX, several in torch: their gradients add up to its own
            continue
        seen.add(pair.jax_views[0])
        for view, value in zip(pair.torch_views, made, strict=True):
            total[view] = total[view] + value if view in total else value
    return [total[view] for view in views if view in total]


def _turned_back(one: Output, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array in JAX's arrangement of an output in torch's."""
    order = one.arranged(np.arange(array.size).reshape(shape))
    back = np.empty(array.size)
    back[order.ravel()] = array.ravel()
    return back.reshape(shape)


def _torch_function(*given: Any, **options: Any) -> Any:
    from parity.models.torch_function import TorchFunction

    return TorchFunction(*given, **options)


def _jax_function(*given: Any, **options: Any) -> Any:
    from parity.models.jax_function import JaxFunction

    return JaxFunction(*given, **options)


def _on_device(arguments: Arguments, *, double: bool) -> Any:
    from parity.models.jax_function import device_arrays

    return device_arrays(arguments, double=double)


def _host(tensor: Any) -> np.ndarray:
    value = tensor.detach().cpu()
    return np.array((value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy())


def _part(view: View, value: np.ndarray | None) -> np.ndarray | None:
    return None if value is None else view.of(value)
