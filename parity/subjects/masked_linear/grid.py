"""Planning and running the grid: which cells there are, and the verdict on each (SPEC S11)."""

from __future__ import annotations

import functools
import importlib
import re
import tomllib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from importlib import resources
from typing import Any

import numpy as np

from parity.engine import bounds, compare, outcomes
from parity.engine.judge import histogram
from parity.engine.outcomes import Error, Outcome
from parity.engine.records import DEVICES, DTYPES, WORLDS, Record
from parity.subjects.masked_linear import cases, transforms
from parity.subjects.masked_linear.cases import Problem
from parity.subjects.masked_linear.records import Cell
from parity.subjects.masked_linear.transforms import Transform

QUICK_CASES = ("columns", "elements", "wide-columns")
QUICK_HARD = ("hard-near-the-limit", "hard-columns")
HARD_EVERYWHERE = ("forward", "backward", "jvp")
"""What every hard case runs in every world; the rest where it tells most."""

Choice = Collection[str] | None


def plan(
    *,
    devices: Collection[str] = ("cpu",),
    dtypes: Choice = None,
    masks: Choice = None,
    transforms: Choice = None,
    cases: Choice = None,
    worlds: Choice = None,
    tiers: Choice = None,
    precisions: Choice = None,
    quick: bool = False,
) -> list[Cell]:
    """Return the cells that are asked for; None leaves a choice open.

    Args:
        devices: "cpu", "cuda".
        dtypes: Names of dtypes.
        masks: Kinds of mask.
        transforms: Names of transforms.
        cases: Ids of cases.
        worlds: Names of worlds.
        tiers: "exact", "random", "hard".
        precisions: "native", "reproducible".
        quick: A selection that runs in well under a minute.

    Example:
        >>> [cell.id for cell in plan(cases=["rows"], dtypes=["float32"], transforms=["vjp"], worlds=["jax-jit"])]
        ['rows/float32/vjp/jax-jit/cpu/exact/native']
    """

    def wanted(choice: Choice, name: str) -> bool:
        return choice is None or name in choice

    cells = []
    for (case, dtype, transform, tier, precision), device in _product(quick, devices):
        if not (wanted(cases, case) and wanted(dtypes, dtype) and wanted(transforms, transform)):
            continue
        mask = _case(case).mask
        if not (wanted(masks, mask) and wanted(tiers, tier) and wanted(precisions, precision)):
            continue
        runs_in = _runs_in if precision == "native" else _runs_reproducibly_in
        cells += [
            Cell(case, mask, dtype, transform, world, device, tier, precision)
            for world in WORLDS
            if wanted(worlds, world) and runs_in(case, dtype, transform, world, quick)
        ]
    return cells


def run(
    cells: Collection[Cell], *, seed: int = 0, subjects: dict[str, Callable[..., Any]] | None = None
) -> Iterator[Record]:
    """Run cells one by one, yielding a record of each.

    Args:
        cells: From `plan`.
        seed: Of the numbers.
        subjects: Another masked_linear to test, by framework ("torch", "jax"): a port, or a sabotaged twin.
    """
    return Runner(seed, subjects).records(cells)


class Runner(outcomes.Runner):
    """Runs cells of the grid: each world's outputs are held against the oracle."""

    def __init__(self, seed: int = 0, subjects: dict[str, Callable[..., Any]] | None = None) -> None:
        super().__init__(seed)
        self._subjects = subjects or {}
        self._errors: dict[tuple[str, ...], Error] = {}

    def outcome(self, cell: Cell) -> Outcome:
        """Run a cell, hold it against the oracle, and its error against the other framework's."""
        clause = transforms.BY_NAME[cell.transform].clause
        seen = replace(self._held_to_oracle(cell), clause=clause)
        # Not in float64: there the oracle errs as much, and in the same way as the framework whose BLAS NumPy shares.
        if seen.error is None or seen.verdict != "within bound" or cell.dtype == "float64":
            return seen
        key = (cell.pair, cell.dtype, cell.transform, cell.device, cell.data)
        if cell.world == "torch-eager":
            self._errors[key] = seen.error
        elif cell.world.startswith("jax") and key in self._errors:
            return _compare_errors(seen, self._errors[key])
        return seen

    def _held_to_oracle(self, cell: Cell) -> Outcome:
        world = world_of(cell.world)
        transform = transforms.BY_NAME[cell.transform]
        if cell.device not in world.devices():
            return Outcome("no device", f"{world.FRAMEWORK} sees no {cell.device} here")
        problem = cases.make(_case(cell.pair), cell.dtype, cell.data, self.seed, cell.precision)
        expected = known(cell)
        if expected is not None and expected.get("crashes"):
            return Outcome("unsupported", expected["reason"], known=True)
        subject = self._subjects.get(cell.world.split("-")[0])
        try:
            outputs = world.run(transform, problem, cell.world, cell.device, subject=subject, precision=cell.precision)
        except Exception as error:
            # Whatever the framework raises, it is the cell's result, and the run goes on.
            raised = f"{type(error).__name__}: {error}"
            listed = expected is not None and re.search(expected["error"], raised) is not None
            reason = expected["reason"] if listed and expected else f"{type(error).__name__}: {_first_line(error)}"
            return Outcome("unsupported", reason, known=listed)
        if expected is not None:
            return Outcome("differs", "listed in known.toml as unsupported, but it works: take it off the list")
        try:
            held = judge(transform, problem, cell.data, cell.precision, outputs)
        except compare.Mismatch as mismatch:
            return Outcome("differs", str(mismatch), finding=mismatch.finding)
        return Outcome("identical", judged="bits") if held is None else Outcome("within bound", error=held)


def judge(
    transform: Transform, problem: Problem, tier: str, precision: str, outputs: dict[str, np.ndarray]
) -> Error | None:
    """Hold outputs against the oracle.

    Returns:
        None where bits were compared, else the error over its bound.

    Raises:
        Mismatch: An output is not what it must be.
    """
    outputs = transform.finish(problem, outputs)
    native = outputs.pop("native", None)
    if native is not None and precision == "native":
        compare.assert_same_bits("output", outputs["output"], native, "the framework's own linear layer is the forward")
    want = transform.oracle(problem)
    missing = sorted(set(want) ^ set(outputs))
    if missing:
        raise AssertionError(f"{transform.name} gave other outputs than the oracle: {missing}")
    for name, got in outputs.items():
        compare.assert_same_shape(name, got, want[name])
        if "mask" not in transform.name and "everything" not in transform.name:
            compare.assert_frozen_zero(name, got, transforms.frozen(problem, name, got.shape))
        elif name == "weight":
            still = ~np.stack([problem.mask_array(copy) for copy in range(cases.COPIES)])
            compare.assert_frozen_zero(name, got, still)
    if not transform.values:
        return None
    if precision == "reproducible":
        for name, got in outputs.items():
            why = "the answer is a function of the inputs (S9)"
            compare.assert_same_bits(name, got, want[name], why, zeros=tier == "hard")
        return None
    if tier == "exact":
        for name, got in outputs.items():
            compare.assert_same_bits(name, got, want[name])
        return None
    return _held_to_bound(transform, problem, outputs, want)


def _held_to_bound(transform: Transform, problem: Problem, outputs: Any, want: Any) -> Error:
    size = transforms.majorant(problem)
    majorants = transform.oracle(size)
    case = problem.case
    terms = case.in_features + case.out_features + int(np.prod(case.batch))
    # Stored at most: y, its bias sum, a factor of the test function, and the same again per derivative.
    stages = 4 * (transform.order + 1)
    ratios = {}
    for name, got in outputs.items():
        bound = bounds.error_bound(majorants[name], problem.dtype, terms=terms, stages=stages)
        compare.assert_within(name, got, want[name], bound)
        ratios[name] = compare.error_ratio(got, want[name], bound)
    rms = {
        name: (float(np.sqrt(np.mean(ratio**2))) if ratio.size else 0.0, ratio.size) for name, ratio in ratios.items()
    }
    flat = np.concatenate([ratio.ravel() for ratio in ratios.values()])
    return Error(float(flat.max(initial=0.0)), rms, histogram(flat))


def _compare_errors(outcome: Outcome, torch: Error) -> Outcome:
    assert outcome.error is not None
    try:
        return replace(outcome, twin_ratio=compare.assert_error_ratios(torch.rms, outcome.error.rms))
    except compare.Mismatch as mismatch:
        return replace(
            outcome, verdict="differs", judged="ratio", reason=str(mismatch), finding=mismatch.finding,
            twin_ratio=mismatch.finding.ratio,
        )  # fmt: skip


def known(cell: Cell) -> dict[str, Any] | None:
    """Return the entry of known.toml that lists a cell as unsupported, or None."""
    for entry in _known():
        patterns = ("transform", "world", "precision")
        if all(fnmatch(getattr(cell, name), entry.get(name, "*")) for name in patterns):
            return entry
    return None


@functools.cache
def _known() -> list[dict[str, Any]]:
    return tomllib.loads(resources.files("parity.subjects.masked_linear").joinpath("known.toml").read_text("utf-8"))[
        "unsupported"
    ]


def world_of(name: str) -> Any:
    """Return the module of a world's framework."""
    return importlib.import_module(f"parity.subjects.masked_linear.{name.split('-')[0]}_side")


def _product(quick: bool, devices: Collection[str]) -> Iterator[tuple[tuple[str, str, str, str, str], str]]:
    for device in DEVICES:
        if device in devices:
            for combination in _combinations(quick):
                yield combination, device


@functools.cache
def _combinations(quick: bool) -> tuple[tuple[str, str, str, str, str], ...]:
    return (*_native(quick), *_reproducible(quick))


def _native(quick: bool) -> list[tuple[str, str, str, str, str]]:
    found = []
    for case in cases.CASES:
        if quick and case.id not in QUICK_CASES:
            continue
        tier = "random" if case.wide else "exact"
        for dtype in DTYPES:
            if not (dtype == "float32" or ((case.core or case.wide) and not quick)):
                continue
            problem = cases.make(case, dtype, tier, 0)
            exact = cases.exact_order(problem) if tier == "exact" else 3
            found += [
                (case.id, dtype, transform.name, tier, "native")
                for transform in transforms.TRANSFORMS
                if transform.order <= exact and transform.applies(problem) and not (case.wide and transform.dense)
            ]
    return found


def _reproducible(quick: bool) -> list[tuple[str, str, str, str, str]]:
    found = []
    # Integers, whose every derivative is exact in any precision: that no order or mode loses its way.
    for case in cases.CASES:
        if case.wide or (quick and case.id not in QUICK_CASES):
            continue
        problem = cases.make(case, "float32", "exact", 0)
        exact = cases.exact_order(problem)
        found += [
            (case.id, "float32", transform.name, "exact", "reproducible")
            for transform in transforms.TRANSFORMS
            if transform.order <= exact
            and transform.applies(problem)
            and (case.core or transform.name in HARD_EVERYWHERE)
        ]
    # Data of all kinds, and the bits of the answer.
    for case in cases.HARD:
        for dtype in ("float32", "bfloat16", "float16") if case.core else ("float32",):
            problem = cases.make(case, dtype, "hard", 0)
            found += [
                (case.id, dtype, transform.name, "hard", "reproducible")
                for transform in transforms.TRANSFORMS
                if not transform.rounds and transform.values and transform.applies(problem)
                and (not quick or case.id in QUICK_HARD) and (not transform.dense or case.core)
                and (dtype == "float32" or transform.name in HARD_EVERYWHERE)
            ]  # fmt: skip
    return found


def _runs_reproducibly_in(case: str, dtype: str, transform: str, world: str, quick: bool) -> bool:
    if world == "torch-eager":
        return True
    chosen = _case(case)
    if quick and (dtype != "float32" or (world == "torch-compiled" and case != "hard-columns")):
        return False
    if dtype != "float32" and case not in QUICK_HARD and world != "jax-jit":
        return False
    if world == "torch-compiled":
        # Derivatives are taken outside of what is compiled; inside they are refused (known.toml).
        return chosen.hard and (
            transform == "backward"
            or (transform == "forward" and (chosen.core or "limit" in case))
            or (case == "hard-columns" and transform in ("vjp", "jvp", "layer-rr"))
        )
    if transform in HARD_EVERYWHERE:
        return chosen.hard
    if world == "jax-jit":
        return chosen.core and not quick and (chosen.hard or case in QUICK_CASES)
    return case == "hard-columns" and not quick


def _runs_in(case: str, dtype: str, transform: str, world: str, quick: bool) -> bool:
    # The compilers take a second or so for each program: they get the core cases, the eager worlds all.
    if world == "torch-eager":
        return True
    if world == "jax-eager":
        # JAX compiles every operation of a new shape and dtype by itself: higher orders where they tell most,
        # and under jit, which takes one compilation for all of a program.
        order = transforms.BY_NAME[transform].order + _case(case).packed
        if quick:
            return case == "columns" and order <= 1
        if dtype != "float32":
            return transform in ("forward", "vjp", "vjp-forward-mode-rule", "jvp")
        if transform in ("vmap-bias", "vmap-cotangent", "vmap-input-weight") and not _case(case).core:
            return False
        if _case(case).wide:
            return order <= 1
        return order <= 2 or case in QUICK_CASES
    if world == "torch-compiled" and transforms.BY_NAME[transform].order == 3 and not _case(case).core:
        # Compiled, a transform takes the reference program, for seconds: each kind of mask once.
        return False
    if quick and world == "torch-compiled":
        return case == "columns" and transform in ("forward", "backward", "jvp", "modes-fr")
    chosen = _case(case)
    if chosen.packed and not quick:
        # By the same rule as the core cases: compiled where the kinds differ most.
        return dtype == "float32" and (world == "jax-jit" or case in ("packed-columns", "packed-elements"))
    if quick:
        return case == "columns" or (chosen.wide and transforms.BY_NAME[transform].order <= 1)
    if world == "torch-compiled" and dtype not in ("float32", "bfloat16"):
        return False
    return chosen.core or (chosen.wide and dtype == "float32")


def _case(name: str) -> cases.Case:
    return cases.BY_ID[name]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
