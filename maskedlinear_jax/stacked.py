"""Layers of one kind stacked along leading axes, as `jax.lax.scan`, `jax.vmap` and the adapters' own take them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from maskedlinear_core.masks import Elements, Mask
from maskedlinear_core.masks.base import Combination
from maskedlinear_jax import lowering
from maskedlinear_jax.packed_module import PackedLinear


def depth(layer: Any) -> int:
    """Return along how many axes a layer is stacked."""
    matrix = layer.base_bits if isinstance(layer, PackedLinear) else layer.weight
    return max(len(getattr(matrix, "shape", ())) - 2, 0)


def to_array(mask: Mask, shape: tuple[int, ...]) -> Array:
    """Return where stacked weights train: a bool array of their shape.

    Args:
        mask: Its positions are stacked as the weights are, or are those of every weight.
        shape: (*stack, out_features, in_features).

    Example:
        >>> from maskedlinear_jax import columns
        >>> to_array(jax.tree.map(lambda *both: jnp.stack(both), columns([0]), columns([1])), (2, 1, 2)).tolist()
        [[[True, False]], [[False, True]]]
    """
    if len(shape) == 2:
        kind = lowering.resolve(mask, (shape[0], shape[1]))
        return jnp.broadcast_to(kind.mask(jnp.empty(shape)), shape)
    return jnp.stack([to_array(_mask_at(mask, i, len(shape) - 2), shape[1:]) for i in range(shape[0])])


def layers_of(name: str, layer: Any) -> dict[str, Any]:
    """Return each layer of a stack by its name, with its number in brackets; a layer that is none, by its own.

    Example:
        >>> from maskedlinear_jax import MaskedLinear, columns
        >>> layers = [MaskedLinear(2, 1, grad_mask=columns([i]), seed=i) for i in range(2)]
        >>> list(layers_of("a", jax.tree.map(lambda *both: jnp.stack(both), *layers)))
        ['a[0]', 'a[1]']
    """
    stacked = depth(layer)
    if not stacked:
        return {name: layer}
    matrix = layer.base_bits if isinstance(layer, PackedLinear) else layer.weight
    found: dict[str, Any] = {}
    for i in range(matrix.shape[0]):
        found |= layers_of(f"{name}[{i}]", _at(layer, i, stacked))
    return found


def _at(layer: Any, i: int, stacked: int) -> Any:
    arrays = (
        ("values", "bias_values", "base_bits", "bias_bits") if isinstance(layer, PackedLinear) else ("weight", "bias")
    )
    changed = {name: array[i] for name in arrays if (array := getattr(layer, name)) is not None}
    bias_mask = layer.bias_mask
    if bias_mask is not None and bias_mask.ndim == 1 + stacked:
        bias_mask = bias_mask[i]
    return layer.replace(**changed, bias_mask=bias_mask, grad_mask=_mask_at(layer.grad_mask, i, stacked))


def _mask_at(mask: Mask, i: int, stacked: int) -> Mask:
    leaves, structure = jax.tree.flatten(mask)
    pairs = zip(leaves, _axes_of_one(mask), strict=True)
    return jax.tree.unflatten(structure, [leaf[i] if leaf.ndim == axes + stacked else leaf for leaf, axes in pairs])


def _axes_of_one(mask: Mask) -> list[int]:
    # How many axes each leaf has in a mask that is not stacked.
    if isinstance(mask, Combination):
        return [axes for one in mask.masks for axes in _axes_of_one(one)]
    return [2 if isinstance(mask, Elements) else 1 for _ in mask.leaves]
