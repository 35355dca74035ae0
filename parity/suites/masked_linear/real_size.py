"""The real-size tier: layers large enough for the code that real layers run.

The twins choose their code by size: a weight of 600 x 768 and a batch of 257 run other lines than the small cases. Here
each kind of mask, masked and packed, lies at, below and above each of the constants that decide. Data are small
integers, chosen so that every sum is exact, so the answer is one and bits are compared.

What decides, and where: SPARSE, MANY, WHOLE, LEAST_CHUNK and CACHED (maskedlinear_core/positions.py); SMALL
(maskedlinear_torch/indexing.py); GATHERED and COMPARED (maskedlinear_jax/indexing.py); WRITTEN_OUT
(maskedlinear_jax/kinds/sums.py); PIECE (integer_products.py of both). A test holds these cases to those constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from maskedlinear_core.constructors import as_mask, blocks, columns, elements, rows, submatrix
from maskedlinear_core.masks import Mask
from parity.suites.masked_linear.case import Case, random_bools

TIER = "real-size"

Draw = Callable[[tuple[int, ...], str], np.ndarray]
Build = Callable[[tuple[int, int]], Mask]

DIGITS = ("low digits", "high digits")
"""Data that need every bit of a sum of digits: of the low ones, or of the high ones."""

HALF = 2**15
"""Half a unit in the last place of a float64 of the size of the sums of `DIGITS`."""


def _chosen(count: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(count)).choice(size, count, replace=False)


def _elements(count: int) -> Build:
    def build(shape: tuple[int, int]) -> Mask:
        array = np.zeros(shape, bool)
        array.flat[_chosen(count, array.size)] = True
        return elements(array).packed(shape)

    return build


def _halves(shape: tuple[int, int]) -> Mask:
    # With the last number of the first half of the rows, and the first of the second.
    array = random_bools(shape)
    border = -(-shape[0] // 2) * shape[1]
    array.flat[border - 1 : border + 1] = True
    return elements(array).packed(shape)


def _crossings(shape: tuple[int, int]) -> Mask:
    # 450 of 600 x 768: 45 rows with 10 elements each, in the same columns, so that data can be dense there alone.
    array = np.zeros(shape, bool)
    array[np.ix_(range(0, 585, 13), range(5, 768, 80))] = True
    return elements(array)


def _blocks(count: int, block_shape: tuple[int, int]) -> Build:
    def build(shape: tuple[int, int]) -> Mask:
        grid = np.zeros((shape[0] // block_shape[0], shape[1] // block_shape[1]), bool)
        grid.flat[_chosen(count, grid.size)] = True
        return blocks(grid, block_shape)

    return build


def _submatrix(height: int, width: int) -> Build:
    return lambda s: submatrix(np.sort(_chosen(height, s[0])), np.sort(_chosen(width, s[1])))


def _case(
    id: str, build: Build, adds: str, weight: tuple[int, int], batch: int, mask: str = "", **more: Any
) -> Case:  # fmt: skip
    packed = id.startswith("packed-")
    kind = mask or id.removeprefix("packed-").split("-")[0]
    return Case(f"real-{id}", kind, build, adds, *weight, (batch,), packed=packed, real=True, **more)


WEIGHT = (600, 768)

CASES = (
    _case("columns", lambda s: columns(range(0, s[1], 3)), "many columns", WEIGHT, 257, bias_mask="some"),
    _case("columns-23", lambda s: columns(_chosen(23, s[1])), "fewer than one in GATHERED", WEIGHT, 129),
    _case("columns-24", lambda s: columns(_chosen(24, s[1])), "one in GATHERED", WEIGHT, 128),
    _case("columns-16", lambda s: columns(_chosen(16, s[1])), "COMPARED pairs", (96, 512), 1),
    _case("columns-17", lambda s: columns(_chosen(17, s[1])), "more than COMPARED pairs", (96, 512), 1),
    _case("packed-columns", lambda s: columns(range(1, s[1], 4)), "packed", WEIGHT, 129),
    _case("rows", lambda s: rows(range(0, s[0], 3)), "many rows", WEIGHT, 513, bias_mask="some"),
    _case("rows-18", lambda s: rows(_chosen(18, s[0])), "fewer than one in GATHERED", WEIGHT, 1),
    _case("packed-rows", lambda s: rows(_chosen(19, s[0])), "packed, more than one in GATHERED", WEIGHT, 257),
    _case("submatrix-64", _submatrix(64, 64), "SMALL numbers", WEIGHT, 129),
    _case("submatrix-65", _submatrix(64, 65), "more than SMALL", WEIGHT, 257),
    _case("submatrix-quarter", _submatrix(300, 384), "a quarter of the weight", WEIGHT, 128),
    _case("packed-submatrix", _submatrix(300, 385), "packed, more than a quarter", WEIGHT, 129),
    _case("blocks", _blocks(1800, (8, 8)), "in pieces of LEAST_CHUNK, one left", WEIGHT, 129),
    _case("blocks-dense", _blocks(1800, (8, 8)), "sums that 16 bits do not hold, in one piece", WEIGHT, 513, bias=False,
          data="dense at the mask"),
    _case("blocks-26", _blocks(26, (50, 64)), "in pieces by CACHED, one left", WEIGHT, 177),
    _case("blocks-third", _blocks(2400, (8, 8)), "MANY exactly", WEIGHT, 128),
    _case("packed-blocks", _blocks(1800, (8, 8)), "packed, in two pieces, one left", WEIGHT, 257),
    _case("packed-blocks-many", _blocks(2401, (8, 8)), "packed, more than MANY and WHOLE", WEIGHT, 513),
    _case("packed-blocks-whole", _blocks(2000, (8, 8)), "packed, WHOLE exactly", (512, 512), 129),
    _case("packed-blocks-above", _blocks(2000, (8, 8)), "packed, above WHOLE, an odd grid", (520, 512), 1),
    _case("elements", lambda s: elements(random_bools(s)), "many", WEIGHT, 513, bias_mask="some"),
    _case("elements-128", lambda s: elements(random_bools(s)), "WRITTEN_OUT exactly", (512, 768), 128),
    _case("elements-127", lambda s: elements(random_bools(s)), "below WRITTEN_OUT", (512, 768), 127),
    _case("elements-450", _crossings, "one in SPARSE", WEIGHT, 513, bias=False, data="dense at the mask"),
    _case("elements-451", lambda s: elements(_elements(451)(s).to_array(s)), "more than one in SPARSE", WEIGHT, 257),
    _case("packed-elements-450", lambda s: _crossings(s).packed(s), "packed, one in SPARSE", WEIGHT, 513, bias=False,
          data="dense at the mask"),
    _case("packed-elements-451", _elements(451), "packed, more than one in SPARSE", WEIGHT, 129),
    _case("packed-elements", _halves, "packed, halves of unlike size", (601, 768), 257, bias_mask="some"),
    _case("packed-elements-whole", lambda s: elements(random_bools(s)).packed(s), "packed, WHOLE", (512, 512), 129),
    _case("packed-elements-above", lambda s: elements(random_bools(s)).packed(s), "packed, above WHOLE", (512, 513), 1),
    # Per sample and per mask what comes back is many times as large.
    _case("few-columns", lambda s: columns(range(2, s[1], 5)), "a small batch", WEIGHT, 5),
    _case("few-rows", lambda s: rows(range(2, s[0], 5)), "a small batch", WEIGHT, 5),
    _case("few-submatrix", _submatrix(64, 65), "a small batch", WEIGHT, 5),
    _case("few-blocks", _blocks(90, (50, 64)), "a small batch", WEIGHT, 5),
    _case("few-elements", lambda s: elements(random_bools(s)), "a small batch", WEIGHT, 5),
    _case("packed-few-elements", _elements(451), "a small batch", WEIGHT, 5),
    # Of the reproducible precision.
    _case("rows-in-pieces", lambda s: columns(range(0, s[1], 5)), "rows computed apart, one left", (8, 2048), 1025,
          mask="columns"),
    _case("digits", lambda s: rows([0]), "the limit of the low digits, of the input", (64, 128), 2, mask="rows",
          bias=False, data="low digits"),
    _case("digits-of-weight", lambda s: rows([0]), "the limit of the low digits, of the weight", (2, 128), 64,
          mask="rows", bias=False, data="low digits"),
    _case("high-digits", lambda s: rows([0]), "the limit of the high digits, of the input", (40, 128), 32, mask="rows",
          bias=False, data="high digits"),
    _case("high-digits-of-weight", lambda s: rows([0]), "the limit of the high digits, of the weight", (32, 128), 40,
          mask="rows", bias=False, data="high digits"),
)  # fmt: skip
"""The cases. A batch of 129, 257 or 513 leaves one row over when it is cut into pieces of 128."""

EAGER = ("torch-eager", "jax-eager")
JIT = ("torch-eager", "jax-jit")
TORCH = ("torch-eager",)

_NATIVE: dict[str, dict[str, tuple[str, ...]]] = {
    "columns": {"backward": (*JIT, "torch-compiled"), "vjp": EAGER, "jvp": JIT, "double-backward": TORCH},
    "columns-23": {"backward": JIT, "jvp": JIT},
    "columns-24": {"backward": EAGER},
    "columns-16": {"backward": JIT},
    "columns-17": {"backward": JIT, "vjp": TORCH},
    "packed-columns": {"forward": JIT, "backward": JIT, "hvp-reverse-over-reverse": TORCH},
    "rows": {"forward": EAGER, "backward": JIT, "gradient-penalty": JIT},
    "rows-18": {"backward": JIT, "jvp": JIT},
    "packed-rows": {"backward": JIT, "jvp": TORCH, "vjp": TORCH},
    "submatrix-64": {"backward": JIT, "vjp": TORCH},
    "submatrix-65": {"backward": JIT, "jvp": JIT, "double-backward": TORCH},
    "submatrix-quarter": {"backward": EAGER},
    "packed-submatrix": {"forward": JIT, "backward": JIT, "vjp": TORCH},
    "blocks": {"backward": EAGER, "vjp": JIT, "jvp": JIT},
    "blocks-26": {"backward": JIT, "double-backward": TORCH},
    "blocks-third": {"backward": JIT, "jvp": TORCH},
    "packed-blocks": {"forward": JIT, "backward": (*JIT, "torch-compiled"), "jvp": TORCH},
    "packed-blocks-many": {"backward": EAGER, "vjp": TORCH},
    "packed-blocks-whole": {"backward": JIT},
    "packed-blocks-above": {"backward": JIT, "jvp": JIT},
    "elements": {"backward": JIT, "vjp": TORCH, "hvp-reverse-over-reverse": TORCH},
    "elements-128": {"backward": JIT, "jvp": JIT},
    "elements-127": {"backward": JIT},
    "elements-450": {"backward": EAGER, "jvp": JIT, "vjp": TORCH},
    "elements-451": {"backward": JIT, "double-backward": TORCH},
    "packed-elements-450": {"forward": JIT, "backward": JIT, "jvp": JIT},
    "packed-elements-451": {"backward": EAGER, "vjp": JIT, "jvp": JIT},
    "packed-elements": {"forward": TORCH, "backward": (*JIT, "torch-compiled"), "vjp": TORCH},
    "packed-elements-whole": {"backward": JIT},
    "packed-elements-above": {"backward": JIT, "vjp": TORCH},
    "few-columns": {"vmap-mask": JIT, "per-sample-gradients": JIT},
    "few-rows": {"vmap-mask": JIT, "per-sample-gradients": TORCH},
    "few-submatrix": {"vmap-mask": JIT, "vmap-everything": TORCH},
    "few-blocks": {"vmap-mask": TORCH, "per-sample-gradients": JIT, "vmap-input-weight": TORCH},
    "few-elements": {"vmap-mask": JIT, "per-sample-gradients": TORCH},
    "packed-few-elements": {"per-sample-gradients": JIT},
}
"""In float32 and native precision: by case and transform, the worlds. Chosen so that kinds, sizes, batches, transforms
and worlds meet in pairs; a program of JAX takes a second to compile, one of torch.compile several."""

_SIXTEEN: dict[str, dict[str, tuple[str, ...]]] = {
    "columns": {"backward": JIT},
    "blocks": {"backward": JIT},
    "blocks-dense": {"backward": JIT},
    "elements-450": {"backward": JIT, "jvp": JIT},
    "packed-elements-450": {"backward": JIT, "jvp": TORCH},
    "packed-elements-451": {"backward": JIT},
    "packed-blocks-many": {"backward": TORCH},
}
"""The same in bfloat16; in float16 the torch world alone."""

_REPRODUCIBLE: dict[str, dict[str, tuple[str, ...]]] = {
    "columns": {"backward": JIT, "jvp": TORCH},
    "blocks": {"backward": JIT},
    "packed-blocks-many": {"backward": TORCH},
    "elements-450": {"backward": JIT, "jvp": TORCH},
    "packed-elements-450": {"backward": TORCH, "jvp": TORCH, "double-backward": TORCH},
    "packed-elements-451": {"backward": JIT, "double-backward": TORCH},
    "submatrix-65": {"backward": TORCH, "double-backward": TORCH},
    "rows-in-pieces": {"backward": JIT},
    "digits": {"forward": JIT},
    "digits-of-weight": {"forward": JIT},
    "high-digits": {"forward": JIT},
    "high-digits-of-weight": {"forward": JIT},
}
"""In float32 and reproducible precision."""


def _listed() -> Iterator[tuple[tuple[str, str, str, str], tuple[str, ...]]]:
    chosen = (
        (_NATIVE, "float32", "native", None),
        (_SIXTEEN, "bfloat16", "native", None),
        (_SIXTEEN, "float16", "native", TORCH),
        (_REPRODUCIBLE, "float32", "reproducible", None),
    )
    for cells, dtype, precision, only in chosen:
        for case, transforms in cells.items():
            for transform, worlds in transforms.items():
                yield (f"real-{case}", dtype, transform, precision), only or worlds


CELLS = dict(_listed())
"""By case, dtype, transform and precision, the worlds."""


def is_batched(case: Case) -> bool:
    """Return whether a cell of a case runs it under vmap."""
    return any(one == case.id and transform.startswith("vmap") for one, _, transform, _ in CELLS)


def draw_of(case: Case, dtype: str, rng: np.random.Generator) -> Draw:
    """Return what draws the numbers of a case, by shape and name."""
    if case.data in DIGITS:
        return _digits(rng, case)
    if dtype in ("float32", "float64"):
        return _integers(rng)
    return _sparse(rng, case)


def _integers(rng: np.random.Generator) -> Draw:
    def draw(shape: tuple[int, ...], name: str) -> np.ndarray:
        signs = rng.integers(0, 2, shape) * 2.0 - 1.0
        return signs * rng.integers(1, 3, shape) if name == "input" else signs

    return draw


def _sparse(rng: np.random.Generator, case: Case) -> Draw:
    """Numbers whose sums 16 bits hold, because most of input and cotangent are zero.

    Where the data are dense at the mask, neither the products nor the sums there fit into 16 bits: they are right if
    they are rounded once, at the end. The weight is zero in those rows and columns, so that no other sum has these
    numbers in it; its tangents are not.
    """
    is_dense = case.data == "dense at the mask"
    mask: np.ndarray = as_mask(case.build(case.shape)).to_array(case.shape)
    dense: dict[str, np.ndarray] = {"input": np.any(mask, axis=0), "cotangent": np.any(mask, axis=1)}
    names = Counter[str]()

    def draw(shape: tuple[int, ...], name: str) -> np.ndarray:
        signs = rng.integers(0, 2, shape) * 2.0 - 1.0
        names[name] += 1
        if name == "weight" and is_dense and names[name] == 1:
            return np.where(dense["cotangent"][:, None] | dense["input"], 0.0, signs)
        if name not in dense:
            return signs
        values = np.where(rng.integers(0, 12, shape) == 0, signs, 0.0)
        if not is_dense:
            return values
        large = signs * (2 * rng.integers(16, 32, shape) + 1)
        # Few enough that float16 does not overflow.
        large = np.where(rng.integers(0, 16, shape) == 0, large, 0.0) if name == "cotangent" else large
        return np.where(dense[name], large, values)

    return draw


def _digits(rng: np.random.Generator, case: Case) -> Draw:
    """Sums that need every bit of two products of digits: integers near 2^31 of one sign, K = 128.

    One vector is the same for all sums; the other ends with two numbers that bring the sum to half a unit in the last
    place of a float32, and a little more than half a unit of a float64 beside it. If a sum of digits loses its last
    bit, the sum is rounded to the other side. The smaller operand is cut into digits; its low ones lose a bit first if
    it is the same for all sums, its high ones if it is not.
    """
    terms = case.in_features
    one = _near_the_limit(rng, (terms,))
    one[-2:] = 2**23, 1
    cut, whole = ("input", "weight") if case.batch[0] < case.out_features else ("weight", "input")
    fixed, moved = (cut, whole) if case.data == "low digits" else (whole, cut)

    def draw(shape: tuple[int, ...], name: str) -> np.ndarray:
        if name not in (fixed, moved):
            return np.ones(shape)
        if name == fixed:
            return np.broadcast_to(one * 2.0**-31, shape).copy()
        vectors = _near_the_limit(rng, (int(np.prod(shape[:-1])), terms)).astype(object)
        for number, vector in enumerate(vectors):
            vector[-2:] = 0
            missing = _aim(int(np.dot(one.astype(object), vector)), beside=1 if number % 2 else -1)
            vector[-2:] = divmod(missing, 2**23)  # of 24 bits each
        return (vectors.astype(np.float64) * 2.0**-31).reshape(shape)

    return draw


def _near_the_limit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    # 24 bits below 2^31, of which the lowest 17 are near 2^16: cut at 15, 16 or 17 bits, all parts are of one sign.
    high = (1 << 14) - 1 - rng.integers(0, 4, shape)
    return high * 2**17 + 2**16 - 2**7 * (2 * rng.integers(0, 8, shape) + 1)


def _aim(total: int, beside: int) -> int:
    """Return what to add to a sum near 2^69 so that it lies beside a tie of float32 that goes the other way."""
    unit = 1 << (total.bit_length() - 24)
    whole = total // unit + 1
    whole += (whole % 2 == 0) if beside < 0 else (whole % 2 == 1)
    return whole * unit + unit // 2 + beside * (HALF + 1) - total
