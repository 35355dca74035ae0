"""Masked layers for Equinox models: drop-ins for `equinox.nn.Linear` (SPEC S8)."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from maskedlinear_core import constructors
from maskedlinear_core import storage as core_storage
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_jax import convert, module, packed_module, storage

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError("maskedlinear_jax.equinox needs equinox: pip install 'maskedlinear[equinox]'") from error


@jax.tree_util.register_pytree_with_keys_class
class MaskedLinear(module.MaskedLinear):
    """`maskedlinear_jax.MaskedLinear`, called as Equinox calls its layers.

    Positions are integer leaves: `equinox.partition(model, equinox.is_inexact_array)` and
    `equinox.filter_grad` leave them alone.

    Example:
        >>> from maskedlinear_jax import columns
        >>> linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> layer = MaskedLinear.from_linear(linear, grad_mask=columns([0]))
        >>> eqx.filter_grad(lambda layer: layer(jax.numpy.ones(3)).sum())(layer).weight
        Array([[1., 0., 0.],
               [1., 0., 0.]], dtype=float32)
    """

    def __call__(self, input: Array, *, forward_mode: bool = False, key: Any = None) -> Array:
        """Return y of shape (*batch, out_features); `key` is ignored, as by `equinox.nn.Linear`."""
        return super().__call__(input, forward_mode=forward_mode)

    def to_linear(self) -> Any:
        """Return an `equinox.nn.Linear` around the very arrays of this layer."""
        return _plain(self)


@jax.tree_util.register_pytree_with_keys_class
class PackedLinear(packed_module.PackedLinear):
    """`maskedlinear_jax.PackedLinear`, called as Equinox calls its layers.

    The matrix and the positions are integer leaves: `equinox.is_inexact_array` selects the values and the bias.

    Example:
        >>> from maskedlinear_jax import columns
        >>> linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> layer = PackedLinear.from_linear(linear, grad_mask=columns([0]))
        >>> [leaf.shape for leaf in jax.tree.leaves(eqx.filter(layer, eqx.is_inexact_array))]
        [(2, 1), (2,)]
    """

    def __call__(self, input: Array, *, forward_mode: bool = False, key: Any = None) -> Array:
        """Return y of shape (*batch, out_features); `key` is ignored, as by `equinox.nn.Linear`."""
        return super().__call__(input, forward_mode=forward_mode)

    def to_linear(self) -> Any:
        """Return an `equinox.nn.Linear` with the trained weight."""
        return _plain(self)


def mask_linears(
    model: Any,
    masks: Mapping[str, Any],
    *,
    packed: bool = False,
    bias_masks: Mapping[str, Any] | None = None,
    freeze_others: bool = False,
    strict: bool = False,
    values_dtype: Any = None,
    precision: Any = "native",
) -> Any:
    """Return an Equinox model whose `equinox.nn.Linear` layers are masked ones.

    As `maskedlinear_jax.mask_linears`; names are dotted paths, e.g. "layers.0".

    Raises:
        TypeError, ValueError, IndexError: As there; a layer with "scalar" features is refused.

    Example:
        >>> from maskedlinear_jax import columns
        >>> model = eqx.nn.MLP(4, 2, 8, depth=1, key=jax.random.key(0))
        >>> mask_linears(model, {"layers.0": columns([1])}).layers[0]
        MaskedLinear(in_features=4, out_features=8, bias=True, grad_mask=columns([1]))
    """
    if convert.is_from(model, "flax"):
        convert_checks.refuse_model("an Equinox model", model, "maskedlinear_jax.nnx.mask_linears")
    return convert.convert(
        model, masks, _ADAPTER, packed=packed, bias_masks=bias_masks, freeze_others=freeze_others, strict=strict,
        values_dtype=values_dtype, precision=precision,
    )  # fmt: skip


def unmask_linears(model: Any) -> Any:
    """Return an Equinox model whose masked layers are `equinox.nn.Linear` with the trained weights."""
    return convert.unmask_linears(model)


def save_packed(path: str | os.PathLike[str], model: Any) -> int:
    """Store masks, packed values and biases of the masked layers: `maskedlinear_jax.save_packed`."""
    return storage.save_packed(path, model)


def load_packed(path: str | os.PathLike[str], model: Any) -> Any:
    """Return a model with stored masks, values and biases, over the weights they were trained on.

    As `maskedlinear_jax.load_packed`; an `equinox.nn.Linear` of a stored name becomes a masked layer.

    Raises:
        StorageError, OSError: As there.

    Example:
        >>> import tempfile
        >>> from maskedlinear_jax import columns
        >>> plain = eqx.nn.MLP(4, 2, 8, depth=1, key=jax.random.key(0))
        >>> trained = mask_linears(plain, {"layers.0": columns([1])}, packed=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_packed(f"{folder}/model.safetensors", trained)
        ...     load_packed(f"{folder}/model.safetensors", plain).layers[0]
        PackedLinear(in_features=4, out_features=8, bias=True, grad_mask=columns([1]))
    """
    for form in ("masked", "packed"):
        # Layers of which nothing learns, for the stored ones to take the place of.
        names = {name for name, layer in core_storage.read(path).items() if layer.form == form}
        plain = names & convert.plain_layers(model, _ADAPTER).keys()
        nothing = {glob.escape(name): constructors.columns([]) for name in plain}
        model = mask_linears(model, nothing, packed=form == "packed") if nothing else model
    return storage.load_packed(path, model)


def _is_linear(node: Any) -> bool:
    return isinstance(node, eqx.nn.Linear)


def _check_linear(name: str, linear: Any) -> None:
    if type(linear) is not eqx.nn.Linear:
        convert_checks.refuse_subclass(name, linear)
    if "scalar" in (linear.in_features, linear.out_features):
        convert_checks.refuse_option(
            name, "an equinox.nn.Linear", '"scalar" features', "give it features as numbers, or leave it out"
        )


def _shape(linear: Any) -> tuple[int, int]:
    return linear.weight.shape[0], linear.weight.shape[1]


def _is_whole(node: Any) -> bool:
    # These hand their arrays to jax.lax, which takes nothing else.
    return isinstance(node, eqx.nn.Conv | eqx.nn.ConvTranspose)


def _plain(layer: Any) -> Any:
    shape = layer.in_features, layer.out_features
    empty = eqx.filter_eval_shape(eqx.nn.Linear, *shape, use_bias=layer.bias is not None, key=jax.random.key(0))
    linear = eqx.tree_at(lambda linear: linear.weight, empty, layer.weight)
    return linear if layer.bias is None else eqx.tree_at(lambda linear: linear.bias, linear, layer.bias)


_ADAPTER = convert.Adapter((convert.Form(_is_linear, _check_linear, _shape, MaskedLinear, PackedLinear),), _is_whole)
