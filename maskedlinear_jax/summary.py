"""What learns in a model and what is frozen, counted (contract S8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maskedlinear_core.arrays import to_numpy
from maskedlinear_core.summary import Part, Summary
from maskedlinear_jax.constant import Constant
from maskedlinear_jax.convert import has_weight
from maskedlinear_jax.module import _is_float, beside
from maskedlinear_jax.packed_module import PackedLinear
from maskedlinear_jax.stacked import layers_of


def summary(model: Any) -> Summary:
    """Count what learns in a model and what is frozen.

    Args:
        model: Any pytree: of this package, or of Equinox. Or a Flax NNX module (import `maskedlinear_jax.nnx` first).

    Returns:
        The count of each masked layer and of each other array of floats: `.learns`, `.frozen`, `.total`, `.parts`,
        `.words` and `.table`. Printed, it is words and a table.

    Example:
        >>> from maskedlinear_jax import PackedLinear, columns
        >>> print(summary({"in": PackedLinear(4, 3, grad_mask=columns([1]), seed=0), "scale": jax.numpy.ones(6)}))
        12 of 21 numbers learn (57.1%), 9 are frozen; 2 of 2 parts learn.
        part   kind          learns  of  mask
        in     PackedLinear       6  15  columns([1])
        scale  parameter          6   6
    """
    for kind, tree in _MODELS:
        model = tree(model) if isinstance(model, kind) else model
    parts: list[Part] = []
    stops = lambda node: has_weight(node) or isinstance(node, Constant)  # noqa: E731
    for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=stops):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if has_weight(node):
            parts += [_layer(one, layer) for one, layer in layers_of(name, node).items()]
            for one, leaf in beside(node).items():
                parts.append(Part(".".join(filter(None, (name, one))), "parameter", leaf.size, leaf.size))
        elif isinstance(node, Constant):
            arrays = (leaf for leaf in jax.tree.leaves(node) if hasattr(leaf, "size"))  # a norm holds functions too
            parts.append(Part(name, "Constant", 0, sum(leaf.size for leaf in arrays)))
        elif _is_float(node):
            parts.append(Part(name, "parameter", node.size, node.size))
    return Summary(tuple(parts))


def register_models(kind: type, tree: Callable[[Any], Any]) -> None:
    """Let models that are no pytrees of layers be counted (an adapter calls this on import).

    Args:
        kind: The class of such models.
        tree: From a model, a pytree of the package's own layers and of what else learns.
    """
    _MODELS.append((kind, tree))


_MODELS: list[tuple[type, Callable[[Any], Any]]] = []


def _layer(name: str, layer: Any) -> Part:
    packed = isinstance(layer, PackedLinear)
    size = layer.out_features, layer.in_features
    weight, bias = (layer.values, layer.bias_values) if packed else (layer.weight, layer.bias)
    learns = weight.size if packed else int(np.count_nonzero(layer.grad_mask.to_array(size)))
    if _is_float(bias):
        learns += bias.size if packed or layer.bias_mask is None else int(to_numpy(layer.bias_mask).sum())
    total = size[0] * size[1] + (0 if bias is None else size[0])
    return Part(name, type(layer).__name__, learns, total, repr(layer.grad_mask))
