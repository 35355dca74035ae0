"""Masked layers for Flax NNX: drop-ins for `flax.nnx.Linear` (contract S8).

NNX keeps a kernel (in_features, out_features), the transpose of a weight. Masks are written for the weight
(out_features, in_features) here as everywhere: columns are input features.
"""

from __future__ import annotations

import contextlib
import inspect
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
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.precision import Native, Precision, as_precision
from maskedlinear_jax import _compat, marks, moments, norms, packing
from maskedlinear_jax.functional import masked_linear
from maskedlinear_jax.module import _bias_mask, _name_of_dtype
from maskedlinear_jax.nnx_variables import Frozen, FrozenParam, Positions, ValuesPositions, Whole

COMPUTES = (nnx.WeightNorm, nnx.SpectralNorm)
"""What writes a layer's kernel anew in each forward."""

UNNORMED = "take the layer out of nnx.WeightNorm or nnx.SpectralNorm first"

_NORMS = norms.codes_of(norm.__call__ for norm in COMPUTES)


def is_normed(norm: Any, layer: nnx.Module) -> bool:
    """Tell whether a norm writes to a layer: it is put over it, or over a module of which it chooses its variables."""
    if norm.layer_instance is layer:
        return True

    def is_matrix(path: Any, one: nnx.Variable[Any]) -> bool:
        return isinstance(one, nnx.Param) and one.ndim > 1

    chosen = getattr(norm, "variable_filter", is_matrix)
    inside = [(path, node) for path, node in nnx.iter_graph(norm.layer_instance) if type(node) is type(layer)]
    # A packed layer has no variable of the plain one's name, which the norm would pass by: it asks for the layer's.
    own = "embedding" if hasattr(layer, "num_embeddings") else "kernel"
    # (Under some transformations of Flax a layer is another object than the one in its module.)
    same = [(path, node) for path, node in inside if node is layer] or inside
    return any(
        chosen((*path, name), one) or (name == "values" and chosen((*path, own), one))
        for path, node in same for name, one in vars(node).items() if isinstance(one, nnx.Variable)
    )  # fmt: skip


_OF_FORMS = {"values", "bias_values", "base", "bias_base", "positions", "bias_positions", "arithmetic"}
"""What masked and packed layers have that a plain one has not."""

_OF_LAYERS = {"in_features", "out_features", "in_axes", "out_axes", "kernel", "embedding", "bias"} | _OF_FORMS
"""What layers have, plain, masked and packed, beside the arguments of the plain layer's class."""


def beside(layer: Any, plain: Any) -> dict[str, Any]:
    """Return what a user put into a layer beside what such a layer has.

    Args:
        layer: A plain, masked or packed layer.
        plain: The class of the plain layer.
    """
    known = _OF_LAYERS | inspect.signature(plain.__init__).parameters.keys()
    return {
        name: value for name, value in vars(layer).items()
        if name not in known and (name[0] != "_" or isinstance(value, nnx.Variable | nnx.Module))
    }  # fmt: skip


def take_beside(new: Any, old: Any, plain: Any) -> None:
    """Put what a user put into a layer into the one that replaces it.

    Raises:
        TypeError: The new layer has something else of that name.
    """
    if not isinstance(old, Layer):
        for name in sorted(_OF_FORMS & vars(old).keys()):
            convert_checks.refuse_part(type(new).__name__, name)
    for name, value in beside(old, plain).items():
        if getattr(new, name, value) is not value:
            convert_checks.refuse_part(type(new).__name__, name)
        setattr(new, name, value)


_WHOLE = ("kernel", "embedding", "bias")


class Layer(nnx.Module):
    """What the layers have in common: the mask, and how `nnx.Linear` casts."""

    plain: Any = nnx.Linear
    is_packed = False

    def _take_over(self, linear: nnx.Linear, mask: masks.Mask, bias_mask: Any, arithmetic: Precision) -> None:
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.use_bias = linear.use_bias
        self.dtype, self.param_dtype, self.precision = linear.dtype, linear.param_dtype, linear.precision
        self.promote_dtype = linear.promote_dtype
        self.arithmetic = arithmetic
        # In packed order and with a known count: so it can be traced.
        kind = ValuesPositions if self.is_packed else Positions
        self.positions = kind(mask.packed((self.out_features, self.in_features)))
        bias_values = _bias_mask(bias_mask, linear.bias is not None, self.out_features)
        # Data even where it is None: another mask can be set later.
        self.bias_positions = nnx.data(None if bias_values is None else kind(jnp.asarray(bias_values)))
        self._take_bias_over(linear.bias)

    def _take_bias_over(self, bias: Any) -> None:
        self.bias = bias

    def to_linear(self) -> nnx.Module:
        """Return a plain layer with the trained weight."""
        raise NotImplementedError

    @property
    def grad_mask(self) -> masks.Mask:
        """The mask. Another one can be set; one of the same kind and count recompiles nothing."""
        return self.positions.get_value()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; of `grad_mask` that is `repack`. NNX refuses masks before a property could take them."""
        if name == "grad_mask":
            self.repack(value)
        elif name == "bias_mask":
            trains = np.ones(self.out_features, np.bool_) if value is None else value
            self._change(self.grad_mask, _bias_mask(trains, self.bias is not None, self.out_features), ())
        elif name in _WHOLE and isinstance(getattr(type(self), name, None), property):
            packed_checks.refuse_assigned(name, value, f"set the numbers by layer.{name}[...] = ...")
        else:
            super().__setattr__(name, value)

    @property
    def bias_mask(self) -> np.ndarray | None:
        """The bias mask as a bool vector, or None if all of the bias trains. Another one can be set."""
        return None if self.bias_positions is None else np.asarray(self.bias_positions.get_value())

    def repack(self, grad_mask: MaskLike, optimizer: nnx.Optimizer[Any] | None = None, *, model: Any = None) -> None:
        """Let other positions learn from now on. The weight does not change: trained values stay in it.

        Args:
            grad_mask: The new mask.
            optimizer: The moments of packed values move along: what stays trainable keeps its history, what is new
                gets what the optimizer makes for it at first.
            model: The model that the optimizer was made for, if it is not this layer alone.

        Raises:
            TypeError, ValueError, IndexError: A wrong mask (contract S10); nothing is changed then.

        Example:
            >>> from maskedlinear_jax import columns
            >>> layer = PackedLinear(4, 2, grad_mask=columns([0, 1]), rngs=nnx.Rngs(0))
            >>> before = layer.kernel
            >>> layer.repack(columns([1, 3]))
            >>> bool((layer.kernel == before).all()), layer.grad_mask
            (True, columns([1, 3]))
        """
        moments.check("repack", optimizer)
        model = self if model is None else model
        path = next((path for path, node in nnx.iter_graph(model) if node is self), None)
        if optimizer is not None and path is None:
            convert_checks.refuse_foreign_optimizer()
        moved = self._change(constructors.as_mask(grad_mask), None, tuple(map(str, path or ())))
        if optimizer is not None:
            move_moments(optimizer, model, moved)

    def _change(self, mask: masks.Mask, bias_mask: np.ndarray | None, path: moments.Path) -> dict[moments.Path, Any]:
        # Sets masks; tells how packed values moved.
        mask = mask if mask.is_traced else mask.packed((self.out_features, self.in_features))
        moved = self._change_weight(mask, path)
        if bias_mask is not None:
            self.bias_positions = Positions(jnp.asarray(bias_mask))
        return moved

    def _change_weight(self, mask: masks.Mask, path: moments.Path) -> dict[moments.Path, Any]:
        shape = self.out_features, self.in_features
        convert_checks.warn_of_frozen(".".join(path) or type(self).__name__, self.grad_mask, mask, shape)
        self.positions.set_value(mask)
        return {}

    def _refuse_norms(self) -> None:
        own = "embedding" if hasattr(self, "num_embeddings") else "kernel"
        norms.refuse_inside(_NORMS, self, own, UNNORMED, lambda variables: is_normed(variables["self"], self))

    def _cast(self, *arrays: Any) -> Any:
        self._refuse_norms()
        return self.promote_dtype(arrays, dtype=self.dtype)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.precision is None else jax.default_matmul_precision(self.precision)

    def _plain(self, kernel: Array) -> nnx.Linear:
        linear = nnx.eval_shape(
            lambda: nnx.Linear(
                self.in_features, self.out_features, use_bias=self.use_bias, dtype=self.dtype,
                param_dtype=self.param_dtype, precision=self.precision, promote_dtype=self.promote_dtype,
                rngs=nnx.Rngs(0),
            )
        )  # fmt: skip
        linear.kernel = nnx.Param(kernel)
        if self.use_bias:
            linear.bias = self.bias if isinstance(self.bias, nnx.Param) else nnx.Param(self.bias.get_value())
        return linear


class MaskedLinear(Layer):
    """A drop-in for `flax.nnx.Linear` of which only the masked positions learn.

    `kernel` and `bias` are `nnx.Param`, as there; the positions are not. See `maskedlinear_jax.MaskedLinear`.

    Args:
        in_features: I.
        out_features: O.
        grad_mask: As for `masked_linear`, over the weight (O, I). True = the gradient flows.
        bias_mask: Bool vector (out_features,); None = all of the bias trains.
        rngs: As for `nnx.Linear`.
        keywords: As for `nnx.Linear`. `precision` may also be "reproducible" or `reproducible(...)` (contract S9), and
            is then the layer's `arithmetic`.

    Example:
        >>> from maskedlinear_jax import columns
        >>> layer = MaskedLinear(3, 2, grad_mask=columns([0]), rngs=nnx.Rngs(0))
        >>> nnx.grad(lambda layer: layer(jnp.ones((1, 3))).sum())(layer).kernel.get_value()
        Array([[1., 1.],
               [0., 0.],
               [0., 0.]], dtype=float32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        rngs: nnx.Rngs | None = None,
        _linear: nnx.Linear | None = None,
        **keywords: Any,
    ) -> None:
        # NNX modules come to be by their constructor only: `from_linear` goes through it too.
        arithmetic = _arithmetic(keywords)
        if _linear is None:
            _linear = nnx.Linear(in_features, out_features, rngs=given_rngs(self, rngs), **keywords)
        linear = _linear
        self._take_over(linear, constructors.as_mask(grad_mask), bias_mask, arithmetic)
        self.kernel = linear.kernel

    @classmethod
    def from_linear(
        cls,
        linear: nnx.Linear,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a masked layer around the very parameters of `linear`.

        Raises:
            TypeError: `linear` is no plain `flax.nnx.Linear`.
        """
        _check_plain("from_linear", linear)
        return cls(
            linear.in_features, linear.out_features,
            grad_mask=grad_mask, bias_mask=bias_mask, precision=as_precision(precision), _linear=linear,
        )  # fmt: skip

    def to_linear(self) -> nnx.Linear:
        """Return a plain layer with these parameters."""
        return self._plain(self.kernel.get_value())

    def __call__(self, inputs: Array) -> Array:
        """Return y of shape (*batch, out_features) for x of shape (*batch, in_features)."""
        bias = None if self.bias is None else self.bias.get_value()
        bias_mask = None if self.bias_positions is None else self.bias_positions.get_value()
        inputs, kernel, bias = self._cast(inputs, self.kernel.get_value(), bias)
        with self._precision():
            return masked_linear(
                inputs, kernel.T, bias, grad_mask=self.grad_mask, bias_mask=bias_mask, precision=self.arithmetic
            )  # fmt: skip


class PackedBias(Layer):
    """A packed layer's bias: where a part of it is frozen, its trainable entries are a parameter of their own."""

    is_packed = True

    @property
    def bias(self) -> nnx.Param[Array] | Whole | FrozenParam | None:
        """The whole bias, or None: the parameter itself if all of it trains. It can be set."""
        if self.bias_positions is None or self.bias_base is None:
            return self.bias_values
        return Whole.of("bias", self._whole_bias(), self._bias_parts, self._write_bias)

    def _bias_parts(self) -> tuple[Any, ...]:
        return tuple([None if one is None else one.get_value() for one in (self.bias_base, self.bias_values)])

    def _write_bias(self, bias: Array) -> None:
        assert self.bias_base is not None, "asked for only where part of the bias is frozen"
        assert self.bias_positions is not None, "as above"
        self.bias_base.set_value(bias)
        self.bias_values.set_value(bias.reshape(-1)[self.bias_positions.get_value()])

    def _whole_bias(self) -> Any:
        if self.bias_positions is None or self.bias_base is None:
            return None if self.bias_values is None else self.bias_values.get_value()
        values = self.bias_values.get_value()
        (index,) = jnp.nonzero(self.bias_positions.get_value(), size=values.shape[0])
        base = self.bias_base.get_value()
        return base.reshape(-1).at[index].set(values).reshape(base.shape)

    def _change(self, mask: masks.Mask, bias_mask: np.ndarray | None, path: moments.Path) -> dict[moments.Path, Any]:
        moved = super()._change(mask, None, path)
        if bias_mask is not None:
            old, shape = self.bias_mask, self.bias_values.get_value().shape
            whole = nnx.Param(self._whole_bias())
            self.bias_positions = ValuesPositions(jnp.asarray(bias_mask))
            self._take_bias_over(whole)
            now = self.bias_values.get_value().shape
            moved[*path, "bias_values"] = moments.MovedBias(old, bias_mask, shape, now)
        return moved

    def _take_bias_over(self, bias: Any) -> None:
        if self.bias_positions is None:
            self.bias_values, self.bias_base = nnx.data(bias), nnx.data(None)
        else:
            whole, trains = bias.get_value(), self.bias_positions.get_value()
            if not _compat.is_tracer(trains) and not trains.any():  # Orbax refuses an array of no number
                self.bias_values, self.bias_base = FrozenParam(whole, **bias.get_metadata()), nnx.data(None)
                return
            self.bias_values, self.bias_base = nnx.Param(whole.reshape(-1)[trains]), Frozen(whole)


class PackedLinear(PackedBias):
    """A drop-in for `flax.nnx.Linear` that pays only for what learns: see `maskedlinear_jax.PackedLinear`.

    `values` and `bias_values` are `nnx.Param`; the matrix, and the bias under its trainable part, are `Frozen`:
    `nnx.Optimizer(model, tx, wrt=nnx.Param)` does not see them. It is not for `nnx.WeightNorm` and
    `nnx.SpectralNorm`: these look for a kernel among the parameters, and would leave it out or norm the values alone.

    Args:
        in_features: I.
        out_features: O.
        grad_mask: As for `masked_linear`, over the weight (O, I). True = the gradient flows.
        bias_mask: Bool vector (out_features,); None = all of the bias trains.
        values_dtype: Dtype of the values: the kernel's (None), or float32 over a 16-bit kernel.
        rngs: As for `nnx.Linear`.
        keywords: As for `nnx.Linear`. `precision` may also be "reproducible" or `reproducible(...)` (contract S9), and
            is then the layer's `arithmetic`.

    Example:
        >>> from maskedlinear_jax import columns
        >>> layer = PackedLinear(3, 2, grad_mask=columns([0]), rngs=nnx.Rngs(0))
        >>> nnx.grad(lambda layer: layer(jnp.ones((1, 3))).sum())(layer)["values"].get_value()
        Array([[1.],
               [1.]], dtype=float32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        values_dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
        _linear: nnx.Linear | None = None,
        **keywords: Any,
    ) -> None:
        arithmetic = _arithmetic(keywords)
        if _linear is None:
            _linear = nnx.Linear(in_features, out_features, rngs=given_rngs(self, rngs), **keywords)
        linear = _linear
        packed_checks.with_numbers(type(self).__name__, kernel := linear.kernel.get_value())
        self._take_over(linear, constructors.as_mask(grad_mask), bias_mask, arithmetic)
        dtype = dtype_name(kernel) if values_dtype is None else _name_of_dtype(values_dtype)
        module_checks.values_dtype(dtype, dtype_name(kernel))
        self.base = Frozen(kernel)
        self.values = nnx.Param(packing.pack(kernel.T, grad_mask=self.grad_mask).astype(dtype))

    @classmethod
    def from_linear(
        cls,
        linear: nnx.Linear,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        values_dtype: DTypeLike | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a packed layer with the numbers of `linear`, its bias shared.

        Raises:
            TypeError: `linear` is no plain `flax.nnx.Linear`.
        """
        _check_plain("from_linear", linear)
        return cls(
            linear.in_features, linear.out_features,
            grad_mask=grad_mask, bias_mask=bias_mask, values_dtype=values_dtype,
            precision=as_precision(precision), _linear=linear,
        )  # fmt: skip

    def to_linear(self) -> nnx.Linear:
        """Return a plain layer with the trained kernel."""
        return self._plain(self._whole().T)

    @property
    def kernel(self) -> Whole:
        """The whole kernel (in_features, out_features): the matrix with the values in their places. It can be set."""
        return Whole.of("kernel", self._whole().T, self._parts, self._write)

    def _whole(self) -> Array:
        return packing.unpack(self.base.get_value().T, self.values.get_value(), grad_mask=self.grad_mask)

    def _parts(self) -> tuple[Any, ...]:
        return self.base.get_value(), self.values.get_value()

    def _write(self, kernel: Array) -> None:
        self.values.set_value(packing.pack(kernel.T, grad_mask=self.grad_mask).astype(self.values.get_value().dtype))
        self.base.set_value(kernel)

    def _change_weight(self, mask: masks.Mask, path: moments.Path) -> dict[moments.Path, Any]:
        old, values = self.grad_mask, self.values.get_value()
        whole, shape = self._whole(), (self.out_features, self.in_features)
        # From the values where they stay trainable: float32 over a 16-bit matrix is not rounded.
        changed = packing.repack(values, old, mask, weight=whole)
        self.base.set_value(marks.repacked(self.base.get_value().T, values, old, mask, whole).T)
        self.values.set_value(changed)
        self.positions = ValuesPositions(mask)
        return {(*path, "values"): moments.Moved(old, mask, shape, values.shape)}

    def __call__(self, inputs: Array) -> Array:
        """Return y of shape (*batch, out_features) for x of shape (*batch, in_features)."""
        inputs, base, bias = self._cast(inputs, self.base.get_value(), self._whole_bias())
        values = self.values.get_value()
        # Values are float32 over a 16-bit matrix, or of the matrix' own dtype, whatever it is cast to.
        values = values if values.dtype == jnp.float32 else values.astype(base.dtype)
        with self._precision():
            return packing.packed_linear(
                inputs, base.T, values, bias, grad_mask=self.grad_mask, precision=self.arithmetic
            )  # fmt: skip


def _arithmetic(keywords: dict[str, Any]) -> Precision:
    # `precision` of nnx.Linear is that of JAX's products; what it does not know is ours.
    precision = keywords.get("precision")
    if precision in ("native", "reproducible") or isinstance(precision, Precision):
        return as_precision(keywords.pop("precision"))
    return Native()


def given_rngs(layer: Layer, rngs: nnx.Rngs | None) -> nnx.Rngs:
    """Return the random streams for a layer's first numbers; they can be left out only where the numbers are there."""
    return module_checks.refuse_rngs(type(layer).__name__) if rngs is None else rngs


def has_own_call(layer: Any) -> bool:
    """Tell whether a layer's forward is a user's own."""
    return type(layer).__call__.__module__.partition(".")[0] not in ("flax", "maskedlinear_jax")


def _check_plain(name: str, linear: Any) -> None:
    if type(linear) is not nnx.Linear or linear.preferred_element_type is not None:
        convert_checks.refuse_subclass(name, linear)
    if linear.dot_general is not jax.lax.dot_general:
        convert_checks.refuse_subclass(name, linear.dot_general)
    convert_checks.not_stacked(name, linear.kernel.ndim, 2)


def move_moments(
    optimizer: Any, model: nnx.Module, moved: dict[moments.Path, Any], *, has_others: bool = False
) -> None:
    """Take the moments of an optimizer along where packed values moved, in place; or where there are others."""
    changed = {path: one for path, one in moved.items() if not one.stays}
    if not (changed or has_others):
        return
    fresh = nnx.Optimizer(model, optimizer.tx, wrt=optimizer.wrt)
    state = moments.move(optimizer.opt_state, fresh.opt_state, changed)
    optimizer.opt_state = nnx.data(state)
