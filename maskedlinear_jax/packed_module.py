"""The layer in packed form: a pytree module that pays only for what learns (contract S7, S8)."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from maskedlinear_core import constructors, masks
from maskedlinear_core.annotations import BiasMaskLike, HasWeightAndBias, MaskLike, PrecisionLike
from maskedlinear_core.arrays import dtype_name, is_framework_array, read
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.precision import Precision, described
from maskedlinear_jax import flax_bytes, lowering, marks, packing, rule
from maskedlinear_jax.bits import as_bits
from maskedlinear_jax.module import Layer, MaskedLinear, _name_of_dtype


@jax.tree_util.register_pytree_with_keys_class
class PackedLinear(Layer):
    """A linear layer whose trainable entries are a leaf of their own, over a matrix that is a constant.

    Gradients, optimizer state and all-reduce traffic have the size of `values`. No optimizer can move a
    frozen entry: it is not handed one.

    The layer is a pytree of values, bias_values, grad_mask, bias_mask and the bits of what is frozen: the matrix
    and, if part of the bias is frozen, the bias. These travel as unsigned integers, so that code which goes by
    dtype (`partition`, `equinox.partition`, `jax.grad`, weight decay) does not take them for parameters. `base` is the
    matrix in floats; `weight` and `bias` are made of all of these. Under jit the conversion from bits costs nothing.

    Args:
        in_features: I.
        out_features: O.
        bias: Whether the layer has a bias.
        grad_mask: As for `masked_linear`, with readable positions. True = the gradient flows.
        bias_mask: Bool vector (out_features,); None = all of the bias trains.
        seed: Draw the initial values with NumPy: the same bits as the torch twin.
        key: Draw them with `jax.random` instead. Exactly one of seed and key must be given.
        dtype: float32, float64, bfloat16 or float16; None = float32.
        values_dtype: Dtype of the values: the same (None), or float32 over a 16-bit matrix.
        precision: As for `masked_linear`.

    Raises:
        TypeError, ValueError, IndexError: A wrong argument (contract S10).

    Example:
        >>> from maskedlinear_jax import combine, partition
        >>> from maskedlinear_jax import columns
        >>> layer = PackedLinear(4, 2, grad_mask=columns([0, 3]), seed=0)
        >>> params, rest = partition(layer)
        >>> jax.grad(lambda params: combine(params, rest)(jnp.ones((1, 4))).sum())(params).values
        Array([[1., 1.],
               [1., 1.]], dtype=float32)
    """

    _leaves = ("values", "bias_values", "grad_mask", "bias_mask", "base_bits", "bias_bits")

    values: Array
    bias_values: Array | None
    base_bits: Array
    bias_bits: Array | None
    _dtype: str

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        seed: int | None = None,
        key: Array | None = None,
        dtype: DTypeLike | None = None,
        values_dtype: DTypeLike | None = None,
        precision: PrecisionLike = "native",
    ) -> None:
        masked = MaskedLinear(
            in_features, out_features, bias,
            grad_mask=grad_mask, bias_mask=bias_mask, seed=seed, key=key, dtype=dtype, precision=precision,
        )  # fmt: skip
        self._take_over(masked, masked.grad_mask, masked.bias_mask, values_dtype)

    @classmethod
    def from_linear(
        cls,
        linear: HasWeightAndBias,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        values_dtype: DTypeLike | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a packed layer with the numbers of `linear`.

        Args:
            linear: A layer with a `weight` (out_features, in_features) and a `bias` or None, such as
                `equinox.nn.Linear` or a `MaskedLinear`.
            grad_mask: As for the constructor.
            bias_mask: As for the constructor.
            values_dtype: As for the constructor.
            precision: As for the constructor.

        Raises:
            TypeError: `linear` has no such arrays.

        Example:
            >>> from maskedlinear_jax import columns, rows
            >>> linear = MaskedLinear(3, 2, grad_mask=columns(slice(None)), seed=0)
            >>> packed = PackedLinear.from_linear(linear, grad_mask=rows([0]))
            >>> bool((packed.weight == linear.weight).all()), packed.values.shape
            (True, (1, 3))
        """
        masked = MaskedLinear.from_linear(linear, grad_mask=grad_mask, bias_mask=bias_mask, precision=precision)
        module_checks.float_dtype(dtype_name(masked.weight))
        layer = object.__new__(cls)
        layer._take_over(masked, masked.grad_mask, masked.bias_mask, values_dtype)
        return layer

    def to_linear(self) -> MaskedLinear:
        """Return a layer with the trained weight, all of which learns: a plain linear layer.

        Example:
            >>> from maskedlinear_jax import rows
            >>> PackedLinear(3, 2, grad_mask=rows([0]), seed=0).to_linear().grad_mask
            columns(slice(None, None, None))
        """
        return MaskedLinear.from_linear(self, grad_mask=constructors.columns(slice(None)))

    @classmethod
    def from_location(
        cls,
        in_features: int,
        out_features: int,
        location: np.ndarray,
        bias: bool = True,
        *,
        seed: int | None = None,
        key: Array | None = None,
    ) -> Self:
        """Return a packed layer whose columns at `location` learn: see `MaskedLinear.from_location`.

        Example:
            >>> PackedLinear.from_location(20, 3, np.array([1, 5]), seed=0).values.shape
            (3, 2)
        """
        masked = MaskedLinear.from_location(in_features, out_features, location, bias, seed=seed, key=key)
        return cls.from_linear(masked, grad_mask=masked.grad_mask)

    @property
    def in_features(self) -> int:
        """I, the number of input features."""
        return self.base_bits.shape[-1]

    @property
    def out_features(self) -> int:
        """O, the number of output features."""
        return self.base_bits.shape[-2]

    @property
    def base(self) -> Array:
        """The constant matrix (out_features, in_features). Its entries at trainable positions are not used.

        Its dtype follows the values': a cast of all leaves of floats, as for mixed precision, does not reach the bits.
        """
        module_checks.bits(type(self).__name__, str(getattr(self.base_bits, "dtype", "none")), self._dtype)
        return self._cast(self.base_bits, getattr(self.values, "dtype", None))

    @property
    def weight(self) -> Array:
        """The whole weight (out_features, in_features): the matrix with the values in their places.

        Differentiable: what reads the weight instead of calling the layer trains the values as well.
        """
        base = self.base
        if base.ndim > 2:
            return self._of_stack("weight")
        kind = lowering.resolve(self.grad_mask, (self.out_features, self.in_features), packed=True)
        return rule.weight_view(kind, self.values, base)

    @property
    def bias(self) -> Array | None:
        """The whole bias (out_features,), or None."""
        if self.bias_bits is None:
            return self.bias_values
        module_checks.bits(type(self).__name__, str(getattr(self.bias_bits, "dtype", "none")), self._dtype)
        assert self.bias_mask is not None, "bits of a bias come with its mask"
        assert self.bias_values is not None, "and with values"
        if self.bias_bits.ndim > 1:
            return self._of_stack("bias")
        base = self._cast(self.bias_bits, self.bias_values.dtype)
        # How many entries train is known, which ones may be traced.
        (index,) = jnp.nonzero(self.bias_mask, size=self.bias_values.shape[0])
        return base.at[index].set(self.bias_values)

    def repack(self, grad_mask: MaskLike) -> Self:
        """Return a layer of which other positions learn. The weight is the same: trained values stay in it.

        For another mask of the same kind and count nothing recompiles. The state of an optimizer is a value of its
        own: `repack_state` makes the one for the new layer. JAX cannot tell a state of the old positions from one of
        the new ones: with the same count a step with the old state gives some values the moments of others.

        Args:
            grad_mask: The new mask.

        Raises:
            TypeError, ValueError, IndexError: A wrong mask (contract S10).

        Example:
            >>> from maskedlinear_jax import columns
            >>> layer = PackedLinear(4, 2, grad_mask=columns([0, 1]), seed=0)
            >>> bool((layer.repack(columns([1, 3])).weight == layer.weight).all())
            True
        """
        if self.base.dtype.name != self._dtype:
            return self._as_cast().repack(grad_mask)
        whole, shape = self.weight, (self.out_features, self.in_features)
        # From the values where they stay trainable: float32 over a 16-bit matrix is not rounded.
        values = packing.repack(self.values, self.grad_mask, grad_mask, weight=whole)
        mask = constructors.as_mask(grad_mask)
        mask = mask if mask.is_traced else mask.packed(shape)
        base = marks.repacked(self.base, self.values, self.grad_mask, mask, whole)
        return self.replace(values=values, grad_mask=mask, base_bits=as_bits(base))

    def __call__(self, input: Array, *, forward_mode: bool = False) -> Array:
        """Return y of shape (*batch, out_features) for x of shape (*batch, in_features)."""
        if hasattr(input, "grad_mask"):
            call_checks.refuse_layer("input", type(input).__name__, function="packed_linear")
        return packing.packed_linear(
            input, self.base, self.values, self.bias,
            grad_mask=self.grad_mask, forward_mode=forward_mode, precision=self.precision,
        )  # fmt: skip

    def __repr__(self) -> str:
        """Describe sizes and masks."""
        if not getattr(self.base_bits, "shape", ()):  # as of a dtype: `jax.tree.map` may have put anything there
            return f"PackedLinear(values={self.values!r}, bias_values={self.bias_values!r})"
        trains = read(self.bias_mask) if is_framework_array(self.bias_mask) else None
        trained = "" if trains is None else f", bias_mask={int(trains.sum())} trained"
        return (
            f"PackedLinear(in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias_values is not None}, grad_mask={self.grad_mask!r}{trained}{described(self.precision)})"
        )

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[str, Precision]]:
        """Return the leaves (for pytrees)."""
        # Orbax refuses an array of no number: a bias of which nothing learns is none of the leaves.
        bias = None if getattr(self.bias_values, "size", 1) == 0 else self.bias_values
        leaves = self.values, bias, self.grad_mask, self.bias_mask, self.base_bits, self.bias_bits
        return leaves, (self._dtype, self.precision)

    @classmethod
    def tree_unflatten(cls, static: tuple[str, Precision], leaves: Any) -> Self:
        """Return the module with these leaves, unchecked (for pytrees)."""
        flax_bytes.tell()
        layer = object.__new__(cls)
        layer.values, layer.bias_values, layer.grad_mask, layer.bias_mask, layer.base_bits, layer.bias_bits = leaves
        layer._dtype, layer.precision = static
        if layer.bias_values is None and hasattr(layer.bias_bits, "shape") and hasattr(layer.values, "dtype"):
            layer.bias_values = jnp.zeros((*layer.bias_bits.shape[:-1], 0), layer.values.dtype)
        return layer

    def _cast(self, bits: Array, dtype: Any) -> Array:
        own = jnp.dtype(self._dtype)
        constant = jax.lax.bitcast_convert_type(bits, own)
        wide = own.itemsize == 2 and dtype == jnp.float32  # values over a matrix of 16 bits
        return constant if wide or dtype is None or not jnp.issubdtype(dtype, jnp.inexact) else constant.astype(dtype)

    def _as_cast(self) -> Self:
        # The same layer with the bits of what the constants are cast to.
        cast = self.replace(base_bits=as_bits(self.base))
        if self.bias_bits is not None and self.bias_values is not None:
            cast.bias_bits = as_bits(self._cast(self.bias_bits, self.bias_values.dtype))
        cast._dtype = self.base.dtype.name
        return cast

    def _of_stack(self, name: str) -> Array:
        from maskedlinear_jax import stacked  # which knows this class

        parts = [getattr(one, name) for one in stacked.layers_of("", self).values()]
        return jnp.stack(parts).reshape(*self.base_bits.shape[:-2], *parts[0].shape)

    def _take_over(self, linear: MaskedLinear, mask: masks.Mask, bias_mask: Any, values_dtype: Any) -> None:
        packed_checks.with_numbers(type(self).__name__, linear.weight)
        weight = jnp.asarray(linear.weight)
        dtype = weight.dtype.name if values_dtype is None else _name_of_dtype(values_dtype)
        module_checks.values_dtype(dtype, weight.dtype.name)
        self._dtype, self.precision = weight.dtype.name, linear.precision
        self.bias_values, self.bias_mask, self.bias_bits = linear.bias, bias_mask, None
        if bias_mask is not None:
            bias = jnp.asarray(linear.bias)
            self.bias_values, self.bias_bits = bias[np.flatnonzero(bias_mask)], as_bits(bias)
        # In packed order and with a known count: so it can be traced.
        self.grad_mask = mask.packed((weight.shape[0], weight.shape[1]))
        self.values = packing.pack(weight, grad_mask=self.grad_mask).astype(dtype)
        self.base_bits = as_bits(weight)
