"""The search for a proved cause: a difference of the two programs, and the proof that it is the only one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from parity.execution.calls import Numbers
from parity.explanation import (
    arrangement,
    brought_along,
    constants,
    conventions,
    inputs,
    lacking,
    losses,
    moving,
    operators,
    optimizer_rules,
    optimizer_steps,
    order,
    selections,
    wiring,
)
from parity.explanation.claims import Claim
from parity.explanation.constants import Replacement, related, written
from parity.explanation.default_arguments import DDOF_FIX, factor, factor_of
from parity.explanation.programs.program import ATTENTION_SCALE, PASSES, ROPE_BASE, Step
from parity.explanation.substitution import Bench, bench, lower, other
from parity.explanation.windows import WINDOW
from parity.records import WHO, Diagnosis

NOTHING = 1e-12
"""Two float64 programs that differ by less have nothing to explain here."""


def prove(
    torch_function: Callable[..., Any],
    jax_function: Callable[..., Any],
    numbers: Numbers,
    *,
    also: Sequence[Numbers] = (),
    stages: Sequence[Callable[[Bench], Diagnosis | None]] = (),
) -> Diagnosis | None:
    """Return a cause that explains the whole difference of two functions on some numbers, or None.

    Args:
        torch_function: Of torch tensors.
        jax_function: Of JAX arrays.
        numbers: What both are called with.
        also: Numbers on which the two agree: a cause leaves that as it is.
        stages: Where causes are looked for; none for all.
    """
    with np.errstate(all="ignore"):
        at = bench(torch_function, jax_function, numbers, also=also)
        if at is None:
            return None
        if at.difference() <= NOTHING:
            at.each = True
        low = lower_type(at)
        if low is not None or at.difference() <= NOTHING:
            return low
        if stages:
            return search(at, stages)
        names = {"torch": brought_along.names_of(torch_function), "jax": brought_along.names_of(jax_function)}
        return search(at, (*STAGES, lambda at: _first(brought_along.claims(at, names), at)))


def search(at: Bench, stages: Iterable[Callable[[Bench], Diagnosis | None]]) -> Diagnosis | None:
    """Return what the first stage finds that finds something, or None."""
    for stage in stages:
        found = stage(at)
        if found is not None:
            return found
        if at.late:
            return None
    return None


def lower_type(at: Bench) -> Diagnosis | None:
    """Return that the two agree once both compute in float64 throughout: one of them passes through a lower type."""
    import jax  # not on import: parity says in words what is not installed

    if at.difference() > at.agreement:
        return None
    low = {name: sorted({t for step in program.steps for t in lower(step)}) for name, program in at.programs.items()}
    who = [name for name, types in low.items() if types]
    if len(who) != 1:
        return None
    (name,), types = who, low[who[0]]
    steps = [step for step in at.programs[name].steps if lower(step)]
    where = ", ".join(dict.fromkeys(step.name for step in steps[:3]))
    # With x64 on, as after a cast, the user chose the type.
    x64 = (
        name == "jax"
        and types == ["float32"]
        and jax.dtypes.canonicalize_dtype(np.float64) != np.float64
        and not any(map(_casts, steps))
    )
    return Diagnosis(
        "x64 off" if x64 else "lower precision",
        f"{WHO[name]} computes in {' and '.join(types)} where float64 was asked for ({where}); {WHO[other(name)]} does "
        "not. Computed in float64 throughout, the two agree.",
        "Look for casts, and for constants of that type"
        + ("; set jax_enable_x64 before arrays are made." if x64 else "."),
    )


def _casts(step: Step) -> bool:
    """Return whether a step of JAX rounds float64 to a lower type."""
    return step.name == "convert_element_type" and step.dtypes[:1] == ("float64",)


def _replaced(at: Bench) -> Diagnosis | None:
    return _best(constants.replacements(at), at)


def _solved(at: Bench) -> Diagnosis | None:
    return _best(constants.solved(at), at)


def _linked(at: Bench) -> Diagnosis | None:
    return _best(itertools.chain(constants.aligned(at), constants.linked(at)), at)


def _factor(at: Bench) -> Diagnosis | None:
    """One output is a number times the other's, on all the numbers that were tried: a fact, whatever its reason."""
    pairs = [(a[name], b[name]) for a, b in zip(at.outputs["jax"], at.outputs["torch"], strict=True) for name in a]
    if not all(a.shape == b.shape and a.dtype.kind == b.dtype.kind and a.dtype.kind in "fc" for a, b in pairs):
        return None
    differing = [
        name
        for name in at.outputs["jax"][0]
        if any(
            not np.allclose(a[name], b[name], rtol=1e-9, atol=1e-12)
            for a, b in zip(at.outputs["jax"], at.outputs["torch"], strict=True)
        )
    ]
    if len(differing) != 1:
        return None
    got, want = (np.concatenate([one[differing[0]].ravel() for one in at.outputs[name]]) for name in ("jax", "torch"))
    shapes = [leaf.shape for leaf in at.numbers[0].theta]
    found = factor(got, want, shapes, constants.reduced(at), differing[0], "JAX", arguments=_arguments(at))
    if found is not None and found.cause == "constant factor":
        return _first(conventions.claims(at), at) or _with_constant(found, at)
    if found is not None and found.cause == "default argument: reduction":
        found = _first(conventions.averages(at), at) or found
    return None if found is None else _with_constant(found, at)


def _with_constant(found: Diagnosis, at: Bench) -> Diagnosis:
    """Return what a factor tells, with the constant that makes it."""
    constant = _replaced(at)
    if constant is None:
        return found
    return replace(found, text=f"{found.text} {constant.text}", fix=constant.fix)


OPERATORS = {"norm": ("fft",), "base": ("log",), "reduction": ("sum", "mean", "loss", "pool", "norm", "dot", "mm")}
"""Parts of the names of operators that take an argument."""


def _arguments(at: Bench) -> set[str]:
    """Return the arguments that a factor may come from: an operator of one of the programs has them."""
    names = {step.name for one in at.programs.values() for step in one.steps}
    found = {argument for argument, parts in OPERATORS.items() if any(part in name for part in parts for name in names)}
    return found | {"ddof"} if _has_variance(at) else found


def _has_variance(at: Bench) -> bool:
    """Return whether a program divides by a length less one, or has a variance."""
    divisors = {c.value for one in at.programs.values() for c in one.constants if c.name in ("div", "true_divide")}
    names = {step.name.strip("_") for one in at.programs.values() for step in one.steps}
    variances = {"var", "std", "var_mean", "std_mean", "native_batch_norm"}
    lengths = constants.sizes(at)
    return bool(names & variances) or any(n - 1 in divisors for n in lengths if n - 1 not in lengths) or _squares(at)


def _squares(at: Bench) -> bool:
    """Return whether a program squares, as a variance does that is written out."""
    return any(step.name in ("square", "integer_pow", "pow") for one in at.programs.values() for step in one.steps)


def _stepped(at: Bench) -> Diagnosis | None:
    """An optimizer's step, the output less the parameter, is a number times the other's; or it is Nesterov's alone."""
    outputs = [at.outputs[name] for name in ("jax", "torch")]
    (name, *more), theta = at.outputs["jax"][0], at.numbers[0].theta
    # A step takes a parameter and a gradient at least.
    for index, leaf in enumerate(theta) if not more and len(theta) > 1 else ():
        if all(one[0][name].shape == leaf.shape and one[0][name].dtype.kind == "f" for one in outputs):
            got, want = (
                np.concatenate([(a[name] - n.theta[index]).ravel() for a, n in zip(one, at.numbers, strict=True)])
                for one in outputs
            )
            times = factor_of(got, want) if got.size > MANY else None
            if times is not None:
                what = at.numbers[0].names[index] or "the input"
                named = _best((one for one in constants.replacements(at) if one.from_other), at)
                return (
                    named
                    or _first(itertools.chain(optimizer_rules.claims(at), optimizer_steps.rates(at)), at)
                    or Diagnosis(
                        "constant factor",
                        f"{name} less {what} is in JAX {times:.6g} times torch's everywhere, on other numbers as well.",
                        "Compare the learning rates, and the scale of what is added.",
                    )
                )
    return _first(itertools.chain(optimizer_steps.nesterov(at), optimizer_rules.claims(at)), at)


MANY = 4
"""Numbers that have one ratio by no chance."""


def _rates(at: Bench) -> Diagnosis | None:
    return _first(itertools.chain(optimizer_steps.smoothing(at), optimizer_steps.rates(at)), at)


def _conjugates(at: Bench) -> Diagnosis | None:
    return _first(operators.conjugates(at), at)


def _conventions(at: Bench) -> Diagnosis | None:
    return _first(conventions.claims(at), at)


def _joined(at: Bench) -> Diagnosis | None:
    return _first(operators.joined(at), at)


def _operators(at: Bench) -> Diagnosis | None:
    return _first(operators.claims(at), at)


def _ordered(at: Bench) -> Diagnosis | None:
    return _first(itertools.chain(losses.claims(at), order.claims(at)), at)


def _moved(at: Bench) -> Diagnosis | None:
    return _first(moving.claims(at), at)


def _streams(at: Bench) -> Diagnosis | None:
    return _first(wiring.streams(at), at)


def _wired(at: Bench) -> Diagnosis | None:
    return _first(wiring.claims(at), at)


def _exchanged(at: Bench) -> Diagnosis | None:
    return _first(inputs.exchanged(at), at)


def _arrangements(at: Bench) -> Diagnosis | None:
    return _first(arrangement.claims(at), at)


def _arranged_steps(at: Bench) -> Diagnosis | None:
    return _first(arrangement.steps(at), at)


def selected(at: Bench) -> Diagnosis | None:
    """Return that one side chooses by a threshold, and the other does not."""
    return _first(selections.claims(at), at)


def _left_out(at: Bench) -> Diagnosis | None:
    return _first(lacking.claims(at), at)


def _channels(at: Bench) -> Diagnosis | None:
    """Return that one output has another factor for each index of one axis, on all the numbers that were tried."""
    (name, *more), torch = at.outputs["jax"][0], at.outputs["torch"]
    shape = torch[0][name].shape
    if more or torch[0][name].dtype.kind != "f" or not len(shape) > 1:
        return None
    for axis in range(len(shape)) if min(shape) > 1 else ():
        got, want = (
            np.concatenate([np.moveaxis(one[name], axis, 0).reshape(shape[axis], -1) for one in several], 1)
            for several in (at.outputs["jax"], torch)
        )
        factors = (got * want).sum(1) / (want * want).sum(1)
        apart = np.abs(got - factors[:, None] * want).max(1) / np.abs(got).max(1)
        if np.all(apart < at.agreement) and np.ptp(factors) > 1e-6 * np.abs(factors).max():
            scaled = [index for index, one in enumerate(factors) if abs(one - 1) > 1e-6]
            told = [f"{factors[i]:.6g}" + (f" at {i}" if len(scaled) < len(factors) else "") for i in scaled]
            shown = ", ".join(told[:FEW]) + (", ..." if len(told) > FEW else "")
            return Diagnosis(
                "constant factor: by channel",
                f"{name} in JAX is torch's times a number for each index of axis {axis} ({shown}), on other numbers as "
                "well.",
                "Look for what scales each channel, filter or class on one side: norm='slaney' of mel filters, weights "
                "of classes, a gain.",
            )
    return None


FEW = 3
"""Numbers that are shown of many."""

STAGES: tuple[Callable[[Bench], Diagnosis | None], ...] = (
    _factor,
    _stepped,
    _replaced,
    _rates,
    optimizer_steps.decay,
    _conjugates,
    _conventions,
    _joined,
    _ordered,
    _operators,
    inputs.unused,
    _solved,
    _exchanged,
    _moved,
    _streams,
    _arrangements,
    _linked,
    _arranged_steps,
    selected,
    _left_out,
    _wired,
    _channels,
)
"""Where causes are looked for: what stands in a program first, what fits any difference of a kind last."""

FORMULAS, IN_ORDER = (_conventions, _operators), (_ordered, _moved, _streams)
IN_PLACE = (_replaced, *FORMULAS)
"""Stages of a number or an operator in the place of another, of operators alone, and of another order or place."""


def _first(claims: Iterable[Claim], at: Bench) -> Diagnosis | None:
    for claim in claims:
        if at.late:
            return None
        if at.proves(claim.change):
            return claim.diagnosis()
    return None


def _best(found: Iterator[Replacement], at: Bench) -> Diagnosis | None:
    """Return the replacement that says most: one that has a role, of JAX before torch."""
    several = list(islice(found, 4))
    if not several:
        return None
    best = max(several, key=lambda r: (bool(_role(r, at)), r.from_other, r.framework == "jax", -len(r.constants)))
    return _diagnosis(best, at)


def _role(replacement: Replacement, at: Bench) -> str:
    """Return what replaced constants are for, by their operator, else by the program that tells."""
    if named := next((OF_OPERATOR[c.name] for c in replacement.constants if c.name in OF_OPERATOR), ""):
        return named
    roles = [c.role for c in replacement.constants if c.role in ROLES]
    values = {constants.round_key(value) for value in replacement.values} - {0.0, 1.0}  # these stand for anything
    theirs = [
        c.role
        for c in at.programs[other(replacement.framework)].constants
        if constants.round_key(c.value) in values and c.role not in PLACES
    ]
    found = next((role for role in (*roles, *theirs) if role), "")
    small = all(abs(v) < 1e-2 for v in (*replacement.values, *(c.value for c in replacement.constants)))
    return "" if found == "eps" and not small else found


PLACES = ("ord", "start", "end", "step")
"""Arguments whose numbers are of a kind of their own: an equal number elsewhere is not called by them."""

MASKED = 1e15
"""Numbers as large, infinity with them, stand for what is masked; any that is selected does."""

SELECTS = ("where", "_where", "select_n", "masked_fill", "masked_fill_")

ROLES = (
    "eps",
    "momentum",
    "negative_slope",
    "alpha",
    "correction",
    "beta",
    "threshold",
    "lambd",
    "diagonal",
    "exponent",
    ROPE_BASE,
    ATTENTION_SCALE,
)
"""Arguments that constants are called by; others are plain constants."""

OF_OPERATOR = {"leaky_relu": "negative_slope", "elu": "alpha", "celu": "alpha"}
"""Operators with one number, whatever other number of the program has its value."""

ARGUMENTS = {"correction": "ddof", "input_scale": "scale", "lambd": "threshold"}

FIXES = {
    "eps": "Pass the same eps to both ({mine} in {who} now, {theirs} in {whose}); layer norm has 1e-05 in torch, "
    "1e-06 in Flax.",
    "ddof": DDOF_FIX,
    "momentum": "Pass the same momentum ({mine} in {who} now, {theirs} in {whose}): torch's 0.1 is Flax's 0.9.",
    ROPE_BASE: "Use one base (rope_theta) on both sides: {mine} in {who} now, {theirs} in {whose}.",
    ATTENTION_SCALE: "Scale the scores alike, by 1/sqrt(channels of a head): {mine} in {who} now, {theirs} in {whose}.",
    "diagonal": "Cut masks at one diagonal ({mine} in {who} now, {theirs} in {whose}): with a cache it is the count "
    "of keys less that of queries.",
    "mask": "Mask with one number ({mine} in {who} now, {theirs} in {whose}), and say what an all-masked row gives.",
    "reduction": "Say on both sides whether it is the sum or the mean (reduction=, or sum and mean).",
}


def _diagnosis(replacement: Replacement, at: Bench) -> Diagnosis:
    role = _role(replacement, at)
    name = ARGUMENTS.get(role, role)
    if role == "beta" and set(replacement.values) == {0.0}:
        return Diagnosis(
            "another formula: bias",
            f"{WHO[replacement.framework]} adds a bias that {WHO[other(replacement.framework)]} does not "
            "add; without it the two agree.",
            "Add the bias on both sides, or on neither (bias=False).",
        )
    pairs = list(dict.fromkeys(zip((c.value for c in replacement.constants), replacement.values, strict=True)))
    masked = any(abs(value) >= MASKED for pair in pairs for value in pair)
    if masked or any(c.name in SELECTS for c in replacement.constants):
        name = "mask"
    elif not name:
        names = [c.name for c in replacement.constants]
        name = _named_by_size(
            pairs, at, adds=any(one.startswith("add") for one in names), divides=set(names) <= {"div", "true_divide"},
            multiplies="mul" in names, solved=not replacement.from_other, reduces=_reduces(replacement, at),
        )  # fmt: skip
    pairs = [(a, b) for a, b in pairs if a != b] or pairs
    who, whose = WHO[replacement.framework], WHO[other(replacement.framework)]
    mine = " and ".join(written(value) for value, _ in pairs)
    # Beside the root of a length stands the length; 2 and 4 alone are no root.
    plain = name != ATTENTION_SCALE
    theirs = " and ".join(written(b) if plain and len(written(b)) < 4 else related(a, b) for a, b in pairs)
    where = " and ".join(dict.fromkeys(c.name for c in replacement.constants))
    has = "none" if theirs == "0" and name == "eps" else theirs
    count = "" if len(replacement.constants) == len(pairs) else f", {len(replacement.constants)} times"
    what = name if name and where == "scalar_tensor" else f"{name} of {where}" if name and name != where else where
    text = f"{mine} in {who} where {whose} has {has} ({what}{count}); with it replaced the two agree."
    tapers = name in ("", "ddof") and _tapers(replacement, pairs, at)
    if (name == "ddof" or tapers) and len(pairs) == 1 and abs(pairs[0][0] - pairs[0][1]) == 1 and min(pairs[0]) > 1:
        text = _divisors(*pairs[0], who, whose, where)
    fix = FIXES.get(name, "Use one value on both sides: {mine} in {who} now, {theirs} in {whose}.")
    if tapers:
        return Diagnosis("another formula: window", text.replace(f"({what}", f"(window of {where}"), WINDOW)
    cause = "constant" if not name or name == "exponent" else "mask" if name == "mask" else f"default argument: {name}"
    if name in (ROPE_BASE, ATTENTION_SCALE):
        cause = f"constant: {name}"
    if cause == "constant" and not replacement.from_other and all(value in (0.0, 1.0) for value in replacement.values):
        cause = "another formula"  # the other has no such term, rather than another number in it
    there = {(written(one.value), one.name.rstrip("_")) for one in at.programs[other(replacement.framework)].constants}
    same = {(written(one.value), one.name.rstrip("_")) for one in replacement.constants} <= there
    if cause == "constant" and not replacement.from_other and same:
        text = (
            f"With {theirs} in the place of {mine} in {who} ({what}{count}) the two agree. {whose} has {mine} as "
            "well: the steps may be in another order."
        )
        return Diagnosis(cause, text, "Write the steps in one order on both sides, with one value.")
    return Diagnosis(cause, text, fix.format(mine=mine, theirs=theirs, who=who, whose=whose))


def _tapers(replacement: Replacement, pairs: list[tuple[float, float]], at: Bench) -> bool:
    """Return whether a number goes into a cosine, and is n where the other is n - 1: windows are periodic or not."""
    steps = at.programs[replacement.framework].steps
    reached = {c.step for c in replacement.constants}
    for step in steps:
        if reached & set(step.sources.values()):
            reached.add(step.key)
    if not any(step.name == "cos" and step.key in reached for step in steps):
        return False
    ratios = [n / (n - 1) for n in constants.sizes(at) if n > 2]
    return all(a * b > 0 and any(abs(max(a, b) / min(a, b) - ratio) < 1e-9 for ratio in ratios) for a, b in pairs)


def _divisors(mine: float, theirs: float, who: str, whose: str, where: str) -> str:
    """Return what it says that one side has a length where the other has one more or less.

    Example:
        >>> _divisors(6, 7, "JAX", "torch", "sub")  # 6 - 1
        'JAX divides by n - 1 where torch divides by n, with n = 6 (sub); with it replaced the two agree.'
    """
    n = mine if where == "sub" else max(mine, theirs)
    has, needs = ("n - 1", "n") if mine < theirs else ("n", "n - 1")
    return (
        f"{who} divides by {has} where {whose} divides by {needs}, with n = {written(n)} ({where}); with it replaced "
        "the two agree."
    )


def _reduces(replacement: Replacement, at: Bench) -> bool:
    """Return whether what a number scales was summed."""
    by_key = {step.key: step for step in at.programs[replacement.framework].steps}
    reached = [by_key[c.step] for c in replacement.constants]
    for _ in range(4):
        if any(part in step.name for step in reached for part in OPERATORS["reduction"]):
            return True
        reached = [by_key[key] for step in reached for key in step.sources.values() if step.name in (*PASSES, "div")]
    return False


def _named_by_size(
    pairs: list[tuple[float, float]], at: Bench, *, adds: bool, divides: bool, multiplies: bool, solved: bool,
    reduces: bool,
) -> str:  # fmt: skip
    """Return what a ratio of lengths says: a division by n - 1, or a sum in the place of a mean."""
    sizes = constants.reduced(at)
    if len(pairs) > 2:
        return ""  # frequencies, say
    for mine, theirs in pairs:
        if "log(" in written(mine) + written(theirs):
            continue  # of a base: the logarithms of 1000 and 10000 have the ratio of 3 and 4
        if mine in sizes and theirs in (mine - 1, mine + 1) and mine > 2 and not multiplies:
            return "ddof"
        if divides and theirs in sizes and mine == theirs - 1 > 1:
            return "ddof"
        if reduces and {mine, theirs} <= sizes | {1.0} and 1.0 in (mine, theirs):
            return "reduction"
        # Terms that are added divide nothing: a K - 1 in label smoothing counts the other classes.
        odd = not adds and (solved or len(written(theirs)) > 6 or len(written(mine)) > 6)
        ratios = [n / (n - 1) for n in sizes if n > 2]  # twice is many things
        if (
            mine
            and theirs
            and odd
            and any(abs(mine / theirs - r) < 1e-9 or abs(theirs / mine - r) < 1e-9 for r in ratios)
        ):
            return "ddof"
    return ""
