"""Which cells a comparison of a pair has (contract S11)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from parity.operator import data as _data  # `plan` has arguments of these names
from parity.operator import transforms as _transforms
from parity.operator import trees
from parity.operator.oracle import Oracle
from parity.operator.pair import Pair, check_names, is_float
from parity.records import DEVICES, DTYPES, WORLDS, Cell

DEFAULT_DTYPES = ("float64", "float32", "bfloat16")

AT_SPECIAL_POINTS = ("forward", "vjp")
"""What runs on all kinds of data; the other transforms on the user's own numbers."""

ONCE = "float32"
"""The dtype, or else the first that is asked for, in which eager JAX runs the other transforms: it compiles a program
for each operator, of which they have dozens. Under jit they run in every dtype, and in eager torch."""

UNDER_JIT = ("jacrev", "jacfwd", "hessian", "hvp-reverse-over-forward", "second-tangent")
"""Transforms that eager JAX does not run: made of the same parts as the others, of the most operators."""

COMPILED = ("forward", "vjp")
"""What torch.compile runs, in float32 on the user's own numbers: it takes seconds for each."""

Choice = Sequence[str] | None


def plan(
    pair: Pair, *, transforms: Choice = None, dtypes: Choice = None, devices: Choice = None, worlds: Choice = None,
    data: Choice = None,
) -> list[Cell]:  # fmt: skip
    """Return the cells of a pair; None leaves a choice to the pair, and then to what fits. Imports no framework.

    Without an oracle there is no cell of torch-eager in float64: that is what the others are held to.

    Args:
        pair: The pair.
        transforms: Names of transforms (`parity.operator.transforms`).
        dtypes: "float64", "float32", "bfloat16", "float16".
        devices: "cpu", "cuda".
        worlds: "torch-eager", "torch-compiled", "jax-eager", "jax-jit".
        data: Kinds of data (`parity.operator.data`), or of the pair's own.

    Raises:
        ValueError: A name is not known.

    Example:
        >>> import numpy as np
        >>> pair = Pair(torch=abs, jax=abs, inputs=(np.ones(3),))
        >>> [cell.id for cell in plan(pair, transforms=["vjp"], dtypes=["float32"], worlds=["jax-jit"], data=["ties"])]
        ['abs/float32/vjp/jax-jit/cpu/ties']
    """
    arguments = pair.make(0)
    floating = [i for i, argument in enumerate(arguments) if any(is_float(leaf) for _, leaf in trees.leaves(argument))]
    own = tuple(one.name for one in pair.transforms or () if isinstance(one, _transforms.Transform))
    offered = tuple(dict.fromkeys((*_transforms.names(floating), *own)))
    chosen = {
        "transforms": (pair.transform_names if transforms is None else transforms, offered),
        "dtypes": (pair.dtypes if dtypes is None else dtypes, DTYPES),
        "devices": (devices, DEVICES),
        "worlds": (pair.worlds if worlds is None else worlds, WORLDS),
        "data": (pair.data if data is None else data, _kinds(pair)),
    }
    for what, (given, known) in chosen.items():
        check_names(what, given, known)
    if isinstance(pair.oracle, Oracle):
        check_names("oracle", tuple(pair.oracle.answers), offered)
    check_names("exact", tuple(pair.exact or ()), _kinds(pair))
    for entry in pair.known or ():
        for name, names in (("transform", offered), ("world", WORLDS), ("dtype", DTYPES), ("data", _kinds(pair))):
            if not set("*?[") & set(entry.get(name, "*")):
                check_names(f"known: {name}", [entry[name]], names)
    asked, _ = chosen["transforms"]
    kinds = chosen["data"][0] or _data.kinds(pair)
    used = chosen["dtypes"][0] or DEFAULT_DTYPES
    size = sum(leaf.size for _, leaf in trees.leaves(arguments) if is_float(leaf))
    wanted = itertools.product(
        asked or [name for name in offered if _fits(pair, name, size)],
        kinds,
        [name for name in DTYPES if name in used],
        devices or ("cpu",),
        chosen["worlds"][0] or WORLDS,
    )
    cells = [
        pair.cell(pair.name, pair.group, dtype, transform, world, device, kind)
        for transform, kind, dtype, device, world in wanted
        if kind == "random" or transform in AT_SPECIAL_POINTS or chosen["data"][0] is not None
    ]
    return [cell for cell in cells if (_runs_in(cell, chosen, pair) if pair.runs is None else pair.runs(cell))]


def _kinds(pair: Pair) -> tuple[str, ...]:
    own = () if pair.numbers is None else pair.data or ()
    return tuple(dict.fromkeys((*_data.KINDS, *own)))


def _fits(pair: Pair, name: str, size: int) -> bool:
    dense = pair.transform(name).dense
    # Over the only argument there is, vmap-0 is the function itself in gradient-per-copy.
    return size * max(dense, 1) <= _transforms.MOST_DENSE if dense else True


def _runs_in(cell: Cell, chosen: dict[str, Any], pair: Pair) -> bool:
    if cell.world == "torch-eager" and cell.dtype == "float64":
        return pair.oracle is not None
    asked = chosen["worlds"][0] is not None and chosen["transforms"][0] is not None
    if cell.world == "torch-compiled" and not asked:
        return cell.dtype == "float32" and cell.data == "random" and cell.transform in COMPILED
    if cell.world == "jax-eager" and chosen["worlds"][0] is None and chosen["transforms"][0] is None:
        used = chosen["dtypes"][0] or DEFAULT_DTYPES
        once = cell.dtype == (ONCE if ONCE in used else used[0]) and cell.transform not in UNDER_JIT
        if not once and cell.transform not in AT_SPECIAL_POINTS:
            return False
    special = cell.data != "random" and chosen["data"][0] is None
    return not (special and cell.dtype in ("bfloat16", "float16") and chosen["dtypes"][0] is None)
