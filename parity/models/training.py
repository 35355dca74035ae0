"""Training of both models beside each other: running statistics after a forward, parameters after optimizer steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.models import optimizers, stepping, weighing
from parity.models.backward import Backward, groups
from parity.models.matching import typical
from parity.models.perturb import into_jax
from parity.models.torch_function import Arrays
from parity.models.weighing import Parameter, Statistic, Training
from parity.models.weights.tree import STATISTIC
from parity.models.weights.unequal import explain

ROUNDED = {"float64": 1e-12, "float32": 1e-6}
"""What rounding does to a running variance, relative to the largest."""

LATER = 10.0
"""Times its bound that a later step may be off: what rounding does to many steps is measured by few draws."""

DIVERGED = 1e6
"""Times the largest parameter after the first step: beyond it a training runs to infinity, and its steps overflow."""

PARTS = " is the first that differs: "

ROUGH = 1e-2
"""How far a momentum that is solved for may lie beyond what it can be."""


def statistics(run: Backward) -> list[Statistic]:
    """Compare the running statistics after one forward of models that are in the mode "train".

    Args:
        run: Both models; `mode="train"`.
    """
    pairs = [pair for pair in run.weights.pairs if pair.kind == STATISTIC]
    if not pairs:
        return []
    start = run.torch.statistics()

    def again() -> Arrays:
        with torch.no_grad(), run.torch.kept():
            run.torch(*run.torch.tensors(run.inputs[0]))
            return run.torch.statistics()

    after = again()
    _, kept = run.jax(run.jax.parameters, *run.args)
    theirs = {path: np.asarray(value) for path, value in kept.items()}
    before = {path: np.asarray(run.jax.tree.arrays[path]) for path in theirs}
    judge = weighing.Weighing(again, run.dtype, order=0, double=run.double)
    made = []
    for pair in pairs:
        view = pair.torch_views[0]
        want = view.of(after[view.name])
        got = pair.transform.to_torch(pair.jax_part(theirs), pair.torch_shapes)[0]
        found = judge.of([(view.name, view.of)], [want], [got])
        one = Statistic(str(view), str(pair.jax_views[0]), found.verdict, found.error, found.ratio)
        if one.verdict == "differs":
            was = pair.transform.to_torch(pair.jax_part(before), pair.torch_shapes)[0]
            number = _divisor(view.of(start[view.name]), want, was, got)
            if number is not None:
                one.verdict = "not judged"
                one.reason = (
                    f"the same but for the divisor of the variance: torch keeps the unbiased one of {number} numbers,"
                    f" over {number - 1}; JAX's layer divides by {number}, and has no setting for it"
                )
            else:
                one.reason = _why(view.of(start[view.name]), want, was, got)
        made.append(one)
    return made


def _why(start: np.ndarray, want: np.ndarray, was: np.ndarray, got: np.ndarray) -> str:
    """Return how a statistic differs: not updated, another momentum, or the variance's divisor."""
    if np.array_equal(got, was):
        return "JAX's does not move: is the model in its training mode, and is the new state kept?"
    if np.array_equal(want, start):
        return "torch's does not move: is the layer in eval mode, or momentum 0?"
    if not np.array_equal(start, was):
        return "the two did not begin with the same values"
    moved, theirs = want - start, got - was
    if (factor := stepping.constant(theirs, moved)) is not None:
        return (
            f"JAX's moves {factor:.6g} times as far as torch's: another momentum (torch's momentum 0.1 is Flax's and"
            " Equinox's 0.9)"
        )
    if (factor := _about(theirs, moved)) is not None:
        return (
            f"JAX's moves about {factor:.3g} times as far as torch's, as with another momentum (torch's momentum 0.1 is"
            " Flax's and Equinox's 0.9)"
        )
    return explain(want, got)[1]


def _divisor(start: np.ndarray, want: np.ndarray, was: np.ndarray, got: np.ndarray) -> int | None:
    """Return of how many numbers a variance is, where torch's is over one less of them and JAX's over all, or None.

    Torch's is w = (1 - m) s + m v n / (n - 1) and JAX's g = (1 - m) s + m v, of one start s and momentum m. So over the
    channels g = r w + (1 - m) (1 - r) s with r = (n - 1) / n.
    """
    s, w, g = (one.ravel().astype(np.float64) for one in (start, want, got))
    if g.size < 3 or np.ptp(w) == 0 or not np.array_equal(start, was):
        return None
    (slope, _), *_ = np.linalg.lstsq(np.stack([w, s], 1), g, rcond=None)
    if not 0.5 <= slope < 1:
        return None
    number = round(1 / (1 - slope))
    over = g - (1 - 1 / number) * w  # (1 - m) s / n: what else there is
    kept = number * float(s @ over) / float(s @ s) if np.any(s) else 0.0
    apart = np.abs(over - kept * s / number).max()
    near = ROUNDED[got.dtype.name] * np.abs(g).max()
    return number if -ROUGH <= kept <= 1 + ROUGH and apart <= near else None


def train(run: Backward, optimizer: Any, steps: int = 1) -> Training:
    """Train both models on the same inputs with the same loss, and compare the parameters after every step.

    Both train freely for the table of distances. For the verdict each step of both begins where torch's training was,
    for a model's chaos would drown an optimizer's fault; only the optimizers' states are their own throughout.

    Args:
        run: Both models; they are changed, for they are copies.
        optimizer: A name with torch's options, `("adamw", {"lr": 1e-3})`, which means the same in both; or a pair
            `(make, transformation)`: what makes a torch optimizer of a list of parameters (`functools.partial` of its
            class, or a lambda), and a transformation of optax.
        steps: How many.

    Raises:
        ValueError: The optimizer is none, or `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    make, transformation = optimizers.both(optimizer)
    trained = run.torch.trained
    start = {name: value.detach().clone() for name, value in trained.items()}
    first = {name: _host(value) for name, value in start.items()}
    paths = {pair.jax_views[0].name for g in groups(run.weights.pairs) for pair in g if pair.torch[0] in trained}
    frozen = {path: value for path, value in run.jax.parameters.items() if path not in paths}
    values = {path: value for path, value in run.jax.parameters.items() if path in paths}
    norms: list[float] = []

    def torch_steps(number: int) -> tuple[list[Arrays], list[float]]:
        with run.torch.kept():
            return steps_of_torch(number)

    def steps_of_torch(number: int) -> tuple[list[Arrays], list[float]]:
        made: list[Arrays] = []
        losses = []
        stepper = optimizers.made(make, list(trained.values()))
        for _ in range(number):
            losses.append(step(stepper))
            made.append({name: _host(value) for name, value in trained.items()})
        stepper.zero_grad()
        move(start)
        return made, losses

    def step(stepper: Any) -> float:
        stepper.zero_grad()
        loss = run.losses[0](run.torch(*run.torch.tensors(run.inputs[0]))).reshape(())
        loss.backward()
        stepper.step()
        return float(loss.detach())

    def move(values: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                trained[name].copy_(value)

    def torch_along(points: list[Arrays]) -> Arrays:
        """Return the parameters after each step by one optimizer that begins at a point, by step and name."""
        made: Arrays = {}
        stepper = optimizers.made(make, list(trained.values()))
        for at, point in enumerate(points):
            move({name: torch.from_numpy(np.array(value)) for name, value in point.items()})
            with run.torch.kept():  # JAX's objective keeps no running statistics
                step(stepper)
            made |= {f"{at}/{name}": _host(value) for name, value in trained.items()}
        stepper.zero_grad()
        move(start)
        return made

    def jax_along(points: list[Arrays]) -> list[Arrays]:
        made: list[Arrays] = []
        pairs = [
            pair
            for group in groups(run.weights.pairs)
            for pair in group
            if all(name in trained for name in pair.torch) and all(view.name in values for view in pair.jax_views)
        ]
        state = transformation.init(values)
        for at, point in enumerate(points):
            moved = into_jax(pairs, point, values) if at else {}
            now = {path: jnp.asarray(moved.get(path, value), value.dtype) for path, value in values.items()}
            found = jax.grad(objective)(now)
            updates, state = transformation.update(found, state, now)
            made.append({path: np.asarray(now[path] + updates[path]) for path in now})
        return made

    def objective(moving: Mapping[str, Any]) -> Any:
        return run.jax_value({**frozen, **moving}, {})

    def jax_steps(number: int) -> tuple[list[Arrays], list[float]]:
        made: list[Arrays] = []
        losses = []
        now, state = values, transformation.init(values)
        for _ in range(number):
            loss, found = jax.value_and_grad(objective)(now)
            norms.append(float(np.sqrt(sum(float(jnp.vdot(g, g).real) for g in found.values()))))
            updates, state = transformation.update(found, state, now)
            now = jax.tree.map(lambda value, update: value + update, now, updates)
            losses.append(float(loss))
            made.append({path: np.asarray(value) for path, value in now.items()})
        return made, losses

    (ours, torch_losses), (theirs, jax_losses) = torch_steps(steps), jax_steps(steps)
    result = Training([], losses=list(zip(torch_losses, jax_losses, strict=True)))
    judge = weighing.Weighing(lambda: torch_steps(1)[0][0], run.dtype, order=1, double=run.double, native=run.native)
    result.parameters = _parameters(run, first, ours[0], theirs[0], judge)
    result.distances = [_distance(run, first, mine, other) for mine, other in zip(ours, theirs, strict=True)]
    at = 0
    if steps > 1 and any(one.verdict != "differs" for one in result.parameters):
        along = [first, *ours[:-1]]
        judge = weighing.Weighing(lambda: torch_along(along), run.dtype, order=1, double=run.double, native=run.native)
        try:
            at = _judge_later(run, result.parameters, torch_along(along), jax_along(along), judge)
        except Exception as error:
            for one in result.parameters:
                if one.verdict != "differs":
                    one.verdict, one.reason = "not judged", f"beyond the first step: {type(error).__name__}: {error}"
    wrong = any(one.verdict == "differs" for one in result.parameters)
    if (wrong or steps > 1) and values:
        with contextlib.suppress(Exception):  # optimizers that do not step other arrays explain nothing
            shapes = {path: values[path].shape for path in _in_order(run, values, trained)}
            tried = max(at, min(steps, stepping.MOST_STEPS))
            alone = stepping.Alone(transformation, shapes, norms[0], tried)
            if wrong or alone.apart(make, (1.0,), tried) > stepping.AGREE:
                told = stepping.explain(optimizers.made(make, list(trained.values())), make, alone)
                _tell(result.parameters, told, wrong=wrong)
    return result


def _tell(parameters: list[Parameter], told: str, *, wrong: bool) -> None:
    """Say of parameters that differ why; of others that the optimizers do, though not of this loss's gradients."""
    for one in parameters:
        if told and one.verdict == "differs":
            one.reason = one.reason.partition(PARTS)[0] + PARTS + told if PARTS in one.reason else told
        elif told and not wrong and one.verdict != "not judged":
            one.verdict = "differs"
            one.reason = f"the same steps of this loss, whose gradient hardly changes; of others, {told}"


def _judge_later(
    run: Backward, parameters: list[Parameter], ours: Arrays, theirs: list[Arrays], judge: weighing.Weighing
) -> int:
    """Judge each step but the first, up to that at which the two part; return which that is, or 0.

    Each step begins where torch's training was.
    """
    start = max((np.abs(value).max(initial=0.0) for name, value in ours.items() if name.startswith("0/")), default=0.0)
    for at in range(1, len(theirs)):
        mine = {name.partition("/")[2]: value for name, value in ours.items() if name.startswith(f"{at}/")}
        largest = max((np.abs(value).max(initial=0.0) for value in mine.values()), default=0.0)
        if not largest <= DIVERGED * start:  # NaN too
            for one in [one for one in parameters if one.verdict != "differs"]:
                one.verdict, one.reason = "not judged", f"from step {at + 1} on: torch's training diverges"
            return 0
        for one, (pair, want, got) in zip(parameters, _pairs(run, mine, theirs[at]), strict=True):
            if one.verdict != "differs":
                names = [(f"{at}/{view.name}", _part_of(view)) for view in pair.torch_views][: len(want)]
                found = judge.of(names, want, got)
                if found.verdict == "differs" and found.ratio > LATER:
                    one.verdict, one.error, one.ratio = "differs", found.error, found.ratio
                    one.reason = f"step {at + 1}{PARTS}JAX's is another step from the same parameters"
        if any(one.verdict == "differs" for one in parameters):
            return at + 1
    return 0


def _in_order(run: Backward, values: Mapping[str, Any], trained: Mapping[str, Any]) -> list[str]:
    """Return JAX's paths in the order of torch's parameters."""
    order = {name: at for at, name in enumerate(trained)}
    place: dict[str, int] = {}
    for group in groups(run.weights.pairs):
        for pair in group:
            for view in pair.jax_views:
                place[view.name] = min(place.get(view.name, len(order)), order.get(pair.torch[0], len(order)))
    return sorted(values, key=lambda path: place.get(path, len(order)))


def _pairs(run: Backward, ours: Arrays, theirs: Arrays) -> Any:
    """Yield each paired parameter that torch trains: its pair, torch's parts and JAX's, as torch has them."""
    for group in groups(run.weights.pairs):
        for pair in group:
            if all(name in ours for name in pair.torch) and pair.jax[0] in theirs:
                want = pair.torch_parts(ours)
                if pair.transform.name == "sum":
                    yield pair, [pair.transform.to_jax(want, pair.jax_shape)], [pair.jax_part(theirs)]
                else:
                    yield pair, want, pair.transform.to_torch(pair.jax_part(theirs), pair.torch_shapes)


def _parameters(
    run: Backward, first: Arrays, ours: Arrays, theirs: Arrays, judge: weighing.Weighing
) -> list[Parameter]:
    made = []
    starts = {pair.torch_views: want for pair, want, _ in _pairs(run, first, theirs)}
    for pair, want, got in _pairs(run, ours, theirs):
        names = [(view.name, _part_of(view)) for view in pair.torch_views][: len(want)]
        found = judge.of(names, want, got)
        one = Parameter(
            " + ".join(map(str, pair.torch_views)), str(pair.jax_views[0]), found.verdict, found.error, found.ratio
        )
        if one.verdict == "differs":
            one.reason = _step_reason(starts[pair.torch_views][0], want[0], got[0])
        made.append(one)
    return made


def _step_reason(start: np.ndarray, want: np.ndarray, got: np.ndarray) -> str:
    """Return how a step differs: not taken, another learning rate, another weight decay."""
    if np.array_equal(got, start):
        return "JAX's does not move: is it left out of what is trained?"
    if np.array_equal(want, start):
        return "torch's does not move"
    moved, theirs = want - start, got - start
    if (factor := stepping.constant(theirs, moved)) is not None:
        return (
            f"JAX's first step is {factor:.6g} times torch's. Likely another learning rate or scale of the loss, or"
            " another momentum, or none (Nesterov's), or clipping"
        )
    if (factor := stepping.constant(want - got, start)) is not None:
        return (
            f"JAX's first step is torch's {'less' if factor > 0 else 'plus'} {abs(factor):.6g} times the weight. Likely"
            " another weight decay, by that over the learning rate (AdamW's default is 0.01 in torch and 0.0001 in"
            " optax), or another kind of it"
        )
    return explain(want, got)[1].removeprefix("differs, ")


MOST_ROUGH, LEAST_FACTOR, LEAST_SPREAD = 0.01, 3.0, 0.5
"""Of the largest element, what may be left beside a factor; the least factor, or one over it, that is told as another
momentum: inputs scaled by 2 are another thing; and how far elements must be apart, or a sum would do as well."""


def _about(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return the factor by which one is the other but for little, or None.

    The mean of what is near zero is rough, and so is a variance of which one side divides by one less.

    Example:
        >>> moved = np.array([1.0, -2.0, 4.0, 1e-7])
        >>> round(_about(9 * moved + 1e-3, moved), 2), _about(moved**2, moved), _about(2 * moved, moved)
        (9.0, None, None)
    """
    one, other = (value.ravel().astype(np.float64) for value in (one, other))
    if one.size < 3 or not np.any(other):
        return None
    factor = float(one @ other / (other @ other))
    left = np.abs(one - factor * other).max()
    spread = np.ptp(other) >= LEAST_SPREAD * np.abs(other).max()
    far = factor >= LEAST_FACTOR or 0 < factor <= 1 / LEAST_FACTOR
    return factor if left <= MOST_ROUGH * np.abs(one).max() and far and spread else None


def _part_of(view: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: view.of(array)


def _distance(run: Backward, first: Arrays, ours: Arrays, theirs: Arrays) -> float:
    """Return the largest distance of a parameter from torch's, relative to how far the model's furthest has moved."""
    moved = max((typical(ours[name] - first[name]) for name in ours), default=0.0)
    apart = max(
        (
            typical(a.astype(np.float64) - b)
            for _, want, got in _pairs(run, ours, theirs)
            for a, b in zip(want, got, strict=True)
        ),
        default=0.0,
    )
    return apart / moved if moved else (0.0 if apart == 0 else float("inf"))


def _host(tensor: Any) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy())
