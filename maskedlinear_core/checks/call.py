"""The arguments of a call of `masked_linear` (contract S10)."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

from maskedlinear_core.checks.words import FLOAT_DTYPES, Shape, one_of


class Spec(NamedTuple):
    """What a check needs to know of an array: its shape, its dtype's name and its device."""

    shape: Shape
    dtype: str
    device: Any = None


def linear(
    input: Spec, weight: Spec, bias: Spec | None, bias_mask: Spec | None, *, function: str = "masked_linear"
) -> None:
    """Check the array arguments of a layer: input (*batch, I), weight (O, I), bias and bias_mask (O,).

    Args:
        input: Specification of the input.
        weight: Specification of the weight.
        bias: Specification of the bias, or None.
        bias_mask: Specification of the bias mask, or None.
        function: Name of the public function, for messages.

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
                f"{function}: expected {name} of dtype {one_of(FLOAT_DTYPES)}, got {spec.dtype}; convert {name} first"
            )
    if len(weight.shape) != 2:
        raise ValueError(
            f"{function}: expected a weight of shape (out_features, in_features), got shape {weight.shape}; "
            "reshape it to two dimensions"
        )
    if not input.shape:
        raise ValueError(
            f"{function}: expected an input of shape (*batch, in_features), got a scalar; "
            "give it at least the feature dimension"
        )
    if input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{function}: expected an input with {weight.shape[1]} features (weight has shape {weight.shape}), "
            f"got input of shape {input.shape}; check that the weight is (out_features, in_features)"
        )
    if input.dtype != weight.dtype:
        raise TypeError(
            f"{function}: expected input and weight of one dtype, got {input.dtype} and {weight.dtype}; "
            "convert one of them (nothing is promoted silently)"
        )
    if bias is not None:
        _vector(function, "bias", bias, weight.shape)
        if bias.dtype != weight.dtype:
            raise TypeError(
                f"{function}: expected bias and weight of one dtype, got {bias.dtype} and {weight.dtype}; "
                "convert one of them (nothing is promoted silently)"
            )
    if bias_mask is not None:
        if bias is None:
            raise ValueError(
                f"{function}: expected a bias beside bias_mask, got bias=None; leave bias_mask out or give a bias"
            )
        if bias_mask.dtype != "bool":
            raise TypeError(
                f"{function}: expected a bool bias_mask (True = the gradient flows), got dtype {bias_mask.dtype}; "
                "compare first, e.g. values != 0"
            )
        _vector(function, "bias_mask", bias_mask, weight.shape)
    for name, spec in (("input", input), ("bias", bias)):
        if spec is not None and None not in (spec.device, weight.device) and spec.device != weight.device:
            raise ValueError(
                f"{function}: expected {name} on the weight's device {weight.device}, got {spec.device}; "
                f"move {name} first"
            )


def refuse_array(name: str, value: object, *, function: str = "masked_linear") -> NoReturn:
    """Refuse an argument that is not an array of the framework."""
    raise TypeError(f"{function}: expected {name} to be an array, got {type(value).__name__}; convert it first")


def refuse_layer(name: str, kind: str, *, function: str = "masked_linear") -> NoReturn:
    """Refuse a layer in an array's place, which optax puts there where it takes a tree for a function."""
    raise TypeError(
        f"{function}: expected {name} to be an array, got a layer ({kind}); labels for optax.multi_transform or "
        "optax.partition that are a layer can be called, so optax calls them: hand it lambda params: labels"
    )


def refuse_layout(name: str, layout: str, *, function: str = "masked_linear") -> NoReturn:
    """Refuse a tensor that is no dense array of numbers where only such a one will do."""
    raise TypeError(
        f"{function}: expected {name} to be dense, got {name} of layout {layout}; make it dense first (its to_dense(), "
        "or to_padded_tensor(0.0) if it is nested)"
    )


def refuse_quantized(name: str, kind: str, *, function: str = "masked_linear") -> NoReturn:
    """Refuse numbers that cannot learn, since they are rounded to few values."""
    raise TypeError(
        f"{function}: expected {name} of floats that can learn, got a quantized one ({kind}); take what its "
        "dequantize() gives, or train first and quantize unmask_linears(model)"
    )


def refuse_float64() -> NoReturn:
    """Refuse float64 where the framework would silently turn it into float32."""
    raise TypeError(
        "masked_linear: expected float64 to be enabled for float64 arguments, got a framework set to 32 bits; "
        "set jax_enable_x64 or convert to float32"
    )


def refuse_mask(value: object) -> NoReturn:
    """Refuse a `grad_mask` that is neither a mask nor a bool array."""
    raise TypeError(
        "grad_mask: expected columns(...), rows(...), submatrix(...), blocks(...), elements(...) "
        f"or a bool array, got {type(value).__name__}; columns(slice(None)) trains everything, columns([]) nothing"
    )


def flag(name: str, value: object) -> None:
    """Check that a switch is a bool.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"masked_linear: expected {name} to be True or False, got {value!r}; pass a bool")


def _vector(function: str, name: str, spec: Spec, weight_shape: Shape) -> None:
    if tuple(spec.shape) != (weight_shape[0],):
        raise ValueError(
            f"{function}: expected {name} of shape ({weight_shape[0]},), one per output feature, "
            f"got shape {tuple(spec.shape)}; check that the weight is (out_features, in_features)"
        )


def refuse_jit_trace() -> NoReturn:
    """Refuse to be recorded by `torch.jit.trace`."""
    raise RuntimeError(
        "torch.jit.trace: expected plain layers, got a masked one, whose gradient has a rule that no such trace holds; "
        "trace unmask_linears(copy.deepcopy(model)) for inference, or use torch.export or torch.compile"
    )
