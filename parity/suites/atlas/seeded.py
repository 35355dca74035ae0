"""Seeded faults: each operator's JAX function is changed on purpose, and the verdict must say so.

    python -m parity.suites.atlas.seeded [NAME ...] [--fault NAME ...]

prints a row of a table for each operator: in how many cells each fault changes a bit, and in how many of them it is
found; then the score, and every fault that is not found. One that changes no bit of any result on the data (the sign of
a zero where there is none) is not counted, nor are cells in which the operators differ anyway, nor operators that
differ on random numbers: they fail as they are. Said apart is a fault that moves results no more than twice as far as
rounding the right function anew does: no verdict can tell it from rounding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.execution.calls import Outputs
from parity.execution.outputs import Runs
from parity.names import unknown
from parity.operator.pair import Pair
from parity.records import Cell
from parity.suites.atlas.pairs import PAIRS
from parity.verdict import judge, sensitivity
from parity.verdict.bounds import UNIT
from parity.verdict.runner import plan, run

ULPS = 4
DROWNED = 2.0
"""Times what rounding does: a fault that moves results no farther is none that shows."""

CHOICE = {"transforms": ("forward", "vjp"), "data": ("random", "signed zeros", "kinks")}
AGREE = ("identical", "within bound")


def scaled(y: Any) -> Any:
    """Return results that are too large by 4 units in the last place."""
    return y * jnp.asarray(1 + ULPS * jnp.finfo(y.dtype).eps, y.dtype)


def one_element(y: Any) -> Any:
    """Return results of which the last is too large by a hundredth."""
    return y.reshape(-1).at[-1:].multiply(jnp.asarray(1.01, y.dtype)).reshape(y.shape)


def one_branch(y: Any) -> Any:
    """Return results of which those above zero are too large by a thousandth."""
    return jnp.where(y.real > 0, y * jnp.asarray(1.001, y.dtype), y)


def zero_sign(y: Any) -> Any:
    """Return results whose zeros have the other sign."""
    return jnp.where(y == 0, -y, y)


def dropped_cotangent(y: Any) -> Any:
    """Return results of which the first gets no cotangent."""
    first = jnp.arange(y.size).reshape(y.shape) == 0
    return jnp.where(first, jax.lax.stop_gradient(y), y)


SIGNS = "sign of a zero"
"""Counts on signed zeros alone: on other numbers right ports differ in it (a product with a mask, and a `where`)."""

FAULTS: dict[str, Callable[[Any], Any]] = {
    "scaled by 4 ulp": scaled,
    "one element off": one_element,
    "one branch of a where": one_branch,
    SIGNS: zero_sign,
    "a cotangent dropped": dropped_cotangent,
}
"""What is done to every floating result."""


@dataclass(frozen=True)
class Found:
    """What came of one fault in one operator.

    Attributes:
        pair: The operator.
        fault: The fault.
        cells: In how many cells it changes a bit, where the operators agree without it.
        caught: In how many of them it is a failure.
        moved: How far it moves the median element that it moves, beside what rounding does to it, where no cell is a
            failure: the largest of all cells.
    """

    pair: str
    fault: str
    cells: int
    caught: int
    moved: float = 0.0

    @property
    def missed(self) -> bool:
        """Whether it is in no cell a failure, and is no rounding."""
        return bool(self.cells) and not self.caught and self.moved > DROWNED

    def __str__(self) -> str:
        if not self.cells:
            return "no bit"
        if self.caught:
            return f"{self.caught} of {self.cells}"
        return f"{'MISSED' if self.missed else 'rounding'} ({self.moved:.1f})"


def with_fault(function: Callable[..., Any], fault: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a JAX function whose floating results are changed."""

    def wrong(*args: Any, **keywords: Any) -> Any:
        return jax.tree.map(lambda leaf: fault(leaf) if _floating(leaf) else leaf, function(*args, **keywords))

    return wrong


def seeded(pair: Pair, faults: Sequence[str] = tuple(FAULTS), seed: int = 0) -> Iterator[Found]:
    """Seed faults into an operator's JAX function, and yield what came of each."""
    chosen = {
        name: [value for value in values if (own := _own(pair, name)) is None or value in own]
        for name, values in CHOICE.items()
    }
    bare = replace(pair, known=None)
    cells = plan(bare, dtypes=["float64", "float32"], worlds=["jax-eager"], **chosen)
    agree = [record.cell for record in run(bare, cells, seed) if record.verdict in AGREE]
    if not any(cell.data == "random" for cell in agree):
        return
    right = Runs(bare, seed)
    for name in faults:
        wrong = replace(bare, jax=with_fault(bare.jax, FAULTS[name]))
        there = [cell for cell in agree if name != SIGNS or (cell.data, cell.transform) == ("signed zeros", "forward")]
        changed = [cell for cell in there if _changes(right, Runs(wrong, seed), cell)]
        # The sign of a zero that cancels is shown, and fails where asked to.
        caught = sum(record.failed for record in run(wrong, changed, seed, strict=name == SIGNS)) if changed else 0
        moved = max(_moved(right, Runs(wrong, seed), cell) for cell in changed) if changed and not caught else 0.0
        yield Found(pair.name, name, len(changed), caught, moved)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 1 where a fault is not found."""
    parser = argparse.ArgumentParser(prog="python -m parity.suites.atlas.seeded", description=(__doc__ or "")[:74])
    parser.add_argument("name", nargs="*", help="only these operators")
    parser.add_argument("--fault", action="append", metavar="NAME", help="only this fault; may be repeated")
    asked = parser.parse_args(arguments)
    known = {pair.name: pair for pair in PAIRS}
    for what, given, names in (("name", asked.name, list(known)), ("--fault", asked.fault or [], list(FAULTS))):
        for one in given:
            if one not in names:
                parser.error(unknown(what, one, names))
    faults = tuple(asked.fault or FAULTS)
    found: list[Found] = []
    print(f"| operator | {' | '.join(faults)} |\n|---|{'---|' * len(faults)}", flush=True)
    for name in asked.name or known:
        row = list(seeded(known[name], faults))
        found += row
        said = [str(one) for one in row] or ["differs as it is"] * len(faults)
        print(f"| {name} | {' | '.join(said)} |", flush=True)
    print()
    for fault in faults:
        counted = [one for one in found if one.fault == fault and one.cells]
        print(f"- {fault}: {sum(bool(one.caught) for one in counted)} of {len(counted)} operators")
    counted = [one for one in found if one.cells]
    caught, missed = sum(bool(one.caught) for one in counted), sum(one.missed for one in found)
    rounding = len(counted) - caught - missed
    print(f"- score: {caught} of {len(counted)} are found, {rounding} are no more than rounding, {missed} are missed")
    return int(missed > 0)


def _moved(right: Runs, wrong: Runs, cell: Cell) -> float:
    """Return how far the median element that a fault moves is moved, beside what rounding the right function does."""
    one, other = right.outputs(cell), wrong.outputs(cell)
    assert isinstance(one, Outputs)
    assert isinstance(other, Outputs)
    spread, sizes = sensitivity.of_cell(right, cell, UNIT[cell.dtype]).spread, sensitivity.sizes(one.values)
    worst = 0.0
    for name, size in sizes.items():
        change = np.abs(other.values[name] - one.values[name])
        if name in spread and change.any():
            ratio = change / sensitivity.inherent(size, spread[name], cell.dtype)
            worst = max(worst, float(np.median(ratio[change > 0])))
    return worst


def _own(pair: Pair, name: str) -> Sequence[str] | None:
    return pair.transform_names if name == "transforms" else getattr(pair, name)


def _changes(right: Runs, wrong: Runs, cell: Cell) -> bool:
    one, other = right.outputs(cell), wrong.outputs(cell)
    return isinstance(one, Outputs) and isinstance(other, Outputs) and not judge.same_bits(one, other)


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and bool(leaf.size) and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


if __name__ == "__main__":
    sys.exit(main())
