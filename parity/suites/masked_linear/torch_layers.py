"""The torch layers beside the linear one, each as a function of x, W and b. The twin of jax_layers.py.

Attention is a linear map of its values where there is one key: the softmax of one number is 1. Its other weights are
zero, or the identity, so that every sum is exact.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import maskedlinear_torch
from parity.execution.torch_backend import devices


def _on_each_device(layer: nn.Module) -> dict[str, Any]:
    # Made once, outside of transforms, on each device that is here: a layer goes where its input is.
    return {name: copy.deepcopy(layer).to(name) for name in devices()}


def _by_parameter(mask: Any, shape: tuple[int, int]) -> Callable[..., Any]:
    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        return F.linear(input, maskedlinear_torch.masked_parameter(weight, mask), bias)

    return function


def _by_embedding(mask: Any, shape: tuple[int, int]) -> Callable[..., Any]:
    layers = _on_each_device(maskedlinear_torch.MaskedEmbedding(*shape, grad_mask=mask))

    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        return _with_rows_of(layers[weight.device.type], {"weight": weight}, input, bias)

    return function


def _by_packed_embedding(mask: Any, shape: tuple[int, int]) -> Callable[..., Any]:
    layers = _on_each_device(maskedlinear_torch.PackedEmbedding(*shape, grad_mask=mask))

    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        values = maskedlinear_torch.pack(weight, grad_mask=mask)
        return _with_rows_of(layers[weight.device.type], {"base": weight.detach(), "values": values}, input, bias)

    return function


def _with_rows_of(layer: Any, parameters: dict[str, Any], input: Any, bias: Any) -> Any:
    # The tokens from the last to the first, and their rows put in order again.
    tokens = torch.arange(layer.num_embeddings - 1, -1, -1, device=input.device)
    return F.linear(input, torch.func.functional_call(layer, parameters, (tokens,)).flip(0), bias)


def _by_turned(mask: Any, shape: tuple[int, int], *, packed: bool) -> Callable[..., Any]:
    from transformers.pytorch_utils import Conv1D  # not on import: it takes seconds

    models = _on_each_device(maskedlinear_torch.mask_linears(nn.Sequential(Conv1D(*shape)), {"0": mask}, packed=packed))

    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        if packed:
            own = _in_parts(weight, maskedlinear_torch.pack(weight, grad_mask=mask), bias)
        else:
            own = {"weight": weight.t(), "bias": bias}
        return functional_call(models[weight.device.type], _of("0", own), (input,))

    return function


def _by_values_of_attention(mask: Any, shape: tuple[int, int], *, packed: bool) -> Callable[..., Any]:
    nothing = maskedlinear_torch.rows([])
    models = _attention(shape, {"v_proj": mask} | ({"[qk]_proj": nothing} if packed else {}), packed)

    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        model, zeros = models[weight.device.type], torch.zeros(shape[0], shape[0], device=weight.device)
        all_biases = torch.cat([torch.zeros(2 * shape[0], device=weight.device), bias])
        together = torch.cat([zeros, zeros, weight]) if shape[0] == shape[1] else None
        if packed:
            assert together is not None, "a packed case is square"
            values = maskedlinear_torch.pack(together, grad_mask=model.in_proj.grad_mask)
            own = _of("in_proj", _in_parts(together, values, all_biases))
        elif together is not None:
            own = {"in_proj_weight": together, "in_proj_bias": all_biases}
        else:
            own = {"q_proj_weight": zeros, "k_proj_weight": zeros, "v_proj_weight": weight, "in_proj_bias": all_biases}
        out = {"weight": torch.eye(shape[0], device=weight.device), "bias": zeros[0]}
        return _attend(model, own | _of("out_proj", out), input)

    return function


def _by_output_of_attention(mask: Any, shape: tuple[int, int], *, packed: bool) -> Callable[..., Any]:
    models = _attention(shape, {"out_proj": mask}, packed)

    def function(input: Any, weight: Any, bias: Any = None, **keywords: Any) -> Any:
        zeros, ones = (make(shape[0], device=weight.device).diag() for make in (torch.zeros, torch.ones))
        own = {"in_proj_weight": torch.cat([zeros, zeros, ones]), "in_proj_bias": zeros.new_zeros(3 * shape[0])}
        if packed:
            out = _in_parts(weight, maskedlinear_torch.pack(weight, grad_mask=mask), bias)
        else:
            out = {"weight": weight, "bias": bias}
        return _attend(models[weight.device.type], own | _of("out_proj", out), input)

    return function


def _attention(shape: tuple[int, int], masks: dict[str, Any], packed: bool) -> dict[str, Any]:
    plain = nn.MultiheadAttention(shape[0], 2, vdim=shape[1])
    return _on_each_device(maskedlinear_torch.mask_linears(plain, masks, packed=packed))


def _attend(model: Any, parameters: dict[str, Any], input: Any) -> Any:
    values = input.reshape(1, -1, input.shape[-1])
    zeros = torch.zeros(1, values.shape[1], model.embed_dim, device=input.device)
    output = functional_call(model, parameters, (zeros, zeros, values))[0]
    return output.reshape(*input.shape[:-1], model.embed_dim)


def _in_parts(weight: Any, values: Any, bias: Any) -> dict[str, Any]:
    # The parameters of a packed layer.
    return {"base": weight.detach(), "values": values, "bias_values": bias}


def _of(layer: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {f"{layer}.{name}": one for name, one in parameters.items()}


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
