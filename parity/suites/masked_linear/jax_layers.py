"""The JAX layers beside the linear one, each as a function of x, W and b. The twin of torch_layers.py.

What is a `Conv1D` in torch, its weight (in, out), is a `LinearGeneral` of Flax NNX here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import maskedlinear_jax
from parity.execution.jax_backend import Ops

HEADS = 2


def _by_parameter(mask: Any, shape: tuple[int, int]) -> Callable[..., Any]:
    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        return Ops.linear(input, maskedlinear_jax.masked_parameter(weight, mask), bias)

    return function


def _by_embedding(mask: Any, shape: tuple[int, int]) -> Callable[..., Any]:
    layer = maskedlinear_jax.MaskedEmbedding(*shape, grad_mask=mask, seed=0)

    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        return _with_rows_of(layer.replace(weight=weight), input, bias)

    return function


def _by_packed_embedding(mask: Any, shape: tuple[int, int]) -> Callable[..., Any]:
    layer = maskedlinear_jax.MaskedEmbedding(*shape, grad_mask=mask, seed=0)

    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        base = layer.replace(weight=jax.lax.stop_gradient(weight))
        packed = maskedlinear_jax.PackedEmbedding.from_embedding(base, grad_mask=mask)
        return _with_rows_of(packed.replace(values=maskedlinear_jax.pack(weight, grad_mask=mask)), input, bias)

    return function


def _with_rows_of(layer: Any, input: Any, bias: Any) -> Any:
    # The tokens from the last to the first, and their rows put in order again.
    tokens = jnp.arange(layer.out_features - 1, -1, -1)
    return Ops.linear(input, layer(tokens)[::-1], bias)


def _by_turned(mask: Any, shape: tuple[int, int], *, packed: bool) -> Callable[..., Any]:
    from flax import nnx  # not on import: an extra of its own

    model = nnx.Dict(layer=nnx.LinearGeneral(shape[1], shape[0], rngs=nnx.Rngs(0)))

    def call(model: Any, input: Any, weight: Any, bias: Any) -> Any:
        _set(model["layer"], mask, weight, bias)
        return model["layer"](input)

    return _function(model, {"layer": mask}, packed, call)


def _by_values_of_attention(mask: Any, shape: tuple[int, int], *, packed: bool) -> Callable[..., Any]:
    def call(model: Any, input: Any, weight: Any, bias: Any) -> Any:
        _set(model.value, mask, weight, bias)
        _set(model.out, None, jnp.eye(shape[0]), jnp.zeros(shape[0]))
        return _attend(model, shape, input)

    return _function(_attention(shape), {"value": mask}, packed, call)


def _by_output_of_attention(mask: Any, shape: tuple[int, int], *, packed: bool) -> Callable[..., Any]:
    def call(model: Any, input: Any, weight: Any, bias: Any) -> Any:
        _set(model.value, None, jnp.eye(shape[0]), jnp.zeros(shape[0]))
        _set(model.out, mask, weight, bias)
        return _attend(model, shape, input)

    return _function(_attention(shape), {"out": mask}, packed, call)


def _attention(shape: tuple[int, int]) -> Any:
    from flax import nnx  # as above

    return nnx.MultiHeadAttention(
        HEADS, shape[0], in_kv_features=shape[1], decode=False, rngs=nnx.Rngs(0), kernel_init=nnx.initializers.zeros
    )


def _attend(model: Any, shape: tuple[int, int], input: Any) -> Any:
    values = input.reshape(-1, 1, shape[1])
    output = model(jnp.zeros((values.shape[0], 1, shape[0])), jnp.zeros_like(values), values)
    return output.reshape(*input.shape[:-1], shape[0])


def _function(model: Any, masks: dict[str, Any], packed: bool, call: Callable[..., Any]) -> Callable[..., Any]:
    from flax import nnx  # as above

    import maskedlinear_jax.nnx

    graph, state = nnx.split(maskedlinear_jax.nnx.mask_linears(model, masks, packed=packed))

    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        # A model of its own for each call: transforms must not see each other's numbers.
        return call(nnx.merge(graph, jax.tree.map(jnp.asarray, state)), input, weight, bias)

    return function


def _set(layer: Any, mask: Any, weight: Any, bias: Any) -> None:
    own = vars(layer)
    kernel = own["base"] if "base" in own else own["kernel"]
    turned = weight.T.reshape(kernel.get_value().shape)
    if "base" in own:
        layer.values.set_value(maskedlinear_jax.pack(weight, grad_mask=mask))
        turned = jax.lax.stop_gradient(turned)
    kernel.set_value(turned)
    layer.bias.set_value(bias.reshape(layer.bias.get_value().shape))


LAYERS: dict[tuple[str, bool], Callable[..., Any]] = {
    ("masked_parameter", False): _by_parameter,
    ("embedding", False): _by_embedding,
    ("embedding", True): _by_packed_embedding,
    ("turned", False): functools.partial(_by_turned, packed=False),
    ("turned", True): functools.partial(_by_turned, packed=True),
    ("attention", False): functools.partial(_by_values_of_attention, packed=False),
    ("attention", True): functools.partial(_by_values_of_attention, packed=True),
    ("attention's output", False): functools.partial(_by_output_of_attention, packed=False),
    ("attention's output", True): functools.partial(_by_output_of_attention, packed=True),
}
"""Of a mask and a shape: what is tested, by what computes the case and whether it is packed."""
