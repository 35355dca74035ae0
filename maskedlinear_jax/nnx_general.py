"""A masked form of `flax.nnx.LinearGeneral`, which the projections of `nnx.MultiHeadAttention` are (contract S13).

Its kernel is (*in, *out). Masks are written for the weight (out_features, in_features) of the linear map: in_features
is the product of the sizes of the axes it reads, out_features that of those it makes, each counted row by row. So
row h * head_dim + d of `query` is feature d of head h, and the same column of `out`.
"""

from __future__ import annotations

import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from maskedlinear_core import constructors, masks
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.arrays import dtype_name
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.precision import as_precision
from maskedlinear_jax import marks, moments, packing
from maskedlinear_jax.functional import masked_linear
from maskedlinear_jax.module import _bias_mask, _name_of_dtype
from maskedlinear_jax.nnx_layers import Layer, PackedBias
from maskedlinear_jax.nnx_variables import Frozen, Positions, ValuesPositions, Whole


class _General(Layer):
    """What both forms have in common: axes, and how `nnx.LinearGeneral` casts."""

    plain = nnx.LinearGeneral

    def _take_general(
        self, linear: nnx.LinearGeneral, grad_mask: MaskLike, bias_mask: Any, precision: PrecisionLike
    ) -> None:
        self.in_axes, self.out_axes = tuple(linear.in_features), tuple(linear.out_features)
        self.in_features, self.out_features = math.prod(self.in_axes), math.prod(self.out_axes)
        self.axis, self.use_bias = linear.axis, linear.bias is not None
        self.dtype, self.param_dtype, self.precision = linear.dtype, linear.param_dtype, linear.precision
        self.promote_dtype, self.arithmetic = linear.promote_dtype, as_precision(precision)
        kind = ValuesPositions if self.is_packed else Positions
        mask = constructors.as_mask(grad_mask).packed((self.out_features, self.in_features))
        self.positions = kind(mask)
        bias_values = _bias_mask(bias_mask, self.use_bias, self.out_features)
        self.bias_positions = nnx.data(None if bias_values is None else kind(jnp.asarray(bias_values)))
        self._take_bias_over(linear.bias)

    def to_linear(self) -> nnx.LinearGeneral:
        """Return a plain `nnx.LinearGeneral` with the trained kernel."""
        linear = nnx.eval_shape(
            lambda: nnx.LinearGeneral(
                self.in_axes, self.out_axes, axis=self.axis, use_bias=self.use_bias, dtype=self.dtype,
                param_dtype=self.param_dtype, precision=self.precision, promote_dtype=self.promote_dtype,
                rngs=nnx.Rngs(0),
            )
        )  # fmt: skip
        linear.kernel = nnx.Param(self._whole().T.reshape(*self.in_axes, *self.out_axes))
        if self.use_bias:
            linear.bias = self.bias if isinstance(self.bias, nnx.Param) else nnx.Param(self.bias.get_value())
        return linear

    def __call__(self, inputs: Array, out_sharding: None = None) -> Array:
        """Return what `nnx.LinearGeneral` returns: the axes it reads are replaced by those it makes, at the end."""
        if out_sharding is not None:
            module_checks.refuse_out_sharding(type(self).__name__)
        if not isinstance(inputs, Array | np.ndarray):
            call_checks.refuse_array("inputs", inputs, function=type(self).__name__)
        module_checks.axes(type(self).__name__, self.axis, self.in_axes, tuple(inputs.shape))
        axes = tuple(axis % inputs.ndim for axis in self.axis)
        batch = [axis for axis in range(inputs.ndim) if axis not in axes]
        lines = inputs.transpose(*batch, *axes)
        lines = lines.reshape(*lines.shape[: len(batch)], self.in_features)
        bias = None if self.bias is None else self.bias.get_value().reshape(-1)
        mask = None if self.bias_positions is None else self.bias_positions.get_value()
        with self._precision():
            output = self._linear(lines, bias, mask)
        return output.reshape(*output.shape[:-1], *self.out_axes)

    def _whole(self) -> Array:
        raise NotImplementedError

    def _linear(self, lines: Array, bias: Any, bias_mask: Any) -> Array:
        raise NotImplementedError

    def _turned(self, kernel: Array) -> Array:
        return kernel.reshape(self.in_features, self.out_features).T


class MaskedLinearGeneral(_General):
    """A `flax.nnx.LinearGeneral` of which only the masked positions learn.

    `kernel` and `bias` are the very `nnx.Param` of the plain layer. Made by `mask_linears` or `from_linear`.

    Example:
        >>> from maskedlinear_jax import rows
        >>> plain = nnx.LinearGeneral(4, (2, 3), rngs=nnx.Rngs(0))
        >>> layer = MaskedLinearGeneral.from_linear(plain, grad_mask=rows([5]))
        >>> grads = nnx.grad(lambda layer: layer(jnp.ones((1, 4))).sum())(layer)
        >>> grads.kernel[...].sum(0).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 4.0]]
    """

    def __init__(
        self,
        linear: nnx.LinearGeneral,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        precision: PrecisionLike = "native",
    ) -> None:
        self._take_general(linear, grad_mask, bias_mask, precision)
        self.kernel = linear.kernel

    @classmethod
    def from_linear(
        cls,
        linear: nnx.LinearGeneral,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a masked layer around the very parameters of `linear`.

        Raises:
            TypeError: `linear` is no plain `flax.nnx.LinearGeneral`, or has batch axes.
        """
        check_general("from_linear", linear)
        return cls(linear, grad_mask=grad_mask, bias_mask=bias_mask, precision=precision)

    def _whole(self) -> Array:
        return self._turned(self.kernel.get_value())

    def _linear(self, lines: Array, bias: Any, bias_mask: Any) -> Array:
        lines, weight, bias = self._cast(lines, self._whole(), bias)
        return masked_linear(
            lines, weight, bias, grad_mask=self.grad_mask, bias_mask=bias_mask, precision=self.arithmetic
        )


class PackedLinearGeneral(PackedBias, _General):
    """A `flax.nnx.LinearGeneral` that pays only for what learns: see `maskedlinear_jax.PackedLinear`.

    `values` and `bias_values` are `nnx.Param`; the matrix, and the bias under its trainable part, are `Frozen`. Made by
    `mask_linears` or `from_linear`.

    Example:
        >>> from maskedlinear_jax import rows
        >>> plain = nnx.LinearGeneral(4, (2, 3), rngs=nnx.Rngs(0))
        >>> PackedLinearGeneral.from_linear(plain, grad_mask=rows([5])).values.get_value().shape
        (1, 4)
    """

    def __init__(
        self,
        linear: nnx.LinearGeneral,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        values_dtype: DTypeLike | None = None,
        precision: PrecisionLike = "native",
    ) -> None:
        packed_checks.with_numbers(type(self).__name__, kernel := linear.kernel.get_value())
        self._take_general(linear, grad_mask, bias_mask, precision)
        dtype = dtype_name(kernel) if values_dtype is None else _name_of_dtype(values_dtype)
        module_checks.values_dtype(dtype, dtype_name(kernel))
        self.base = Frozen(kernel)
        self.values = nnx.Param(packing.pack(self._turned(kernel), grad_mask=self.grad_mask).astype(dtype))

    @classmethod
    def from_linear(
        cls,
        linear: nnx.LinearGeneral,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        values_dtype: DTypeLike | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a packed layer with the numbers of `linear`, its bias shared.

        Raises:
            TypeError: `linear` is no plain `flax.nnx.LinearGeneral`, or has batch axes.
        """
        check_general("from_linear", linear)
        return cls(linear, grad_mask=grad_mask, bias_mask=bias_mask, values_dtype=values_dtype, precision=precision)

    @property
    def kernel(self) -> Whole:
        """The whole kernel (*in, *out): the matrix with the values in their places. It can be set."""
        kernel = self._whole().T.reshape(*self.in_axes, *self.out_axes)
        return Whole.of("kernel", kernel, self._parts, self._write)

    def _parts(self) -> tuple[Any, ...]:
        return self.base.get_value(), self.values.get_value()

    def _write(self, kernel: Array) -> None:
        values = packing.pack(self._turned(kernel), grad_mask=self.grad_mask)
        self.values.set_value(values.astype(self.values.get_value().dtype))
        self.base.set_value(kernel)

    def _whole(self) -> Array:
        return packing.unpack(
            self._turned(self.base.get_value()), self.values.get_value(), grad_mask=self.grad_mask
        )  # fmt: skip

    def _linear(self, lines: Array, bias: Any, bias_mask: Any) -> Array:
        # Its bias is put together of what learns and what does not: it needs no mask.
        lines, base, bias = self._cast(lines, self._turned(self.base.get_value()), bias)
        values = self.values.get_value()
        values = values if values.dtype == jnp.float32 else values.astype(base.dtype)
        return packing.packed_linear(lines, base, values, bias, grad_mask=self.grad_mask, precision=self.arithmetic)

    def _change_weight(self, mask: masks.Mask, path: moments.Path) -> dict[moments.Path, Any]:
        old, values, whole = self.grad_mask, self.values.get_value(), self._whole()
        changed = packing.repack(values, old, mask, weight=whole)
        base = marks.repacked(self._turned(self.base.get_value()), values, old, mask, whole)
        self.base.set_value(base.T.reshape(*self.in_axes, *self.out_axes))
        self.values.set_value(changed)
        self.positions = ValuesPositions(mask)
        return {(*path, "values"): moments.Moved(old, mask, (self.out_features, self.in_features), values.shape)}


def check_general(name: str, linear: Any) -> None:
    """Refuse what is no plain `flax.nnx.LinearGeneral`, and options that no mask goes with."""
    if type(linear) is not nnx.LinearGeneral or linear.preferred_element_type is not None:
        convert_checks.refuse_subclass(name, linear)
    if linear.batch_axis:
        convert_checks.refuse_option(name, "an nnx.LinearGeneral", "batch_axis", "leave it out of the pattern")
    if linear.dot_general not in (None, jax.lax.dot_general) or linear.dot_general_cls is not None:
        convert_checks.refuse_subclass(name, linear.dot_general or linear.dot_general_cls)
    convert_checks.not_stacked(name, linear.kernel.ndim, len((*linear.in_features, *linear.out_features)))


def shape_of(linear: Any) -> tuple[int, int]:
    """Return the shape of the weight (out_features, in_features) of a plain layer."""
    return math.prod(linear.out_features), math.prod(linear.in_features)
