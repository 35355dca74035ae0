"""Steps of optimizers, and losses: Nesterov's momentum, decay that goes into the moments, b and 1 - b, smoothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Edit, Key, Operand, Operation, Step, is_number, set_operand
from parity.explanation.substitution import ROUNDING, SHRINK, Bench, Change, distance, other
from parity.records import WHO, Diagnosis

NESTEROV_FIX = "Pass nesterov= alike to torch.optim.SGD and optax.sgd; written out, the step is g + momentum * buffer."
DECAY_FIX = (
    "weight_decay of torch.optim.Adam is added to the gradient: optax.chain(optax.add_decayed_weights(d), "
    "optax.adam(lr)). That of torch.optim.AdamW and optax.adamw is not."
)
RATE_FIX = "Use one value on both sides: betas= and alpha= in torch, b1=, b2= and decay= in optax."

STEPS = 8
"""Steps of an optimizer of which bias corrections, 1 - b^t, are known again."""

MOST = 15
"""Pairs of numbers that are exchanged, at most."""

DIGITS = 4
"""Of a number that people write."""


def nesterov(bench: Bench) -> Iterator[Claim]:
    """Yield plain momentum, the buffer itself, in the place of Nesterov's, the gradient plus c times the buffer."""
    for framework, program in bench.programs.items():
        by_key = {step.key: step for step in program.steps}
        found: dict[float, dict[Key, Edit]] = {}
        for step in program.steps:
            for c, gradient, buffer, source, edit in _sums(step, by_key):
                made = by_key.get(source)
                if 0 < c < 1 and made is not None and _has(made, gradient) and buffer.shape == gradient.shape:
                    found.setdefault(c, {})[step.key] = edit
        for c, edits in found.items():
            yield Claim(
                Change(framework, edits), "optimizer: Nesterov", f"Nesterov's momentum of {c:g}", "plain momentum",
                NESTEROV_FIX,
            )  # fmt: skip


def _sums(step: Step, by_key: dict[Key, Step]) -> Iterator[tuple[float, np.ndarray, np.ndarray, Any, Edit]]:
    """Yield c, g, b, the step that made b, and the edit to b, of sums g + c b."""
    if step.name not in ("add", "add_") or step.result is None:
        return
    alpha, one, two = (step.operands.get(name) for name in ("alpha", "self", "other"))
    if isinstance(alpha, float) and isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        yield alpha, one, two, step.sources.get("other"), _other
    for place, key in step.sources.items():
        rest = next((o for o, v in step.operands.items() if o != place and isinstance(v, np.ndarray)), None)
        product = by_key[key]
        parts = dict(product.operands)
        for scaled, c in parts.items():
            if product.name == "mul" and rest is not None and is_number(c):
                array, values = next((pair for pair in parts.items() if pair[0] != scaled), ("", None))
                if isinstance(values, np.ndarray):
                    edit = partial(_unscaled, place=place, c=float(c))
                    yield float(c), step.operands[rest], values, product.sources.get(array), edit


def _other(operation: Operation) -> Any:
    return operation.operands["other"]


def _unscaled(operation: Operation, place: Operand, c: float) -> Any:
    return operation.operands[place] / c


def _has(made: Step, gradient: np.ndarray) -> bool:
    """Return whether a step adds a gradient to what it returns, or returns a copy of it."""
    values = [*(v for v in made.operands.values() if isinstance(v, np.ndarray)), made.result]
    return made.name in ("add", "add_", "clone") and any(
        v is not None and v.shape == gradient.shape and np.array_equal(v, gradient) for v in values
    )


def rates(bench: Bench) -> Iterator[Claim]:
    """Yield another number b where programs have b, 1 - b and bias corrections: the decay rates of moments."""
    values = {
        name: {round(v, 12) for c in one.constants for v in (c.value, 1 - c.value) if 0.5 <= v < 1}
        for name, one in bench.programs.items()
    }
    yield from _two_exchanged(bench)
    for framework in ("jax", "torch"):
        theirs = values[other(framework)] - values[framework]
        for b in sorted(values[framework] - values[other(framework)]):
            for needed, step_size in itertools.product(sorted(theirs), (False, True)):
                edits: dict[Key, list[tuple[Operand, float]]] = {}
                changed = set()
                for c in bench.programs[framework].constants:
                    new = _rebased(c.value, b, needed, step_size and c.name.startswith("addcdiv"))
                    if new is not None:
                        edits.setdefault(c.step, []).append((c.operand, new))
                        changed.add(c.value)
                if len(changed) > 1:
                    rest = ", ".join(f"{value:.6g}" for value in sorted(changed - {b}))
                    yield Claim(
                        Change(framework, {key: set_operand(*one) for key, one in edits.items()}), "constant",
                        f"{b:.12g} (and what is made of it: {rest})", f"{needed:.12g}", RATE_FIX,
                    )  # fmt: skip


def _two_exchanged(bench: Bench) -> Iterator[Claim]:
    """Yield two numbers in each other's place, as alpha and 1 - alpha."""
    constants = bench.programs["jax"].constants
    both = {c.value for c in constants} & {c.value for c in bench.programs["torch"].constants} - {0.0, 1.0}
    for a, b in itertools.islice(itertools.combinations(sorted(both), 2), MOST):
        edits = {c.step: set_operand((c.operand, {a: b, b: a}[c.value])) for c in constants if c.value in (a, b)}
        yield Claim(Change("jax", edits), "constant", f"{a:.12g} and {b:.12g}", f"{b:.12g} and {a:.12g}",
                    "Exchange the two numbers on one side.")  # fmt: skip


def _rebased(value: float, b: float, needed: float, step_size: bool) -> float | None:
    """Return what a number made of b would be of another: b, 1 - b^t, its root, and c / (1 - b^t); or None."""
    if math.isclose(value, b, rel_tol=1e-9):
        return needed
    for t in range(1, STEPS + 1):
        now, then = 1 - b**t, 1 - needed**t
        for power in (1.0, 0.5):
            if math.isclose(value, now**power, rel_tol=1e-9):
                return then**power
        if (step_size or not is_round(value)) and value and is_round(value * now):
            return value * now / then
    return None


def is_round(value: float) -> bool:
    """Return whether a number has few digits, as people write it."""
    return math.isclose(value, float(f"{value:.{DIGITS}g}"), rel_tol=1e-9)


def smoothing(bench: Bench) -> Iterator[Claim]:
    """Yield label smoothing that is spread over the other n - 1 classes, in the place of over all n."""
    lengths = {n for leaf in bench.numbers[0].theta for n in leaf.shape if n > 2}
    for framework, program in bench.programs.items():
        for right in program.constants:
            s = 1 - right.value
            for share in program.constants if 0 < s < 0.5 else ():
                for n in sorted(lengths):
                    times = 1 if math.isclose(abs(share.value), s / n, rel_tol=1e-6) else n
                    if share.step != right.step and math.isclose(abs(share.value), s * times / n, rel_tol=1e-6):
                        new = math.copysign(s * times / (n - 1), share.value)
                        edits = {
                            right.step: set_operand((right.operand, right.value - s / (n - 1))),
                            share.step: set_operand((share.operand, new)),
                        }
                        yield Claim(
                            Change(framework, edits), "another formula: label smoothing",
                            f"label smoothing of {s:.4g} over all {n} classes", f"one over the {n - 1} others",
                            "Spread it alike: torch's and optax.smooth_labels' share of each class is smoothing / n, "
                            "the right one with it.",
                        )  # fmt: skip


def decay(bench: Bench) -> Diagnosis | None:
    """Return that weight decay goes into the moments on one side alone: without decay on both the two agree."""
    index = _parameter(bench)
    if index is None:
        return None
    groups = {name: list(_decays(bench, name, bench.numbers[0].theta[index])) for name in bench.programs}
    for mine, coupled in groups["torch"]:
        for theirs, theirs_coupled in groups["jax"]:
            if coupled == theirs_coupled or bench.late or not _agree(bench, mine, theirs):
                continue
            who, whose = (WHO[name] for name in (("torch", "jax") if coupled else ("jax", "torch")))
            return Diagnosis(
                "optimizer: weight decay",
                f"{who} adds the decay of the weights to the gradient, so that it goes into the moments (L2), and "
                f"{whose} takes it off the weights beside them (decoupled, as AdamW); without decay on both sides the "
                "two agree.",
                DECAY_FIX,
            )  # fmt: skip
    return _decay_last(bench, index)


def _decay_last(bench: Bench, index: int) -> Diagnosis | None:
    """Return that torch takes the decay off the weights, and JAX off what the step leaves of them."""
    weights = bench.numbers[0].theta[index]
    for step in bench.programs["torch"].steps:
        rest, given = step.operands.get("other"), np.asarray(step.operands.get("self"))
        if step.name != "mul" or not isinstance(rest, float) or not 0.5 < rest < 1 or given.shape != weights.shape:
            continue
        change = Change("torch", {step.key: _passed}, outputs=partial(_times, rest=rest))
        if np.array_equal(given, weights) and bench.proves(change):
            return Diagnosis(
                "optimizer: weight decay",
                f"torch multiplies the weights by {rest:.12g} before the step, JAX multiplies what comes after; with "
                "the factor at the same place the two agree.",
                "Take the decay off the weights that the step starts from, as torch's AdamW does.",
            )
    return None


def _passed(operation: Operation) -> Any:
    return operation.operands["self"].clone()


def _times(outputs: dict[str, np.ndarray], rest: float) -> dict[str, np.ndarray]:
    first = next(iter(outputs))
    return {**outputs, first: outputs[first] * rest}


def _agree(bench: Bench, mine: Change, theirs: Change) -> bool:
    for at in range(len(bench.numbers)):
        left, right = bench.changed(mine, at), bench.changed(theirs, at)
        before = distance(bench.outputs["torch"][at], bench.outputs["jax"][at])
        if left is None or right is None:
            return False
        after = distance(left, right)
        if not (after <= bench.agreement and after <= max(before / SHRINK, ROUNDING)):
            return False
    return True


def _parameter(bench: Bench) -> int | None:
    """Return the input that both functions return all but unchanged: what a step of an optimizer moves."""
    theta = bench.numbers[0].theta

    def follows(framework: str, index: int) -> bool:
        moved = tuple(x + 1e-4 if i == index else x for i, x in enumerate(theta))
        found = bench.changed(Change(framework, inputs=lambda _: moved))
        before = bench.outputs[framework][0]
        return found is not None and any(
            value.dtype.kind == "f" and value.shape == theta[index].shape and value.size > 0
            and abs(float(np.median(value - before[name])) / 1e-4 - 1) < 0.3
            for name, value in found.items()
        )  # fmt: skip

    return next((i for i in range(len(theta)) if all(follows(name, i) for name in bench.programs)), None)


def _decays(bench: Bench, framework: str, parameter: np.ndarray) -> Iterator[tuple[Change, bool]]:
    """Yield changes after which weights do not decay, and whether the decay went into a root before."""
    steps = bench.programs[framework].steps
    by_key = {step.key: step for step in steps}
    groups: dict[tuple[str, float], dict[Key, Edit]] = {}
    for step in steps:
        for c, _, values, _, _ in _sums(step, by_key):
            if _is_near(values, parameter):
                arrays = (o for o, v in step.operands.items() if isinstance(v, np.ndarray))
                rest = next((o for o in arrays if not _scales(step, o, by_key)), "self")
                groups.setdefault(("add", c), {})[step.key] = _kept(rest)
        whole = [(o, v) for o, v in step.operands.items() if isinstance(v, np.ndarray) and v.ndim]
        numbers = [float(v) for v in step.operands.values() if is_number(v)]
        if step.name in ("mul", "mul_") and len(whole) == 1 and numbers and 0.5 < numbers[0] < 1:
            ((operand, values),) = whole
            if _is_near(values, parameter):
                groups.setdefault(("mul", numbers[0]), {})[step.key] = _kept(operand)
    for edits in groups.values():
        yield Change(framework, edits), reaches_root(next(iter(edits)), steps)


def _is_near(values: np.ndarray, parameter: np.ndarray) -> bool:
    """Return whether an array is the parameter, at one of the first steps."""
    return values.shape == parameter.shape and bool(
        np.linalg.norm(values - parameter) < 0.5 * np.linalg.norm(parameter)
    )


def _scales(step: Step, operand: Operand, by_key: dict[Key, Step]) -> bool:
    """Return whether an operand of a sum is the scaled one."""
    if "alpha" in step.operands:
        return operand == "other"
    source = by_key.get(step.sources.get(operand))
    return source is not None and source.name == "mul" and any(is_number(v) for v in source.operands.values())


def reaches_root(key: Key, steps: Any) -> bool:
    """Return whether what a step returns goes into a root."""
    reached = {key}
    for step in steps:
        if reached.intersection(step.sources.values()):
            if step.name in ("sqrt", "rsqrt"):
                return True
            reached.add(step.key)
    return False


def _kept(operand: Operand) -> Callable[[Operation], Any]:
    return lambda operation: operation.operands[operand]
