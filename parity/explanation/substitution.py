"""Proof by substitution: a change of one program after which the two functions agree, on these numbers and on others.

"X on one side where the other has Y" is claimed only if the program with Y in place of X gives the results of the other
side to nine digits, on the numbers of the cell and on fresh ones of the same shapes. For this programs run in float64
throughout, also where they would cast to another dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from parity.execution.calls import Numbers
from parity.execution.endings import RAISED
from parity.explanation.programs.program import Edit, Edits, Key, Operation, Program, Step
from parity.operator import trees
from parity.operator.data import labels
from parity.operator.trees import is_float

AGREE = 1e-9
"""Two float64 results agree: relative to an output's size. Rounding of stable composites stays below it, and what
people port wrongly lies above."""

LOW_AGREE = 2e-6
"""The same where a constant array was made in float32, and holds float32 numbers for ever."""

SHRINK = 30.0
"""A proof also makes the difference so many times smaller: no small difference is explained by being small."""

ROUNDING = 1e-13
"""What is left of a difference that is explained: rounding."""

MASKED = 1e6
"""Numbers as large stand for what is masked: beside them no other would count."""

LONG, NEAR = 120, 40
"""Of a program with more steps only so many are changed, those where it leaves the other."""

WORK = 750_000
"""Steps that are run while causes of one difference are looked for: what is found must not depend on how busy a machine
is. About 20 s of one that is idle."""

ELEMENTS = 2000
"""So many elements of a result take as long as a step."""


@dataclass(frozen=True)
class Change:
    """A change of one side: steps of its program, its inputs, or its outputs.

    Attributes:
        framework: Whose program is changed.
        edits: Of its steps.
        inputs: Makes other arguments of the arguments' floating leaves, or None.
        outputs: Makes other outputs, or None.
        numbers: Makes other numbers of all that go in, or None.
        edits_for: Makes the edits for a program and numbers, where they need what steps after them hold; or None.
    """

    framework: str
    edits: Edits = field(default_factory=dict)
    inputs: Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, ...]] | None = None
    outputs: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    numbers: Callable[[Numbers], Numbers] | None = None
    edits_for: Callable[[Program, Numbers], Edits] | None = None

    def __or__(self, other: Change) -> Change:
        """Return both changes of one side's steps."""
        return replace(self, edits={**self.edits, **other.edits})


@dataclass
class Bench:
    """Both programs on some numbers, and what the difference between them is.

    Attributes:
        programs: By framework.
        numbers: The numbers of the cell first, then fresh ones.
        outputs: What each framework returned on each of them.
        work: Steps that were run so far while causes were looked for.
        each: Whether results are compared relative to each element, as where a difference is in small ones alone.
        rounded: Whether one of the two is given numbers that were rounded to float32, which the other computes.
    """

    programs: dict[str, Program]
    numbers: tuple[Numbers, ...]
    outputs: dict[str, tuple[dict[str, np.ndarray], ...]]
    work: float = 0.0
    each: bool = False
    rounded: bool = False

    @property
    def late(self) -> bool:
        """Whether as much was tried as is tried at most."""
        return self.work > WORK

    @cached_property
    def cost(self) -> dict[str, float]:
        """What one run of each program takes, in steps."""
        return {name: _cost(program) for name, program in self.programs.items()}

    @cached_property
    def focus(self) -> dict[str, set[Key]]:
        """The steps of a long program where it leaves the other; empty for a short one, whose steps are all tried."""
        return {name: leaving(self, name) if len(one.steps) > LONG else set() for name, one in self.programs.items()}

    def in_focus(self, framework: str, keys: Iterable[Key]) -> bool:
        """Return whether one of some steps is where its program leaves the other's."""
        near = self.focus[framework]
        return not near or any(key in near for key in keys)

    @property
    def agreement(self) -> float:
        """How far apart two results may be that agree: wider where a program passes through lower types."""
        low = self.rounded or any(lower(step) for program in self.programs.values() for step in program.steps)
        return LOW_AGREE if low else AGREE

    def difference(self) -> float:
        """Return how far apart the two are."""
        return distance(self.outputs["torch"][0], self.outputs["jax"][0], self.each)

    def residual(self, change: Change, at: int = 0) -> float:
        """Return how far apart the two are after a change: infinite where it does not run."""
        found = self.changed(change, at)
        return np.inf if found is None else distance(found, self.outputs[other(change.framework)][at], self.each)

    def changed(self, change: Change, at: int = 0) -> dict[str, np.ndarray] | None:
        """Return the outputs of one side after a change."""
        numbers = self.numbers[at]
        if change.inputs is not None:
            try:
                numbers = with_theta(numbers, change.inputs(numbers.theta))
            except ValueError:
                return None
        if change.numbers is not None:
            numbers = change.numbers(numbers)
        if change.edits or numbers is not self.numbers[at]:
            program = self.programs[change.framework]
            edits = change.edits if change.edits_for is None else change.edits_for(program, numbers)
            self.work += self.cost[change.framework]
            found = program.run(numbers, edits)
        else:
            found = self.outputs[change.framework][at]
        return found if found is None or change.outputs is None else change.outputs(found)

    def proves(self, change: Change) -> bool:
        """Return whether the two agree after a change, on all the numbers."""
        if change.edits and not self.in_focus(change.framework, change.edits):
            return False
        for at in range(len(self.numbers)):
            before = distance(self.outputs["torch"][at], self.outputs["jax"][at], self.each)
            after = self.residual(change, at)
            if not after <= self.agreement or not after <= max(before / SHRINK, ROUNDING):
                return False
        return not self.empties(change)

    def empties(self, change: Change) -> bool:
        """Return whether after a comparison is changed a selection takes all or nothing, and none of the other's does.

        Then it is only seen that the other side does without that selection, not what it compares by.
        """
        steps = {step.key: step for step in self.programs[change.framework].steps}
        compared = [steps[key] for key in change.edits if key in steps]
        if not any(step.result is not None and step.result.dtype == bool for step in compared):
            return False
        chooses = [s for s in steps.values() if s.key not in change.edits and len(_values(_mask(s))) > 1]
        if any(len(_values(_mask(s))) == 1 for s in self.programs[other(change.framework)].steps):
            return False
        seen: dict[Key, set[bool]] = {}

        def noted(key: Key) -> Edit:
            def edit(operation: Operation) -> Any:
                mask = operation.numpy(operation.operands[CHOICES[operation.name]])
                seen.setdefault(key, set()).update(_values(mask))
                return operation.compute(operation.operands)

            return edit

        watch = {step.key: noted(step.key) for step in chooses}
        for at in range(len(self.numbers)) if watch else ():
            self.changed(replace(change, edits={**change.edits, **watch}), at)
        return any(len(values) == 1 for values in seen.values())


CHOICES: dict[str, str | int] = {"masked_fill": "mask", "masked_fill_": "mask", "where": "condition", "select_n": 0}
"""Operators that choose by a mask, and which operand that is."""


def _mask(step: Step) -> Any:
    return step.operands.get(CHOICES[step.name]) if step.name in CHOICES else None


def _values(mask: Any) -> set[bool]:
    """Return the truth values in a mask; none in what is no mask."""
    is_mask = isinstance(mask, np.ndarray) and mask.dtype == bool
    return set(np.unique(mask).tolist()) if is_mask else set()


def _cost(program: Program) -> float:
    """Return what one run of a program takes: a step, and more for one of many elements."""
    return sum(1 + (0 if step.result is None else step.result.size / ELEMENTS) for step in program.steps)


def lower(step: Step) -> set[str]:
    """Return the types below float64 that a step rounds to: a float32 that counts (steps, positions) rounds nothing."""
    types = set(step.dtypes) - {"float64"}
    arrays = [v for v in (step.result, *step.operands.values()) if isinstance(v, np.ndarray)] if types else []
    return set() if arrays and all(_counts(one) for one in arrays) else types


def _counts(values: np.ndarray) -> bool:
    if values.dtype.kind == "c":
        return False
    return values.dtype.kind in "biu" or bool(np.all((values == np.trunc(values)) & (np.abs(values) < 2**8)))


def other(framework: str) -> str:
    """Return the other framework."""
    return {"torch": "jax", "jax": "torch"}[framework]


def distance(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], each: bool = False) -> float:
    """Return the largest difference between two sets of outputs, relative to the size of each output, or element."""
    worst = 0.0
    if list(got) != list(want):
        return np.inf
    for name in want:
        a, b = got[name], want[name]
        if a.shape != b.shape:
            return np.inf
        if a.dtype.kind in "fc" and b.dtype.kind in "fc":
            worst = max(worst, _apart(a, b, each))
        elif not np.array_equal(a, b):
            worst = max(worst, 1.0)
    return worst


def _apart(a: np.ndarray, b: np.ndarray, each: bool) -> float:
    with np.errstate(all="ignore"):
        finite = np.isfinite(a) & np.isfinite(b)
        if not np.all(finite | (a == b) | (np.isnan(a) & np.isnan(b))):
            return np.inf
        if each:
            use = finite & (a != b)
            left, right = a[use], b[use]
            return float(np.max(np.abs(left - right) / np.maximum(np.abs(left), np.abs(right)), initial=0.0))
        most = np.max(np.abs(b[finite]), initial=0.0) or 1.0  # squares of large numbers overflow
        size = most * np.sqrt(np.mean(np.abs(b[finite] / most) ** 2)) if finite.any() else 0.0
        worst = np.max(np.abs(a[finite] - b[finite]), initial=0.0)
    return float(worst / (size or 1.0))


def where_they_part(bench: Bench, framework: str) -> set[Key]:
    """Return the steps where a program leaves the other: what goes in is known there too, what comes out is not.

    A result is known where the other program has one of the same mean size, mean square and largest number, in any
    order and of any sign. The steps that made what goes in belong to them.
    """
    theta = [_fingerprint(leaf) for leaf in bench.numbers[0].theta]
    known = {*theta, *(_fingerprint(step.result) for step in bench.programs[other(framework)].steps)}
    steps = bench.programs[framework].steps
    results = {step.key: _fingerprint(step.result) in known for step in steps}
    parting = [
        step for step in steps if not results[step.key] and all(results.get(s, True) for s in step.sources.values())
    ]
    return {step.key for step in parting} | {source for step in parting for source in step.sources.values()}


def holder(bench: Bench, framework: str) -> Callable[[np.ndarray], bool]:
    """Return a function that says whether a program may have an array's numbers, in any order (by moments)."""
    steps = bench.programs[framework].steps
    arrays = [*bench.numbers[0].theta, *(step.result for step in steps)]
    arrays += [value for step in steps for value in step.operands.values() if isinstance(value, np.ndarray)]
    prints = np.array([made for one in arrays if (made := _fingerprint(_as_float(one)))] or [(np.inf,) * 3])

    def has(values: np.ndarray) -> bool:
        mine = _fingerprint(_as_float(values))
        return not mine or bool(np.any(np.all(np.abs(prints - mine) <= 1e-6 * np.abs(mine), axis=1)))

    return has


def _as_float(values: np.ndarray | None) -> np.ndarray | None:
    return values.astype(np.float64) if values is not None and values.dtype.kind in "iu" else values


def leaving(bench: Bench, framework: str) -> set[Key]:
    """Return the first steps after which a program has no result that the other has, and what goes into them."""
    theta = [_fingerprint(leaf) for leaf in bench.numbers[0].theta]
    known = {*theta, *(_fingerprint(step.result) for step in bench.programs[other(framework)].steps)} - {()}
    steps = bench.programs[framework].steps
    leads: set[Key] = set()  # steps that a known result comes after
    for step in reversed(steps):
        if step.key in leads or _fingerprint(step.result) in known:
            leads.update((step.key, *step.sources.values()))
    apart = [step for step in steps if step.key not in leads][:NEAR]
    return {step.key for step in apart} | {source for step in apart for source in step.sources.values()}


def _fingerprint(values: np.ndarray | None) -> tuple[float, ...]:
    if values is None or values.dtype.kind != "f" or not values.size:
        return ()
    with np.errstate(all="ignore"):
        sizes = np.abs(values[np.isfinite(values)])
        sizes = sizes[sizes < MASKED]
        if not sizes.size:
            return ()
        return tuple(float(f"{x:.7g}") for x in (sizes.mean(), (sizes**2).mean(), sizes.max()))


def with_theta(numbers: Numbers, theta: tuple[np.ndarray, ...]) -> Numbers:
    """Return numbers with other floating leaves, of the same shapes."""
    if [leaf.shape for leaf in theta] != [leaf.shape for leaf in numbers.theta]:
        raise ValueError("shapes differ")
    left = iter(theta)

    def changed(leaf: np.ndarray) -> np.ndarray:
        if not is_float(leaf):
            return leaf
        return next(left) + 1j * next(left) if leaf.dtype.kind == "c" else next(left)

    leaves = [changed(leaf) for _, leaf in trees.leaves(numbers.arguments)]
    return replace(numbers, arguments=trees.rebuild(numbers.arguments, iter(leaves)), theta=tuple(theta))


NARROW = 2.0**-5
"""How far numbers are changed, relative, where a function does not take others: probabilities are below one."""


def fresh(numbers: Numbers, seed: int, spread: float = 0.5) -> Numbers:
    """Return other numbers of the same shapes and signs: each is multiplied by a number from 1 - spread to 1 + spread.

    Args:
        numbers: The numbers of the cell.
        seed: Seed of the factors.
        spread: How far they are from one.
    """
    rng = np.random.default_rng(seed)
    if not numbers.theta:  # integers alone: in another order, so that what is an index stays one
        leaves = [leaf for _, leaf in trees.leaves(numbers.arguments)]
        mixed = [rng.permutation(np.ravel(leaf)).reshape(np.shape(leaf)) for leaf in leaves]
        return replace(numbers, arguments=trees.rebuild(numbers.arguments, iter(mixed)))
    kept = labels(list(numbers.theta))
    drawn = (
        leaf * (at in kept or rng.uniform(1 - spread, 1 + spread, leaf.shape)) for at, leaf in enumerate(numbers.theta)
    )
    return with_theta(numbers, tuple(drawn))


CHOOSES = ("argmax", "argmin", "argsort", "sort", "topk", "top_k", "max", "min", "floor", "round", "sign")
"""Steps whose result may be the same for other numbers: that two programs agree on few says little."""

MORE = 6
"""Further numbers on which a cause must be proved there: the same in another order, so that others are the largest."""


def mixed(numbers: Numbers, seed: int) -> Numbers:
    """Return the floating numbers of each input in another order."""
    rng = np.random.default_rng(seed)
    return with_theta(numbers, tuple(rng.permutation(leaf.ravel()).reshape(leaf.shape) for leaf in numbers.theta))


def _is_symmetric(values: np.ndarray) -> bool:
    return values.ndim > 1 and values.shape[-1] > 1 and np.array_equal(values, values.swapaxes(-1, -2))


def _shapes(numbers: Numbers) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in numbers.theta]


def _others(numbers: Numbers, programs: Mapping[str, Program]) -> tuple[Numbers, ...]:
    """Return other numbers for both programs: far ones where they take those, and labels in another order."""
    far = (fresh(numbers, 1), fresh(numbers, 2))
    if any(program.run(one, {}) is None for one in far for program in programs.values()):
        far = (fresh(numbers, 1, NARROW), fresh(numbers, 2, NARROW))
    kept = labels(list(numbers.theta))
    if not kept:
        return far
    turned = with_theta(numbers, tuple(leaf[::-1] if at in kept else leaf for at, leaf in enumerate(far[0].theta)))
    found = [program.run(turned, {}) for program in programs.values()]
    usual = all(one is not None and all(np.isfinite(v).all() for v in one.values()) for one in found)
    return (*far, turned) if usual else far


def bench(torch_function: Any, jax_function: Any, numbers: Numbers, *, also: Sequence[Numbers] = ()) -> Bench | None:
    """Return both programs, or None where one cannot be read: it raises, or its outputs are not those of the other.

    Args:
        torch_function: Of torch tensors.
        jax_function: Of JAX arrays.
        numbers: The numbers of the cell.
        also: More numbers, on which what is proved must hold too.
    """
    from parity.explanation.programs.jax_program import JaxProgram
    from parity.explanation.programs.torch_program import TorchProgram

    numbers = with_theta(numbers, tuple(np.asarray(leaf, np.float64) for leaf in numbers.theta))
    try:
        programs: dict[str, Program] = {
            "torch": TorchProgram(torch_function, numbers),
            "jax": JaxProgram(jax_function, numbers),
        }
        several = (numbers, *_others(numbers, programs))
        if any(step.name in CHOOSES for program in programs.values() for step in program.steps):
            several += tuple(mixed(numbers, seed) for seed in range(3, 3 + MORE))
        if any(_is_symmetric(numbers.theta[at]) for at in labels(list(numbers.theta))):
            several += (mixed(numbers, 3 + MORE),)  # a graph of edges both ways has its rows for its columns
        several += tuple(one for one in also if _shapes(one) == _shapes(numbers))
        # A step that is not read as it runs (a callback, random numbers) shows here: the same again must be the same.
        outputs = {name: tuple(program.run(one, {}) for one in several) for name, program in programs.items()}
    except RAISED:
        return None
    if any(one is None for found in outputs.values() for one in found):
        return None
    shapes = [{name: value.shape for name, value in (found[0] or {}).items()} for found in outputs.values()]
    if shapes[0] != shapes[1]:
        return None  # something is read otherwise than it runs
    return Bench(programs, several, outputs)  # type: ignore[arg-type]
