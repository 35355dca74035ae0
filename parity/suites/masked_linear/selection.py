"""Which cells the grid has: cases, dtypes, transforms, tiers and worlds, in either precision."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping

from parity.records import DTYPES
from parity.suites.masked_linear import cases, real_size, transforms
from parity.suites.masked_linear.cases import BY_ID
from parity.suites.masked_linear.records import Cell

QUICK_CASES = ("columns", "elements", "wide-columns")
QUICK_HARD = ("hard-near-the-limit", "hard-columns")
HARD_EVERYWHERE = ("forward", "backward", "jvp")
"""What every hard case runs in every world; the rest where it tells most."""


TRAINING = ("forward", "vjp", "backward", "accumulate", "jvp", "per-sample-gradients")
"""What training asks of a layer."""

SECOND = ("double-backward", "hvp-reverse-over-reverse", "hvp-forward-over-reverse")
"""Second derivatives that are compiled for each kind of mask."""


def cases_of(precision: str) -> tuple[str, ...]:
    """Return the ids of the cases that run in a precision, in order."""
    return tuple(dict.fromkeys(case for case, *_, of in _combinations(False) if of == precision))


def runs(cell: Cell, quick: bool = False) -> bool:
    """Return whether a cell that could be is one of the grid."""
    if (cell.pair, cell.dtype, cell.transform, cell.data, cell.precision) not in _combinations(quick):
        return False
    if cell.data == real_size.TIER:
        return cell.world in real_size.CELLS[cell.pair, cell.dtype, cell.transform, cell.precision]
    runs_in = _runs_in if cell.precision == "native" else _runs_reproducibly_in
    return runs_in(cell.pair, cell.dtype, cell.transform, cell.world, quick)


def any_of(case: str, precision: str, picked: Mapping[str, Collection[str]]) -> bool:
    """Return whether a case has a cell of the transforms, dtypes and data that were picked."""
    return any(
        (one, how) == (case, precision)
        and transform in picked["transforms"] and dtype in picked["dtypes"] and data in picked["data"]
        for one, dtype, transform, data, how in _combinations(False)
    )  # fmt: skip


@functools.cache
def _combinations(quick: bool) -> dict[tuple[str, str, str, str, str], None]:
    found: Iterable[tuple[str, str, str, str, str]] = (*_native(quick), *_reproducible(quick), *_real_size(quick))
    return dict.fromkeys(found)


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
                if transform.order <= exact
                and transform.applies(problem)
                and not (case.wide and transform.dense)
                and not (case.by and transform.name == "jvp-default-rule")  # the framework's own rule has both modes
            ]
    return found


def _reproducible(quick: bool) -> list[tuple[str, str, str, str, str]]:
    found = []
    # Integers, whose every derivative is exact in any precision: that no order or mode loses its way.
    for case in cases.CASES:
        if case.by or case.wide or (quick and case.id not in QUICK_CASES):
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


def _real_size(quick: bool) -> list[tuple[str, str, str, str, str]]:
    if quick:
        return []
    return [(case, dtype, name, real_size.TIER, how) for case, dtype, name, how in real_size.CELLS]


def _runs_reproducibly_in(case: str, dtype: str, transform: str, world: str, quick: bool) -> bool:
    if world == "torch-eager":
        return True
    chosen = BY_ID[case]
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
    if quick:
        return False
    if world == "jax-jit":
        # Blocks one by one have an input gradient of their own, which second order alone asks for.
        of_blocks = case == "hard-few-blocks" and transform == "double-backward-of-weight"
        return of_blocks or (chosen.core and (chosen.hard or case in QUICK_CASES))
    return case == "hard-columns"


def _runs_in(case: str, dtype: str, transform: str, world: str, quick: bool) -> bool:
    # The compilers take a second or so for each program: they get the core cases, the eager worlds all.
    if world == "torch-eager":
        return True
    if BY_ID[case].by:
        if world == "torch-compiled":
            return case.endswith("rows") and transform in ("forward", "backward") and not quick
        most = {"jax-jit": 2, "jax-eager": 1}.get(world, -1)
        return case.endswith("rows") and transforms.BY_NAME[transform].order <= most
    if world == "jax-eager":
        # JAX compiles every operation of a new shape and dtype by itself: higher orders where they tell most,
        # and under jit, which takes one compilation for all of a program.
        order = transforms.BY_NAME[transform].order + BY_ID[case].packed
        if quick:
            return case == "columns" and order <= 1
        if dtype != "float32":
            return transform in ("forward", "vjp", "vjp-forward-mode-rule", "jvp")
        if transform in ("vmap-bias", "vmap-cotangent", "vmap-input-weight") and not BY_ID[case].core:
            return False
        if BY_ID[case].wide:
            return order <= 1
        return order <= 2 or case in QUICK_CASES
    if world == "torch-compiled":
        return _runs_compiled_in(case, dtype, transform, quick)
    chosen = BY_ID[case]
    if chosen.packed and not quick:
        return dtype == "float32"
    if quick:
        return case == "columns" or (chosen.wide and transforms.BY_NAME[transform].order <= 1)
    return chosen.core or (chosen.wide and dtype == "float32")


def _runs_compiled_in(case: str, dtype: str, transform: str, quick: bool) -> bool:
    """Return whether torch compiles a cell: Dynamo traces it for a second, and the kernels are those of eager torch.

    So every transform is compiled for the two kinds that differ most, masked; for the others those of first order, and
    second derivatives both ways, which are the reference program for all kinds. Long sums and 16 bits, which are a
    matter of kernels and of how the rule chooses among them, are compiled as people train.
    """
    if quick:
        return dtype == "float32" and case == "columns" and transform in ("forward", "backward", "jvp", "modes-fr")
    chosen = BY_ID[case]
    if chosen.wide or dtype != "float32":
        plain = dtype == "float32" if chosen.wide else chosen.core and dtype == "bfloat16"
        return plain and not chosen.packed and transform in TRAINING
    if not (chosen.core or case in ("packed-columns", "packed-elements")):
        return False
    return case in ("columns", "elements") or transform in SECOND or transforms.BY_NAME[transform].order <= 1
