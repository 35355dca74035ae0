"""Rules of optimizers that only one side has: bias corrections, AMSGrad, Nesterov's moment in Adam, dampening."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.optimizer_steps import STEPS, is_round, reaches_root
from parity.explanation.programs.program import (
    SUMS,
    Edit,
    Key,
    Operand,
    Operation,
    Program,
    Step,
    is_number,
    set_operand,
    set_result,
)  # fmt: skip
from parity.explanation.substitution import Bench, Change

DIVIDES = ("div", "true_divide", "div_")
NADAM_DECAY = 0.004
"""`momentum_decay` of torch.optim.NAdam."""

FIXES = {
    "bias": "Divide both moments by 1 - b^t on both sides, t counted from 1.",
    "eps": "Add eps to the corrected root, sqrt(v / (1 - b2^t)) + eps, as torch and optax do.",
    "max": "Pass amsgrad=True to torch.optim.Adam where optax.amsgrad is used, and nowhere else.",
    "nadam": "optax.nadam is optax.adam with nesterov=True; torch.optim.NAdam has a schedule of momenta beside it "
    "(momentum_decay), which optax has not.",
    "dampening": "torch.optim.SGD has dampening=0: the buffer is momentum * buffer + gradient, as in optax.trace.",
}


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield rules that are left out."""
    for framework in ("torch", "jax"):
        program = bench.programs[framework]
        yield from _dampening(bench, program)
        yield from _largest(program)
        yield from _corrections(program)
        yield from _eps_hat(program)
    yield from _nesterov(bench.programs["torch"])
    yield from _scheduled(bench.programs["torch"])


def _decays(program: Program) -> list[float]:
    """Return numbers that may be decay rates, those that stand in the program as such first: 1 - b^t gives b^t too."""
    values = {round(c.value, 12) for c in program.constants}
    made = {round(1 - value, 12) for value in values} - values
    return [v for several in (values, made) for v in sorted(several) if 0.5 <= v < 1]


def _corrections(program: Program) -> Iterator[Claim]:
    """Yield moments that are not divided by 1 - b^t: of one decay rate, of two."""
    found = {b: made for b in _decays(program) if (made := _uncorrected(program, b))}
    for several in itertools.chain.from_iterable(itertools.combinations(found, n) for n in (1, 2)):
        edits = {key: edit for b in several for key, edit in found[b].items()}
        yield Claim(
            Change(program.framework, edits),
            "optimizer: bias correction",
            f"a moment divided by 1 - b^t, of b = {' and '.join(f'{b:g}' for b in sorted(several))},",
            "it as it is",
            FIXES["bias"],
        )


def _uncorrected(program: Program, b: float) -> dict[Key, Edit]:
    edits: dict[Key, Edit] = {}
    by_key = {step.key: step for step in program.steps}
    for c in program.constants:
        name = by_key[c.step].name
        for t in range(1, STEPS + 1):
            now = 1 - b**t
            if name in DIVIDES and any(math.isclose(c.value, now**power, rel_tol=1e-9) for power in (1.0, 0.5)):
                edits[c.step] = set_operand((c.operand, 1.0))
    sizes = [c for c in program.constants if by_key[c.step].name.startswith("addcdiv")]
    rates = [c.value * (1 - b**t) for t, c in enumerate(sizes, 1)]
    if sizes and is_round(rates[0]) and all(math.isclose(rate, rates[0], rel_tol=1e-9) for rate in rates):
        edits |= {c.step: set_operand((c.operand, rates[0])) for c in sizes}
    for step in program.steps:  # counted at run time
        base = step.operands.get(0, step.operands.get("self"))
        if step.name == "pow" and is_number(base) and math.isclose(float(base), b, rel_tol=1e-6):
            edits[step.key] = set_result(np.zeros_like)
    return edits


def _eps_hat(program: Program) -> Iterator[Claim]:
    """Yield eps beside the root of a moment that is not corrected yet."""
    by_key = {step.key: step for step in program.steps}
    edits: dict[Key, Edit] = {}
    for c in program.constants:
        step = by_key[c.step]
        if step.name.rstrip("_") != "add" or not 0 < c.value < 0.1:
            continue
        for source in (by_key[key] for key in step.sources.values() if key in by_key):
            root = source
            if source.name == "sqrt":
                root = next((by_key[key] for key in source.sources.values() if key in by_key), source)
            divisor = next((float(v) for v in root.operands.values() if is_number(v)), 0.0)
            if root.name in DIVIDES and 0 < divisor < 1:
                corrected = math.sqrt(divisor) if source.name == "sqrt" else divisor
                edits[c.step] = set_operand((c.operand, c.value / corrected))
    if edits:
        yield Claim(
            Change(program.framework, edits), "default argument: eps", "eps added to the corrected root",
            "it added to the root before the correction", FIXES["eps"],
        )  # fmt: skip


def _largest(program: Program) -> Iterator[Claim]:
    """Yield second moments in the place of the largest so far."""
    found = [
        step for step in program.steps
        if step.name in ("maximum", "max") and step.result is not None
        and sum(isinstance(v, np.ndarray) and v.shape == step.result.shape for v in step.operands.values()) > 1
        and reaches_root(step.key, program.steps)
    ]  # fmt: skip
    for operand in ("other", "self") if program.framework == "torch" else (0, 1):
        if found:
            yield Claim(
                Change(program.framework, {step.key: partial(_taken, operand=operand) for step in found}),
                "optimizer: AMSGrad",
                f"the largest second moment so far ({found[0].name})",
                "the second moment itself",
                FIXES["max"],
            )


def _taken(operation: Operation, operand: Operand) -> Any:
    values = operation.operands[operand]
    out = operation.operands.get("out")
    return values if out is None else out.copy_(values)


def _nesterov(program: Program) -> Iterator[Claim]:
    """Yield NAdam in the place of torch's Adam: the moment one step ahead."""
    lerps = {
        step.key: step for step in program.steps if step.name == "lerp_" and is_number(step.operands.get("weight"))
    }
    steps = [step for step in program.steps if step.name == "addcdiv_"]
    if not lerps or len(lerps) != len(steps):
        return
    b = 1 - float(next(iter(lerps.values())).operands["weight"])
    gradients: list[Any] = []
    edits: dict[Key, Edit] = {}
    for number, key in enumerate(lerps):
        edits[key] = partial(_noted, into=gradients, first=not number)
    for t, step in enumerate(steps, 1):
        edits[step.key] = partial(_ahead, gradients=gradients, at=t - 1, b=b, ratio=(1 - b**t) / (1 - b ** (t + 1)))
    yield Claim(
        Change("torch", edits),
        "optimizer: NAdam",
        "Adam's moment",
        "Nesterov's, one step ahead (NAdam)",
        FIXES["nadam"],
    )


def _noted(operation: Operation, into: list[Any], first: bool) -> Any:
    if first:
        into.clear()
    into.append(operation.operands["end"].clone())
    return operation.compute(operation.operands)


def _ahead(operation: Operation, gradients: list[Any], at: int, b: float, ratio: float) -> Any:
    ahead = b * ratio * operation.operands["tensor1"] + (1 - b) * gradients[at]
    return operation.compute({**operation.operands, "tensor1": ahead})


def _scheduled(program: Program) -> Iterator[Claim]:
    """Yield Adam, and NAdam without a schedule of momenta, in the place of torch's NAdam."""
    weights = [
        float(s.operands["weight"]) for s in program.steps if s.name == "lerp_" and is_number(s.operands.get("weight"))
    ]
    found = [c for c in program.constants if c.name == "addcdiv_"]
    if not weights or len(found) != 2 * len(weights):
        return
    b, product, rates = 1 - weights[0], 1.0, []
    pairs = list(zip(found[::2], found[1::2], strict=True))
    for t, (one, _) in enumerate(pairs, 1):
        mu = b * (1 - 0.5 * 0.96 ** (t * NADAM_DECAY))
        product *= mu
        rates.append(one.value * (1 - product) / (1 - mu))
    if not all(is_round(rate) for rate in rates):
        return
    for needs, values in (
        ("Adam's moment, without Nesterov's step ahead", lambda t: (0.0, 1 / (1 - b**t))),
        ("one momentum in every step", lambda t: ((1 - b) / (1 - b**t), b / (1 - b ** (t + 1)))),
    ):
        edits = {
            c.step: set_operand((c.operand, rate * value))
            for t, (pair, rate) in enumerate(zip(pairs, rates, strict=True), 1)
            for c, value in zip(pair, values(t), strict=True)
        }
        yield Claim(
            Change("torch", edits), "optimizer: NAdam", "NAdam with its schedule of momenta", needs, FIXES["nadam"]
        )


def _dampening(bench: Bench, program: Program) -> Iterator[Claim]:
    """Yield gradients that are scaled before they go into the buffer of a momentum: a mean of Adam's always is."""
    if any("sqrt" in step.name for step in program.steps):
        return
    by_key = {step.key: step for step in program.steps}
    leaves = bench.numbers[0].theta
    found: dict[float, dict[Key, Edit]] = {}
    for step in program.steps:
        if step.name not in SUMS:
            continue
        alpha, other = step.operands.get("alpha", 1), step.operands.get("other")
        if alpha != 1 and _is_leaf(other, leaves) and _scaled(by_key.get(step.sources.get("self"))) is not None:
            found.setdefault(float(alpha), {})[step.key] = set_operand(("alpha", 1))
        made = [by_key[key] for key in step.sources.values()]
        products = [one for one in made if _scaled(one) is not None]
        for one in products if len(products) == 2 else ():
            values = next(v for v in one.operands.values() if isinstance(v, np.ndarray) and v.ndim)
            factor = _scaled(one)
            if _is_leaf(values, leaves) and factor is not None:
                found.setdefault(factor, {})[one.key] = _unscaled
    for factor, edits in found.items():
        if 0 < factor < 1:
            yield Claim(
                Change(program.framework, edits),
                "optimizer: dampening",
                f"dampening of {1 - factor:.6g}: the gradient goes into the momentum's buffer times {factor:.6g},",
                "it whole",
                FIXES["dampening"],
            )


def _is_leaf(values: Any, leaves: Any) -> bool:
    return isinstance(values, np.ndarray) and any(np.array_equal(values, leaf) for leaf in leaves)


def _scaled(step: Step | None) -> float | None:
    """Return what a product multiplies an array by, or None."""
    if step is None or step.name not in ("mul", "mul_"):
        return None
    arrays = [v for v in step.operands.values() if isinstance(v, np.ndarray) and v.ndim]
    numbers = [float(v) for v in step.operands.values() if is_number(v)]
    return numbers[0] if len(arrays) == 1 and len(numbers) == 1 else None


def _unscaled(operation: Operation) -> Any:
    return next(v for v in operation.operands.values() if getattr(v, "ndim", 0))
