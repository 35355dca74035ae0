"""One call: compare any torch function with its JAX twin."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from parity import needs
from parity.counts import whole
from parity.execution.endings import kept_alive
from parity.garbage import what_was_there_set_aside
from parity.operator.oracle import Oracle
from parity.operator.pair import Inputs, Known, Pair
from parity.operator.tolerance import Tolerance
from parity.operator.transforms import Transform
from parity.records import Cell, Record
from parity.report.report import Report
from parity.verdict import runner as run

QUICK = ("forward", "vjp")
"""The transforms of a quick run."""

JOBS = min(2, os.cpu_count() or 1)
"""Threads that compile, unless told otherwise: the first runs come as fast as with more."""


NEEDED = "a comparison of two functions"


@needs.named(NEEDED)
def compare(
    torch_fn: Callable[..., Any], jax_fn: Callable[..., Any], inputs: Inputs, *,
    transforms: Sequence[str | Transform] | None = None, dtypes: Sequence[str] | None = None,
    devices: Sequence[str] | None = None, known: Known | None = None, name: str | None = None,
    oracle: Callable[..., Any] | Oracle | None = None, worlds: Sequence[str] | None = None,
    data: Sequence[str] | None = None, seed: int = 0, quick: bool = False, fail_fast: bool = False, jobs: int = JOBS,
    progress: Callable[[Record], object] | None = None, strict: bool = False, tolerance: Tolerance | None = None,
) -> Report:  # fmt: skip
    """Compare a torch function with a JAX function, under transforms, in worlds and dtypes, on kinds of data.

    Both run in float64 and must agree there (meaning). Each run in a lower dtype is compared with the float64 run of
    its own framework, and the errors of the two frameworks with each other (precision). See the contract, S11.

    Args:
        torch_fn: A function of torch tensors, or an `nn.Module`. Its weights (of a module, or in a closure) are found,
            paired with JAX's by their values, and become inputs: they are cast and differentiated.
        jax_fn: The same function of JAX arrays, or a module of Flax NNX, Equinox, or Linen (bound).
        inputs: The arguments: a tuple of NumPy arrays, or of nested dicts, lists and tuples of them, of any shape;
            `parity.Args(x, w, stride=2)` where there are keywords, or arguments that are no arrays;
            or a function of a seed that returns one. Floats are differentiated, integers and bools are not.
        transforms: Names from `parity.operator.transforms`, and `Transform`s of your own; None for those that fit.
        dtypes: Names of dtypes; None for float64, float32 and bfloat16.
        devices: "cpu", "cuda"; None for the CPU.
        known: Differences that you expect, each a dict with patterns for `transform`, `world`, `dtype` and `data`, and
            a `reason`. They are not failures. An entry that no cell confirms is one.
        name: Name of the pair; None for the torch function's.
        oracle: A NumPy function that computes the right answer in float64, or an `Oracle` with one for each transform.
        worlds: Names of worlds; None for all.
        data: Kinds of data from `parity.operator.data`; None for all.
        seed: Seed of all random numbers.
        quick: Whether to run "forward" and "vjp" only.
        fail_fast: Whether to stop at the first cell that fails.
        jobs: How many threads compile JAX programs while cells run.
        progress: Called with each record as soon as it is there.
        strict: Whether a difference at the edge of the range (an intermediate that overflows, a subnormal that is
            flushed, the sign of a zero that cancels) is a failure. It always has a verdict of its own, "edge".
        tolerance: `parity.Tolerance(reason, rtol=, atol=)`: by how much results may differ in addition to rounding.

    Raises:
        TypeError: An input is not of NumPy, or a function cannot be called.
        ValueError: A name is not known, or there is no input.
        ModuleNotFoundError: torch or JAX is not installed.

    Example:
        >>> import jax.numpy as jnp, numpy as np, torch
        >>> report = compare(torch.tanh, jnp.tanh, (np.linspace(-2, 2, 5),), transforms=["vjp"], worlds=["jax-jit"])
        >>> report.ok
        True
    """
    pair = Pair(
        torch=torch_fn, jax=jax_fn, inputs=inputs, name=name or "", transforms=transforms, dtypes=dtypes,
        worlds=worlds, data=data, oracle=oracle, known=known, tolerance=tolerance,
    )  # fmt: skip
    return compare_pair(
        pair, devices=devices, seed=seed, quick=quick, fail_fast=fail_fast, jobs=jobs, progress=progress,
        strict=strict,
    )  # fmt: skip


def compare_pair(
    pair: Pair, *, devices: Sequence[str] | None = None, seed: int = 0, quick: bool = False, fail_fast: bool = False,
    jobs: int = JOBS, progress: Callable[[Record], object] | None = None, strict: bool = False,
) -> Report:  # fmt: skip
    """Compare the two functions of a pair; as `compare`, with all that a `Pair` can say besides."""
    needs.require(NEEDED, "torch", "jax")
    seed, jobs = whole("seed", seed), whole("jobs", jobs)
    if jobs < 1:
        raise ValueError(f"jobs: expected 1 or more, got {jobs}")
    planned = run.plan(pair, devices=devices)
    cells = [cell for cell in planned if not quick or cell.transform in QUICK]
    if not cells:
        raise ValueError(f"quick: expected a pair with one of the transforms {', '.join(QUICK)}, got none")
    found: dict[Cell, Record] = {}
    # torch.compile takes seconds for each: last, so that all others are there before.
    order = sorted(cells, key=lambda cell: cell.world == "torch-compiled")
    with (
        what_was_there_set_aside(),
        contextlib.closing(run.run(pair, order, seed, jobs=jobs, strict=strict)) as records,
    ):
        for record in kept_alive(records):
            found[record.cell] = record
            if progress is not None:
                progress(record)
            if fail_fast and record.failed:
                break
    seen = [found[cell] for cell in cells if cell in found]
    # What is listed and does not show is only seen where all of the pair's cells ran.
    return Report(pair.name, run.settle(pair, seen) if len(seen) == len(planned) else seen)


def assert_parity(torch_fn: Callable[..., Any], jax_fn: Callable[..., Any], inputs: Inputs, **options: Any) -> Report:
    """Compare, and raise AssertionError with the report as its text unless all is as it should be.

    Takes what `compare` takes, and returns its report.

    Example:
        >>> import jax.numpy as jnp, numpy as np, torch
        >>> _ = assert_parity(torch.exp, jnp.exp, (np.ones(3),), transforms=["forward"], worlds=["jax-eager"])
    """
    report = compare(torch_fn, jax_fn, inputs, **options)
    report.raise_if_failed()
    return report
