"""The arguments of a module (contract S8, S10)."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

from maskedlinear_core.checks.words import FLOAT_DTYPES, Shape, is_integer, one_of


def features(name: str, value: Any) -> int:
    """Check and return a number of features of a module.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is negative.
    """
    if not is_integer(value):
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
    if not is_integer(value):
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
        raise TypeError(f"MaskedLinear: expected dtype {one_of(FLOAT_DTYPES)}, got {name}; choose one of these")


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
    """Refuse a layer of another class."""
    raise TypeError(f"MaskedLinear: expected {expected}, got {type(value).__name__}; convert that layer only")


def refuse_location(value: object) -> NoReturn:
    """Refuse a `location` that is not a NumPy index array."""
    raise TypeError(
        f"MaskedLinear: expected location to be a NumPy array of integer positions, got {type(value).__name__}; "
        "use grad_mask=columns(...) for other kinds of index"
    )


def replaced(layer: str, given: Collection[str], leaves: Sequence[str]) -> None:
    """Check that a layer has what is to be replaced.

    Raises:
        TypeError: It has no such leaf. An attribute set beside the leaves would be dropped without a word.

    Example:
        >>> replaced("PackedLinear", ["bias"], ["values", "bias_values"])
        Traceback (most recent call last):
        ...
        TypeError: PackedLinear.replace: expected values or bias_values, got bias; only these are stored
    """
    unknown = [name for name in given if name not in leaves]
    if unknown:
        raise TypeError(f"{layer}.replace: expected {one_of(leaves)}, got {', '.join(unknown)}; only these are stored")


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


def refuse_rngs(layer: str) -> NoReturn:
    """Refuse to make a layer of Flax NNX without random streams."""
    raise TypeError(f"{layer}: expected random streams for the first numbers, got none; pass rngs=nnx.Rngs(0)")


def refuse_out_sharding(layer: str) -> NoReturn:
    """Refuse to place the output of a masked `nnx.LinearGeneral` on a mesh."""
    raise NotImplementedError(
        f"{layer}: expected out_sharding=None, got a sharding; use jax.sharding.reshard on the output, or "
        "jax.lax.with_sharding_constraint where axes are automatic"
    )


def axes(layer: str, given: Sequence[int], sizes: Shape, shape: Shape) -> None:
    """Check that an input has the axes that a layer reads, of their sizes.

    Raises:
        ValueError: It has not.
    """
    if not all(-len(shape) <= one < len(shape) and shape[one] == size for one, size in zip(given, sizes, strict=True)):
        raise ValueError(
            f"{layer}: expected an input of {list(sizes)} features along its axes {list(given)}, got shape {shape}; "
            "check the layer's in_features and axis"
        )


def values_dtype(name: str, weight: str) -> None:
    """Check the dtype of packed values against the weight's.

    Raises:
        TypeError: It is neither the weight's nor float32 over a 16-bit weight.
    """
    allowed = [weight, *(["float32"] if weight in ("bfloat16", "float16") else [])]
    if name not in allowed:
        raise TypeError(
            f"PackedLinear: expected values_dtype {' or '.join(allowed)} over a weight of {weight}, got {name}; "
            "choose one of these"
        )


def resized(layer: str, old: Shape, new: Shape, bias_mask: int | None) -> None:
    """Check that the bias mask of a layer fits a weight of other sizes.

    Raises:
        ValueError: It does not.
    """
    if bias_mask is not None and bias_mask != new[0]:
        raise ValueError(
            f"{layer}: expected a weight of {old[0]} outputs, for which its bias_mask was made, got one of {new[0]}; "
            "set layer.bias_mask = None before the sizes change, and another mask after it"
        )


@contextlib.contextmanager
def fitting(layer: str, old: Shape, new: Shape) -> Iterator[None]:
    """Say what to do where a mask does not fit a weight of other sizes."""
    try:
        yield
    except (IndexError, ValueError) as error:
        raise type(error)(
            f"{layer}: expected a weight of shape {old}, for which its mask was made, got one of shape {new}, which it "
            f"does not fit ({error}); set layer.grad_mask to a mask of both sizes before they change"
        ) from error


def refuse_script(layer: str) -> NoReturn:
    """Refuse to compile a masked layer's Python to TorchScript."""
    raise TypeError(
        f"torch.jit.script: expected plain layers, got a {layer}, whose gradient has a rule of its own; "
        "use torch.compile or torch.export, or script unmask_linears(copy.deepcopy(model)), of which all learns"
    )


def not_quantized(layer: str) -> str:
    """Return what to warn of where a model is quantized around a layer."""
    return (
        f"torch.ao.quantization: expected plain layers, got a {layer}, which keeps its mask and its floats and is not "
        "quantized; train first and quantize unmask_linears(model), to quantize it too"
    )


def bits(layer: str, got: str, dtype: str) -> None:
    """Check that a constant is still held as its bits.

    Raises:
        TypeError: Something cast or averaged all leaves of a pytree, or put something else in their places.
    """
    if not got.startswith("uint"):
        raise TypeError(
            f"{layer}: expected its constant matrix as the bits of {dtype}, got dtype {got}; cast or average leaves of "
            "floats alone (partition(model)[0], equinox.is_inexact_array), and make a layer of another weight by "
            "from_linear"
        )


def refuse_pruned_bias(layer: str) -> NoReturn:
    """Refuse a buffer `bias_mask`, by which torch prunes a bias: the layer's own mask of that name is another."""
    raise TypeError(
        f"{layer}: expected buffers of other names than the layer's own, got 'bias_mask', by which torch "
        "prunes a bias; prune the plain layer before it is masked, and make that permanent (prune.remove)"
    )


def refuse_as_parameters(layer: str) -> NoReturn:
    """Refuse a whole layer as the parameters of an optimizer: its positions are leaves, too."""
    raise TypeError(
        f"{layer}: expected parameters without positions, got the whole layer; split it first: params, rest = "
        "partition(layer), give the optimizer (flax's TrainState) params, and call combine(params, rest)"
    )


def weight_decay(value: Any) -> None:
    """Check the decay of a parameter group.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or not finite.
    """
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(
            f"parameter_groups: expected weight_decay to be a number, got {type(value).__name__}; 0.0 is none"
        )
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"parameter_groups: expected weight_decay to be 0 or more, got {value}; 0.0 is none")


def refuse_params() -> NoReturn:
    """Refuse parameters beside those of the model."""
    raise TypeError(
        "parameter_groups: expected options of an optimizer, such as lr, got params; the groups have the parameters of "
        "the model: add a group of others to the list that is returned"
    )
