"""The sentence encoder in JAX, from the same file of weights. Twin of torch_encoder.py.

A model is a nested dict whose keys are the names in the file; its linear layers are `maskedlinear_jax` layers, so
`mask_linears` finds them under the names they have in torch.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from data import MODEL
from safetensors.numpy import load_file

import maskedlinear_jax as mj


def load(folder=MODEL, dtype=jnp.float32):
    """Return the model of the package, without the pooler, which embeddings do not use."""
    numbers = {
        name: jnp.asarray(a, dtype)
        for name, a in load_file(folder / "model.safetensors").items()
        if a.dtype.kind == "f"
    }
    model = {}
    for name, array in numbers.items():
        if name.startswith("pooler") or name.endswith(".bias"):
            continue
        *path, last = name.split(".")
        is_norm_or_table = array.ndim == 1 or "embeddings" in name
        bias = numbers.get(".".join([*path, "bias"]))
        leaf = {last: array} | ({} if bias is None else {"bias": bias}) if is_norm_or_table else linear(array, bias)
        *parents, own = path
        inside = model
        for part in parents:
            inside = inside.setdefault(part, {})
        inside[own] = leaf
    return model


def linear(weight, bias):
    """Return a plain linear layer: all of it learns, until it is masked."""
    like = mj.MaskedLinear(1, 1, grad_mask=mj.columns(slice(None)), seed=0)
    return like.replace(weight=weight, bias=bias)


CONFIG = json.loads((MODEL / "config.json").read_text("utf-8"))


def normalise(x, layer):
    """Return LayerNorm(x)."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + CONFIG["layer_norm_eps"]) * layer["weight"] + layer["bias"]


def attend(x, mask, layer):
    """Return multi-head self-attention over the tokens that the mask allows."""
    heads = CONFIG["num_attention_heads"]
    batch, tokens, width = x.shape

    def split(name):
        return layer["self"][name](x).reshape(batch, tokens, heads, width // heads).swapaxes(1, 2)

    query, key, value = split("query"), split("key"), split("value")
    scores = query @ key.swapaxes(2, 3) * (width // heads) ** -0.5
    scores = jnp.where(mask[:, None, None, :] > 0, scores, jnp.finfo(x.dtype).min)
    mixed = (jax.nn.softmax(scores, axis=-1) @ value).swapaxes(1, 2).reshape(x.shape)
    return normalise(layer["output"]["dense"](mixed) + x, layer["output"]["LayerNorm"])


def block(x, mask, layer):
    """Return one transformer layer of x."""
    x = attend(x, mask, layer["attention"])
    inner = jax.nn.gelu(layer["intermediate"]["dense"](x), approximate=False)
    return normalise(layer["output"]["dense"](inner) + x, layer["output"]["LayerNorm"])


def encode(model, ids, mask):
    """Return embeddings (sentences, 384) of unit length."""
    tables = model["embeddings"]
    x = tables["word_embeddings"]["weight"][ids]
    x = x + tables["position_embeddings"]["weight"][np.arange(ids.shape[1])]
    x = normalise(x + tables["token_type_embeddings"]["weight"][0], tables["LayerNorm"])
    for number in range(CONFIG["num_hidden_layers"]):
        x = block(x, mask, model["encoder"]["layer"][str(number)])
    weight = mask[..., None].astype(x.dtype)
    mean = (x * weight).sum(1) / weight.sum(1)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)
