"""Which arrays of the two frameworks correspond: by value, name or position, also with axes in another order."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from parity.models.capture.call import Call, Leaf, Outputs

NEAR = 1e-3
"""Relative distance below which two arrays hold the same thing, computed twice."""

UNUSUAL = 2.0
"""How many times nearer an unusual order of axes must be than a usual one."""

MASKED = -1e4
"""Numbers below it are a mask's."""

MAIN = ("last_hidden_state", "logits", "output", "prediction_logits", "image_embeds", "text_embeds", "sample", "y")
"""What a model's main output is called."""


@dataclass
class Fed:
    """What a JAX module is run on.

    Attributes:
        values: Of the inputs of its call, torch's in place of its own where there is one.
        arrays: The names of inputs that come from torch, and of torch's that they are.
        own: Names of arrays that it keeps from its own call.
        moved: Whether one of torch's got its axes in another order.
        complete: Whether a float of torch's goes in, where torch's module takes one.
        distance: The largest relative distance of a float that comes from torch from what it was in JAX's own run.
        farthest: Of which input.
        floats: The largest distance of a float.
        rounded: Whether one of torch's was of a wider type than what JAX's module takes in its place.
    """

    values: list[Any]
    arrays: dict[str, str] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)
    moved: bool = False
    complete: bool = True
    distance: float = 0.0
    farthest: str = ""
    floats: float = 0.0
    rounded: bool = False


KINDS = ("all", "floats", "main")
"""What of torch's inputs a JAX module is run on: all that fit, no integers, the first float alone."""


def feed(torch_call: Call, jax_call: Call, kind: str = "all") -> Fed:
    """Return what a JAX module is to be run on: torch's captured inputs, each once."""
    fed = Fed(list(jax_call.values))
    free = [leaf for leaf in torch_call.inputs if leaf.is_array]
    wanted = [(at, leaf) for at, leaf in enumerate(jax_call.inputs) if leaf.is_array and leaf.value.dtype.kind != "b"]
    if kind != "all":
        wanted = [(at, leaf) for at, leaf in wanted if leaf.is_float]
    arrays = ([leaf for leaf in call.inputs if leaf.is_array] for call in (jax_call, torch_call))
    here = {theirs.name: ours for theirs, ours in zip(*arrays, strict=False)}
    for choose in (partial(_in_place, here), _by_value, _by_name, _by_position, partial(_of_shape, here)):
        for at, leaf in list(wanted) if not (kind == "main" and fed.arrays) else []:
            found = choose(leaf, free, _likely(jax_call))
            if found is None:
                continue
            source, value = found
            free = [one for one in free if one is not source]
            wanted = [one for one in wanted if one[0] != at]
            distance = relative_distance(value, leaf.value)
            if leaf.is_float:
                fed.floats = max(fed.floats, distance)
            if distance > fed.distance:
                fed.distance, fed.farthest = distance, leaf.name
            fed.values[at] = value.astype(leaf.value.dtype)
            fed.rounded |= leaf.is_float and value.dtype.itemsize > leaf.value.dtype.itemsize
            fed.arrays[leaf.name] = source.name
            fed.moved |= value.ndim > 2 and not (
                value.shape == source.value.shape
                and np.array_equal(value, source.value, equal_nan=value.dtype.kind == "f")
            )
    fed.own = [leaf.name for _, leaf in wanted]
    fed.own += [leaf.name for leaf in jax_call.inputs if leaf.is_array and leaf.value.dtype.kind == "b"]
    floats = [leaf for leaf in torch_call.inputs if leaf.is_float and not is_mask(leaf.value)]
    fed.complete = not floats or any(leaf.is_float and leaf.name in fed.arrays for leaf in jax_call.inputs)
    return fed


def _likely(target: Call) -> int:
    """Return which arrangement of an image is likely where all its lengths are one: of `_orders`."""
    return (1 if target.trace is not None else 2) if target.moved else 0


def _in_place(
    here: Mapping[str, Leaf], leaf: Leaf, free: Sequence[Leaf], likely: int
) -> tuple[Leaf, np.ndarray] | None:
    """Return the equal array at the same place: where JAX's module is given one twice, each stands for its own.

    Masks are alike anywhere.
    """
    if not leaf.is_float or is_mask(leaf.value):
        return None
    return _by_value(leaf, [one for one in free if one is here.get(leaf.name)], likely)


def _of_shape(
    here: Mapping[str, Leaf], leaf: Leaf, free: Sequence[Leaf], likely: int
) -> tuple[Leaf, np.ndarray] | None:
    """Return what looks like a mask, as zeros do, where JAX's module is given another array of its shape."""
    for one in free:
        alike = one.is_float and leaf.is_float and one.value.shape == leaf.value.shape
        if one is here.get(leaf.name) and alike and not is_mask(leaf.value):
            return one, one.value
    return None


def _by_value(leaf: Leaf, free: Sequence[Leaf], likely: int) -> tuple[Leaf, np.ndarray] | None:
    for one in free:
        for value in arrangements(one, leaf):
            if relative_distance(value, leaf.value) <= NEAR:
                return one, value
    return None


def _by_name(leaf: Leaf, free: Sequence[Leaf], likely: int) -> tuple[Leaf, np.ndarray] | None:
    return _by_position(leaf, [one for one in free if one.name == leaf.name], likely)


def _by_position(leaf: Leaf, free: Sequence[Leaf], likely: int) -> tuple[Leaf, np.ndarray] | None:
    if leaf.is_float and is_mask(leaf.value):
        return None  # frameworks have masks of other kinds: JAX's module keeps the one that it was given
    for one in free:
        made = arrangements(one, leaf)
        if not leaf.is_float and is_mask(one.value) != is_mask(leaf.value):
            continue
        if made and not (one.is_float and is_mask(one.value)):
            distances = [relative_distance(value, leaf.value) for value in made]
            likely = min(likely, len(made) - 1) if _is_cube(one.value.shape, leaf.value.shape) else 0
            if one.value.ndim > 3 and leaf.value.ndim == 3:
                likely = len(made) - 1  # an image as a row of positions
            return one, made[_nearest(distances, likely)]
    return None


def _is_cube(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Return whether an image's shape does not say where its channels are.

    Example:
        >>> _is_cube((2, 8, 8, 8), (2, 8, 8, 8)), _is_cube((2, 3, 8, 8), (2, 8, 8, 3)), _is_cube((2, 6, 2), (2, 6, 2))
        (True, False, False)
    """
    return shape == target and len(shape) > 2 and len(set(shape[1:])) == 1


def _nearest(distances: Sequence[float], likely: int) -> int:
    """Return which arrangement is nearest: what comes before was wrong, so an unlikely one must be twice as near."""
    return min(range(len(distances)), key=lambda at: round(distances[at], 2) * (1 if at == likely else UNUSUAL))


def is_mask(array: np.ndarray) -> bool:
    """Return whether an array looks like a mask: two numbers only, or such as softmax makes nothing of."""
    if array.size < 2:
        return False
    values = array.ravel()[:4096]
    return bool(np.any(values <= MASKED)) or len(np.unique(values)) <= 2


def arrangements(source: Leaf, target: Leaf) -> list[np.ndarray]:
    """Return an input of torch's in all arrangements that have the shape of one of JAX's."""
    if source.is_float != target.is_float or source.value.dtype.kind == "b":
        return []
    if not source.is_float and source.value.shape == target.value.shape:
        return [source.value]  # a table of relative positions that is turned has the other sign: that is the port's
    return rearranged(source.value, target.value.shape)


def rearranged(array: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return an array with its axes in every order that gives a shape: first as they are.

    Example:
        >>> [one.shape for one in rearranged(np.zeros((2, 3, 8, 8)), (2, 8, 8, 3))]
        [(2, 8, 8, 3), (2, 8, 8, 3)]
    """
    found = [array] if array.shape == shape else []
    if array.size != int(np.prod(shape)):
        # One row of positions for all examples, on one side only.
        if array.ndim == len(shape) and all(one in (1, size) for one, size in zip(array.shape, shape, strict=True)):
            found.append(np.broadcast_to(array, shape))
        return found
    lean, target = array.squeeze(), tuple(size for size in shape if size != 1)
    if sorted(lean.shape) == sorted(target) and lean.ndim <= 5:
        for order in _orders(lean.ndim):
            if tuple(lean.shape[axis] for axis in order) == target:
                moved = lean.transpose(order).reshape(shape)
                if not (found and order == tuple(range(lean.ndim))):
                    found.append(moved)
    elif _regroups(array.shape, shape):
        found.append(array.reshape(shape))  # heads and channels, or examples and positions, in one axis
    if array.ndim > 3 == len(shape) and shape == (len(array), int(np.prod(array.shape[2:])), array.shape[1]):
        found.append(np.moveaxis(array, 1, -1).reshape(shape))  # an image as a row of positions
    elif len(shape) > 3 == array.ndim and array.shape == (shape[0], int(np.prod(shape[2:])), shape[1]):
        found.append(array.swapaxes(1, 2).reshape(shape))
    return found


def _regroups(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether axes of one shape are taken together, or apart, in another.

    Example:
        >>> _regroups((2, 5, 12), (2, 5, 3, 4)), _regroups((2, 5, 12), (5, 2, 12))
        (True, False)
    """
    fine, coarse = (one, other) if len(one) > len(other) else (other, one)
    ends = set(itertools.accumulate(fine, operator.mul))
    return set(itertools.accumulate(coarse, operator.mul)) <= ends


def _orders(rank: int) -> list[tuple[int, ...]]:
    # As it is; channels from second to last and back; then all others.
    usual = (
        [tuple(range(rank)), (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))] if rank > 1 else [(0,) * rank]
    )
    return list(dict.fromkeys([*usual, *itertools.permutations(range(rank))]))


def relative_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of two arrays of one shape, over the root mean square of the first."""
    if one.dtype.kind not in "f" or other.dtype.kind not in "f":
        return 0.0 if np.array_equal(one, other) else np.inf
    largest = max((_farthest(*parts) for parts in pieces(one, other)), default=0.0)
    return 0.0 if largest == 0 else largest / (typical(one) or 1.0)


def _farthest(one: np.ndarray, other: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    alike = (one == other) | (np.isnan(one) & np.isnan(other))
    difference = np.where(alike, 0.0, difference)
    return float(np.max(np.where(np.isnan(difference), np.inf, difference), initial=0.0))


def typical(array: np.ndarray) -> float:
    """Return the root mean square of an array, but for what is not finite or a mask's."""
    total, count = 0.0, 0
    for (part,) in pieces(array):
        usual = part[np.isfinite(part) & (np.abs(part) < 1e9)]
        total, count = total + float(np.sum(np.square(usual, dtype=np.float64))), count + usual.size
    return float(np.sqrt(total / count)) if count else 0.0


PIECE = 2**19
"""Elements that are looked at together: what is computed of a large array takes more memory than it."""


def pieces(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield parts of arrays of one shape, along the first axis: as they are where they are small.

    Example:
        >>> [part.shape for (part,) in pieces(np.zeros((5, 2**18)))]
        [(2, 262144), (2, 262144), (1, 262144)]
    """
    first = arrays[0]
    if first.size <= PIECE or not first.ndim:
        yield arrays
        return
    rows = max(1, PIECE * first.shape[0] // first.size)
    for at in range(0, first.shape[0], rows):
        yield tuple(array[at : at + rows] for array in arrays)


@dataclass
class Output:
    """An output of both, torch's in JAX's arrangement.

    Attributes:
        name: In torch.
        torch: Torch's.
        jax: JAX's.
        choice: Which arrangement of torch's it is.
        assumed: JAX's name, where neither names nor an order say which output it is.
    """

    name: str
    torch: np.ndarray
    jax: np.ndarray
    choice: int = 0
    assumed: str = ""

    def arranged(self, like_torch: np.ndarray) -> np.ndarray:
        """Return an array in torch's arrangement in JAX's."""
        return rearranged(like_torch, self.jax.shape)[self.choice]


def pair_outputs(
    torch_out: Outputs, jax_out: Outputs, *, moved: bool = False, channels: bool = False
) -> tuple[list[Output], list[str], list[str]]:
    """Return the outputs that both have, and the names of torch's and of JAX's that have no partner.

    By name where both have names, else by order, where the shapes fit. JAX sorts the keys of a dict, so that their
    order says nothing: such outputs are paired by values, where these are clearly nearer the other way round.

    Args:
        torch_out: Of the torch module.
        jax_out: Of the JAX module.
        moved: Whether the channels are at another place in JAX: known from the inputs.
        channels: Whether the module makes channels (`makes_channels`).
    """
    found, left = [], dict(torch_out)
    rest = dict(jax_out)
    for name in [name for name in jax_out if name in torch_out and len(jax_out) > 1]:
        made = _aligned(name, torch_out[name], jax_out[name], moved, channels)
        if made is not None:
            found.append(made)
            del left[name], rest[name]
    unsure = len(rest) > 1 and len(left) > 1 and sorted(rest) == list(rest) and not any(map(_is_place, rest))
    fits = {
        (name, other): made
        for name in rest
        for other in left
        if (made := _aligned(other, left[other], rest[name], moved, channels)) is not None
    }
    chosen: dict[str, str] = {}
    for name in rest:
        free = [other for other in left if (name, other) in fits and other not in chosen.values()]
        if free:
            chosen[name] = min(free, key=lambda one: one not in MAIN)
    if unsure:
        chosen = _by_values(fits, chosen)
    for name, other in chosen.items():
        made = fits[name, other]
        made.assumed = name if unsure else ""
        found.append(made)
        del left[other], rest[name]
    return found, list(left), list(rest)


def _is_place(name: str) -> bool:
    """Return whether an output has no name: it is one of a tuple, or alone."""
    return name == "output" or name.startswith(("[", "output["))


def _by_values(fits: Mapping[tuple[str, str], Output], chosen: dict[str, str]) -> dict[str, str]:
    """Return pairs of names whose values are nearest, where they are twice as near as the pairs that are given."""
    from scipy.optimize import linear_sum_assignment

    ours, theirs = (list(dict.fromkeys(pair[side] for pair in fits)) for side in (1, 0))
    far = np.full((len(theirs), len(ours)), 1e9)
    for (name, other), one in fits.items():
        distance = relative_distance(one.torch, one.jax)
        far[theirs.index(name), ours.index(other)] = np.log(np.clip(distance, 1e-12, 1e6))
    found = {theirs[i]: ours[j] for i, j in zip(*linear_sum_assignment(far), strict=True) if far[i, j] < 1e9}
    near, before = (sum(far[theirs.index(a), ours.index(b)] for a, b in one.items()) for one in (found, chosen))
    return found if len(found) > len(chosen) or near < before - np.log(UNUSUAL) else chosen


LAYERS = ("Conv", "BatchNorm", "InstanceNorm", "GroupNorm", "Pool", "Upsample")
"""Parts of the names of torch's layers whose output has its channels second."""


def makes_channels(class_name: str) -> bool:
    """Return whether a layer of torch has its channels second, also where the shape does not say it.

    Example:
        >>> makes_channels("Conv1d"), makes_channels("Linear")
        (True, False)
    """
    return any(part in class_name for part in LAYERS)


def _aligned(name: str, torch_value: np.ndarray, jax_value: np.ndarray, moved: bool, channels: bool) -> Output | None:
    if (torch_value.dtype.kind == "f") != (jax_value.dtype.kind == "f"):
        return None
    made = rearranged(torch_value, jax_value.shape)
    if not made and torch_value.ndim == jax_value.ndim and rearranged(jax_value, torch_value.shape):
        made = [torch_value]
        jax_value = np.broadcast_to(jax_value, torch_value.shape)
    if not made:
        return None
    # The usual order, not the nearest: a port that exchanges two axes of one length is wrong. Only where all lengths
    # are one does the shape not say whether the channels are still where the inputs have them. Of three axes, scores
    # of positions by positions look so, too.
    choice = 0
    if channels and torch_value.ndim > 3 == jax_value.ndim:
        choice = len(made) - 1
    elif moved and (channels or torch_value.ndim > 3) and _is_cube(torch_value.shape, jax_value.shape):
        choice = _nearest([relative_distance(one, jax_value) for one in made[:3]], 1)
    return Output(name, made[choice], jax_value, choice)
