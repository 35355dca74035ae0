"""The packed form (contract S7, S10)."""

from __future__ import annotations

from typing import NoReturn

from maskedlinear_core.checks.call import Spec
from maskedlinear_core.checks.words import FLOAT_DTYPES, Shape, one_of


def weight(function: str, spec: Spec) -> None:
    """Check a weight that is packed or unpacked.

    Raises:
        TypeError: It is not of a supported float.
        ValueError: It is not two-dimensional.
    """
    if spec.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{function}: expected weight of dtype {one_of(FLOAT_DTYPES)}, got {spec.dtype}; convert weight first"
        )
    if len(spec.shape) != 2:
        raise ValueError(
            f"{function}: expected a weight of shape (out_features, in_features), got shape {tuple(spec.shape)}; "
            "reshape it to two dimensions, or do this inside of the vmap or scan that goes over a stack of layers"
        )


def values(function: str, spec: Spec, expected: Shape, weight: Spec) -> None:
    """Check packed values against the mask and the weight.

    Args:
        function: Name of the public function, for messages.
        spec: Spec (shape, dtype, device) of the values.
        expected: The shape that the mask gives.
        weight: Spec of the frozen matrix.

    Raises:
        TypeError: The dtype is neither the weight's nor float32 over a 16-bit weight.
        ValueError: The shape or the device differs.

    Example:
        >>> values("unpack", Spec((3,), "float32"), (2,), Spec((4, 4), "float32"))
        Traceback (most recent call last):
        ...
        ValueError: unpack: expected values of shape (2,) for this mask, got shape (3,); pack(weight, grad_mask=...) \
makes them
    """
    allowed = [weight.dtype, *(["float32"] if weight.dtype in ("bfloat16", "float16") else [])]
    if spec.dtype not in allowed:
        raise TypeError(
            f"{function}: expected values of dtype {' or '.join(allowed)} over a weight of {weight.dtype}, "
            f"got {spec.dtype}; convert one of them (nothing is promoted silently)"
        )
    if tuple(spec.shape) != tuple(expected):
        raise ValueError(
            f"{function}: expected values of shape {tuple(expected)} for this mask, got shape {tuple(spec.shape)}; "
            "pack(weight, grad_mask=...) makes them"
        )
    if None not in (spec.device, weight.device) and spec.device != weight.device:
        raise ValueError(
            f"{function}: expected values on the weight's device {weight.device}, got {spec.device}; move values first"
        )


def elements_fit(size: int, limit: int) -> None:
    """Check that the elements of a weight can be numbered.

    Raises:
        ValueError: There are too many.
    """
    if size >= limit:
        raise ValueError(
            f"packed form: expected a weight of fewer than {limit} elements for a mask of single elements, got {size}; "
            "use columns, rows, submatrix or blocks, or the masked form"
        )


def refuse_traced(mask: str) -> NoReturn:
    """Refuse a mask whose number of positions cannot be known now."""
    raise TypeError(
        f"packed form: expected a mask whose number of positions is known, got {mask}; inside of jit, vmap and compile "
        "use mask.packed(weight.shape), made outside"
    )


def one_shape(weight_given: bool, shape_given: bool) -> None:
    """Check that `repack` is told the weight's shape, once.

    Raises:
        ValueError: Neither or both of weight and shape are given.
    """
    if weight_given == shape_given:
        got = "both" if weight_given else "neither"
        raise ValueError(
            f"repack: expected exactly one of weight and shape, got {got}; give weight= for values (what is newly "
            "trainable starts from it) and shape= for an optimizer's moments (it starts from zero)"
        )


def written(name: str, shape: Shape, dtype: str, new_shape: Shape, new_dtype: str) -> None:
    """Check numbers that are to become a packed layer's weight or bias.

    Raises:
        ValueError: They are of another shape.
        TypeError: They are of another dtype.
    """
    if tuple(new_shape) != tuple(shape):
        raise ValueError(
            f"PackedLinear: expected {name} of shape {tuple(shape)}, got shape {tuple(new_shape)}; make a layer of "
            "that shape instead"
        )
    if new_dtype != dtype:
        raise TypeError(
            f"PackedLinear: expected {name} of {dtype.removeprefix('torch.')}, got "
            f"{new_dtype.removeprefix('torch.')}; convert it first, or convert the layer with layer.to(dtype)"
        )


def refuse_assigned(
    name: str, value: object, instead: str, *, layer: str = "PackedLinear", plain: str = "layer.to_linear()"
) -> NoReturn:
    """Refuse to put a tensor in the place of a packed layer's weight or bias."""
    raise TypeError(
        f"{layer}: expected {name} to be written to, got an assignment of {type(value).__name__}: a packed layer "
        f"has no parameter {name}; {instead}, or use {plain} where the parameter itself is to be shared"
    )


def refuse_computed(layer: str, name: str) -> NoReturn:
    """Refuse to compute a part of a packed layer from other parameters."""
    raise TypeError(
        f"{layer}: expected {name} to be the layer's own, got one that is to be computed from other parameters (weight "
        "norm, a parametrization, pruning): a packed layer puts its weight together of base and values; do that to the "
        "plain layer before it is packed, or to layer.to_linear()"
    )


def refuse_sharded(layer: str, change: str) -> NoReturn:
    """Refuse to change the positions of a packed layer whose parameters lie in parts on several devices."""
    raise ValueError(
        f"{layer}: expected a layer that is whole for {change}, got one whose parameters are sharded (FSDP, DTensor); "
        "change the mask before fully_shard, or save the model, change it in one process and shard it anew"
    )


def not_broadcast(layer: str, prefix: str) -> str:
    """Return what to say where a sharded layer's weight has come to some processes alone."""
    return (
        f"{layer} {prefix.removesuffix('.')}: expected its weight in every process, got it in some alone "
        "(broadcast_from_rank0 sends what has the name of a parameter); give every process the whole state, or "
        "broadcast one with the names of named_parameters()"
    )


def refuse_recorded_write(name: str) -> NoReturn:
    """Refuse a write in place that a gradient would have to flow through."""
    raise RuntimeError(
        f"PackedLinear: expected {name}, which learns, to be written to inside of torch.no_grad(), got a write in "
        "place that is recorded for a gradient; the layer was not changed"
    )


def refuse_stale_write(name: str) -> NoReturn:
    """Refuse a write to a weight that was read before the layer changed."""
    raise RuntimeError(
        f"PackedLinear: expected a write to the layer's {name} as it is now, got one to a {name} that was read before "
        f"the layer changed; read layer.{name} again. The layer was not changed"
    )


def with_numbers(form: str, weight: object) -> None:
    """Check that a weight has values to take.

    Raises:
        TypeError: It has none: a `jax.ShapeDtypeStruct`.
    """
    if hasattr(weight, "__array__"):
        return
    raise TypeError(
        f"{form}: expected a weight with numbers, got a {type(weight).__name__}, which has a shape and no numbers; "
        "for shapes alone, make the model and convert it within one jax.eval_shape (flax.nnx.eval_shape)"
    )
