"""Trials that tell causes apart: points near those of a cell, finite differences, the same program in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from parity.execution.calls import Numbers, Outputs
from parity.execution.endings import RAISED
from parity.execution.outputs import EAGER, Runs
from parity.explanation.evidence import Widened
from parity.records import WHO, Cell

BESIDE, NEAR = 2.0**-8, 2.0**-30
"""How far points beside a tie or a kink are from it."""

SHRINK = 1e-3
"""A difference that is only there is this many times smaller beside it."""

STENCILS = ((1e-4, (1 / 2,)), (1e-5, (1 / 2,)), (1e-6, (1 / 2,)), (1e-3, (3 / 4, -3 / 20, 1 / 60)))
"""Steps of central differences, with weights: their error is of h^2, the last one's of h^6, and of rounding by h."""

RIGHT, WRONG = 1e-5, 1e-3
"""How near a derivative is to finite differences if it is right, and how far off if it is wrong."""

EXACT, ROUNDED = 1e-10, 1e-9
"""The same where one side's is right to the last digits that differences show: a rule may round to float32."""

SUMS = ("add", "add_any", "add_", "cumsum", "sum", "reduce_sum", "cumlogsumexp")
"""Operators that may add many numbers, a few at a time."""

MANY = 8
"""Additions that are called a sum of many numbers."""

BOTH_RIGHT = "both are the derivatives of their"
"""Said where finite differences bear out two derivatives that differ."""


def alike_nearby(runs: Runs, cell: Cell, distance: float = BESIDE) -> bool:
    """Return whether the two functions agree at points beside those of a cell, and differ at them.

    Args:
        runs: Of the pair.
        cell: On its numbers; it is run in float64 by both frameworks.
        distance: How far these points are, relative, and at zero itself.
    """
    numbers = runs.numbers_of(cell)
    if not isinstance(numbers, Numbers):
        return False
    rng = np.random.default_rng(0)

    def aside(values: np.ndarray) -> np.ndarray:
        step = distance * rng.uniform(0.5, 1.0, values.shape) * rng.choice((-1.0, 1.0), values.shape)
        return values + step * np.maximum(1.0, np.abs(values))

    at, beside = (
        _apart(runs, cell, one) for one in (numbers, replace(numbers, theta=tuple(map(aside, numbers.theta))))
    )
    return bool(beside <= SHRINK * at and np.isfinite(beside))


def _apart(runs: Runs, cell: Cell, numbers: Numbers) -> float:
    """Return the largest difference of the two functions on some numbers, in float64."""
    one, other = (runs.rerun(replace(cell, world=world), "float64", numbers) for world in EAGER.values())
    if not isinstance(one, Outputs) or not isinstance(other, Outputs):
        return np.inf
    worst = 0.0
    for name, left in one.values.items():
        right = other.values.get(name)
        if right is None or left.shape != right.shape:
            return np.inf
        if left.dtype.kind != "f" or right.dtype.kind != "f":
            worst = max(worst, float(np.any(left != right)))
            continue
        with np.errstate(all="ignore"):
            apart = np.where((left == right) | (np.isnan(left) & np.isnan(right)), 0.0, np.abs(left - right))
        worst = max(worst, float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0)))
    return worst


def wrong_derivative(runs: Runs, cell: Cell) -> str:
    """Return a sentence on whose derivative is not that of its function, by finite differences in float64; or none.

    Each side's derivative along a direction is held to differences of that side's own function; a second derivative to
    differences of its own first one.
    """
    off = _both_off(runs, cell)
    wrong, right = _wrong(off), [name for name, one in off.items() if one is not None and one < RIGHT]
    exact = [name for name, one in off.items() if one is not None and one < EXACT]
    if len(right) == 2 and len(exact) == 1:
        rounded = [name for name, one in off.items() if name not in exact and one is not None and one > ROUNDED]
        wrong, right = (rounded, exact) if rounded else (wrong, right)
    of = "gradient" if runs.pair.transform(cell.transform).order > 1 else "function"
    if len(wrong) == 1 and len(right) == 1:
        (bad,), (good,) = wrong, right
        return (
            f" By finite differences in float64, {WHO[bad]}'s derivative is wrong: off from that of its own {of} "
            f"by {off[bad]:.2g} of its size; {WHO[good]}'s is right."
        )
    if len(wrong) == 2:
        return f" By finite differences in float64, neither side's derivative is that of its own {of}."
    if len(right) == 2:
        return f" By finite differences in float64, along one direction, {BOTH_RIGHT} {of}s."
    return ""


def only_torch_is_wrong(runs: Runs, cell: Cell) -> bool:
    """Return whether torch's derivative is not that of its function, and JAX's is, by finite differences in float64."""
    off = _both_off(runs, cell)
    return _wrong(off) == ["torch"] and off["jax"] is not None and off["jax"] < RIGHT


def _wrong(off: dict[str, float | None]) -> list[str]:
    return [name for name, one in off.items() if one is not None and one > WRONG]


def _both_off(runs: Runs, cell: Cell) -> dict[str, float | None]:
    numbers = runs.numbers_of(cell)
    if not isinstance(numbers, Numbers) or not numbers.directions:
        return {}

    def find() -> dict[str, float | None]:
        return {name: _off(runs, replace(cell, world=world), numbers) for name, world in EAGER.items()}

    found: dict[str, float | None] = runs.once(
        ("differences", cell.device, cell.data, cell.dtype, cell.transform), find
    )
    return found


def _off(runs: Runs, cell: Cell, numbers: Numbers) -> float | None:
    """Return how far one side's derivative along a direction is from differences, relative; None if unknown."""
    order = runs.pair.transform(cell.transform).order
    if order == 1:
        # The derivative is linear: all of it is in the gradient of <cotangents, f>, and in the tangents.
        name = "jvp" if cell.transform in ("jvp", "jacfwd") else "vjp"
        lower, along = "forward", numbers.directions[0]
    elif cell.transform == "second-tangent":
        name, lower, along = "second-tangent", "jvp", numbers.directions[1]
    elif order == 2:
        name, lower, along = cell.transform, "vjp", numbers.directions[0]
    else:
        return None

    def ran(transform: str, at: Numbers) -> dict[str, np.ndarray] | None:
        found = runs.rerun(replace(cell, transform=transform), "float64", at)
        return found.values if isinstance(found, Outputs) else None

    own = ran(name, numbers)
    if own is None:
        return None

    def below(step: float) -> dict[str, np.ndarray] | None:
        at = replace(numbers, theta=tuple(x + step * d for x, d in zip(numbers.theta, along, strict=True)))
        if lower != "vjp":
            return ran(lower, at)
        values = ran("forward", at)
        if values is None:
            return None
        floats = [value for value in values.values() if value.dtype.kind == "f"]
        if [one.shape for one in floats] != [one.shape for one in at.cotangents]:
            return None
        # The gradient of <c, f^2> / 2, of which the second derivatives are.
        scales = numbers.scales or tuple(np.ones(()) for _ in floats)
        cotangents = tuple(c * u * y for c, u, y in zip(at.cotangents, scales, floats, strict=True))
        return ran("vjp", replace(at, cotangents=cotangents))

    errors = []
    for step, weights in STENCILS:
        difference: dict[str, np.ndarray] = {}
        for times, weight in enumerate(weights, 1):
            far, near = below(times * step), below(-times * step)
            if far is None or near is None:
                return None
            for key, value in far.items():
                if value.dtype.kind == "f":
                    difference[key] = difference.get(key, 0.0) + weight * (value - near[key]) / step
        pair = _aligned(name, own, difference, numbers, along)
        if pair is None:
            return None
        got, want = pair
        size = float(np.sqrt(np.mean(want**2))) or float(np.sqrt(np.mean(got**2))) or 1.0
        errors.append(float(np.max(np.abs(got - want), initial=0.0)) / size)
    return min(errors) if np.all(np.isfinite(errors)) else None


def _aligned(
    name: str, own: dict[str, np.ndarray], difference: dict[str, np.ndarray], numbers: Numbers,
    along: tuple[np.ndarray, ...],
) -> tuple[np.ndarray, np.ndarray] | None:  # fmt: skip
    """Return a derivative along a direction, and what differences say of it."""
    if name == "vjp":
        if len(own) != len(along) or len(difference) != len(numbers.cotangents):
            return None
        total = sum(float(np.sum(g * d)) for g, d in zip(own.values(), along, strict=True))
        parts = [float(np.sum(c * d)) for c, d in zip(numbers.cotangents, difference.values(), strict=True)]
        # One number alone may be near zero: beside it stands what it is summed from.
        size = sum(float(np.sum(np.abs(g * d))) for g, d in zip(own.values(), along, strict=True))
        return np.array([total, size]), np.array([sum(parts), size])
    if name == "hessian":
        left = {key.split(" by ")[0]: None for key in own}
        if len(left) != len(along):
            return None
        rows = []
        for row in left:
            columns = [own[key] for key in own if key.startswith(f"{row} by ")]
            if len(columns) != len(along):
                return None
            rows.append(np.sum([np.tensordot(c, d, d.ndim) for c, d in zip(columns, along, strict=True)], 0))
        own = dict(zip(left, rows, strict=True))
    got, want = (np.concatenate([np.ravel(one) for one in several.values()]) for several in (own, difference))
    return (got, want) if got.shape == want.shape and got.size else None


def widened(runs: Runs, cell: Cell, framework: str) -> Widened | None:
    """Run in float64 the program that a framework's function has in a cell's dtype; None where that cannot be done."""
    numbers = runs.numbers_of(cell, framework)
    program = program_of(runs, cell, framework, numbers, cell.dtype) if isinstance(numbers, Numbers) else None
    if program is None:
        return None
    adding = [step for step in program.steps if step.name in SUMS and set(step.dtypes) & {"bfloat16", "float16"}]
    loops = [step for step in adding if isinstance(step.key, tuple) and len(step.key) > 1]
    whole = [step for step in adding if step.name not in ("add", "add_any", "add_")]
    many = adding if len(adding) >= MANY or loops or whole else []
    return Widened(program.outputs, tuple(dict.fromkeys(step.name for step in many)))


def program_of(runs: Runs, cell: Cell, framework: str, numbers: Numbers, dtype: str) -> Any:
    """Return the steps of a cell's program (a JaxProgram or TorchProgram), as it is when it is called with a dtype.

    None where it does not run step by step: then nothing is known of it.
    """
    from parity.explanation.programs.jax_program import JaxProgram
    from parity.explanation.programs.torch_program import TorchProgram

    transform, pair = runs.pair.transform(cell.transform), runs.pair
    try:
        if framework == "jax":
            return JaxProgram(pair.jax, numbers, transform=transform, dtype=dtype)
        return TorchProgram(pair.torch, numbers, transform=transform, dtype=dtype)
    except RAISED:
        return None
