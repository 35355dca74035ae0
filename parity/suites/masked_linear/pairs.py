"""The cases as pairs: what `parity.compare_pair` takes, and what the grid is made of."""

from __future__ import annotations

import functools
import importlib
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import numpy as np

from maskedlinear_core import constructors
from parity.execution._compat import QUICKLY, known_xla_options
from parity.execution.calls import Numbers
from parity.operator.oracle import Exact, Oracle
from parity.operator.pair import Deferred, Pair
from parity.records import DTYPES
from parity.suites.masked_linear import cases, selection, transforms
from parity.suites.masked_linear.cases import Case, Problem
from parity.suites.masked_linear.records import TIERS, Cell

Layers = Mapping[str, Callable[..., Any]]

ANSWER = "the answer is a function of the inputs (S9)"
EXACT = {
    "native": {"exact": Exact(), "real-size": Exact()},
    "reproducible": {"exact": Exact(ANSWER), "hard": Exact(ANSWER, zeros=True), "real-size": Exact(ANSWER)},
}
"""The tiers where bits are compared, by precision."""


def pair(case: str, precision: str = "native", subjects: Layers | None = None, quick: bool = False) -> Pair:
    """Return a case as a pair.

    Args:
        case: Its id.
        precision: "native" or "reproducible".
        subjects: Another masked_linear to test, by framework ("torch", "jax").
        quick: Whether it has the cells of the quick selection only.

    Example:
        >>> pair("columns").group
        'columns'
    """
    made, given = cases.BY_ID[case], subjects or {}

    def numbers(tier: str, dtype: str, seed: int) -> Numbers:
        return cases.numbers_of(_problem(case, dtype, tier, seed, precision))

    native = precision == "native"
    return Pair(
        torch=_layer("torch", made, precision, given),
        jax=_layer("jax", made, precision, given),
        inputs=lambda seed: numbers(made.tier, "float32", seed).arguments,
        name=case,
        group=made.mask,
        transforms=[t if native else transforms.reproducible(t) for t in transforms.TRANSFORMS],
        dtypes=DTYPES,
        data=TIERS,
        oracle=Oracle(
            {t.name: functools.partial(_answer, t) for t in transforms.TRANSFORMS},
            {t.name: functools.partial(_majorant, t) for t in transforms.TRANSFORMS},
            _terms,
        ),
        known=[_of_pair(entry) for entry in known() if speaks_of(entry, made, precision)],
        exact=EXACT[precision],
        frozen=lambda transform, output, numbers: transforms.frozen(numbers.about, transform, output),
        numbers=numbers,
        runs=lambda cell: selection.runs(cell, quick),
        compiler=_compiler,
        cell=functools.partial(Cell, precision=precision),
        form=(made.form, precision, given.get("torch"), given.get("jax")),
    )


@functools.cache
def known() -> tuple[dict[str, Any], ...]:
    """Return the entries of known.toml, one for each transform."""
    text = resources.files("parity.suites.masked_linear").joinpath("known.toml").read_text("utf-8")
    return tuple(
        {"precision": "*", "by": ["*"]} | entry | {"transform": transform}
        for entry in tomllib.loads(text)["unsupported"]
        for transform in ([entry["transform"]] if isinstance(entry["transform"], str) else entry["transform"])
    )


def speaks_of(entry: Mapping[str, Any], case: Case, precision: str) -> bool:
    """Return whether an entry of known.toml is of a case in a precision."""
    return entry["precision"] in ("*", precision) and any(by in ("*", case.by) for by in entry["by"])


def _of_pair(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("precision", "by")}


def world_of(name: str) -> Any:
    """Return the module of a world's framework."""
    return importlib.import_module(f"parity.suites.masked_linear.{name.split('-')[0]}_side")


@functools.lru_cache(4)
def _problem(case: str, dtype: str, tier: str, seed: int, precision: str) -> Problem:
    return cases.make(cases.BY_ID[case], dtype, tier, seed, precision)


def _layer(framework: str, case: Case, precision: str, given: Layers) -> Deferred:
    """Return the layer under test as the function of a pair: of input, weight, bias and bias mask, either None."""

    def make() -> Callable[..., Any]:
        side = world_of(framework)  # imported first: masks have the views of twins that are there when they are made
        mask, tested = case.build(case.shape), given.get(framework) or side.SUBJECTS[case.packed]
        if case.by and framework not in given:
            layers = importlib.import_module(f"parity.suites.masked_linear.{framework}_layers")
            tested = layers.LAYERS[case.by, case.packed](mask, case.shape)
        chosen: dict[str, Any] = {} if precision == "native" else {"precision": precision}

        def function(
            input: Any, weight: Any, bias: Any, bias_mask: Any, *, positions: Any = (), forward_mode: bool = False
        ) -> Any:
            theta = (input, weight) if bias is None else (input, weight, bias)
            used = constructors.as_mask(mask).with_leaves(positions) if positions else mask
            return tested(*theta, grad_mask=used, bias_mask=bias_mask, forward_mode=forward_mode, **chosen)

        return function

    return Deferred(make)


def _answer(transform: transforms.Transform, numbers: Numbers) -> Mapping[str, np.ndarray]:
    return transform.oracle(numbers.about)


def _majorant(transform: transforms.Transform, numbers: Numbers) -> Mapping[str, np.ndarray]:
    return transform.oracle(transforms.majorant(numbers.about))


def _terms(numbers: Numbers) -> int:
    case = numbers.about.case
    return case.in_features + case.out_features + int(np.prod(case.batch))


FIRST_ORDER = ("forward", "vjp", "backward", "accumulate", "jvp")
"""Transforms in which every case that rounds is compiled as a user's program is."""

AS_USERS = ("wide-columns", "wide-packed-elements", "hard-columns", "hard-packed-elements")
"""Cases that round, of which every transform is."""


def _compiler(cell: Cell) -> dict[str, Any]:
    if cell.world == "torch-eager":
        return {}
    if cell.world == "torch-compiled":
        return {"backend": "inductor" if uses_inductor(cell) else "aot_eager"}
    return {} if _as_users_are(cell) else {"compiler_options": known_xla_options(QUICKLY)}


def _as_users_are(cell: Cell) -> bool:
    """Tell whether XLA compiles a cell with its default options.

    What the options change is how machine code is made from the graph that XLA's passes leave. Where every sum is exact
    only the graph is in question: the machine code of sums and products of integers has one answer. Cases that round
    have their whole layer in the first-order transforms; in the others one case of each form is enough, as what they
    add is a graph around the same products. Eager, each operator is compiled alone: nothing is fused, and one case of
    each form shows what the operators round.
    """
    case = cases.BY_ID[cell.pair]
    if not (case.wide or case.hard):
        return cell.world == "jax-jit" and uses_inductor(cell)
    if cell.pair in AS_USERS:
        return True
    return cell.transform in FIRST_ORDER and (case.hard or cell.world == "jax-jit")


def uses_inductor(cell: Cell) -> bool:
    """Tell whether a compiled cell goes through all of the compiler, or through AOTAutograd on eager kernels.

    Inductor writes and compiles C++ for seconds a program; where only the graph is in question, the same graph runs
    by AOTAutograd on eager kernels.
    """
    case = cases.BY_ID[cell.pair]
    if case.hard:
        # Where a compiler that adds inside of a product, or in another order, would show first.
        return case.data in ("near the limit and back", "cancelling") and cell.dtype == "float32"
    return (
        cell.transform in ("forward", "backward", "vmap-everything", "hvp-reverse-over-reverse")
        and cell.pair in ("columns", "elements")
        and cell.dtype == "float32"
    )
