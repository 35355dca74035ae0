"""Whole models: their linear layers become masked ones, and plain ones again (SPEC S8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import Array

from maskedlinear_core import constructors, masks, patterns
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_jax.module import MaskedLinear
from maskedlinear_jax.packed_module import PackedLinear


class Adapter(NamedTuple):
    """How the plain linear layer of a library is read, and what replaces it.

    Attributes:
        is_plain: Tells the library's plain linear layer.
        masked: The class that replaces it; has `from_linear` and `to_linear`.
        packed: The same in packed form.
    """

    is_plain: Callable[[Any], bool]
    masked: type[MaskedLinear]
    packed: type[PackedLinear]


def mask_linears(
    model: Any,
    masks: Mapping[str, Any],
    *,
    packed: bool = False,
    values_dtype: Any = None,
    precision: Any = "native",
) -> Any:
    """Return a pytree model whose linear layers are masked ones. The outputs stay the same, bit for bit.

    For models of this package's layers; `maskedlinear_jax.equinox` and `maskedlinear_jax.nnx` have it for these
    libraries. A weight that stands in two places is refused.

    Args:
        model: A pytree with layers of which all learns (see `MaskedLinear.to_linear`).
        masks: By pattern of the layer's dotted path (`fnmatch`): a mask, a bool array, or a callable(name, linear)
            that returns one, or None to leave the layer as it is. The first pattern that matches counts.
        packed: Make `PackedLinear` layers instead of `MaskedLinear`.
        values_dtype: Of packed values; None = the weight's.
        precision: Of the masked layers, as for `masked_linear`.

    Returns:
        The new model; the old one is untouched.

    Raises:
        TypeError: No mask.
        ValueError: A pattern that matches nothing, a mask that does not fit, or a tied weight.
        IndexError: A position outside of a weight.

    Example:
        >>> model = {"in": MaskedLinear(4, 3, grad_mask=constructors.columns([]), seed=0).to_linear()}
        >>> mask_linears(model, {"in": constructors.columns([1])}, packed=True)
        {'in': PackedLinear(in_features=4, out_features=3, bias=True, grad_mask=columns([1]))}
    """
    return convert(model, masks, _OWN, packed=packed, values_dtype=values_dtype, precision=precision)


def unmask_linears(model: Any) -> Any:
    """Return a pytree model whose masked layers are plain ones with the trained weights.

    Args:
        model: Any pytree.

    Example:
        >>> unmask_linears([PackedLinear(4, 3, grad_mask=constructors.columns([1]), seed=0)])
        [MaskedLinear(in_features=4, out_features=3, bias=True, grad_mask=columns(slice(None, None, None)))]
    """
    return jax.tree.map(lambda node: node.to_linear() if _is_layer(node) else node, model, is_leaf=_is_layer)


def convert(
    model: Any, masks: Mapping[str, Any], adapter: Adapter, *, packed: bool, values_dtype: Any, precision: Any
) -> Any:
    """Replace the plain layers of one library in a pytree."""
    named, structure = _nodes(model, adapter)
    linears = plain_layers(model, adapter)
    shapes = {name: (linear.weight.shape[0], linear.weight.shape[1]) for name, linear in linears.items()}
    chosen = patterns.choose(linears, masks, shapes)
    _check_tied(model, linears, chosen)

    def replacement(name: str, node: Any) -> Any:
        if name not in chosen:
            return node
        if packed:
            return adapter.packed.from_linear(
                node, grad_mask=chosen[name], values_dtype=values_dtype, precision=precision
            )  # fmt: skip
        return adapter.masked.from_linear(node, grad_mask=chosen[name], precision=precision)

    return jax.tree.unflatten(structure, [replacement(name, node) for name, node in named.items()])


def plain_layers(model: Any, adapter: Adapter) -> dict[str, Any]:
    """Return the plain layers of one library by their dotted paths."""
    return {name: node for name, node in _nodes(model, adapter)[0].items() if adapter.is_plain(node)}


def _nodes(model: Any, adapter: Adapter) -> tuple[dict[str, Any], Any]:
    nodes, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=adapter.is_plain)
    named = ((jax.tree_util.keystr(path, simple=True, separator="."), node) for path, node in nodes)
    return convert_checks.by_name(named), structure


def _check_tied(model: Any, linears: dict[str, Any], chosen: dict[str, masks.Mask]) -> None:
    owners: dict[int, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        if isinstance(leaf, Array):
            owners.setdefault(id(leaf), []).append(jax.tree_util.keystr(path, simple=True, separator="."))
    for name in chosen:
        found = owners[id(linears[name].weight)]
        if len(found) > 1:
            convert_checks.refuse_tied(name, found)


def _is_layer(node: Any) -> bool:
    return isinstance(node, MaskedLinear | PackedLinear)


def _is_own(node: Any) -> bool:
    return isinstance(node, MaskedLinear) and node.grad_mask == constructors.columns(slice(None))


_OWN = Adapter(_is_own, MaskedLinear, PackedLinear)
