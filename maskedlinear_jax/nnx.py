"""Masked layers for Flax NNX models: drop-ins for `flax.nnx.Linear` (SPEC S8).

NNX keeps a kernel (in_features, out_features), the transpose of a weight. Masks are written for the weight
(out_features, in_features) here as everywhere: columns are input features.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core import constructors, masks, patterns
from maskedlinear_core import storage as core_storage
from maskedlinear_core.arrays import dtype_name
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.precision import Native, Precision, as_precision
from maskedlinear_jax import module, packed_module, packing, storage
from maskedlinear_jax.functional import masked_linear
from maskedlinear_jax.module import _bias_mask, _name_of_dtype

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("maskedlinear_jax.nnx needs flax: pip install 'maskedlinear[nnx]'") from error

_as_pure = getattr(nnx, "as_pure", None) or nnx.pure  # its name before Flax 0.12.8; goes when that is the lowest


class Positions(nnx.Variable):
    """Positions of a mask: carried along, never trained."""


class Frozen(nnx.Variable):
    """The constant matrix of a packed layer: carried along, never trained."""


class _Layer(nnx.Module):
    """What both layers have in common: the mask, and how `nnx.Linear` casts."""

    def _take_over(self, linear: nnx.Linear, mask: masks.Mask, bias_mask: Any, arithmetic: Precision) -> None:
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.use_bias = linear.use_bias
        self.dtype, self.param_dtype, self.precision = linear.dtype, linear.param_dtype, linear.precision
        self.promote_dtype = linear.promote_dtype
        self.arithmetic = arithmetic
        # In packed order and with a known count: so it can be traced.
        self.positions = Positions(mask.packed((self.out_features, self.in_features)))
        bias_values = _bias_mask(bias_mask, linear.bias is not None, self.out_features)
        self.bias_positions = None if bias_values is None else Positions(jnp.asarray(bias_values))
        self._take_bias_over(linear.bias)

    def _take_bias_over(self, bias: Any) -> None:
        self.bias = bias

    @property
    def grad_mask(self) -> masks.Mask:
        """The mask. Another of the same kind and count recompiles nothing."""
        return self.positions.get_value()

    def _cast(self, *arrays: Any) -> Any:
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
            linear.bias = self.bias if isinstance(self.bias, nnx.Param) else nnx.Param(self.bias)
        return linear


class MaskedLinear(_Layer):
    """A drop-in for `flax.nnx.Linear` of which only the masked positions learn.

    `kernel` and `bias` are `nnx.Param`, as there; the positions are not. See `maskedlinear_jax.MaskedLinear`.

    Args:
        in_features: I.
        out_features: O.
        grad_mask: As for `masked_linear`, over the weight (O, I). True = the gradient flows.
        bias_mask: Bool vector (out_features,); None = all of the bias trains.
        rngs: As for `nnx.Linear`.
        keywords: As for `nnx.Linear`. `precision` may also be "reproducible" or `reproducible(...)` (SPEC S9), and
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
        grad_mask: Any,
        bias_mask: Any = None,
        rngs: Any = None,
        _linear: nnx.Linear | None = None,
        **keywords: Any,
    ) -> None:
        # NNX modules come to be by their constructor only: `from_linear` goes through it too.
        arithmetic = _arithmetic(keywords)
        linear = nnx.Linear(in_features, out_features, rngs=rngs, **keywords) if _linear is None else _linear
        self._take_over(linear, constructors.as_mask(grad_mask), bias_mask, arithmetic)
        self.kernel = linear.kernel

    @classmethod
    def from_linear(
        cls, linear: nnx.Linear, *, grad_mask: Any, bias_mask: Any = None, precision: Any = "native"
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


class PackedLinear(_Layer):
    """A drop-in for `flax.nnx.Linear` that pays only for what learns: see `maskedlinear_jax.PackedLinear`.

    `values` and `bias_values` are `nnx.Param`; the matrix, and the bias under its trainable part, are `Frozen`:
    `nnx.Optimizer(model, tx, wrt=nnx.Param)` does not see them.

    Args:
        in_features: I.
        out_features: O.
        grad_mask: As for `masked_linear`, over the weight (O, I). True = it learns.
        bias_mask: Bool vector (out_features,); None = all of the bias trains.
        values_dtype: Of the values: the kernel's (None), or float32 over a 16-bit kernel.
        rngs: As for `nnx.Linear`.
        keywords: As for `nnx.Linear`. `precision` may also be "reproducible" or `reproducible(...)` (SPEC S9), and
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
        grad_mask: Any,
        bias_mask: Any = None,
        values_dtype: Any = None,
        rngs: Any = None,
        _linear: nnx.Linear | None = None,
        **keywords: Any,
    ) -> None:
        arithmetic = _arithmetic(keywords)
        linear = nnx.Linear(in_features, out_features, rngs=rngs, **keywords) if _linear is None else _linear
        self._take_over(linear, constructors.as_mask(grad_mask), bias_mask, arithmetic)
        kernel = linear.kernel.get_value()
        dtype = dtype_name(kernel) if values_dtype is None else _name_of_dtype(values_dtype)
        module_checks.values_dtype(dtype, dtype_name(kernel))
        self.base = Frozen(kernel)
        self.values = nnx.Param(packing.pack(kernel.T, grad_mask=self.grad_mask).astype(dtype))

    @classmethod
    def from_linear(
        cls,
        linear: nnx.Linear,
        *,
        grad_mask: Any,
        bias_mask: Any = None,
        values_dtype: Any = None,
        precision: Any = "native",
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
        return self._plain(self.kernel)

    @property
    def kernel(self) -> Array:
        """The whole kernel (in_features, out_features): the matrix with the values in their places."""
        base = self.base.get_value().T
        return packing.unpack(base, self.values.get_value(), grad_mask=self.grad_mask).T

    @property
    def bias(self) -> Any:
        """The whole bias (out_features,), or None."""
        if self.bias_positions is None or self.bias_base is None:
            return None if self.bias_values is None else self.bias_values.get_value()
        values = self.bias_values.get_value()
        (index,) = jnp.nonzero(self.bias_positions.get_value(), size=values.shape[0])
        return self.bias_base.get_value().at[index].set(values)

    def _take_bias_over(self, bias: Any) -> None:
        if self.bias_positions is None:
            self.bias_values, self.bias_base = bias, None
        else:
            whole, trains = bias.get_value(), self.bias_positions.get_value()
            self.bias_values, self.bias_base = nnx.Param(whole[trains]), Frozen(whole)

    def __call__(self, inputs: Array) -> Array:
        """Return y of shape (*batch, out_features) for x of shape (*batch, in_features)."""
        inputs, base, bias = self._cast(inputs, self.base.get_value(), self.bias)
        values = self.values.get_value()
        # Values are float32 over a 16-bit matrix, or of the matrix' own dtype, whatever it is cast to.
        values = values if values.dtype == jnp.float32 else values.astype(base.dtype)
        with self._precision():
            return packing.packed_linear(
                inputs, base.T, values, bias, grad_mask=self.grad_mask, precision=self.arithmetic
            )  # fmt: skip


def mask_linears(
    model: nnx.Module,
    masks: Mapping[str, Any],
    *,
    packed: bool = False,
    values_dtype: Any = None,
    precision: Any = "native",
) -> nnx.Module:
    """Replace the `nnx.Linear` layers of a model by masked ones, in place.

    As `maskedlinear_jax.mask_linears`; names are dotted paths, e.g. "encoder.layers.0.query".

    Returns:
        The model; if it is itself a linear layer, what replaces it.

    Raises:
        TypeError, ValueError, IndexError: As there. On an error the model is as it was.

    Example:
        >>> from maskedlinear_jax import columns
        >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu)
        >>> mask_linears(model, {"layers.0": columns([1])}, packed=True).layers[0].values.get_value().shape
        (3, 1)
    """
    if not isinstance(model, nnx.Module):
        convert_checks.refuse_model("a flax.nnx.Module", model)
    precision = as_precision(precision)
    places = _places(model, nnx.Linear)
    linears = {name: linear for name, (linear, *_) in places.items()}
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in linears.items()}
    chosen = patterns.choose(linears, masks, shapes)
    owners: dict[int, list[str]] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            for own, value in vars(node).items():
                if isinstance(value, nnx.Variable):
                    owners.setdefault(id(value), []).append(".".join(map(str, (*path, own))))
    for name in chosen:
        _check_plain(name, linears[name])
        found = owners[id(linears[name].kernel)]
        if len(found) > 1:
            convert_checks.refuse_tied(name, found)
    made: dict[str, Any] = {}
    for name, mask in chosen.items():
        made[name] = (
            PackedLinear.from_linear(linears[name], grad_mask=mask, values_dtype=values_dtype, precision=precision)
            if packed
            else MaskedLinear.from_linear(linears[name], grad_mask=mask, precision=precision)
        )
    return _replace(model, places, made)


def unmask_linears(model: nnx.Module) -> nnx.Module:
    """Replace the masked layers of a model by `nnx.Linear` with the trained kernels, in place."""
    if not isinstance(model, nnx.Module):
        convert_checks.refuse_model("a flax.nnx.Module", model)
    places = _places(model, _Layer)
    return _replace(model, places, {name: layer.to_linear() for name, (layer, *_) in places.items()})


def grad_masks(model: nnx.Module) -> nnx.State:
    """Return what trains in a model: like `nnx.as_pure(nnx.state(model, nnx.Param))`, of bool arrays.

    For `maskedlinear_jax.hold_frozen`, around the transformation that `nnx.Optimizer(..., wrt=nnx.Param)` gets.

    Example:
        >>> from maskedlinear_jax import columns
        >>> layer = MaskedLinear(3, 1, grad_mask=columns([0]), rngs=nnx.Rngs(0))
        >>> grad_masks(layer)["kernel"].ravel().tolist()
        [True, False, False]
    """
    state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), nnx.state(model, nnx.Param))
    for path, layer in nnx.iter_graph(model):
        if isinstance(layer, MaskedLinear):
            inside = state
            for part in path:
                inside = inside[part]
            trains = layer.grad_mask.to_array((layer.out_features, layer.in_features))
            inside["kernel"].set_value(jnp.asarray(trains.T))
            if layer.bias_positions is not None:
                inside["bias"].set_value(layer.bias_positions.get_value())
    return _as_pure(state)


def save_packed(path: str | os.PathLike[str], model: nnx.Module) -> int:
    """Store masks, packed values and biases of the masked layers of a model in one file.

    As `maskedlinear_jax.save_packed`: the same file, which any of the frameworks loads.

    Example:
        >>> import tempfile
        >>> from maskedlinear_jax import columns
        >>> trained = PackedLinear(4, 2, grad_mask=columns([1]), rngs=nnx.Rngs(0))
        >>> trained.values.set_value(trained.values.get_value() + 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_packed(f"{folder}/layer.safetensors", trained)
        ...     again = load_packed(f"{folder}/layer.safetensors", nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
        >>> bool((again.kernel == trained.kernel).all()), again.grad_mask
        (True, columns([1]))
    """
    if not isinstance(model, nnx.Module):
        convert_checks.refuse_model("a flax.nnx.Module", model)
    return storage.save_packed(path, {name: _pytree(layer) for name, (layer, *_) in _places(model, _Layer).items()})


def load_packed(path: str | os.PathLike[str], model: nnx.Module) -> nnx.Module:
    """Load stored masks, values and biases into a model, in place, over the kernels they were trained on.

    As `maskedlinear_jax.load_packed`; an `nnx.Linear` of a stored name becomes a masked layer.

    Returns:
        The model; if it is itself a layer, what replaces it.

    Raises:
        StorageError, OSError: As there. On an error the model is as it was.
    """
    if not isinstance(model, nnx.Module):
        convert_checks.refuse_model("a flax.nnx.Module", model)
    places = _places(model, (nnx.Linear, _Layer))
    found = storage.load_packed(path, {name: _pytree(layer) for name, (layer, *_) in places.items()})
    made: dict[str, Any] = {}
    for name in core_storage.read(path):
        layer, loaded = places[name][0], found[name]
        packed = isinstance(loaded, packed_module.PackedLinear)
        plain = layer if isinstance(layer, nnx.Linear) else layer.to_linear()
        linear: Any = nnx.clone(plain)
        linear.kernel.set_value((loaded.base if packed else loaded.weight).T)
        if loaded.bias is not None:
            linear.bias.set_value(loaded.bias)
        kind: Any = PackedLinear if packed else MaskedLinear
        made[name] = kind.from_linear(
            linear, grad_mask=loaded.grad_mask, bias_mask=loaded.bias_mask,
            precision=getattr(layer, "arithmetic", Native()),
        )  # fmt: skip
        if packed:
            made[name].values.set_value(loaded.values)
    return _replace(model, places, made)


def _pytree(layer: Any) -> Any:
    # The layer as one of the package's own.
    if isinstance(layer, nnx.Linear):
        bias = None if layer.bias is None else layer.bias.get_value()
        everything = constructors.columns(slice(None))
        return module.MaskedLinear.tree_unflatten(Native(), (layer.kernel.get_value().T, bias, everything, None))
    mask, bias_mask = layer.grad_mask, layer.bias_positions
    bias_mask = None if bias_mask is None else bias_mask.get_value()
    if isinstance(layer, MaskedLinear):
        bias = None if layer.bias is None else layer.bias.get_value()
        return module.MaskedLinear.tree_unflatten(Native(), (layer.kernel.get_value().T, bias, mask, bias_mask))
    plain = module.MaskedLinear.tree_unflatten(Native(), (layer.base.get_value().T, layer.bias, mask, None))
    packed = packed_module.PackedLinear.from_linear(plain, grad_mask=mask, bias_mask=bias_mask)
    return packed.replace(values=layer.values.get_value())


def _places(model: nnx.Module, kind: Any) -> dict[str, tuple[Any, Any, Any]]:
    # Each node of a kind by its dotted path, with the node that holds it and under which key.
    by_path = dict(nnx.iter_graph(model))
    return {
        ".".join(map(str, path)): (node, by_path[path[:-1]] if path else None, path[-1] if path else None)
        for path, node in by_path.items()
        if isinstance(node, kind)
    }


def _replace(model: nnx.Module, places: dict[str, tuple[Any, Any, Any]], made: dict[str, Any]) -> nnx.Module:
    for name, layer in made.items():
        _, parent, key = places[name]
        if parent is None:
            return layer
        if isinstance(key, str) and isinstance(parent, nnx.Module) and not isinstance(parent, nnx.List):
            setattr(parent, key, layer)
        else:
            parent[key] = layer
    return model


def _arithmetic(keywords: dict[str, Any]) -> Precision:
    # `precision` of nnx.Linear is that of JAX's products; what it does not know is ours.
    precision = keywords.get("precision")
    if precision in ("native", "reproducible") or isinstance(precision, Precision):
        return as_precision(keywords.pop("precision"))
    return Native()


def _check_plain(name: str, linear: Any) -> None:
    if type(linear) is not nnx.Linear or linear.preferred_element_type is not None:
        convert_checks.refuse_subclass(name, linear)
    if linear.dot_general is not jax.lax.dot_general:
        convert_checks.refuse_subclass(name, linear.dot_general)
