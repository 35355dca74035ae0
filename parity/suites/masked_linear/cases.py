"""The cases, as data: masks, shapes, dtypes, and the numbers that go in.

Four tiers (contract S11). *exact*: small integers, chosen so that every sum of every derivative up to order
three is an exact number of the dtype whatever the order of its additions; there is then one right
answer, and bits are compared. `check_exact` proves the premise for each point. *random*: long sums of
random numbers, held to the float64 oracle by a bound. *hard*: data of all kinds (numbers.py), in reproducible
precision, whose answer is a function of the inputs: bits are compared again. *real-size*: integers
again, in layers so large that they run the code of real ones (real_size.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskedlinear_core import constructors, masks
from maskedlinear_core.constructors import blocks, columns, elements, rows, submatrix
from maskedlinear_core.masks import Mask
from parity.execution.calls import Numbers
from parity.suites.masked_linear import arithmetic, numbers, oracle, real_size
from parity.suites.masked_linear.case import Case as Case
from parity.suites.masked_linear.case import few, one_block_in, random_bools
from parity.suites.masked_linear.oracle import Point, Tree

SIGNIFICAND = {"float64": 53, "float32": 24, "bfloat16": 8, "float16": 11}
"""Bits of an integer that a dtype holds exactly."""

COPIES = 3
"""How many of everything a vmap gets."""


CASES = (
    Case("columns", "columns", lambda s: columns([0, 3]), "the plain case", bias_mask="some", core=True),
    Case("rows", "rows", lambda s: rows([1, 2]), "rows", core=True),
    Case("submatrix", "submatrix", lambda s: submatrix([0, 3], [1, 2, 5]), "both axes", bias_mask="some", core=True),
    Case("blocks", "blocks", one_block_in(3, (2, 3)), "a grid of blocks", core=True),
    Case("elements", "elements", lambda s: elements(random_bools(s)), "single elements", bias_mask="some", core=True),
    Case("columns-unordered", "columns", lambda s: columns([5, -1, 2, 2, -4]), "negative, repeated, out of order"),
    Case("columns-slice", "columns", lambda s: columns(slice(None, None, 2)), "a slice with a step"),
    Case("columns-bools", "columns", lambda s: columns(np.arange(s[1]) % 3 == 1), "a bool vector"),
    Case("columns-contiguous", "columns", lambda s: columns(slice(1, 4)), "a run of columns", batch=(2, 2)),
    Case("rows-bools", "rows", lambda s: rows([True, False, False, True]), "a list of bools", bias_mask="none"),
    Case("rows-one", "rows", lambda s: rows([-1]), "one row, from the end"),
    Case("submatrix-slice", "submatrix", lambda s: submatrix(slice(0, 2), [-1]), "a slice with an index"),
    Case("blocks-many", "blocks", one_block_in(2, (2, 3)), "so many that they are taken from the dense product"),
    Case("blocks-one", "blocks", lambda s: blocks([[False, True]], (4, 3)), "one block of full height"),
    Case("plain-bools", "elements", random_bools, "a plain bool array as grad_mask", bias=False),
    Case("none", "none", lambda s: columns([]), "nothing of the weight trains", bias_mask="some"),
    Case("none-elements", "none", lambda s: elements(np.zeros(s, bool)), "nothing, said by elements"),
    Case("all", "all", lambda s: columns(slice(None)), "everything trains", bias_mask="none"),
    Case("all-elements", "all", lambda s: elements(np.ones(s, bool)), "everything, said by elements"),
    Case("union", "combination", lambda s: columns([1]) | rows([2]), "a union", bias_mask="some"),
    Case("complement", "combination", lambda s: ~columns([1, 4]), "a complement"),
    Case("intersection", "combination", lambda s: ~rows([0]) & columns([0, 2]), "an intersection of complements"),
    Case("no-batch", "columns", lambda s: columns([1, 2]), "no batch dimension", batch=()),
    Case("batch-of-one", "elements", lambda s: elements(random_bools(s)), "a batch of one", batch=(1,)),
    Case("two-batch-axes", "blocks", one_block_in(2, (2, 2)), "two batch dimensions", batch=(2, 2), bias_mask="some"),
    Case("three-batch-axes", "submatrix", lambda s: submatrix([1], [0, 5]), "three batch dimensions", batch=(2, 1, 2)),
    Case("empty-batch", "columns", lambda s: columns([1]), "an empty batch", batch=(0,)),
    Case("empty-batch-blocks", "blocks", one_block_in(3, (2, 3)), "an empty batch with blocks", batch=(2, 0)),
    Case("one-input", "columns", lambda s: columns([0]), "one input feature", in_features=1),
    Case("one-output", "rows", lambda s: rows([0]), "one output feature", out_features=1),
    Case("one-by-one", "elements", lambda s: elements([[True]]), "a weight of one entry", 1, 1),
    Case("no-inputs", "columns", lambda s: columns([]), "no input feature", in_features=0, bias_mask="some"),
    Case("no-outputs", "rows", lambda s: rows(slice(None)), "no output feature", out_features=0),
    Case("no-bias", "rows", lambda s: rows([0, 2]), "no bias", bias=False),
    Case("wide-columns", "columns", lambda s: columns(range(0, s[1], 9)), "long sums", 48, 512, (64,), wide=True),
    Case("wide-rows", "rows", lambda s: rows(range(0, s[0], 5)), "long sums over the outputs", 320, 96, (40,),
         bias_mask="some", wide=True, data="same sign"),
    Case("wide-blocks", "blocks", one_block_in(3, (8, 32)), "long sums in blocks", 48, 256, (5, 12), wide=True,
         data="wide exponents"),
    Case("wide-elements", "elements", lambda s: elements(random_bools(s)), "long sums over the batch", 32, 64, (384,),
         bias_mask="some", wide=True),
    Case("wide-elements-same-sign", "elements", lambda s: elements(random_bools(s)), "sums that only grow", 24, 768,
         (48,), wide=True, data="same sign"),
    Case("wide-few-elements", "elements", few, "so few that each is a dot product", 64, 96, (128,), wide=True),
    Case("packed-columns", "columns", lambda s: columns([0, 3]), "packed columns", bias_mask="some", packed=True),
    Case("packed-rows", "rows", lambda s: rows([2, -1, 2]), "packed rows, said out of order", packed=True),
    Case("packed-submatrix", "submatrix", lambda s: submatrix([0, 3], [5, 2, 1]), "packed on both axes", batch=(2, 2),
         packed=True),
    Case("packed-blocks", "blocks", one_block_in(3, (2, 3)), "packed blocks", packed=True),
    Case("packed-blocks-many", "blocks", one_block_in(2, (2, 3)), "packed blocks that are many", packed=True),
    Case("packed-elements", "elements", lambda s: elements(random_bools(s)).packed(s), "packed elements",
         bias_mask="some", packed=True),
    Case("packed-none", "none", lambda s: columns([]), "nothing to pack", bias=False, packed=True),
    Case("wide-packed-elements", "elements", lambda s: elements(random_bools(s)).packed(s), "taken row by row",
         40, 64, (96,), wide=True, packed=True),
    Case("wide-packed-few", "elements", lambda s: few(s).packed(s), "packed elements that are few", 64, 96, (128,),
         wide=True, packed=True),
    Case("parameter-rows", "rows", lambda s: rows([1, -1]), "masked_parameter, rows", by="masked_parameter"),
    Case("parameter-elements", "elements", lambda s: elements(random_bools(s)), "masked_parameter, elements",
         batch=(2, 2), by="masked_parameter"),
    Case("embedding-rows", "rows", lambda s: rows([2, -1]), "tokens that learn", by="embedding"),
    Case("embedding-submatrix", "submatrix", lambda s: submatrix([0, 3], [1, 5]), "features of tokens", bias=False,
         by="embedding"),
    Case("packed-embedding-rows", "rows", lambda s: rows([2, -1]), "packed tokens", packed=True, by="embedding"),
    Case("packed-embedding-elements", "elements", lambda s: elements(random_bools(s)).packed(s), "packed entries",
         packed=True, by="embedding"),
    Case("turned-rows", "rows", lambda s: rows([2, -1]), "a weight (in, out)", by="turned"),
    Case("turned-elements", "elements", lambda s: elements(random_bools(s)), "entries of it", batch=(2, 2),
         by="turned"),
    Case("packed-turned-rows", "rows", lambda s: rows([2, -1]), "packed, of a weight (in, out)", packed=True,
         by="turned"),
    Case("packed-turned-columns", "columns", lambda s: columns([0, 3]), "its input features", packed=True,
         by="turned"),
    Case("attention-rows", "rows", lambda s: rows([2, -1]), "values of another size", by="attention"),
    Case("attention-elements", "elements", lambda s: elements(random_bools(s)), "projections in one matrix",
         in_features=4, batch=(2, 2), by="attention"),
    Case("packed-attention-rows", "rows", lambda s: rows([2, -1]), "packed projections", in_features=4, packed=True,
         by="attention"),
    Case("packed-attention-elements", "elements", lambda s: elements(random_bools(s)).packed(s), "their entries",
         in_features=4, packed=True, by="attention"),
    Case("attention-output-rows", "rows", lambda s: rows([0, 1]), "the output layer, which is read", in_features=4,
         by="attention's output"),
    Case("packed-attention-output-rows", "rows", lambda s: rows([0, 1]), "likewise, packed", in_features=4,
         packed=True, by="attention's output"),
)  # fmt: skip
"""Every case, by what it adds."""

_HARD_MASKS: tuple[tuple[str, Callable[[tuple[int, int]], Mask | np.ndarray]], ...] = (
    ("columns", lambda s: columns(range(1, s[1], 5))),
    ("elements", lambda s: elements(random_bools(s))),
    ("blocks", one_block_in(2, (2, 4))),
    ("rows", lambda s: rows([0, 3, -1])),
    ("submatrix", lambda s: submatrix([1, 4], range(0, s[1], 3))),
)

_HARD_FORMS = tuple(
    zip(
        _HARD_MASKS,
        (24, 136, 64, 24, 136),
        ((6,), (2, 5), (33,), (6,), (2, 5)),
        ("all", "some", "all", "some", "all"),
        strict=True,
    )
)
"""Few, each for several kinds of data: what is compiled for one serves the others."""

HARD = tuple(
    Case(
        f"hard-{data.replace(',', '').replace(' ', '-')}", *mask, f"sums of {data}", 8, in_features, batch,
        bias_mask=bias_mask, data=data, hard=True,
    )
    for number, data in enumerate(numbers.KINDS)
    for mask, in_features, batch, bias_mask in [_HARD_FORMS[number * len(_HARD_FORMS) // len(numbers.KINDS)]]
) + tuple(
    Case(f"hard-{mask}", mask, build, "each kind of mask, under all transforms", 8, 24, (2, 5), bias_mask="some",
         data="exponents 6", hard=True, core=True)
    for mask, build in _HARD_MASKS
) + (
    Case("hard-few-blocks", "blocks", one_block_in(3, (2, 4)), "blocks one by one", 8, 24, (2, 5), bias_mask="some",
         data="exponents 6", hard=True),
    Case("hard-packed-columns", "columns", lambda s: columns([0, 3]), "packed columns", 6, 24, (9,), data="exponents 6",
         hard=True, core=True, packed=True),
    Case("hard-packed-elements", "elements", lambda s: elements(random_bools(s)).packed(s), "packed elements", 6, 24,
         (9,), data="exponents 6", bias_mask="some", hard=True, core=True, packed=True),
    Case("hard-packed-few", "elements", lambda s: few(s).packed(s), "packed elements that are few", 64, 96, (5,),
         data="cancelling", hard=True, packed=True),
)  # fmt: skip
"""The cases of the hard tier."""

LARGE = (
    Case("large-columns", "columns", lambda s: columns(range(0, s[1], 7)), "sums of 1024", 384, 1024, (256,),
         data="exponents 6", hard=True),
    Case("large-elements", "elements", lambda s: elements(random_bools(s)), "sums of 4096", 64, 4096, (96,),
         data="heavy tails", hard=True),
    Case("large-limit", "rows", lambda s: rows(range(0, s[0], 3)), "sums that only grow", 96, 2048, (1100,),
         data="near the limit", hard=True),
)  # fmt: skip
"""Larger ones, for golden hashes: what a device's kernels for large products do."""

BY_ID = {case.id: case for case in CASES + HARD + LARGE + real_size.CASES}


@dataclass(frozen=True)
class Problem:
    """A case with its numbers: NumPy float64 arrays whose values the dtype holds exactly.

    Attributes:
        case: The case.
        dtype: The dtype the worlds compute in.
        point: Values and masks.
        mask: What is passed as grad_mask.
        bias_mask: What is passed as bias_mask, or None.
        cotangent: g (*B, O).
        directions: Three tangents of (input, weight, bias); one for a case of real size.
        copies: Other values of everything, for vmap: input, weight, bias, cotangent, each stacked.
        mask_copies: Stacked leaves of other masks of the same kind, or None where the kind has none.
    """

    case: Case
    dtype: str
    point: Point
    mask: Mask | np.ndarray
    bias_mask: np.ndarray | None
    cotangent: np.ndarray
    directions: tuple[Tree, ...]
    copies: Tree
    mask_copies: tuple[np.ndarray, ...] | None

    def with_copy(self, names: tuple[str, ...], copy: int) -> tuple[Point, np.ndarray]:
        """Return the point and the cotangent that copy number `copy` of the named arguments makes."""
        theta = {name: self.copies[name][copy] if name in names else value for name, value in self.point.theta.items()}
        mask = self.mask_array(copy) if "mask" in names else self.point.mask
        cotangent = self.copies["cotangent"][copy] if "cotangent" in names else self.cotangent
        return Point(theta, mask, self.point.bias_mask, self.point.scale, self.point.arithmetic), cotangent

    def mask_at(self, leaves: tuple[Any, ...]) -> Any:
        """Return a mask of the same kind with other positions, of any framework."""
        return constructors.as_mask(self.mask).with_leaves(leaves)

    def mask_array(self, copy: int) -> np.ndarray:
        """Return the bool array of one of the stacked masks."""
        return self.mask_at(tuple(leaf[copy] for leaf in self.mask_copies or ())).to_array(self.case.shape)


def make(case: Case, dtype: str, tier: str, seed: int, precision: str = "native") -> Problem:
    """Make the numbers of a case.

    Args:
        case: The case.
        dtype: "float32", "float64", "bfloat16" or "float16".
        tier: One of records.TIERS.
        seed: Any int; the case's name goes into the stream too.
        precision: "native" or "reproducible": what the oracle computes.
    """
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(case.id.encode()), seed]))
    if case.real:
        draw = real_size.draw_of(case, dtype, rng)
    elif tier == "hard":
        draw = _of_kind(rng, case.data)
    else:
        draw = _integers(rng, dtype) if tier == "exact" else _reals(rng, case.data, dtype)
    shapes = {"input": (*case.batch, case.in_features), "weight": case.shape, "bias": (case.out_features,)}
    if not case.bias:
        del shapes["bias"]
    outputs = (*case.batch, case.out_features)

    def theta(stacked: tuple[int, ...] = ()) -> Tree:
        return {name: _round(draw(stacked + shape, name), dtype) for name, shape in shapes.items()}

    mask = case.build(case.shape)
    bias_mask = {"all": None, "some": np.arange(case.out_features) % 2 == 0, "none": np.zeros(case.out_features, bool)}
    trains = bias_mask[case.bias_mask] if case.bias else None
    point = Point(
        theta(),
        constructors.as_mask(mask).to_array(case.shape),
        np.ones(case.out_features, bool) if trains is None else trains,
        _round(draw(outputs, "cotangent"), dtype),
        _arithmetic(case, dtype, precision),
    )
    # What no cell of a large case uses is not made.
    count, ways = (COPIES, 3) if not case.real else (COPIES if real_size.is_batched(case) else 1, 1)
    copies = theta((count,)) | {"cotangent": _round(draw((count, *outputs), "cotangent"), dtype)}
    return Problem(
        case, dtype, point, mask, trains, _round(draw(outputs, "cotangent"), dtype),
        tuple(theta() for _ in range(ways)), copies,
        None if count == 1 or case.by else _mask_copies(mask, from_end=case.real),
    )  # fmt: skip


def _arithmetic(case: Case, dtype: str, precision: str) -> arithmetic.Arithmetic:
    if case.real and case.data not in real_size.DIGITS:
        return arithmetic.Rounded(dtype)  # every sum is exact, so it is the answer of either precision
    return arithmetic.FLOAT64 if precision == "native" else arithmetic.Reproducible(dtype)


def exact_order(problem: Problem) -> int:
    """Return up to which order of derivative no sum of the problem can be rounded (0 to 3).

    All data are non-zero integers, so every sum is a multiple of 1/2 (the test function halves once), and
    what is computed on the way to a derivative is a factor of its monomials. It is exact in any order of
    addition if the sum of the magnitudes of its monomials, the majorant, is below 2^t units.
    """
    point = problem.point.majorant()
    tangents = tuple({name: np.abs(part) for name, part in tree.items()} for tree in problem.directions)
    limit = 2.0 ** SIGNIFICAND[problem.dtype] / 2
    for order in (1, 2, 3):
        sums = [*oracle.quadratic_gradient(point, np.ones(()), tangents[: order - 1]).values()]
        sums += [oracle.quadratic(point, tangents[:order])]
        sums += [*oracle.vjp(point, np.abs(problem.cotangent)).values()]
        if max(np.max(total, initial=0.0) for total in sums) > limit:
            return order - 1
    return 3


def numbers_of(problem: Problem) -> Numbers:
    """Return a problem as the `Numbers` of a call: what the programs of transforms.py use."""
    point, theta = problem.point, problem.point.theta
    bias = theta.get("bias")
    return Numbers(
        (theta["input"], theta["weight"], bias, problem.bias_mask),
        tuple(theta.values()),
        tuple(theta),
        tuple(range(len(theta))),
        (problem.cotangent,),
        tuple(tuple(tree.values()) for tree in problem.directions),
        tuple(problem.copies[name] for name in theta),
        (point.scale,),
        {
            "cotangent copies": problem.copies["cotangent"],
            "mask copies": problem.mask_copies or (),
            "bad input": _non_finite(theta["input"]),
            "bad cotangent": _non_finite(problem.cotangent),
        },
        problem,
    )


def _non_finite(values: np.ndarray) -> np.ndarray:
    bad = values.copy()
    bad.flat[::2] = np.nan
    bad.flat[1::3] = np.inf
    return bad


def _mask_copies(mask: Mask | np.ndarray, *, from_end: bool) -> tuple[np.ndarray, ...] | None:
    mask = constructors.as_mask(mask)
    if isinstance(mask, masks.Combination) or not mask.leaves:
        return None
    if isinstance(mask, masks.Elements):
        return (np.stack([np.roll(mask.array, copy, axis=(0, 1)) for copy in range(COPIES)]),)
    # Positions move by one each, or, so that some count from the end, by as many as leave none at the beginning;
    # except that the second copy repeats one: duplicates must not count twice.
    moved = []
    for leaf in mask.leaves:
        step = 1 + int(leaf.min()) if from_end and leaf.size else 1
        copies = np.stack([leaf - copy * step for copy in range(COPIES)])
        copies[1, 1:2] = copies[1, :1]
        moved.append(copies if from_end else np.where(copies < 0, leaf.max(initial=0), copies))
    return tuple(moved)


def _integers(rng: np.random.Generator, dtype: str) -> Callable[[tuple[int, ...], str], np.ndarray]:
    largest = 2 if dtype in ("float32", "float64") else 1

    def draw(shape: tuple[int, ...], name: str) -> np.ndarray:
        # Never zero, so that no product is -0.0: the sign of a zero sum is then settled, too.
        magnitude = rng.integers(1, largest + 1, shape) if name in ("input", "weight") else np.ones(shape)
        return magnitude * rng.choice([-1.0, 1.0], shape)

    return draw


def _reals(rng: np.random.Generator, data: str, dtype: str) -> Callable[[tuple[int, ...], str], np.ndarray]:
    # float16 ends at 65504: its numbers are made small enough for products of four sums to stay below.
    spread, scale = (2, {"input": 2.0**-2, "weight": 2.0**-4, "bias": 2.0**-4}) if dtype == "float16" else (6, {})

    def draw(shape: tuple[int, ...], name: str) -> np.ndarray:
        values = rng.standard_normal(shape) * scale.get(name, 1.0)
        if data == "same sign":
            return np.abs(values) + scale.get(name, 1.0) / 2
        return values * 2.0 ** rng.integers(-spread, spread + 1, shape) if data == "wide exponents" else values

    return draw


def _of_kind(rng: np.random.Generator, data: str) -> Callable[[tuple[int, ...], str], np.ndarray]:
    def draw(shape: tuple[int, ...], name: str) -> np.ndarray:
        values = numbers.KINDS[data](rng, shape)
        # Beside products that are flushed, a bias would hide them.
        return values * 0.0 if name == "bias" and data in ("tiny", "flushed") else values

    return draw


def _round(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return rounded.astype(np.uint32).view(np.float32).astype(np.float64)
    return values.astype(dtype).astype(np.float64)
