"""Masked layers for Flax NNX models: drop-ins for its layers, and whole models (SPEC S8, S13).

NNX keeps a kernel (in_features, out_features), the transpose of a weight. Masks are written for the weight
(out_features, in_features) here as everywhere: columns are input features.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp

from maskedlinear_core import constructors
from maskedlinear_core import storage as core_storage
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.precision import Native
from maskedlinear_jax import module, packed_module, storage

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("maskedlinear_jax.nnx needs flax: pip install 'maskedlinear[nnx]'") from error

from maskedlinear_jax.nnx_convert import mask_linears as mask_linears
from maskedlinear_jax.nnx_convert import places as _places
from maskedlinear_jax.nnx_convert import replace as _replace
from maskedlinear_jax.nnx_convert import unmask_linears as unmask_linears
from maskedlinear_jax.nnx_layers import Frozen as Frozen
from maskedlinear_jax.nnx_layers import Layer as _Layer
from maskedlinear_jax.nnx_layers import MaskedLinear as MaskedLinear
from maskedlinear_jax.nnx_layers import PackedLinear as PackedLinear
from maskedlinear_jax.nnx_layers import Positions as Positions

_as_pure = getattr(nnx, "as_pure", None) or nnx.pure  # its name before Flax 0.12.8; goes when that is the lowest


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
