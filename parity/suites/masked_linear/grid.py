"""The grid: the cases as pairs, planned and run as any pairs are (contract S11)."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from parity.execution import plan as planning
from parity.operator.known import matches
from parity.records import DEVICES, DTYPES, WORLDS, Record
from parity.suites.masked_linear import selection
from parity.suites.masked_linear.cases import BY_ID as CASES
from parity.suites.masked_linear.pairs import known as known_entries
from parity.suites.masked_linear.pairs import pair, speaks_of, uses_inductor
from parity.suites.masked_linear.pairs import world_of as world_of
from parity.suites.masked_linear.records import PRECISIONS, TIERS, Cell
from parity.suites.masked_linear.transforms import BY_NAME
from parity.verdict import runner

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
        tiers: "exact", "random", "hard", "real-size".
        precisions: "native", "reproducible".
        quick: A selection that runs in well under a minute.

    Example:
        >>> [cell.id for cell in plan(cases=["rows"], dtypes=["float32"], transforms=["vjp"], worlds=["jax-jit"])]
        ['rows/float32/vjp/jax-jit/cpu/exact/native']
    """

    def wanted(choice: Choice, name: str) -> bool:
        return choice is None or name in choice

    known = {"transforms": (transforms, BY_NAME), "dtypes": (dtypes, DTYPES), "worlds": (worlds, WORLDS),
             "data": (tiers, TIERS)}  # fmt: skip
    picked = {what: [name for name in names if wanted(choice, name)] for what, (choice, names) in known.items()}
    if not all(picked.values()):
        return []
    cells: list[Any] = []
    for device in (device for device in DEVICES if device in devices):
        for precision in PRECISIONS:
            for case in selection.cases_of(precision):
                asked = wanted(cases, case) and wanted(masks, CASES[case].mask) and wanted(precisions, precision)
                if asked and selection.any_of(case, precision, picked):  # planning makes numbers, which cost time
                    cells += planning.plan(pair(case, precision, quick=quick), devices=[device], **picked)
    return cells


def run(
    cells: Collection[Cell], *, seed: int = 0, subjects: dict[str, Callable[..., Any]] | None = None
) -> Generator[Record, None, None]:
    """Run cells one by one, yielding a record of each.

    Args:
        cells: From `plan`.
        seed: Seed of the numbers.
        subjects: Another masked_linear to test, by framework ("torch", "jax"): a port, or a sabotaged twin.
    """
    for (case, precision), group in itertools.groupby(cells, _pair_of):
        yield from runner.run(pair(case, precision, subjects), list(group), seed)


def known(cell: Cell) -> dict[str, Any] | None:
    """Return the entry of known.toml that lists a cell as unsupported, or None."""
    for entry in known_entries():
        if speaks_of(entry, CASES[cell.pair], cell.precision) and matches(entry, cell):
            return {name: value for name, value in entry.items() if value not in ("*", ["*"])}
    return None


def _pair_of(cell: Any) -> tuple[str, str]:
    return cell.pair, getattr(cell, "precision", "native")


def forms(precision: str) -> list[tuple[str, ...]]:
    """Return the cases that run in a precision, those of one form together: they share what is compiled.

    Example:
        >>> next(cases for cases in forms("reproducible") if "hard-ties" in cases)[:2]
        ('hard-near-the-limit-and-back', 'hard-all-ones')
    """
    found: dict[Any, list[str]] = {}
    for case in selection.cases_of(precision):
        found.setdefault(CASES[case].form, []).append(case)
    return [tuple(cases) for cases in found.values()]


def together(cells: Collection[Cell]) -> list[Cell]:
    """Return cells of one form in the order in which they share programs: those of a transform follow one another."""
    order = {name: number for number, name in enumerate(BY_NAME)}
    return sorted(cells, key=lambda cell: (order[cell.transform], DTYPES.index(cell.dtype), uses_inductor(cell)))


def run_beside(cells: Collection[Cell], *, jobs: int, seed: int = 0) -> Generator[Record, None, None]:
    """Run cells in several processes, yielding a record of each: those of a form together, the forms as they end.

    Args:
        cells: From `plan`.
        jobs: How many processes.
        seed: Seed of the numbers.
    """
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        case, precision = _pair_of(cell)
        groups.setdefault((CASES[case].form, precision, cell.device), []).append(cell)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), collect_rarely)
    try:
        for done in as_completed([pool.submit(_records, together(group), seed) for group in groups.values()]):
            yield from done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def collect_rarely() -> None:
    """Let Python look for garbage rarely: what compilers keep are a million objects, and looking takes a tenth."""
    gc.set_threshold(100_000, 50, 100)


def _records(cells: Sequence[Cell], seed: int) -> list[Record]:
    return list(run(cells, seed=seed))
