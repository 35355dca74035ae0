"""Where a number comes from that one side alone has: a step that makes NaN or infinity, or is not SciPy's function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from parity.execution.calls import Numbers, Outputs
from parity.execution.outputs import EAGER, OTHER, Runs
from parity.explanation.programs.program import Edit, Key, Operation, Program, Step, first_of, with_first
from parity.explanation.substitution import SHRINK, distance
from parity.explanation.trials import program_of
from parity.records import WHO, Cell, Diagnosis

FINE = 1e-13
"""How far float64 functions of SciPy may be from right ones, relative."""


TRIED = 8
"""Steps that are tried alone."""


def made_by(runs: Runs, cell: Cell, framework: str, nan: bool) -> str:
    """Return in words which step of a framework's program makes NaN, or infinity, of other numbers; or nothing.

    It is said that the two agree with zero in its place, where they do.
    """
    numbers = runs.numbers_of(cell, framework)
    if not isinstance(numbers, Numbers):
        return ""
    program = program_of(runs, cell, framework, numbers, "float64")
    if program is None:
        return ""
    by_key: Mapping[Key, Step] = {step.key: step for step in program.steps}
    # A call is a step as well: what is inside of it says more.
    calls = {step.key[:n] for step in program.steps if isinstance(step.key, tuple) for n in range(len(step.key))}
    making = [
        step for step in program.steps if step.key not in calls and _new(step.result, step.operands.values(), nan).any()
    ]
    other = runs.rerun(replace(cell, world=EAGER[OTHER[framework]]), "float64", numbers)
    if not making or not isinstance(other, Outputs):
        return ""
    groups = [[step] for step in making[:TRIED]]
    groups += [[step for step in making if step.name == name] for name in dict.fromkeys(s.name for s in making)]
    groups.append(making)
    for group in groups:
        found = program.run(numbers, {step.key: partial(_zeroed, nan=nan) for step in group})
        if found is not None and distance(found, other.values) <= 1e-9:
            return f"{_words(group[0], by_key, nan)}; with 0 there the two agree"
    return _words(making[0], by_key, nan)


LIMITS = (
    "clamp", "clamp_min", "clamp_max", "clip", "nan_to_num", "minimum", "maximum", "fmin", "fmax", "min", "max",
    "hardtanh", "where", "select_n", "masked_fill",
)  # fmt: skip
"""Operators that are there to stop a NaN or an infinity."""


def stopped_by(runs: Runs, cell: Cell, framework: str, nan: bool) -> str:
    """Return in words which step of a framework's program makes a number of NaN, or infinity; or nothing.

    It is said only where the two agree once that step hands on what it is given.
    """
    numbers = runs.numbers_of(cell, framework)
    world = EAGER[OTHER[framework]]
    other = runs.rerun(replace(cell, world=world), "float64", numbers) if isinstance(numbers, Numbers) else None
    if not isinstance(numbers, Numbers) or not isinstance(other, Outputs):
        return ""
    program = program_of(runs, cell, framework, numbers, "float64")
    test = np.isnan if nan else np.isinf
    for step in program.steps if program is not None else ():
        # A tanh makes 1 of infinity in both programs, and a zeros_like of anything.
        for operand, value in step.operands.items() if step.name.rstrip("_") in LIMITS else ():
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or step.result is None:
                continue
            at = test(value) & np.isfinite(step.result) if value.shape == step.result.shape else np.zeros(1, bool)
            if not at.any() or step.result.dtype.kind != "f":
                continue
            found = program.run(numbers, {step.key: partial(_handed_on, operand=operand, test=test)})
            if found is not None and distance(found, other.values) <= 1e-9:
                first = tuple(np.argwhere(at)[0])
                made = f"{step.name.rstrip('_')} makes {step.result[first]:.4g} of {value[first]:.4g}"
                return f"{made} in {WHO[framework]}; where it hands that on, the two agree"
    return ""


def _handed_on(operation: Operation, operand: Any, test: Any) -> Any:
    result = operation.compute(operation.operands)
    given, values = (operation.numpy(one) for one in (operation.operands[operand], first_of(result)))
    return with_first(result, operation.like(np.where(test(given), given, values), first_of(result)))


def _new(result: Any, operands: Iterable[Any], nan: bool) -> np.ndarray:
    """Return where a step makes NaN (or infinity) of numbers that are none."""
    if not isinstance(result, np.ndarray) or result.dtype.kind != "f":
        return np.zeros(1, bool)
    test = np.isnan if nan else np.isinf
    made = test(result)
    for one in operands if made.any() else ():
        if isinstance(one, np.ndarray) and one.dtype.kind == "f":
            made = made & ~(test(one) if _fits(one.shape, result.shape) else test(one).any())
    return made


def _zeroed(operation: Operation, nan: bool) -> Any:
    result = operation.compute(operation.operands)
    values = operation.numpy(first_of(result))
    given = [operation.numpy(v) for v in operation.operands.values() if hasattr(v, "shape")]
    new = _new(values, given, nan)
    return with_first(result, operation.like(np.where(new, 0.0, values), first_of(result)))


def _words(step: Step, by_key: Mapping[Key, Step], nan: bool) -> str:
    result = np.asarray(step.result)
    at = tuple(int(i) for i in np.argwhere(_new(result, step.operands.values(), nan))[0])
    given: list[str] = []
    infinite = ""
    for operand, value in step.operands.items():
        array = np.asarray(value) if isinstance(value, np.ndarray | float | int) else np.zeros(0)
        if array.dtype.kind not in "fiu" or not _fits(array.shape, result.shape):
            continue
        number = float(np.broadcast_to(array, result.shape)[at])
        given.append(f"{number:.4g}")
        source = by_key.get(step.sources.get(operand))
        infinite = infinite or (_source(source, by_key) if source is not None and np.isinf(number) else "")
    name = step.name.rstrip("_")
    sign = {"mul": " * ", "div": " / ", "true_divide": " / ", "sub": " - "}.get(name)
    if sign and len(given) == 2:
        return f"{sign.join(given)} ({name}{infinite})"
    if not given:
        return f"made by {name}"
    return f"{name}({', '.join(given)}){infinite.replace(', whose', ', the')}"


def _fits(shape: tuple[int, ...], result: tuple[int, ...]) -> bool:
    return len(shape) <= len(result) and all(n in (1, m) for n, m in zip(shape[::-1], result[::-1], strict=False))


def _source(step: Step, by_key: Mapping[Key, Step]) -> str:
    """Return the step that made an infinity, which others may have handed on."""
    while not _new(step.result, step.operands.values(), False).any():
        above = [by_key[key] for key in step.sources.values() if np.isinf(np.asarray(by_key[key].result)).any()]
        if not above:
            return ""
        step = above[0]
    return f", whose infinity is of {step.name}"


EXACT = {
    "digamma": "psi",
    "lgamma": "gammaln",
    "polygamma": "polygamma",
    **dict.fromkeys(("special_zeta", "zeta"), "zeta"),
    **dict.fromkeys(("erfinv", "erf_inv"), "erfinv"),
    "i0": "i0",
    **dict.fromkeys(("special_i0e", "bessel_i0e"), "i0e"),
    "special_i1": "i1",
    **dict.fromkeys(("special_i1e", "bessel_i1e"), "i1e"),
}
"""Operators, and the functions of SciPy, which JAX brings along, that they are held to."""


def _has_special(runs: Runs, cell: Cell, framework: str) -> bool:
    reading = runs.reading(cell, framework, "float64")
    return reading is not None and any(
        name.partition(" in ")[0] in EXACT for names in reading.types.values() for name in names
    )


def inexact(runs: Runs, cell: Cell) -> Diagnosis | None:
    """Return whose special functions are not SciPy's, if the two agree once they are; else None."""
    programs: dict[str, tuple[Program, Any]] = {}
    if not any(_has_special(runs, cell, framework) for framework in EAGER):
        return None
    for framework in EAGER:
        numbers = runs.numbers_of(cell, framework)
        program = program_of(runs, cell, framework, numbers, "float64") if isinstance(numbers, Numbers) else None
        if program is None:
            return None
        programs[framework] = program, numbers
    edits = {name: dict(_edits(program)) for name, (program, _) in programs.items()}
    if not any(edits.values()):
        return None
    plain = {name: program.run(numbers, {}) for name, (program, numbers) in programs.items()}
    mended = {name: program.run(numbers, edits[name]) for name, (program, numbers) in programs.items()}
    before, after = _apart(plain), _apart(mended)
    if not after <= min(before / SHRINK, 1e-11):
        return None
    alone = {
        name for name in edits if edits[name] and _apart({**plain, name: mended[name]}) <= min(before / SHRINK, 1e-11)
    }
    who = [name for name in edits if edits[name] and (not alone or name in alone)][: 1 if alone else 2]
    names = sorted({step.name for name in who for step in programs[name][0].steps if step.key in edits[name]})
    whose = " and ".join(WHO[name] for name in who)
    by = f"by {before:.1g} of the size of the result" if before < 1e-3 else "at a pole or an edge"
    return Diagnosis(
        "special function",
        f"{whose} computes {', '.join(names)} otherwise than SciPy, {by}; with SciPy's numbers in their place "
        "the two agree.",
        "Nothing to mend in the port: list the cells as known, or write the function out on that side.",
    )


def _edits(program: Program) -> Iterator[tuple[Key, Edit]]:
    from scipy import special

    for step in program.steps:
        if step.name not in EXACT or step.result is None:
            continue
        function = getattr(special, EXACT[step.name])
        arrays = [v for v in step.operands.values() if isinstance(v, np.ndarray | int | float) and v is not None]
        with np.errstate(all="ignore"):
            want = np.asarray(function(*arrays))
        if want.shape == step.result.shape and not np.allclose(
            step.result, want, rtol=FINE, atol=1e-300, equal_nan=True
        ):
            yield step.key, partial(_replaced, function=function)


def _replaced(operation: Operation, function: Callable[..., Any]) -> Any:
    result = operation.compute(operation.operands)
    given = [operation.numpy(v) if hasattr(v, "shape") else v for v in operation.operands.values() if v is not None]
    with np.errstate(all="ignore"):
        return operation.like(np.asarray(function(*given)), result)


def _apart(outputs: Mapping[str, dict[str, np.ndarray] | None]) -> float:
    got, want = outputs["jax"], outputs["torch"]
    return np.inf if got is None or want is None else distance(got, want)
