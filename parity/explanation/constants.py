"""Constants: a number on one side where the other side has another number, or none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from parity.explanation.programs.program import Constant, set_operand
from parity.explanation.substitution import ROUNDING, SHRINK, Bench, Change, distance, other

STEP = 1e-3
"""How far a constant is moved to see what it does, relative to it."""

TURNS = 8
"""Of Newton's iteration for the value at which the two agree."""

SELECTS = ("where", "_where", "masked_fill", "masked_fill_", "select_n")
"""Operators that fill in a number."""

COMMON = (0.0, 1.0, -1.0, 0.5, 2.0)
"""Numbers that stand in a program several times by chance."""

COUNTS = ("diagonal", "correction", "ddof")
"""Roles of integers in operators of floats."""

NOTHING = {"mul": 1.0, "div": 1.0, **dict.fromkeys(SELECTS, 0.0)}
"""What a factor is that one side leaves out, and what is filled in where a side multiplies by its mask.

Newton's iteration may not get there: a full softmax is flat.
"""

FEW = 4
"""Numbers of one side that are replaced at once by as many of the other's."""

HELD = 1e-4
"""How near a solved value must be to a number that people write; that number is then proved itself."""


@dataclass(frozen=True)
class Replacement:
    """Constants of one side, the values at which the two agree, and where those come from.

    Attributes:
        framework: Whose constants they are.
        constants: They.
        values: What they are replaced by.
        from_other: Whether the value stands in the other's program, and has no counterpart there.
    """

    framework: str
    constants: tuple[Constant, ...]
    values: tuple[float, ...]
    from_other: bool

    @property
    def change(self) -> Change:
        """The change of the program."""
        edits: dict = {}
        for constant, value in zip(self.constants, self.values, strict=True):
            edits.setdefault(constant.step, []).append((constant.operand, _typed(constant, value)))
        return Change(self.framework, {step: set_operand(*changes) for step, changes in edits.items()})


def replacements(bench: Bench) -> Iterator[Replacement]:
    """Yield what is proved: values of the other program first, then values solved for."""
    sides = [_without_counterpart(bench, name) for name in ("jax", "torch")]
    for mine, theirs in (sides, sides[::-1]):
        for group in _groups(mine.constants):
            fills = group[0].name in SELECTS
            # What stands for infinity moves nothing, until it is another number altogether.
            if not _near(bench, mine.framework, group) or (not fills and _idle(bench, mine.framework, group)):
                continue
            whole = _is_whole(bench, mine.framework, group)
            nothing = [NOTHING[group[0].name]] if group[0].name in NOTHING else []  # the other may leave it out
            there = bench.programs[other(mine.framework)].constants
            nothing += [c.value for c in there if c.name in SELECTS] if fills else []
            for value in dict.fromkeys((*theirs.values, *nothing, *_logarithms(bench, theirs.framework))):
                # What stands among integers, such as the length that a negative index is counted from, is none.
                counted = value in theirs.whole and value not in nothing and group[0].role not in COUNTS
                fits = not value % 1 if whole else not counted
                if value != group[0].value and not bench.late and fits:
                    found = Replacement(mine.framework, group, (value,) * len(group), value in theirs.values)
                    if bench.proves(found.change):
                        yield found


def _logarithms(bench: Bench, framework: str) -> Iterator[float]:
    """Yield the logarithms of numbers that a program makes, as of a base: the other may have them as numbers."""
    for step in bench.programs[framework].steps:
        value = step.result
        if step.name == "log" and value is not None and value.shape == () and value.dtype.kind == "f":
            yield from (float(value), -float(value))


@dataclass(frozen=True)
class _Side:
    framework: str
    constants: list[Constant]
    values: list[float]
    whole: frozenset[float]


def _without_counterpart(bench: Bench, framework: str) -> _Side:
    """Return the constants that the other program does not have as well; those with the same value in it come last."""
    mine, theirs = (bench.programs[name].constants for name in (framework, other(framework)))
    there = Counter(round_key(c.value) for c in theirs)
    alone = [c for c in mine if not there[round_key(c.value)]]
    values = list(dict.fromkeys(c.value for c in alone if not math.isnan(c.value)))
    beside = [c for c in mine if c not in alone]
    floats = {c.value for c in alone if not _is_whole(bench, framework, (c,))}
    return _Side(framework, [*alone, *beside], values, frozenset(values) - floats)


def _groups(constants: list[Constant]) -> Iterator[tuple[Constant, ...]]:
    """Yield each constant alone, all of one value and operator together, and all of one value: a number of steps."""
    together: dict[tuple[float, str], list[Constant]] = {}
    for constant in constants:
        together.setdefault((constant.value, constant.name), []).append(constant)
    yield from ((constant,) for constant in constants)
    yield from (tuple(group) for group in together.values() if len(group) > 1)
    for value in dict.fromkeys(value for value, _ in together):
        named = [group for (one, _), group in together.items() if one == value]
        if len(named) > 1 and value not in COMMON:
            yield tuple(constant for group in named for constant in group)


def solved(bench: Bench) -> Iterator[Replacement]:
    """Yield constants for which a value is found by Newton's method, and is one that people write."""
    if bench.difference() < SHRINK * ROUNDING:
        return  # any number would do
    want = {name: bench.outputs[other(name)][0] for name in bench.programs}
    lengths = sizes(bench)
    for framework in ("jax", "torch"):
        ranked = []
        for group in _groups(list(bench.programs[framework].constants)):
            if bench.late:
                return
            if not _near(bench, framework, group):
                continue
            slope = _slope(bench, framework, group, group[0].value)
            if slope is None:
                continue
            rest = _vector(want[framework]) - _vector(bench.outputs[framework][0])
            length = math.sqrt(float(slope @ slope)) * math.sqrt(float(rest @ rest))  # zero where integers alone differ
            explained = (float(slope @ rest) / length) ** 2 if 0 < length < math.inf else 0.0
            if explained > 0.5:
                ranked.append((explained, group))
        for _, group in sorted(ranked, key=lambda pair: -pair[0])[:12]:
            value = _newton(bench, framework, group, _vector(want[framework]))
            if value is None:
                continue
            for written in _written(value, group[0].value, lengths):
                found = Replacement(framework, group, (written,) * len(group), False)
                if bench.proves(found.change):
                    yield next(_stopping(bench, found), found)
                    break
            else:
                yield from islice(_stopping(bench, Replacement(framework, group, (value,) * len(group), False)), 1)


def _stopping(bench: Bench, found: Replacement) -> Iterator[Replacement]:
    """Yield the other's own numbers on the way to a solved one: beyond a bound that is not reached any number does."""
    before, value = found.constants[0].value, found.values[0]
    there = {c.value for c in bench.programs[other(found.framework)].constants}
    for one in sorted(there, key=lambda one: abs(one - before)):
        if one != before and min(before, value) <= one <= max(before, value):
            nearer = Replacement(found.framework, found.constants, (one,) * len(found.constants), True)
            if bench.proves(nearer.change):
                yield nearer


def aligned(bench: Bench) -> Iterator[Replacement]:
    """Yield all constants of an operator at once, each by the one of its rank: frequencies with another factor.

    Then all that the other program does not have, whatever their operators: the two bounds of a clip.
    """
    for framework in ("jax", "torch"):
        mine, theirs = (bench.programs[name].constants for name in (framework, other(framework)))
        for name in dict.fromkeys(c.name for c in mine):
            values = [sorted({c.value for c in side if c.name == name}) for side in (mine, theirs)]
            by_rank = dict(zip(*values, strict=False))
            moved = tuple(c for c in mine if c.name == name and by_rank.get(c.value, c.value) != c.value)
            if len(values[0]) == len(values[1]) > 1 and moved:
                found = Replacement(framework, moved, tuple(by_rank[c.value] for c in moved), True)
                if bench.proves(found.change):
                    yield found
        alone, there = _without_counterpart(bench, framework), _without_counterpart(bench, other(framework))
        lengths = set(sizes(bench))  # JAX divides a sum by one where torch has a mean
        values = [sorted(set(side.values) - lengths) for side in (alone, there)]
        moved = tuple(c for c in alone.constants if c.value in values[0])
        if 1 < len(values[0]) == len(values[1]) <= FEW:
            by_rank = dict(zip(*values, strict=True))
            found = Replacement(framework, moved, tuple(by_rank[c.value] for c in moved), True)
            if bench.proves(found.change):
                yield found


def linked(bench: Bench) -> Iterator[Replacement]:
    """Yield pairs of constants that change together: label smoothing's 0.9 and 0.1/K, a momentum and what it leaves."""
    for framework in ("jax", "torch"):
        constants = [c for c in bench.programs[framework].constants if _near(bench, framework, (c,))][:24]
        rest = _vector(bench.outputs[other(framework)][0]) - _vector(bench.outputs[framework][0])
        found = [(c, _slope(bench, framework, (c,), c.value)) for c in constants]
        slopes = [(c, slope) for c, slope in found if slope is not None and np.any(slope)]
        ranked = []
        for i, (a, left) in enumerate(slopes):
            for b, right in slopes[i + 1 :]:
                matrix = np.stack([left, right], 1)
                step, *_ = np.linalg.lstsq(matrix, rest, rcond=None)
                after = float(np.linalg.norm(rest - matrix @ step)) / (float(np.linalg.norm(rest)) or 1.0)
                if after < 0.3 and np.all(np.abs(step) > 1e-12):
                    ranked.append((after, (a, b), step))
        for _, pair, step in sorted(ranked, key=lambda one: one[0])[:6]:
            if bench.late:
                return
            values = _newton_pair(bench, framework, pair, step)
            if values is None:
                continue
            lengths = sizes(bench)
            near = [next(iter(_written(value, c.value, lengths)), None) for value, c in zip(values, pair, strict=True)]
            together = Replacement(framework, pair, tuple(one for one in near if one is not None), False)
            if None not in near and bench.proves(together.change):
                yield together


def round_key(value: float) -> float:
    """Return a number to six digits: float32 and float64 of one constant are the same."""
    return float(f"{value:.6g}")


def written(value: float) -> str:
    """Return a constant as people write it.

    Example:
        >>> written(1e-5), written(0.9), written(12.0), written(-math.log(10000))
        ('1e-05', '0.9', '12', '-log(10000)')
    """
    power = math.exp(min(abs(value), 50.0)) if abs(value) > 2 and value % 1 else 0.0
    if power and math.isclose(power, round(power), rel_tol=1e-13) and round(power) % 10 == 0:
        return f"{'-' if value < 0 else ''}log({round(power)})"
    return f"{value:.12g}"


def related(mine: float, theirs: float) -> str:
    """Return how people write a number that is made of the other side's, or the number.

    Example:
        >>> related(0.7, 1 / 0.7), related(64.0, 8.0), related(0.5, 3.0)
        ('1 / 0.7', 'the square root of 64', '3')
    """
    if mine not in (0.0, 1.0) and len(written(theirs)) > 6 and math.isclose(theirs, 1 / mine, rel_tol=1e-9):
        return f"1 / {written(mine)}"
    if mine > 1 and math.isclose(theirs, math.sqrt(mine), rel_tol=1e-9):
        return f"the square root of {written(mine)}"
    return written(theirs)


def _typed(constant: Constant, value: float) -> float | int:
    whole = (
        constant.role in ("ddof", "correction", "diagonal", "exponent") and math.isfinite(value) and value == int(value)
    )
    return int(value) if whole else value


def _vector(outputs: dict[str, np.ndarray]) -> np.ndarray:
    parts = []
    for values in outputs.values():
        if values.dtype.kind == "f":
            flat = np.where(np.isfinite(values), values, 0.0).ravel()
            size = np.sqrt(np.mean(flat**2)) if flat.size else 1.0
            parts.append((flat, size or 1.0))
    return np.concatenate([flat for flat, _ in parts]) if parts else np.zeros(0)


def _at(bench: Bench, framework: str, group: tuple[Constant, ...], values: tuple[float, ...]) -> np.ndarray | None:
    found = bench.changed(Replacement(framework, group, values, False).change)
    if found is None or not np.isfinite(distance(found, bench.outputs[framework][0])):
        return None
    return _vector(found)


def _near(bench: Bench, framework: str, group: tuple[Constant, ...]) -> bool:
    return bench.in_focus(framework, [constant.step for constant in group])


THRESHOLDS = ("lambd", "threshold", "lt", "le", "gt", "ge")


def _idle(bench: Bench, framework: str, group: tuple[Constant, ...]) -> bool:
    """Return whether a constant moves no output: replacing it explains nothing."""
    if any(constant.name in THRESHOLDS for constant in group):
        return False  # a small step moves nothing over it
    slope = _slope(bench, framework, group, group[0].value)
    return slope is not None and not np.any(slope)


def _is_whole(bench: Bench, framework: str, group: tuple[Constant, ...]) -> bool:
    """Return whether constants stand among integers: positions, counts."""
    keys = {constant.step for constant in group}
    steps = {step.key: step for step in bench.programs[framework].steps if step.key in keys}
    if any(step.result is not None and step.result.dtype.kind in "iu" for step in steps.values()):
        return True
    # A function that is called with an integer (ddof) would cut another number.
    floats = {key for key, step in steps.items() if step.result is not None and step.result.dtype.kind == "f"}
    given = [steps[c.step].operands.get(c.operand) for c in group if c.step in floats]
    return any(isinstance(one, np.ndarray | np.generic) and one.dtype.kind in "iu" for one in given)


def _slope(bench: Bench, framework: str, group: tuple[Constant, ...], value: float) -> np.ndarray | None:
    """Return the derivative of the outputs by a constant, by a difference; None for one that must stay an integer."""
    if group[0].role in ("correction", "diagonal") or not math.isfinite(value) or _is_whole(bench, framework, group):
        return None
    step = STEP * max(abs(value), STEP * abs(group[0].value)) or 1e-6
    far = _at(bench, framework, group, (value + step,) * len(group))
    near = _at(bench, framework, group, (value - step,) * len(group))
    return None if far is None or near is None else (far - near) / (2 * step)


def _newton(bench: Bench, framework: str, group: tuple[Constant, ...], want: np.ndarray) -> float | None:
    """Return the value of a constant at which the outputs are those wanted, or None."""
    value = group[0].value
    for _ in range(TURNS):
        now = _at(bench, framework, group, (value,) * len(group))
        slope = _slope(bench, framework, group, value)
        if now is None or slope is None:
            return None
        if not slope @ slope > 0:  # a bound that nothing reaches any more
            return value if np.allclose(now, want, rtol=1e-9, atol=1e-12) else None
        step = float(slope @ (want - now) / (slope @ slope))
        if not math.isfinite(step):
            return None
        value += step
        if abs(step) <= 1e-10 * max(abs(value), 1e-12):
            break
    return value


def _newton_pair(
    bench: Bench, framework: str, pair: tuple[Constant, Constant], step: np.ndarray
) -> tuple[float, float] | None:
    want = _vector(bench.outputs[other(framework)][0])
    values = np.array([c.value for c in pair]) + step
    for _ in range(TURNS):
        now = _at(bench, framework, pair, tuple(values.tolist()))
        if now is None:
            return None
        columns = []
        for i in range(2):
            moved = values.copy()
            moved[i] += STEP * (abs(values[i]) or 1.0)
            far = _at(bench, framework, pair, tuple(moved.tolist()))
            if far is None:
                return None
            columns.append((far - now) / (moved[i] - values[i]))
        delta, *_ = np.linalg.lstsq(np.stack(columns, 1), want - now, rcond=None)
        values = values + delta
        if np.all(np.abs(delta) <= 1e-10 * np.maximum(np.abs(values), 1e-12)):
            break
    return (float(values[0]), float(values[1])) if np.all(np.isfinite(values)) else None


def sizes(bench: Bench) -> list[int]:
    """Return lengths of axes and sizes, of inputs and of what steps returned."""
    found = {n for leaf in bench.numbers[0].theta for n in (*leaf.shape, leaf.size)}
    for program in bench.programs.values():
        for step in program.steps:
            if step.result is not None:
                found.update((*step.result.shape, step.result.size))
    return sorted(found - {0, 1})


REDUCES = ("sum", "mean", "var", "std", "norm", "loss", "pool")
"""Parts of the names of operators that add up what lies along an axis."""


def reduced(bench: Bench) -> set[int]:
    """Return lengths of axes along which a program adds up, and how many numbers it adds up.

    No other length is n of a mean or a variance: the number of examples of a batch is not, where each has its result.
    """
    found: set[int] = set()
    for program in bench.programs.values():
        for step in program.steps:
            arrays = [one for one in step.operands.values() if isinstance(one, np.ndarray) and one.ndim]
            if step.result is None or not arrays or not step.result.size:
                continue
            given, made = max(arrays, key=lambda one: one.size), list(step.result.shape)
            if any(part in step.name for part in REDUCES):
                found.update(_gone(given.shape, made), {given.size // step.result.size})
            elif any(part in step.name for part in ("dot", "mm")) and len(arrays) >= 2 and (
                step.result.ndim < 2 or _same_numbers(*arrays[-2:])
            ):  # fmt: skip
                found.update(_gone(given.shape, made), arrays[-1].shape)  # of a covariance, x.T @ x, or a sum
    return found - {0, 1}


def _gone(given: Sequence[int], made: Sequence[int]) -> set[int]:
    """Return the lengths of axes that a result does not have."""
    left = list(made)
    gone = []
    for length in given:
        if length in left:
            left.remove(length)
        else:
            gone.append(length)
    return set(gone)


def _same_numbers(one: np.ndarray, other: np.ndarray) -> bool:
    return one.size == other.size and np.array_equal(np.sort(one, axis=None), np.sort(other, axis=None))


def _written(value: float, before: float, sizes: list[int]) -> Iterator[float]:
    """Yield numbers that people write, near a solved one."""
    near = {float(f"{value:.{digits}g}") for digits in (1, 2, 3, 4)}
    near |= {1 / k for k in range(2, 65)} | {math.sqrt(k) for k in sizes} | {1 / math.sqrt(k) for k in sizes}
    near |= {float(k) for k in sizes} | {1.0 / k for k in sizes} | {float(k - 1) for k in sizes}
    near |= {before * k / (k - 1) for k in sizes} | {before * (k - 1) / k for k in sizes}
    near |= {math.pi, math.e, math.log(2), math.log(10), math.sqrt(2 / math.pi), math.sqrt(0.5), 2 * math.pi, 0.0}
    near |= {before + (1 - before) / k for k in sizes}  # label smoothing: what the right class has beside its share
    near |= {1 - one for one in list(near)}
    near |= {-before, before * before, math.sqrt(abs(before))} | ({1 / before} if before else set())
    close = [
        one for one in near if abs(one - value) <= HELD * max(abs(value), 1e-12) or (abs(value) < 1e-9 and not one)
    ]
    yield from sorted(close, key=lambda one: (len(repr(one)), abs(one - value)))
