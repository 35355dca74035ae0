"""Masked layers for Flax NNX models: drop-ins for its layers, and whole models (contract S8, S13).

NNX keeps a kernel (in_features, out_features), the transpose of a weight. Masks are written for the weight
(out_features, in_features) here as everywhere: columns are input features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from maskedlinear_core import constructors, files
from maskedlinear_core import score_trees as _score_trees
from maskedlinear_core import storage as core_storage
from maskedlinear_core.annotations import Rename, Source, Target
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_core.checks import storage as storage_checks
from maskedlinear_core.precision import Native
from maskedlinear_core.stored import renamed
from maskedlinear_jax import _compat, freeze, module, packed_module, stacked, storage
from maskedlinear_jax.bits import as_bits
from maskedlinear_jax.constant import Constant as _Constant
from maskedlinear_jax.freeze import assert_frozen as assert_frozen
from maskedlinear_jax.freeze import hold_frozen as hold_frozen
from maskedlinear_jax.freeze import keep_frozen as keep_frozen
from maskedlinear_jax.summary import register_models as _summary_of_models
from maskedlinear_jax.summary import summary as summary

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("maskedlinear_jax.nnx needs flax: pip install 'maskedlinear[nnx]'") from error

from maskedlinear_jax.flax_bytes import tell as _tell_flax
from maskedlinear_jax.nnx_convert import Model as _Model
from maskedlinear_jax.nnx_convert import check_ties as _check_ties
from maskedlinear_jax.nnx_convert import depth_of as _depth
from maskedlinear_jax.nnx_convert import form_of as _form_of
from maskedlinear_jax.nnx_convert import mask_linears as mask_linears
from maskedlinear_jax.nnx_convert import matrix_of as _matrix
from maskedlinear_jax.nnx_convert import merged as merged
from maskedlinear_jax.nnx_convert import places as _places
from maskedlinear_jax.nnx_convert import replace as _replace
from maskedlinear_jax.nnx_convert import train_new_tokens as train_new_tokens
from maskedlinear_jax.nnx_convert import unmask_linears as unmask_linears
from maskedlinear_jax.nnx_convert import weights_of as _weights_of
from maskedlinear_jax.nnx_embedding import MaskedEmbed as MaskedEmbed
from maskedlinear_jax.nnx_embedding import PackedEmbed as PackedEmbed
from maskedlinear_jax.nnx_general import MaskedLinearGeneral as MaskedLinearGeneral
from maskedlinear_jax.nnx_general import PackedLinearGeneral as PackedLinearGeneral
from maskedlinear_jax.nnx_layers import _OF_LAYERS
from maskedlinear_jax.nnx_layers import UNNORMED as _UNNORMED
from maskedlinear_jax.nnx_layers import Layer as _Layer
from maskedlinear_jax.nnx_layers import MaskedLinear as MaskedLinear
from maskedlinear_jax.nnx_layers import PackedLinear as PackedLinear
from maskedlinear_jax.nnx_layers import has_own_call as _has_own_call
from maskedlinear_jax.nnx_layers import take_beside as _take_beside
from maskedlinear_jax.nnx_variables import Frozen as Frozen
from maskedlinear_jax.nnx_variables import FrozenParam as _FrozenParam
from maskedlinear_jax.nnx_variables import Positions as Positions
from maskedlinear_jax.nnx_variables import ValuesPositions as _ValuesPositions

_score_trees.register_model_reader(nnx.Module, _weights_of)


__all__ = [
    "Frozen",
    "MaskedEmbed",
    "MaskedLinear",
    "MaskedLinearGeneral",
    "PackedEmbed",
    "PackedLinear",
    "PackedLinearGeneral",
    "Positions",
    "assert_frozen",
    "grad_masks",
    "hold_frozen",
    "keep_frozen",
    "load_packed",
    "mask_linears",
    "merged",
    "packed_arrays",
    "packed_bytes",
    "save_packed",
    "summary",
    "train_new_tokens",
    "unmask_linears",
]


def __dir__() -> list[str]:
    return __all__


def grad_masks(model: nnx.Module) -> nnx.State[Any, Any]:
    """Return what trains in a model: like `nnx.as_pure(nnx.state(model, nnx.Param))`, of bool arrays.

    For `hold_frozen`, around the transformation that `nnx.Optimizer(..., wrt=nnx.Param)` gets.

    Raises:
        ValueError: A masked layer's kernel is computed from others (`nnx.WeightNorm`, `nnx.SpectralNorm`).

    Example:
        >>> from maskedlinear_jax import columns
        >>> layer = MaskedLinear(3, 1, grad_mask=columns([0]), rngs=nnx.Rngs(0))
        >>> grad_masks(layer)["kernel"].ravel().tolist()
        [True, False, False]
    """
    return _grad_masks(model, "grad_masks")


def _grad_masks(model: nnx.Module, function: str) -> nnx.State[Any, Any]:
    state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), nnx.state(model, nnx.Param))
    for name, place in _places(model, _Layer).items():
        if place.is_computed:
            frozen_checks.refuse_computed(name, "kernel", function, _UNNORMED)
    for path, layer in nnx.iter_graph(model):
        if isinstance(layer, MaskedLinear | MaskedEmbed | MaskedLinearGeneral):
            inside = state
            for part in path:
                inside = inside[part]
            own = "embedding" if isinstance(layer, MaskedEmbed) else "kernel"
            inside[own].set_value(_trains(layer, inside[own].shape))
            if layer.bias_positions is not None:
                positions, shape = layer.bias_positions.get_value(), inside["bias"].shape
                same = positions.size == inside["bias"].size
                inside["bias"].set_value(positions.reshape(shape) if same else jnp.broadcast_to(positions, shape))
    masks = _compat.as_pure(state)
    if function == "keep_frozen":  # of any state: an average of all variables rounds constants, too
        constants = {path: False for path, node in nnx.iter_graph(model) if isinstance(node, Frozen)}
        masks = nnx.from_flat_state(dict(nnx.to_flat_state(masks)) | constants)
    return masks


def save_packed(path: Target, model: nnx.Module, *, with_base: bool = False) -> int:
    """Store everything that learns in a model in one file: its masked layers, and every other variable of floats.

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
    return storage.save_packed(path, _tree(model), with_base=with_base)


def packed_bytes(model: nnx.Module, *, with_base: bool = False) -> bytes:
    """Return what `save_packed` writes."""
    return storage.packed_bytes(_tree(model), with_base=with_base)


def packed_arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return everything that learns in a model as NumPy arrays by name: `maskedlinear_jax.packed_arrays`.

    Example:
        >>> from maskedlinear_jax import columns
        >>> layer = PackedLinear(4, 2, grad_mask=columns([1]), rngs=nnx.Rngs(0))
        >>> {name: array.shape for name, array in packed_arrays(layer).items()}
        {'values': (2, 1), 'bias': (2,), 'positions': (8,)}
    """
    return storage.packed_arrays(_tree(model))


@overload
def load_packed(path: Source, model: None = ..., *, rename: Rename = ...) -> dict[str, Any]: ...
@overload
def load_packed(path: Source, model: nnx.Linear | nnx.LinearGeneral | nnx.Embed, *, rename: Rename = ...) -> Any: ...
@overload
def load_packed(path: Source, model: _Model, *, rename: Rename = ...) -> _Model: ...
def load_packed(path: Source, model: nnx.Module | None = None, *, rename: Rename = None) -> Any:
    """Load everything that was stored into a model, in place, over the kernels it was trained on.

    As `maskedlinear_jax.load_packed`; an `nnx.Linear` of a stored name becomes a masked layer.

    Returns:
        The model; if it is itself a layer, what replaces it.

    Raises:
        StorageError, OSError, TypeError, ValueError: As there. On an error the model is as it was.
    """
    if model is None:
        return storage.load_packed(path, rename=rename)
    if isinstance(path, Mapping):
        found = storage.load_packed(path, _tree(model), rename=rename)
        for name, (layer, *_) in _places(model, _Layer).items():
            _set(layer, found[name])
        for name, variable in _variables(model).items():
            variable.set_value(found[name])
        return model
    data = files.read(path)
    contents = renamed(core_storage.from_bytes(data), rename)
    variables, places = _variables(model), _places(model, _PLAIN)
    linears = {name: _pytree(layer) for name, (layer, *_) in places.items()}
    others = {name: variable.get_value() for name, variable in variables.items()}
    found = storage.load_packed(data, others | linears, rename=rename)
    _check_ties(model, {name: places[name].node for name in contents.layers})
    for name in contents.layers:
        if places[name].is_computed:
            convert_checks.refuse_computed(name, "load_packed", _UNNORMED)
        layer, packed = places[name].node, isinstance(found[name], packed_module.PackedLinear)
        if _is_users(layer) and layer.is_packed != packed:
            convert_checks.refuse_subclass(name, layer, "load_packed")
    made: dict[str, Any] = {}
    for name in contents.layers:
        layer, loaded = places[name][0], found[name]
        packed = isinstance(loaded, packed_module.PackedLinear)
        if _is_users(layer):
            continue
        plain = layer.to_linear() if isinstance(layer, _Layer) else layer
        linear: Any = nnx.clone(plain)
        _set_plain(linear, loaded.base if packed else loaded.weight, loaded.bias)
        form = _form_of(layer)
        given = {"grad_mask": loaded.grad_mask, "precision": getattr(layer, "arithmetic", Native())}
        if not form.is_embedding:
            given["bias_mask"] = layer.bias_mask if _has_frozen_bias(layer) else loaded.bias_mask
        made[name] = (form.packed if packed else form.masked).from_linear(linear, **given)
        if packed:
            made[name].values.set_value(loaded.values)
        _take_beside(made[name], layer, form.masked.plain)
        if _has_frozen_bias(layer):
            _freeze_bias(made[name])
    for name in contents.layers.keys() - made.keys():
        layer = places[name].node
        is_frozen = _has_frozen_bias(layer)
        _fill(layer, found[name])
        if is_frozen:
            _freeze_bias(layer)
    for name in contents.others:
        variables[name].set_value(found[name])
    return _replace(model, places, made)


def _tree(model: Any, stacks: bool = False) -> dict[str, Any]:
    # The masked layers as the package's own, and what else learns.
    if not isinstance(model, nnx.Module):
        convert_checks.refuse_model("a flax.nnx.Module", model, function="save_packed")
    layers: dict[str, Any] = {}
    for name, (layer, *_) in _places(model, _Layer).items():
        depth = _depth(layer)
        if depth and not stacks:
            storage_checks.refuse_stacked(name)
        layers[name] = _stack(layer, depth) if depth else _pytree(layer)
    return layers | {name: variable.get_value() for name, variable in _variables(model).items()}


def _stack(layer: Any, depth: int) -> Any:
    # Stacked layers as the package's own, to be counted: what they compute is another's to say.
    matrix = _matrix(layer).get_value()
    if not _form_of(layer).is_embedding:
        lines = matrix.reshape(*matrix.shape[:depth], layer.in_features, layer.out_features)
        matrix = jnp.swapaxes(lines, -1, -2)
    bias: Any = vars(layer).get("bias_values" if layer.is_packed else "bias")
    bias = None if bias is None else bias.get_value()
    mask, bias_mask = layer.grad_mask, _bias_mask_of(layer)
    if not layer.is_packed:
        return module.MaskedLinear.tree_unflatten(Native(), (matrix, bias, mask, bias_mask))
    leaves = layer.values.get_value(), bias, mask, bias_mask, as_bits(matrix), None
    return packed_module.PackedLinear.tree_unflatten((matrix.dtype.name, Native()), leaves)


def _variables(model: nnx.Module) -> dict[str, Any]:
    # Every variable of floats that is no constant, but for the masked layers' own.
    places = _places(model, _Layer).values()
    own = {id(vars(layer).get(name)) for layer, *_ in places for name in _OF_LAYERS}
    found = {
        ".".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Variable) and not isinstance(node, Frozen | Positions | nnx.RngState)
    }
    return {
        name: variable
        for name, variable in found.items()
        if id(variable) not in own and module._is_float(variable.get_value())
    }


def _is_users(layer: Any) -> bool:
    return isinstance(layer, _Layer) and _has_own_call(layer)


def _fill(layer: Any, loaded: Any) -> None:
    # A layer of a user's class stays itself: everything that was stored is put into it.
    kind = _ValuesPositions if layer.is_packed else Positions
    layer.positions = kind(loaded.grad_mask)
    whole = None if loaded.bias is None else layer.bias.get_value()
    trains = None if loaded.bias_mask is None else jnp.asarray(loaded.bias_mask)
    layer.bias_positions = nnx.data(None if trains is None else kind(trains))
    if not layer.is_packed:
        _set_plain(layer, loaded.weight, loaded.bias)
        return
    own = layer.base.get_value()
    layer.base.set_value(loaded.base if _form_of(layer).is_embedding else loaded.base.T.reshape(own.shape))
    if layer.values.shape == loaded.values.shape:
        layer.values.set_value(loaded.values)
    else:
        layer.values = nnx.Param(loaded.values)
    if whole is not None:
        layer._take_bias_over(nnx.Param(loaded.bias.reshape(whole.shape)))


def _set(layer: Any, loaded: Any) -> None:
    if not layer.is_packed:
        _set_plain(layer, loaded.weight, loaded.bias)
        return
    layer.values.set_value(loaded.values)
    if not _form_of(layer).is_embedding and isinstance(layer.bias_values, nnx.Param):
        layer.bias_values.set_value(loaded.bias_values.reshape(layer.bias_values.get_value().shape))


def _set_plain(layer: Any, weight: Any, bias: Any) -> None:
    # The numbers of a layer whose kernel or embedding is a variable, from a weight (out_features, in_features).
    if _form_of(layer).is_embedding:
        layer.embedding.set_value(weight)
        return
    layer.kernel.set_value(weight.T.reshape(layer.kernel.shape))
    if bias is not None:
        layer.bias.set_value(bias.reshape(layer.bias.shape))


_BIASES = ("bias_values", "bias")


def _has_frozen_bias(layer: Any) -> bool:
    # Whether `freeze_others` froze the bias, and not a mask.
    frozen = any(isinstance(vars(layer).get(own), _FrozenParam) for own in _BIASES)
    return frozen and getattr(layer, "bias_positions", None) is None


def _freeze_bias(layer: Any) -> None:
    for own in _BIASES:
        if isinstance(variable := vars(layer).get(own), nnx.Param):
            setattr(layer, own, _FrozenParam(variable.get_value(), **variable.get_metadata()))


def _bias_mask_of(layer: Any) -> Any:
    # What of the bias learns: nothing of one that is frozen.
    return np.zeros(layer.out_features, bool) if _has_frozen_bias(layer) else layer.bias_mask


def _pytree(layer: Any) -> Any:
    # The layer as one of the package's own.
    plain: Any = layer.to_linear() if isinstance(layer, _Layer) else layer
    embeds = _form_of(layer).is_embedding
    matrix = _form_of(layer).shape(plain)
    own = plain.embedding if embeds else plain.kernel
    weight = own.get_value() if embeds else own.get_value().reshape(matrix[::-1]).T
    bias = None if embeds or plain.bias is None else plain.bias.get_value().reshape(-1)
    if not isinstance(layer, _Layer):
        everything = constructors.columns(slice(None))
        return module.MaskedLinear.tree_unflatten(Native(), (weight, bias, everything, None))
    mask, bias_mask = layer.grad_mask, _bias_mask_of(layer)
    if not layer.is_packed:
        return module.MaskedLinear.tree_unflatten(Native(), (weight, bias, mask, bias_mask))
    held = layer.base.get_value()  # type: ignore[attr-defined]
    base = held if embeds else held.reshape(matrix[::-1]).T
    whole = module.MaskedLinear.tree_unflatten(Native(), (base, bias, mask, None))
    packed = packed_module.PackedLinear.from_linear(whole, grad_mask=mask, bias_mask=bias_mask)
    return packed.replace(values=layer.values.get_value())  # type: ignore[attr-defined]


_PLAIN = (_Layer, nnx.Linear, nnx.LinearGeneral, nnx.Embed)


def _trains(layer: Any, shape: tuple[int, ...]) -> jax.Array:
    # Where a kernel or an embedding trains, of one layer or of a stack of them (`nnx.vmap`, `nnx.scan`).
    stack = shape[: _depth(layer)]
    found = stacked.to_array(layer.grad_mask, (*stack, layer.out_features, layer.in_features))
    return (found if _form_of(layer).is_embedding else jnp.swapaxes(found, -1, -2)).reshape(shape)


def _frozen_parts(model: nnx.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    # Arrays and masks by name: the kernel and bias of each masked layer, and all other parameters, which train.
    arrays: dict[str, Any] = {}
    trains: dict[str, Any] = {}
    layers: dict[Any, Any] = {path: node for path, node in nnx.iter_graph(model) if isinstance(node, _Layer)}
    for path, layer in layers.items():
        own = "embedding" if _form_of(layer).is_embedding else "kernel"
        name = ".".join(map(str, (*path, own)))
        matrix = _matrix(layer)
        if _depth(layer):  # what learns of packed ones is left out
            arrays[name], trains[name] = matrix.get_value(), _trains(layer, matrix.shape)
            continue
        arrays[name] = getattr(layer.to_linear(), own).get_value()
        trains[name] = _trains(layer, arrays[name].shape)
        if getattr(layer, "bias", None) is not None:
            name = ".".join(map(str, (*path, "bias")))
            arrays[name] = layer.bias.get_value() if isinstance(layer.bias, nnx.Variable) else layer.bias
            mask = _bias_mask_of(layer)  # one vector, whatever the axes of the layer's outputs
            trains[name] = None if mask is None else np.asarray(mask).reshape(arrays[name].shape)
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if (path[:-1] not in layers or path[-1] not in _OF_LAYERS) and module._is_float(variable.get_value()):
            arrays[".".join(map(str, path))] = variable.get_value()
            trains[".".join(map(str, path))] = None
    for name, value in _frozen_others(model).items():
        arrays[name], trains[name] = value, False
    return arrays, trains


def _frozen_others(model: nnx.Module) -> dict[str, Any]:
    # What `freeze_others` froze beside the masked layers.
    layers = {path for path, node in nnx.iter_graph(model) if isinstance(node, _Layer)}
    return {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(nnx.state(model, _FrozenParam))
        if path[:-1] not in layers or path[-1] not in _OF_LAYERS
    }


freeze.register_models(nnx.Module, _grad_masks, _frozen_parts)
_summary_of_models(
    nnx.Module,
    lambda model: _tree(model, stacks=True) | {name: _Constant(value) for name, value in _frozen_others(model).items()},
)
_tell_flax()
