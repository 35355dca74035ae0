"""Every check and every message text of both twins (SPEC S10).

A message says what was expected, what came and what to do. The checks see shapes and dtype names
only, so one wrong call gives one text and one exception class, whichever twin was called.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

FLOAT_DTYPES = ("float32", "float64", "bfloat16", "float16")
INTEGER_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

Shape = tuple[int, ...]


class Spec(NamedTuple):
    """What a check needs to know of an array: its shape, its dtype's name and its device."""

    shape: Shape
    dtype: str
    device: Any = None


def linear(input: Spec, weight: Spec, bias: Spec | None, bias_mask: Spec | None) -> None:
    """Check the array arguments of `masked_linear`: input (*batch, I), weight (O, I), bias and bias_mask (O,).

    Args:
        input: Specification of the input.
        weight: Specification of the weight.
        bias: Specification of the bias, or None.
        bias_mask: Specification of the bias mask, or None.

    Raises:
        TypeError: A dtype is not a supported float, or the dtypes differ.
        ValueError: A shape does not fit, a bias_mask has no bias, or the devices differ.

    Example:
        >>> x, w = Spec((2, 3), "float32"), Spec((4, 5), "float32")
        >>> linear(x, w, None, None)
        Traceback (most recent call last):
        ...
        ValueError: masked_linear: expected an input with 5 features (weight has shape (4, 5)), got input of shape \
(2, 3); check that the weight is (out_features, in_features)
    """
    for name, spec in (("input", input), ("weight", weight), ("bias", bias)):
        if spec is not None and spec.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"masked_linear: expected {name} of dtype {_one_of(FLOAT_DTYPES)}, got {spec.dtype}; "
                f"convert {name} first"
            )
    if len(weight.shape) != 2:
        raise ValueError(
            f"masked_linear: expected a weight of shape (out_features, in_features), got shape {weight.shape}; "
            "reshape it to two dimensions"
        )
    if not input.shape:
        raise ValueError(
            "masked_linear: expected an input of shape (*batch, in_features), got a scalar; "
            "give it at least the feature dimension"
        )
    if input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"masked_linear: expected an input with {weight.shape[1]} features (weight has shape {weight.shape}), "
            f"got input of shape {input.shape}; check that the weight is (out_features, in_features)"
        )
    if input.dtype != weight.dtype:
        raise TypeError(
            f"masked_linear: expected input and weight of one dtype, got {input.dtype} and {weight.dtype}; "
            "convert one of them (nothing is promoted silently)"
        )
    if bias is not None:
        _vector("bias", bias, weight.shape)
        if bias.dtype != weight.dtype:
            raise TypeError(
                f"masked_linear: expected bias and weight of one dtype, got {bias.dtype} and {weight.dtype}; "
                "convert one of them (nothing is promoted silently)"
            )
    if bias_mask is not None:
        if bias is None:
            raise ValueError(
                "masked_linear: expected a bias beside bias_mask, got bias=None; leave bias_mask out or give a bias"
            )
        if bias_mask.dtype != "bool":
            raise TypeError(
                f"masked_linear: expected a bool bias_mask (True = the gradient flows), got dtype {bias_mask.dtype}; "
                "compare first, e.g. values != 0"
            )
        _vector("bias_mask", bias_mask, weight.shape)
    for name, spec in (("input", input), ("bias", bias)):
        if spec is not None and None not in (spec.device, weight.device) and spec.device != weight.device:
            raise ValueError(
                f"masked_linear: expected {name} on the weight's device {weight.device}, got {spec.device}; "
                f"move {name} first"
            )


def _vector(name: str, spec: Spec, weight_shape: Shape) -> None:
    if tuple(spec.shape) != (weight_shape[0],):
        raise ValueError(
            f"masked_linear: expected {name} of shape ({weight_shape[0]},), one per output feature, "
            f"got shape {tuple(spec.shape)}; check that the weight is (out_features, in_features)"
        )


def refuse_array(name: str, value: object) -> NoReturn:
    """Refuse an argument that is not an array of the framework.

    Raises:
        TypeError: Always.
    """
    raise TypeError(f"masked_linear: expected {name} to be an array, got {type(value).__name__}; convert it first")


def refuse_float64() -> NoReturn:
    """Refuse float64 where the framework would silently turn it into float32.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        "masked_linear: expected float64 to be enabled for float64 arguments, got a framework set to 32 bits; "
        "set jax_enable_x64 or convert to float32"
    )


def refuse_mask(value: object) -> NoReturn:
    """Refuse a `grad_mask` that is neither a mask nor a bool array.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        "masked_linear: expected grad_mask to be columns(...), rows(...), submatrix(...), blocks(...), elements(...) "
        f"or a bool array, got {type(value).__name__}; columns(slice(None)) trains everything, columns([]) nothing"
    )


def flag(name: str, value: object) -> None:
    """Check that a switch is a bool.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"masked_linear: expected {name} to be True or False, got {value!r}; pass a bool")


def index_dtype(kind: str, dtype: str) -> None:
    """Check the dtype of an index of positions.

    Raises:
        TypeError: It is neither an integer nor bool.
    """
    if dtype not in INTEGER_DTYPES and dtype != "bool":
        raise TypeError(
            f"{kind}: expected integer positions, a slice or a bool vector, got dtype {dtype}; "
            "convert the positions to integers"
        )


def index_rank(kind: str, shape: Shape) -> None:
    """Check that an index of positions is a vector.

    Raises:
        ValueError: It has another number of dimensions.
    """
    if len(shape) != 1:
        raise ValueError(
            f"{kind}: expected a one-dimensional index, got shape {tuple(shape)}; flatten it or use elements(array)"
        )


def index_sequence(kind: str, value: Sequence[Any]) -> np.ndarray:
    """Return a sequence of positions as an array; an empty one is of integers.

    Raises:
        ValueError: The sequence is ragged.
    """
    if not len(value):
        return np.zeros(0, np.int64)
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{kind}: expected a one-dimensional index, got a ragged sequence; flatten it or use elements(array)"
        ) from None


def refuse_index(kind: str, value: object) -> NoReturn:
    """Refuse an index that is not a vector of positions.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        f"{kind}: expected a sequence of integers, an integer vector, a slice or a bool vector, "
        f"got {type(value).__name__}; write {kind}([3]) for a single position"
    )


def slice_bounds(kind: str, index: slice) -> None:
    """Check that a slice is made of integers and has a step that is not zero.

    Raises:
        TypeError: A bound is not an integer.
        ValueError: The step is zero.
    """
    for bound in (index.start, index.stop, index.step):
        if bound is not None and not _is_integer(bound):
            raise TypeError(f"{kind}: expected a slice of integers, got {index!r}; use integer bounds")
    if index.step == 0:
        raise ValueError(f"{kind}: expected a slice whose step is not zero, got {index!r}; use a step of 1 or more")


def index_range(kind: str, lowest: int, highest: int, size: int) -> None:
    """Check that positions lie within `size` features.

    Raises:
        IndexError: One of them does not.
    """
    wrong = highest if highest >= size else lowest
    if lowest < -size or highest >= size:
        allowed = f"positions from {-size} to {size - 1}" if size else "no position at all"
        raise IndexError(
            f"{kind}: expected {allowed} for {size} {_features(kind)}, got {wrong}; check the weight's shape"
        )


def bool_length(kind: str, length: int, size: int) -> None:
    """Check that a bool vector has one entry per feature.

    Raises:
        ValueError: Its length is another.
    """
    if length != size:
        raise ValueError(
            f"{kind}: expected a bool vector of length {size}, one per {_features(kind)[:-1]}, got length {length}; "
            "check the weight's shape"
        )


def bool_matrix(kind: str, what: str, shape: Shape, dtype: str) -> None:
    """Check the bool array of `elements` or the grid of `blocks`.

    Raises:
        TypeError: It is not bool.
        ValueError: It is not two-dimensional.
    """
    if dtype != "bool":
        raise TypeError(
            f"{kind}: expected a bool {what} (True = the gradient flows), got dtype {dtype}; "
            "compare first, e.g. values != 0"
        )
    if len(shape) != 2:
        raise ValueError(
            f"{kind}: expected a two-dimensional {what}, got shape {tuple(shape)}; "
            "rows are output features, columns are input features"
        )


def refuse_bool_matrix(kind: str, what: str, value: object) -> NoReturn:
    """Refuse a mask array that is no array.

    Raises:
        TypeError: Always.
    """
    raise TypeError(f"{kind}: expected a bool {what}, got {type(value).__name__}; give a two-dimensional bool array")


def block_shape(value: object) -> tuple[int, int]:
    """Check and return a block shape.

    Args:
        value: (block rows, block columns), both positive integers.

    Raises:
        TypeError: It is not a pair of integers.
        ValueError: A size is not positive.

    Example:
        >>> block_shape([2, 4])
        (2, 4)
    """
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_integer(size) for size in value):
        raise TypeError(
            f"blocks: expected block_shape as a pair of integers (rows, columns), got {value!r}; e.g. (16, 16)"
        )
    rows, columns = operator.index(value[0]), operator.index(value[1])
    if rows < 1 or columns < 1:
        raise ValueError(f"blocks: expected block sizes of at least 1, got ({rows}, {columns}); e.g. (16, 16)")
    return rows, columns


def traced_blocks() -> NoReturn:
    """Refuse a traced grid of blocks: how many blocks it selects must be known.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        "blocks: expected a grid whose values can be read, got a traced array; build the mask outside of jit, vmap and "
        "compile and pass it in, or use elements(array)"
    )


def mask_shape(mask: str, expected: Shape, weight_shape: Shape) -> None:
    """Check that a mask with a shape of its own fits the weight.

    Raises:
        ValueError: It does not.
    """
    if tuple(expected) != tuple(weight_shape):
        raise ValueError(
            f"{mask}: expected a weight of the mask's shape {tuple(expected)}, got weight of shape "
            f"{tuple(weight_shape)}; the mask is (out_features, in_features)"
        )


def combined_shapes(left: Shape | None, right: Shape | None) -> None:
    """Check that two masks can be combined.

    Raises:
        ValueError: Both have a shape of their own and they differ.
    """
    if left is not None and right is not None and tuple(left) != tuple(right):
        raise ValueError(
            f"mask algebra: expected two masks for one weight, got masks of shapes {tuple(left)} and {tuple(right)}; "
            "masks are (out_features, in_features)"
        )


def weight_shape(value: object) -> tuple[int, int]:
    """Check and return the shape of a weight.

    Args:
        value: (out_features, in_features).

    Raises:
        TypeError: It is not a pair of integers.
        ValueError: A size is negative.
    """
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_integer(size) for size in value):
        raise TypeError(
            f"mask: expected the weight's shape as a pair of integers (out_features, in_features), got {value!r}; "
            "pass weight.shape"
        )
    if value[0] < 0 or value[1] < 0:
        raise ValueError(f"mask: expected sizes of at least 0, got {tuple(value)}; pass weight.shape")
    return operator.index(value[0]), operator.index(value[1])


def features(name: str, value: Any) -> int:
    """Check and return a number of features of a module.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is negative.
    """
    if not _is_integer(value):
        raise TypeError(f"MaskedLinear: expected {name} to be an integer, got {value!r}; pass a number of features")
    if value < 0:
        raise ValueError(f"MaskedLinear: expected {name} of at least 0, got {value}; pass a number of features")
    return operator.index(value)


def seed(value: Any) -> int:
    """Check and return a seed.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is negative.
    """
    if not _is_integer(value):
        raise TypeError(f"MaskedLinear: expected seed to be an integer, got {value!r}; e.g. seed=0")
    if value < 0:
        raise ValueError(f"MaskedLinear: expected a seed of at least 0, got {value}; e.g. seed=0")
    return operator.index(value)


def float_dtype(name: str) -> None:
    """Check the dtype of a module's parameters.

    Raises:
        TypeError: It is not a supported float.
    """
    if name not in FLOAT_DTYPES:
        raise TypeError(f"MaskedLinear: expected dtype {_one_of(FLOAT_DTYPES)}, got {name}; choose one of these")


def module_bias_mask(has_bias: bool, shape: Shape, dtype: str, out_features: int) -> None:
    """Check the bias mask of a module.

    Raises:
        TypeError: It is not bool.
        ValueError: It has no bias to mask, or not one entry per output feature.
    """
    if not has_bias:
        raise ValueError(
            "MaskedLinear: expected a bias beside bias_mask, got bias=False; leave bias_mask out or set bias=True"
        )
    if dtype != "bool":
        raise TypeError(
            f"MaskedLinear: expected a bool bias_mask (True = the gradient flows), got dtype {dtype}; "
            "compare first, e.g. values != 0"
        )
    if tuple(shape) != (out_features,):
        raise ValueError(
            f"MaskedLinear: expected a bias_mask of shape ({out_features},), one per output feature, "
            f"got shape {tuple(shape)}; check out_features"
        )


def refuse_layer(expected: str, value: object) -> NoReturn:
    """Refuse a layer of another class.

    Raises:
        TypeError: Always.
    """
    raise TypeError(f"MaskedLinear: expected {expected}, got {type(value).__name__}; convert that layer only")


def refuse_location(value: object) -> NoReturn:
    """Refuse a `location` that is not a NumPy index array (the seed's constructor).

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        f"MaskedLinear: expected location to be a NumPy array of integer positions, got {type(value).__name__}; "
        "use grad_mask=columns(...) for other kinds of index"
    )


def one_source(seed_given: bool, key_given: bool) -> None:
    """Check that a layer without a global generator is told where its numbers come from, once.

    Raises:
        ValueError: Neither or both of seed and key are given.
    """
    if seed_given == key_given:
        got = "both" if seed_given else "neither"
        raise ValueError(
            f"MaskedLinear: expected exactly one of seed and key, got {got}; seed= gives both frameworks the same bits"
        )


def traced_mask() -> NoReturn:
    """Refuse to read a mask whose positions are traced.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        "mask: expected positions whose values can be read, got a traced mask; "
        "call this outside of jit, vmap and compile"
    )


def refuse_scores(name: str, got: str) -> NoReturn:
    """Refuse scores that are not an array of real numbers.

    Raises:
        TypeError: Always.
    """
    raise TypeError(f"{name}: expected scores as an array of real numbers, got {got}; pass e.g. the weight's magnitude")


def scores(name: str, shape: Shape, has_nan: bool) -> None:
    """Check the shape and the values of scores.

    Raises:
        ValueError: They are not two-dimensional, or one of them is NaN.
    """
    if len(shape) != 2:
        raise ValueError(
            f"{name}: expected scores of the weight's shape (out_features, in_features), got shape {tuple(shape)}; "
            "score every entry of the weight"
        )
    if has_nan:
        raise ValueError(f"{name}: expected scores that can be ordered, got NaN; replace it, e.g. by -inf")


def density(name: str, value: Any) -> None:
    """Check a share.

    Raises:
        TypeError: It is no real number.
        ValueError: It is outside of [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, float | int | np.floating | np.integer):
        raise TypeError(f"{name}: expected density as a number from 0 to 1, got {value!r}; e.g. 0.1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a density from 0 to 1, got {value!r}; it is a share, e.g. 0.1")


def along(name: str, value: Any, has_block_shape: bool) -> None:
    """Check what is chosen along, and that a block shape comes with blocks and only with blocks.

    Raises:
        ValueError: It is unknown, or does not go with block_shape.
    """
    known = ("elements", "columns", "rows", "blocks")
    if value not in known:
        raise ValueError(f"{name}: expected along to be {_one_of(known)}, got {value!r}; choose one of these")
    if (value == "blocks") != has_block_shape:
        got = "a block_shape" if has_block_shape else "no block_shape"
        raise ValueError(
            f'{name}: expected block_shape with along="blocks" and only with it, got along={value!r} and {got}; '
            "e.g. block_shape=(16, 16)"
        )


def blocks_fit(name: str, shape: Shape, block: tuple[int, int]) -> None:
    """Check that whole blocks cover a weight.

    Raises:
        ValueError: They do not.
    """
    if shape[0] % block[0] or shape[1] % block[1]:
        raise ValueError(
            f"{name}: expected a block shape that divides the weight's shape {tuple(shape)}, got {block}; "
            "choose divisors"
        )


def group(n: Any, m: Any, in_features: int) -> None:
    """Check the group sizes of n:m selection.

    Raises:
        TypeError: n or m is not an integer.
        ValueError: n is not within [0, m], or m does not divide in_features.
    """
    if not _is_integer(n) or not _is_integer(m):
        raise TypeError(f"n_of_m: expected integers n and m, got {n!r} and {m!r}; e.g. n=2, m=4")
    if m < 1 or not 0 <= n <= m:
        raise ValueError(f"n_of_m: expected 0 <= n <= m and m >= 1, got n={n}, m={m}; e.g. n=2, m=4")
    if in_features % m:
        raise ValueError(f"n_of_m: expected m to divide the {in_features} input features, got m={m}; choose a divisor")


def _features(kind: str) -> str:
    return "output features" if kind in ("rows", "submatrix rows") else "input features"


def _is_integer(value: object) -> bool:
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
