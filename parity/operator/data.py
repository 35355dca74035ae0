"""Kinds of data: the user's own numbers, and special numbers where frameworks tend to differ.

A kind has variants, which run in the same compiled programs. A cell is judged on all of them. Special values go into
the first floating argument and all others of its shape, because some faults need both operands to be special; then
into each argument alone, and into all of them. The user's own numbers are drawn several times, because few numbers
hide errors.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from parity.operator import trees
from parity.operator.faults import Fault
from parity.operator.pair import Pair, is_float

KINKS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 6.0, -6.0)
"""Where functions change their branch, or their domain ends."""

SUBNORMAL = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}
"""The smallest normal number of a dtype."""

HUGE = {"float64": 2.0**800, "float32": 2.0**100, "bfloat16": 2.0**100, "float16": 2.0**12}
"""So large that a product of two overflows."""

SWEEP = {"float64": (-900, 800), "float32": (-120, 100), "bfloat16": (-120, 100), "float16": (-14, 12)}
"""Powers of two between which lies almost all of a dtype's range, without what overflows when it is squared."""

NEAR = (-12, 12)
"""Powers of two between which thresholds lie that people write: 20 for softplus, 1e-3, 1000."""

NEAR_ENOUGH = 128
"""Numbers between these powers, in draws of few: of either sign there is one in each 0.38 of a power of two. softplus
with a threshold of 20 differs from one without by more than rounding from 20 to 28, which is half a power."""

ENOUGH_OUT, DRAWN = 24, 2**18
"""Numbers of an output, over all draws, of which the mean says something; and numbers that are drawn for it at most."""

TAME = (10, 8, 7, 6, 5, 4)
"""Powers of two that numbers stay below where more would leave the range: `exp` does at 2^9.5, in float32 at 2^6.5."""

ORDINARY = -3
"""The power of two that such numbers stay above."""

ENOUGH = 192
"""Numbers of a kind of which the mean error says something, even of results in 16 bits."""

MOST = 8
"""Draws of the user's own numbers, at most."""

ALONE = 6
"""Floating arguments, up to which each gets special values alone."""

FEW = "few"
"""The variant of NaN and infinities with one in the middle of the first argument: with more, sums are NaN alone."""

POINTS = ("zeros", "signed zeros", "ties", "infinite", "nan")
"""Kinds that are the same points in every dtype."""

Draw = Callable[[np.random.Generator, np.ndarray, str], np.ndarray]


def _some(values: np.ndarray, every: int, special: tuple[float, ...]) -> np.ndarray:
    changed = values.copy()
    places = changed.reshape(-1)[::every].size
    changed.reshape(-1)[::every] = _cycled(special, places)
    return changed


def _cycled(values: tuple[float, ...], size: int) -> np.ndarray:
    """Return numbers over and over again, so many in all: as np.resize does, in a quarter of its time."""
    return np.tile(np.asarray(values), -(-size // len(values)))[:size]


def _one(kind: str) -> Draw:
    def draw(rng: np.random.Generator, values: np.ndarray, dtype: str) -> np.ndarray:
        changed = values.copy()
        changed.reshape(-1)[values.size // 2 : values.size // 2 + 1] = np.inf if kind == "infinite" else np.nan
        return changed

    return draw


def _covering(rng: np.random.Generator, values: np.ndarray, draw: int, draws: int) -> np.ndarray:
    """Return one of some draws that together lie evenly between the powers of NEAR, of both signs if there are any."""
    places = (rng.permutation(values.size) * draws + draw + rng.random(values.size)) / max(values.size * draws, 1)
    signs = np.ones(values.size)
    if np.min(values, initial=0.0) < 0:
        signs, places = np.where(places < 0.5, -1.0, 1.0), 2 * places % 1
    return (signs * np.exp2(NEAR[0] + places * (NEAR[1] - NEAR[0]))).reshape(values.shape)


def _swept(rng: np.random.Generator, values: np.ndarray, powers: tuple[int, int]) -> np.ndarray:
    signs = rng.choice((-1.0, 1.0), values.shape) if np.min(values, initial=0.0) < 0 else 1.0
    return signs * np.exp2(rng.uniform(*powers, values.shape))


KINDS: dict[str, Draw] = {
    "random": lambda rng, values, dtype: values,
    "zeros": lambda rng, values, dtype: np.zeros_like(values),
    "signed zeros": lambda rng, values, dtype: _some(np.zeros_like(values), 2, (-0.0,)),
    "ties": lambda rng, values, dtype: rng.integers(1, 3, values.shape).astype(np.float64),
    "kinks": lambda rng, values, dtype: rng.permutation(_cycled(KINKS, values.size)).reshape(values.shape),
    "infinite": lambda rng, values, dtype: _some(values, 5, (np.inf, -np.inf)),
    "nan": lambda rng, values, dtype: _some(values, 7, (np.nan,)),
    "subnormal": lambda rng, values, dtype: rng.uniform(-1, 1, values.shape) * SUBNORMAL[dtype],
    "large": lambda rng, values, dtype: (
        rng.choice((-1.0, 1.0), values.shape) * rng.uniform(1, 2, values.shape) * HUGE[dtype]
    ),
    "small": lambda rng, values, dtype: rng.uniform(-1, 1, values.shape) / HUGE[dtype],
    "negative": lambda rng, values, dtype: -np.abs(values),
    "sweep": lambda rng, values, dtype: _swept(rng, values, SWEEP[dtype]),
    "indices": lambda rng, values, dtype: values,
}
"""What each makes of an array."""


def kinds(pair: Pair) -> tuple[str, ...]:
    """Return the kinds that say something of a pair: negative numbers only where its own are not, integers if any."""
    arguments = [leaf for _, leaf in trees.leaves(pair.make(0))]
    floats = _own_floats(pair, arguments)
    left_out = set() if any(_not_negative(leaf) for leaf in floats) else {"negative"}
    if not any(np.asarray(leaf).dtype.kind in "iu" for leaf in arguments):
        left_out.add("indices")
    if not floats:
        left_out |= KINDS.keys() - {"random", "indices"}
    return tuple(kind for kind in KINDS if kind not in left_out)


def variants(pair: Pair, kind: str) -> tuple[str, ...]:
    """Return the variants of a kind, the kind itself among them: what one cell runs on.

    Example:
        >>> pair = Pair(torch=divmod, jax=divmod, inputs=(np.ones((2, 3)), np.ones(3)))
        >>> variants(pair, "nan")
        ('nan', 'nan#2', 'nan#all')
    """
    if kind not in KINDS or (pair.numbers is not None and kind != "random"):
        return (kind,)
    leaves = [leaf for _, leaf in trees.leaves(pair.make(0))]
    floats = _own_floats(pair, leaves)
    if kind == "random":
        if pair.numbers is not None or not floats:
            return (kind,)
        size = min(leaf.size for leaf in floats if leaf.size) if any(leaf.size for leaf in floats) else ENOUGH
        return (kind, *(f"random#{number}" for number in range(2, 1 + min(MOST, -(-ENOUGH // size)))))
    if kind == "indices":
        return ("indices#within", "indices#negative", "indices#beyond")
    usual = _special(kind, floats)
    each = {f"{kind}#{number}": _special(f"{kind}#{number}", floats) for number in range(1, 1 + len(floats))}
    alone = [name for name, reached in each.items() if len(floats) > 1 and reached not in (usual, set())]
    shapes = {leaf.shape for leaf in floats}
    together = [f"{kind}#all"] if len(shapes) > 1 else []
    near = ["sweep#near"] if kind == "sweep" else []
    return (kind, *near, *(alone if len(floats) <= ALONE else []), *together)


def further_sweeps(pair: Pair) -> tuple[str, ...]:
    """Return further variants of a sweep of usual sizes: each array alone, in as many draws as it takes.

    Example:
        >>> pair = Pair(torch=divmod, jax=divmod, inputs=(np.ones(64), np.ones(200)))
        >>> further_sweeps(pair)
        ('sweep#near.1.0', 'sweep#near.1.1', 'sweep#near.2.0')
    """
    floats = _own_floats(pair, [leaf for _, leaf in trees.leaves(pair.make(0))])
    if pair.numbers is not None:
        return ()
    left_out = labels(floats)
    arrays = [(at + 1, leaf.size) for at, leaf in enumerate(floats) if leaf.size and at not in left_out][:ALONE]
    return tuple(f"sweep#near.{number}.{draw}" for number, size in arrays for draw in range(_times(size)))


def _times(size: int) -> int:
    return -(-NEAR_ENOUGH // size)


def further_draws(pair: Pair, draws: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Return the draws of the user's own numbers, with so many more as an output of some size takes.

    Args:
        pair: The pair.
        draws: Those there are in any case.
        size: Size of the smallest output.
    """
    total = sum(leaf.size for _, leaf in trees.leaves(pair.make(0)))
    count = min(-(-ENOUGH_OUT // max(size, 1)), DRAWN // max(total, 1))
    return (*draws, *(f"random#{number}" for number in range(len(draws) + 1, 1 + count)))


def few(kind: str) -> str:
    """Return the variant of a kind that has one special number.

    Example:
        >>> few("infinite#2")
        'infinite#few'
    """
    return f"{kind.partition('#')[0]}#{FEW}"


def tamed(kind: str, power: int) -> str:
    """Return the variant of a sweep whose numbers stay below a power of two.

    Example:
        >>> tamed("sweep#2", 5)
        'sweep#2~5'
    """
    name, _, variant = kind.partition("#")
    return f"{name}#{variant}~{power}"


def make(pair: Pair, kind: str, dtype: str, seed: int) -> tuple[Any, ...]:
    """Return the arguments of a pair: floats as float64 of values that the dtype holds, the others as they are.

    Args:
        pair: The pair.
        kind: A kind, or a variant of one.
        dtype: Whose values they are to be.
        seed: Seed of what is drawn.
    """
    name, _, variant = kind.partition("#")
    variant, _, power = variant.partition("~")
    if name not in KINDS:
        raise Fault(f"numbers: expected Numbers for the pair's own kind of data {kind!r}, got None")
    again = int(variant) if name == "random" and variant else 1
    arguments = pair.make(seed + 7919 * (again - 1))
    near = variant.startswith("near.")
    drawn_as = variant.rpartition(".")[0] if near else kind
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(f"{pair.name}/{drawn_as}".encode()), seed]))
    if again > 1 and not callable(pair.inputs):
        arguments = _scaled(arguments, rng)
    leaves = [leaf for _, leaf in trees.leaves(arguments)]
    special = _special(kind, _own_floats(pair, leaves))
    if name == "negative":
        own = _own_floats(pair, [leaf for _, leaf in trees.leaves(pair.make(0))])
        special &= {number for number, leaf in enumerate(own) if _not_negative(leaf)}
    draw = KINDS[name]
    if variant == FEW:
        draw = _one(name)
    if near:
        at = int(variant.rpartition(".")[2])
        draw = lambda rng, values, dtype: _within(  # noqa: E731 # as below
            _covering(rng, values, at, _times(values.size)), int(power) if power else NEAR[1]
        )
    elif kind == "sweep#near" or power:
        powers = (ORDINARY, int(power)) if power else NEAR
        draw = lambda rng, values, dtype: _swept(rng, values, powers)  # noqa: E731 # it closes over the powers
    number = -1

    def changed(leaf: Any) -> Any:
        nonlocal number
        if not is_float(leaf):
            return _integers(leaf, variant, rng) if name == "indices" else leaf
        number += 1
        values = np.array(leaf, np.complex128 if leaf.dtype.kind == "c" else np.float64)
        if number in special:
            values = _each_part(lambda part: draw(rng, part, dtype), values)
        return _each_part(lambda part: rounded(part, dtype), values)

    return trees.rebuild(arguments, iter([changed(leaf) for leaf in leaves]))


def _within(values: np.ndarray, power: int) -> np.ndarray:
    """Return numbers of which those beyond a power of two are one below it."""
    beyond = np.abs(values) >= 2.0**power
    return np.where(beyond, np.copysign(2.0 ** (power - 1), values), values)


def keeps_range(pair: Pair, dtype: str, seed: int) -> bool:
    """Return whether a dtype holds a pair's own numbers, rounded: none overflows, none is lost, no two become one."""
    floats = [np.asarray(leaf) for _, leaf in trees.leaves(pair.make(seed)) if is_float(leaf)]
    parts = [part for leaf in floats for part in ([leaf.real, leaf.imag] if leaf.dtype.kind == "c" else [leaf])]
    held = [(np.asarray(part, np.float64), rounded(part, dtype)) for part in parts]
    return all(
        bool(np.all((np.isfinite(value) == np.isfinite(near)) & ((value == 0) == (near == 0))))
        and np.unique(value).size == np.unique(near).size
        for value, near in held
    )


def _own_floats(pair: Pair, leaves: list[Any]) -> list[Any]:
    """Return the arrays of floats that the user gives; weights that functions bring along come after them, and stay."""
    floats = [leaf for leaf in leaves if is_float(leaf)]
    return floats[: len(floats) - pair.weights]


def labels(floats: list[Any]) -> set[int]:
    """Return the numbers of the arguments that are zeros and ones beside others that are not: labels, or a mask.

    Example:
        >>> labels([np.linspace(-1, 1, 4), np.array([0.0, 1.0, 1.0, 0.0]), np.ones(4)])
        {1}
    """
    found = {number for number, leaf in enumerate(floats) if leaf.size >= FEWEST and set(np.unique(leaf)) == {0, 1}}
    return found if len(found) < len(floats) else set()


FEWEST = 4
"""Numbers of an array that are zeros and ones by no chance."""


def _special(kind: str, floats: list[Any]) -> set[int]:
    """Return the numbers of the floating arguments that get a kind's values: labels and masks keep theirs."""
    return _reached(kind, floats) - (set() if kind.startswith("random") else labels(floats))


def _reached(kind: str, floats: list[Any]) -> set[int]:
    name, _, variant = kind.partition("~")[0].partition("#")
    if name in ("random", "indices"):
        return set()
    if variant == "all":
        return set(range(len(floats)))
    if variant == FEW:
        return {0}
    if variant.isdecimal():
        return {int(variant) - 1}
    if variant.startswith("near."):
        return {int(variant.split(".")[1]) - 1}
    return {number for number, leaf in enumerate(floats) if leaf.shape == floats[0].shape}


def _each_part(change: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """Return an array with its numbers, or both parts of complex ones, changed."""
    if values.dtype.kind != "c":
        return change(values)
    made = np.empty(values.shape, np.complex128)  # left + 1j * right would make NaN of infinity
    made.real, made.imag = change(values.real.copy()), change(values.imag.copy())
    return made


def _not_negative(leaf: Any) -> bool:
    return leaf.dtype.kind != "c" and bool(leaf.size) and bool(np.min(np.asarray(leaf, np.float64)) >= 0)


def _scaled(arguments: tuple[Any, ...], rng: np.random.Generator) -> tuple[Any, ...]:
    """Return arguments times factors, one for each array: signs, orders, symmetry and definiteness stay, and masks."""
    leaves = [leaf for _, leaf in trees.leaves(arguments)]
    scaled = [
        leaf * rng.uniform(0.5, 1.0) if is_float(leaf) and set(np.unique(leaf)) != {0, 1} else leaf for leaf in leaves
    ]
    return trees.rebuild(arguments, iter(scaled))


def _integers(leaf: np.ndarray, variant: str, rng: np.random.Generator) -> np.ndarray:
    """Return integers as there might be in the place of the user's: of the same range, below zero, beyond the range.

    A value apart from all others (the label -100 that a loss ignores) stays where it is within the range.
    """
    leaf = np.asarray(leaf)
    if leaf.dtype.kind not in "iu" or not leaf.size:
        return leaf
    low, high = int(leaf.min()), int(leaf.max())
    if variant == "within":
        distinct = np.unique(leaf)
        if len(distinct) > 2 and distinct[0] < 0 <= distinct[1] and int(distinct[1]) - low > len(distinct):
            drawn = rng.integers(int(distinct[1]), high + 1, leaf.shape)
            return np.where(leaf == low, leaf, drawn).astype(leaf.dtype)
        return rng.integers(low, high + 1, leaf.shape).astype(leaf.dtype)
    reach = max(abs(low), abs(high), 1)
    if variant == "negative" and leaf.dtype.kind == "i":
        return np.clip(-rng.integers(1, reach + 1, leaf.shape), np.iinfo(leaf.dtype).min, None).astype(leaf.dtype)
    most = min(np.iinfo(leaf.dtype).max, high + reach + 1)
    return np.where(rng.random(leaf.shape) < 0.5, leaf, rng.integers(high, most, leaf.shape, endpoint=True)).astype(
        leaf.dtype
    )


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the nearest values of a dtype, as float64.

    Example:
        >>> rounded(np.array([1 + 2.0**-9]), "bfloat16")
        array([1.])
    """
    values = np.asarray(values, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            bits = values.astype(np.float32).view(np.uint32)
            nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
            return np.where(np.isfinite(values), nearest.astype(np.uint32).view(np.float32), values).astype(np.float64)
        return values.astype(dtype).astype(np.float64)
