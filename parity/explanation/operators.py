"""Operators: another function, axis, mode or comparison, anywhere in a program."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from parity.explanation import axes, selections, windows
from parity.explanation.activations import (
    ACTIVATIONS,
    AS,
    BENT,
    EXACT,
    HALVES,
    QUICK,
    SPELT,
    TANH,
    Function,
    gelu,
    gelu_tanh,
    logistic,
)
from parity.explanation.claims import Claim, change_all, grouped, place
from parity.explanation.programs.program import Key, Operand, Operation, Step, set_operand, set_result, set_unary
from parity.explanation.selections import COMPARISONS
from parity.explanation.substitution import CHOICES, Bench, Change

GELU_FIX = "Set approximate='none' or 'tanh' in torch, approximate=False or True in JAX: their defaults differ."


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield what may be wrong in operators, the commonest first."""
    for framework in ("torch", "jax"):
        yield from _gelus(framework, bench.programs[framework].steps)
    steps = bench.programs["torch"].steps
    yield from _switches(steps, bench.programs["jax"].steps)
    yield from _thresholds(steps)
    yield from _reductions(steps)
    yield from axes.claims(steps, bench.programs["jax"].steps)
    yield from axes.pooled(steps, ("the mean", "the maximum"))
    yield from axes.windows(steps)
    yield from selections.scans(steps)
    yield from windows.resizes(steps)
    yield from _logarithms(steps)
    for framework in ("torch", "jax"):  # before comparisons: ELU whose mask is turned around is ReLU
        yield from _activations(framework, bench.programs[framework].steps, bench.numbers[0].theta)
    for framework in ("torch", "jax"):
        yield from _comparisons(framework, bench.programs[framework].steps)
    yield from windows.paddings(steps)
    yield from windows.pads(steps)
    yield from windows.sides(steps, of_window=False)
    yield from windows.dilations(steps)


def conjugates(bench: Bench) -> Iterator[Claim]:
    """Yield conjugates of complex outputs and results: of a gradient, torch gives the conjugate of JAX's."""
    fix = (
        "jax.grad of a complex number is the conjugate of torch's gradient: take jnp.conj of it, as descent does. Else "
        "look for conj, vdot and .mH on one side only."
    )
    cause = "complex convention: conjugate"
    names = [name for name, values in bench.outputs["jax"][0].items() if values.dtype.kind == "c"]
    for group in [names] if len(names) < 2 else [names, *([name] for name in names)]:

        def turned(outputs: dict[str, np.ndarray], group: Sequence[str] = tuple(group)) -> dict[str, np.ndarray]:
            return {name: np.conj(value) if name in group else value for name, value in outputs.items()}

        if group:
            yield Claim(Change("jax", outputs=turned), cause, ", ".join(group), "its conjugate", fix)
    inputs = [number for number, name in enumerate(bench.numbers[0].names) if name.endswith(".imag")]
    for number in inputs:

        def other(theta: tuple[np.ndarray, ...], number: int = number) -> tuple[np.ndarray, ...]:
            return tuple(-x if i == number else x for i, x in enumerate(theta))

        name = bench.numbers[0].names[number].removesuffix(".imag")
        yield Claim(Change("torch", inputs=other), cause, name, "its conjugate", fix)
    for framework in ("torch", "jax"):
        for step in bench.programs[framework].steps:
            if step.result is not None and step.result.dtype.kind == "c":
                change = change_all(framework, [step], set_result(np.conj))
                yield Claim(change, cause, f"{step.name} (step {place(step)})", "its conjugate", fix)


def _gelus(framework: str, steps: Sequence[Step]) -> Iterator[Claim]:
    cause = "default argument: approximate"
    for group in grouped(steps, lambda step: step.name == "gelu" and framework == "torch"):
        exact = group[0].operands.get("approximate", "none") == "none"
        for name, function in (
            (TANH if exact else EXACT, gelu_tanh if exact else gelu),
            (QUICK, lambda x: x * logistic(1.702 * x)),
        ):
            yield Claim(
                change_all(framework, group, set_unary(function, "self")),
                cause,
                EXACT if exact else TANH,
                name,
                GELU_FIX,
            )
    for group in grouped(steps, lambda step: step.name in HALVES):
        has, argument = HALVES[group[0].name]
        for needs, function in AS.items():
            if needs == has:
                continue

            def half(
                z: np.ndarray, name: str = group[0].name, f: Function = function, x_of: Function = argument
            ) -> np.ndarray:
                value = f(x_of(z))
                return 1 - value if name == "erfc" else (1 + value) / 2 if name in ("logistic", "sigmoid") else value

            operand = 0 if framework == "jax" else "self"
            yield Claim(change_all(framework, group, set_unary(half, operand)), cause, has, needs, GELU_FIX)


# What an ATen operator is told: its switches, axes, modes.

SWITCHES = {
    "align_corners": "Pass align_corners= alike: False is the centre of pixels, as jax.image.resize has it.",
    "count_include_pad": "Pass count_include_pad= alike: Flax's avg_pool has True.",
    "ceil_mode": "Pass ceil_mode= alike.",
    "training": "Say alike whether it is training: eval() and train(), use_running_average=.",
    "unbiased": "Pass correction= to torch, ddof= to JAX.",
    "descending": "Sort in the same direction.",
    "right": "Pass right= in torch, side= in JAX alike.",
    "transposed": "Use the same kind of convolution.",
}


NORMALISES = ("_softmax", "_log_softmax", "logsumexp")
"""Operators that take the largest number off first: `reduce_max` in JAX."""


def _switches(steps: Sequence[Step], others: Sequence[Step]) -> Iterator[Claim]:
    counted = {name: sum(step.name == name for step in steps) for name in NORMALISES}
    # The other runs fewer of them, so one along another axis is one that does nothing.
    fewer = 0 < sum(step.name == "reduce_max" for step in others) < sum(counted.values())
    fewer &= not any(step.name in ("scan", "while") for step in others)
    for group in grouped(steps, lambda step: any(isinstance(v, bool) for v in step.operands.values())):
        for name, value in group[0].operands.items():
            if isinstance(value, bool) and name in SWITCHES:
                yield Claim(
                    change_all("torch", group, set_operand((name, not value))),
                    f"default argument: {name}",
                    f"{name}={value} ({group[0].name})",
                    f"{name}={not value}",
                    SWITCHES[str(name)],
                )
    for group in grouped(steps, lambda step: "dim" in step.operands and step.result is not None):
        dim, values = group[0].operands["dim"], group[0].operands.get("self")
        if not isinstance(values, np.ndarray):
            continue
        single = isinstance(dim, int) and not isinstance(dim, bool)
        if not single and not (isinstance(dim, list) and len(dim) == 1):
            continue
        yield from _axes_exchanged(group)
        now = (dim if single else dim[0]) % max(values.ndim, 1)
        for axis in range(values.ndim):
            if axis != now and not (fewer and len(group) < counted.get(group[0].name, 0)):
                yield Claim(
                    change_all("torch", group, set_operand(("dim", axis if single else [axis]))),
                    "default argument: dim",
                    f"{group[0].name} along axis {now}",
                    f"axis {axis}",
                    "Pass dim= and axis= alike.",
                )


def _axes_exchanged(group: Sequence[Step]) -> Iterator[Claim]:
    """Yield two axes exchanged in all steps of one name, as rows and columns that take turns."""
    axes = [(one.operands["dim"], getattr(one.operands.get("self"), "ndim", 0)) for one in group]
    if any(not isinstance(dim, int | list) or (isinstance(dim, list) and len(dim) != 1) for dim, _ in axes):
        return
    now = [(dim[0] if isinstance(dim, list) else dim) % max(rank, 1) for dim, rank in axes]
    if len(group) > 1 and len(set(now)) == 2:
        one, two = dict.fromkeys(now)
        edits = {
            step.key: set_operand(("dim", [axis] if isinstance(step.operands["dim"], list) else axis))
            for step, axis in zip(group, (two if at == one else one for at in now), strict=True)
        }
        if all(_is_mask(step.operands.get("self")) for step in group):
            yield Claim(
                Change("torch", edits), "mask: axes", f"a mask with new axes {one} and {two} in turn",
                f"it with axes {two} and {one} (along queries, not keys, on one side)",
                "Mask on both sides along the keys: mask[:, None, None, :].",
            )  # fmt: skip
        yield Claim(
            Change("torch", edits), "default argument: dim", f"{group[0].name} along axes {one} and {two} in turn",
            f"along axes {two} and {one}", "Take the axes in one order.",
        )  # fmt: skip


def _is_mask(values: Any) -> bool:
    """Return whether an array says what is masked: truth values, or zero beside one other number."""
    if not isinstance(values, np.ndarray) or not values.size:
        return False
    return values.dtype == bool or (np.unique(values).size == 2 and bool((values == 0).any()))


def _thresholds(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield softplus without the threshold beyond which torch's is x itself: JAX has none."""
    for group in grouped(steps, lambda step: step.name == "softplus"):
        now = group[0].operands.get("threshold", 20)
        yield Claim(
            change_all("torch", group, set_operand(("threshold", math.inf))),
            "default argument: threshold",
            f"threshold {now:g} of softplus, beyond which it is x itself,",
            "no threshold",
            "Pass threshold= alike, or write log(1 + exp(x)) as torch.logaddexp(x, 0); the difference is at most "
            "exp(-threshold) / beta.",
        )


def _logarithms(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield softmax for its logarithm, and the other way round."""
    names = {"_log_softmax": ("log_softmax", "softmax", np.exp), "_softmax": ("softmax", "log_softmax", np.log)}
    for group in grouped(steps, lambda step: step.name in names):
        has, needs, function = names[group[0].name]
        yield Claim(
            change_all("torch", group, set_result(function)), "another formula: softmax", has, needs,
            "Take the logarithm on both sides: nll_loss wants log_softmax, a cross entropy takes logits.",
        )  # fmt: skip


def _reductions(steps: Sequence[Step]) -> Iterator[Claim]:
    fix = "Say on both sides whether it is the sum or the mean (reduction=, or sum and mean)."
    cause = "default argument: reduction"
    for group in grouped(steps, lambda step: step.name in ("mean", "sum")):
        step = group[0]
        values = step.operands.get("self")
        if not isinstance(values, np.ndarray) or step.result is None or not step.result.size or not values.size:
            continue
        if _counts_only(step, steps):
            continue

        def scaled(operation: Operation, mean: bool = step.name == "mean") -> Any:
            result = operation.compute(operation.operands)
            count = operation.numpy(operation.operands["self"]).size / operation.numpy(result).size
            return result * count if mean else result / count

        other = "sum" if step.name == "mean" else "mean"
        yield Claim(change_all("torch", group, scaled), cause, f"a {step.name}", f"a {other}", fix)
    for group in grouped(steps, lambda step: "reduction" in step.operands):
        for value, name in ((0, "none"), (1, "mean"), (2, "sum")):
            if value != group[0].operands["reduction"]:
                now = ("none", "mean", "sum")[group[0].operands["reduction"]]
                yield Claim(
                    change_all("torch", group, set_operand(("reduction", value))),
                    cause,
                    f"reduction={now!r} ({group[0].name})",
                    f"{name!r}",
                    fix,
                )


def _counts_only(step: Step, steps: Sequence[Step]) -> bool:
    """Return whether a sum is only a place or a length, as of what is not masked: no float is made of it.

    What goes into a list of indices has no step after it.
    """
    reached, followed = {step.key}, set()
    for other in steps:
        for operand, source in other.sources.items():
            if source in reached and other.result is not None:
                followed.add(source)
                if not (other.name in PICKS and operand not in ("self", "weight")):
                    reached.add(other.key)
    ends = [one for one in steps if one.key in reached - followed and one.result is not None]
    return not any(one.result.dtype.kind in "fc" or one is steps[-1] for one in ends if one.result is not None)


PICKS = ("index", "gather", "index_select", "embedding", "take_along_dim")
"""Operators that take elements from places."""


def joined(bench: Bench) -> Iterator[Claim]:
    """Yield masks joined by `or` in the place of `and`, and the other way round."""
    for framework, (left, right) in (("torch", ("self", "other")), ("jax", (0, 1))):
        for name, function in (("and", np.logical_or), ("or", np.logical_and)):

            def exchanged(operation: Operation, f: Any = function, two: Any = (left, right)) -> Any:
                result = operation.compute(operation.operands)
                return operation.like(f(*(operation.numpy(operation.operands[one]) for one in two)), result)

            ends = (name, f"logical_{name}", f"bitwise_{name}", f"__{name}__")
            steps = [step for step in bench.programs[framework].steps if step.name in ends]
            for group in grouped(steps, lambda step: step.result is not None and step.result.dtype == bool):
                yield Claim(
                    change_all(framework, group, exchanged), "another formula: mask", f"masks joined by {name}",
                    "or" if name == "and" else "and", "Join masks alike: & is both, | is either.",
                )  # fmt: skip


def _comparisons(framework: str, steps: Sequence[Step]) -> Iterator[Claim]:
    fix = "Write masks with the same comparison; check whether True means keep or drop, and the diagonal."
    functions: dict[str, Callable[[Any, Any], Any]] = {
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }
    left, right = (0, 1) if framework == "jax" else ("self", "other")
    wrapping = _of_indices(steps)
    steps = [step for step in steps if step.key not in wrapping]
    for group in grouped(steps, lambda step: step.name in COMPARISONS):
        for name, function in functions.items():
            if name == group[0].name:
                continue

            def compared(operation: Operation, f: Callable[[Any, Any], Any] = function) -> Any:
                result = operation.compute(operation.operands)
                a, b = (operation.numpy(operation.operands[place]) for place in (left, right))
                return operation.like(f(a, b), result)

            yield Claim(
                change_all(framework, group, compared),
                "another formula: mask",
                f"a comparison by {COMPARISONS[group[0].name]}",
                COMPARISONS[name],
                fix,
            )
    for group in grouped(
        steps, lambda step: step.result is not None and step.result.dtype == bool and step.result.size > 1
    ):
        marks = {bool(value) for step in group if step.result is not None for value in np.unique(step.result)}
        everywhere = len(marks) == 1  # its opposite is no other way round to say it: a mask that is there or is not
        yield Claim(
            change_all(framework, group, set_result(np.logical_not)),
            "another formula: mask",
            f"a mask ({group[0].name})" + f" that is {marks.copy().pop()} everywhere" * everywhere,
            f"one that is {not marks.copy().pop()}" if everywhere else "the opposite one",
            fix,
        )
    for group in grouped(steps, lambda step: step.name in CHOICES):

        def opposite(operation: Operation) -> Any:
            place = CHOICES[operation.name]
            mask = operation.operands[place]
            turned = operation.like(np.logical_not(operation.numpy(mask)), mask)
            return operation.compute({**operation.operands, place: turned})

        if isinstance(group[0].operands.get(CHOICES[group[0].name]), np.ndarray):
            yield Claim(
                change_all(framework, group, opposite),
                "another formula: mask",
                f"the mask of {group[0].name}",
                "the opposite one",
                fix,
            )
    for group in grouped(steps, lambda step: step.name in ("tril", "triu")):
        for other in ("tril", "triu"):
            for diagonal in (-1, 0, 1):

                def cut(operation: Operation, name: str = other, k: int = diagonal) -> Any:
                    result = operation.compute(operation.operands)
                    values = operation.numpy(operation.operands["self"])
                    return operation.like(getattr(np, name)(values, k), result)

                now = group[0].operands.get("diagonal", 0)
                if framework == "torch" and (other, diagonal) != (group[0].name, now):
                    yield Claim(
                        change_all(framework, group, cut),
                        "another formula: mask",
                        f"{group[0].name} with diagonal {now}",
                        f"{other} with diagonal {diagonal}",
                        fix,
                    )


def _of_indices(steps: Sequence[Step]) -> set[Key]:
    """Return the steps by which JAX counts negative indices from the end, i or i + n: they mask nothing."""
    by_key = {step.key: step for step in steps}
    found: set[Key] = set()
    for step in steps:
        test = by_key.get(step.sources.get(0)) if step.name == "select_n" and _is_whole(step.result) else None
        if test is not None and test.name == "lt" and not np.any(test.operands[1]):
            found |= {step.key, test.key}
    return found


def _is_whole(values: np.ndarray | None) -> bool:
    return values is not None and values.dtype.kind in "iu"


def _activations(framework: str, steps: Sequence[Step], inputs: Sequence[np.ndarray]) -> Iterator[Claim]:
    operand = 0 if framework == "jax" else "self"

    def is_activation(step: Step) -> bool:
        name = SPELT.get(step.name, step.name)
        values = step.operands.get(operand)
        return (
            name in ACTIVATIONS
            and isinstance(values, np.ndarray)
            and values.dtype.kind == "f"
            and step.result is not None
            and step.result.shape == values.shape
        )

    parts = (_by_source(steps, is_activation, operand), _by_input(steps, is_activation, inputs))
    for group in (*grouped(steps, is_activation), *itertools.chain(*parts)):
        given = np.concatenate([np.ravel(step.operands[operand]) for step in group])
        one_sided = not (np.any(given > 0) and np.any(given < 0))
        for name, function in ACTIVATIONS.items():
            if name in BENT and one_sided:
                continue  # of numbers of one sign it is a factor: -exp(x) has exp(x) as its absolute value
            if name != SPELT.get(group[0].name, group[0].name):
                yield Claim(
                    change_all(framework, group, set_unary(function, operand)),
                    "another formula: activation",
                    f"{SPELT.get(group[0].name, group[0].name)} as the activation",
                    name,
                    "Use the same activation on both sides.",
                )


def _by_source(steps: Sequence[Step], wanted: Callable[[Step], bool], operand: Operand) -> Iterator[list[Step]]:
    """Yield steps of one name that follow one operator: the activations after norms, and not those of a gate."""
    names = {step.key: step.name for step in steps}
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        if wanted(step) and operand in step.sources:
            groups.setdefault((step.name, names.get(step.sources[operand], "")), []).append(step)
    for (name, _), group in groups.items():
        if 1 < len(group) < sum(step.name == name for step in steps):
            yield group


def _by_input(
    steps: Sequence[Step], wanted: Callable[[Step], bool], inputs: Sequence[np.ndarray]
) -> Iterator[list[Step]]:
    """Yield steps of one name that are made of the same inputs: the activations of one of two towers."""
    made: dict[Key, frozenset[int]] = {}
    groups: dict[tuple[str, frozenset[int]], list[Step]] = {}
    given = {leaf.tobytes(): number for number, leaf in enumerate(inputs)}
    for step in steps if len(given) > 1 else ():
        arrays = {o: v for o, v in step.operands.items() if isinstance(v, np.ndarray) and o not in step.sources}
        own = {given[value.tobytes()] for value in arrays.values() if value.tobytes() in given}
        made[step.key] = frozenset(own).union(*(made.get(one, frozenset()) for one in step.sources.values()))
        if wanted(step):
            groups.setdefault((step.name, made[step.key]), []).append(step)
    for (name, _), group in groups.items():
        if 1 < len(group) < sum(one.name == name for one in filter(wanted, steps)):
            yield group
