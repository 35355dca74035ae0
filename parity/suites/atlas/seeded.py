"""Seeded faults: each operator's JAX function is changed on purpose, and the verdict must say so.

    python -m parity.suites.atlas.seeded [NAME ...] [--fault NAME ...]

prints how many of the changes are found, by fault, and every one that is not. One that changes no bit of any result
on the data (the sign of a zero where there is none) is not counted, nor are cells in which the operators differ anyway,
nor operators that differ on random numbers: they fail as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from parity.execution.calls import Outputs
from parity.execution.outputs import Runs
from parity.names import unknown
from parity.operator.pair import Pair
from parity.records import Cell
from parity.suites.atlas.pairs import PAIRS
from parity.verdict import judge
from parity.verdict.runner import plan, run

ULPS = 4
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
    """

    pair: str
    fault: str
    cells: int
    caught: int


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
        yield Found(pair.name, name, len(changed), caught)


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
    found = []
    for name in asked.name or known:
        for one in seeded(known[name], asked.fault or tuple(FAULTS)):
            found.append(one)
            if one.cells and not one.caught:
                print(f"not found: {one.fault} in {one.pair}, which changes {one.cells} cells", flush=True)
    for fault in asked.fault or FAULTS:
        counted = [one for one in found if one.fault == fault and one.cells]
        print(f"{fault}: {sum(bool(one.caught) for one in counted)} of {len(counted)} operators")
    counted = [one for one in found if one.cells]
    caught = sum(bool(one.caught) for one in counted)
    print(f"score: {caught} of {len(counted)} seeded faults are found")
    return int(caught < len(counted))


def _own(pair: Pair, name: str) -> Sequence[str] | None:
    return pair.transform_names if name == "transforms" else getattr(pair, name)


def _changes(right: Runs, wrong: Runs, cell: Cell) -> bool:
    one, other = right.outputs(cell), wrong.outputs(cell)
    return isinstance(one, Outputs) and isinstance(other, Outputs) and not judge.same_bits(one, other)


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and bool(leaf.size) and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


if __name__ == "__main__":
    sys.exit(main())
