"""Small ports in the conventions of other projects, each a torch model beside a JAX model: their names need no rule.

Each maker returns `(torch_model, jax_model, expected)`; `expected` gives some of the pairs that only the names decide.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

D, H, LAYERS, VOCAB, LENGTH = 8, 2, 3, 11, 5
KEY = jax.random.key(0)
Port = tuple[nn.Module, Any, dict[str, str]]


def named(**parts: nn.Module) -> nn.Module:
    """Return a torch module with these children, which only has to hold weights."""
    made = nn.Module()
    for name, part in parts.items():
        made.add_module(name, part)
    return made


def bert_layer() -> nn.Module:
    query, key, value = (nn.Linear(D, D) for _ in range(3))
    inner = named(query=query, key=key, value=value)
    attention = named(self=inner, output=named(dense=nn.Linear(D, D), LayerNorm=nn.LayerNorm(D)))
    return named(
        attention=attention,
        intermediate=named(dense=nn.Linear(D, 4 * D)),
        output=named(dense=nn.Linear(4 * D, D), LayerNorm=nn.LayerNorm(D)),
    )


def bert() -> nn.Module:
    embeddings = named(
        word_embeddings=nn.Embedding(VOCAB, D),
        position_embeddings=nn.Embedding(VOCAB, D),
        token_type_embeddings=nn.Embedding(2, D),
        LayerNorm=nn.LayerNorm(D),
    )
    embeddings.register_buffer("position_ids", torch.arange(VOCAB)[None])
    layers = nn.ModuleList([bert_layer() for _ in range(LAYERS)])
    return named(embeddings=embeddings, encoder=named(layer=layers), pooler=named(dense=nn.Linear(D, D)))


def dense(i: int, o: int) -> dict[str, Any]:
    return {"kernel": jnp.zeros((i, o)), "bias": jnp.zeros(o)}


def norm() -> dict[str, Any]:
    return {"scale": jnp.ones(D), "bias": jnp.zeros(D)}


class Shell(linen.Module):
    """A Linen module that stands for one: the map reads its variables alone."""


def bert_hf_flax() -> Port:
    """The names of transformers' Flax models: torch's names, with the numbers of layers as text."""

    def layer() -> dict[str, Any]:
        inner = {name: dense(D, D) for name in ("query", "key", "value")}
        return {
            "attention": {"self": inner, "output": {"dense": dense(D, D), "LayerNorm": norm()}},
            "intermediate": {"dense": dense(D, 4 * D)},
            "output": {"dense": dense(4 * D, D), "LayerNorm": norm()},
        }

    params = {
        "embeddings": {
            "word_embeddings": {"embedding": jnp.zeros((VOCAB, D))},
            "position_embeddings": {"embedding": jnp.zeros((VOCAB, D))},
            "token_type_embeddings": {"embedding": jnp.zeros((2, D))},
            "LayerNorm": norm(),
        },
        "encoder": {"layer": {str(i): layer() for i in range(LAYERS)}},
        "pooler": {"dense": dense(D, D)},
    }
    params = jax.tree.map(lambda value: value, params)  # sorted, as a file that is read has it
    expected = {
        "encoder.layer.1.attention.self.key.weight": "params.encoder.layer.1.attention.self.key.kernel",
        "encoder.layer.2.output.LayerNorm.weight": "params.encoder.layer.2.output.LayerNorm.scale",
        "embeddings.position_embeddings.weight": "params.embeddings.position_embeddings.embedding",
    }
    return bert(), (Shell(), {"params": params}), expected


def bert_nnx() -> Port:
    """The names of Flax NNX ports (jaxgarden, bonsai): short ones, and nnx.MultiHeadAttention with its head axes."""

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.attention = nnx.MultiHeadAttention(H, D, rngs=rngs, decode=False)
            self.norm1 = nnx.LayerNorm(D, rngs=rngs)
            self.fc1 = nnx.Linear(D, 4 * D, rngs=rngs)
            self.fc2 = nnx.Linear(4 * D, D, rngs=rngs)
            self.norm2 = nnx.LayerNorm(D, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.tok_embed = nnx.Embed(VOCAB, D, rngs=rngs)
            self.pos_embed = nnx.Embed(VOCAB, D, rngs=rngs)
            self.type_embed = nnx.Embed(2, D, rngs=rngs)
            self.norm = nnx.LayerNorm(D, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
            self.pooler = nnx.Linear(D, D, rngs=rngs)

    expected = {
        "encoder.layer.1.attention.self.query.weight": "blocks.1.attention.query.kernel",
        "encoder.layer.1.attention.output.dense.weight": "blocks.1.attention.out.kernel",
        "encoder.layer.1.attention.output.LayerNorm.weight": "blocks.1.norm1.scale",
        "encoder.layer.2.output.LayerNorm.bias": "blocks.2.norm2.bias",
        "embeddings.LayerNorm.bias": "norm.bias",
        "embeddings.position_embeddings.weight": "pos_embed.embedding",
        "pooler.dense.weight": "pooler.kernel",
    }
    return bert(), Model(nnx.Rngs(0)), expected


def esm() -> nn.Module:
    """The names of fair-esm."""

    def layer() -> nn.Module:
        attention = named(**{f"{name}_proj": nn.Linear(D, D) for name in ("k", "v", "q", "out")})
        return named(
            self_attn=attention,
            self_attn_layer_norm=nn.LayerNorm(D),
            fc1=nn.Linear(D, 4 * D),
            fc2=nn.Linear(4 * D, D),
            final_layer_norm=nn.LayerNorm(D),
        )

    layers = nn.ModuleList([layer() for _ in range(LAYERS)])
    return named(embed_tokens=nn.Embedding(VOCAB, D), layers=layers, emb_layer_norm_after=nn.LayerNorm(D))


def esm_equinox_stacked() -> Port:
    """An Equinox port whose layers are one module with a leading axis, for lax.scan."""

    class Layer(eqx.Module):
        attn: eqx.nn.MultiheadAttention
        attn_norm: eqx.nn.LayerNorm
        up: eqx.nn.Linear
        down: eqx.nn.Linear
        mlp_norm: eqx.nn.LayerNorm

        def __init__(self, key: jax.Array) -> None:
            flags = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
            self.attn = eqx.nn.MultiheadAttention(H, D, key=key, **flags)
            self.attn_norm = eqx.nn.LayerNorm(D)
            self.up = eqx.nn.Linear(D, 4 * D, key=key)
            self.down = eqx.nn.Linear(4 * D, D, key=key)
            self.mlp_norm = eqx.nn.LayerNorm(D)

    class Model(eqx.Module):
        embedding: eqx.nn.Embedding
        layers: Layer
        norm: eqx.nn.LayerNorm

    model = Model(
        eqx.nn.Embedding(VOCAB, D, key=KEY), eqx.filter_vmap(Layer)(jax.random.split(KEY, LAYERS)), eqx.nn.LayerNorm(D)
    )
    expected = {
        "layers.1.self_attn.q_proj.weight": "layers.attn.query_proj.weight",
        "layers.1.self_attn.k_proj.bias": "layers.attn.key_proj.bias",
        "layers.1.self_attn.out_proj.weight": "layers.attn.output_proj.weight",
        "layers.2.self_attn_layer_norm.weight": "layers.attn_norm.weight",
        "layers.2.final_layer_norm.weight": "layers.mlp_norm.weight",
        "emb_layer_norm_after.weight": "norm.weight",
    }
    return esm(), model, expected


def gpt2() -> nn.Module:
    """The names of GPT-2, with a tied head and transformers' Conv1D."""
    from transformers.pytorch_utils import Conv1D

    def block() -> nn.Module:
        return named(
            ln_1=nn.LayerNorm(D),
            attn=named(c_attn=Conv1D(3 * D, D), c_proj=Conv1D(D, D)),
            ln_2=nn.LayerNorm(D),
            mlp=named(c_fc=Conv1D(4 * D, D), c_proj=Conv1D(D, 4 * D)),
        )

    transformer = named(
        wte=nn.Embedding(VOCAB, D),
        wpe=nn.Embedding(VOCAB, D),
        h=nn.ModuleList([block() for _ in range(LAYERS)]),
        ln_f=nn.LayerNorm(D),
    )
    head = nn.Linear(D, VOCAB, bias=False)
    head.weight = transformer.wte.weight
    return named(transformer=transformer, lm_head=head)


def gpt2_function() -> Port:
    """The names of picoGPT: nested dicts with g, b and w, a head that is the embedding."""

    def block() -> dict[str, Any]:
        def linear(i: int, o: int) -> dict[str, Any]:
            return {"w": jnp.zeros((i, o)), "b": jnp.zeros(o)}

        def ln() -> dict[str, Any]:
            return {"g": jnp.ones(D), "b": jnp.zeros(D)}

        return {
            "attn": {"c_attn": linear(D, 3 * D), "c_proj": linear(D, D)},
            "ln_1": ln(),
            "ln_2": ln(),
            "mlp": {"c_fc": linear(D, 4 * D), "c_proj": linear(4 * D, D)},
        }

    params = {
        "blocks": [block() for _ in range(LAYERS)],
        "ln_f": {"b": jnp.zeros(D), "g": jnp.ones(D)},
        "wpe": jnp.zeros((VOCAB, D)),
        "wte": jnp.zeros((VOCAB, D)),
    }
    expected = {
        "transformer.wpe.weight": "wpe",
        "transformer.h.1.attn.c_proj.weight": "blocks.1.attn.c_proj.w",
        "transformer.h.1.ln_2.weight": "blocks.1.ln_2.g",
    }
    return gpt2(), (lambda params, x: x, params), expected


def gpt2_split_linen() -> Port:
    """A Linen port of GPT-2 with separate projections that have head axes, and numbered names (h_0)."""

    def block() -> dict[str, Any]:
        def heads() -> dict[str, Any]:
            return {"kernel": jnp.zeros((D, H, D // H)), "bias": jnp.zeros((H, D // H))}

        attention = {name: heads() for name in ("query", "key", "value")}
        attention["out"] = {"kernel": jnp.zeros((H, D // H, D)), "bias": jnp.zeros(D)}
        return {
            "ln1": norm(),
            "attn": attention,
            "ln2": norm(),
            "mlp": {"up": dense(D, 4 * D), "down": dense(4 * D, D)},
        }

    params = {
        "embed": {"embedding": jnp.zeros((VOCAB, D))},
        "pos_embedding": jnp.zeros((1, VOCAB, D)),
        **{f"h_{i}": block() for i in range(LAYERS)},
        "final_norm": norm(),
    }
    expected = {
        "transformer.h.1.attn.c_attn.weight": "params.h_1.attn.query.kernel",
        "transformer.h.1.attn.c_proj.weight": "params.h_1.attn.out.kernel",
        "transformer.wpe.weight": "params.pos_embedding",
        "transformer.ln_f.weight": "params.final_norm.scale",
    }
    return gpt2(), (Shell(), {"params": params}), expected


def encoder_layer_nnx() -> Port:
    """Torch's own TransformerEncoder, with its fused in_proj, against nnx.MultiHeadAttention."""
    layer = nn.TransformerEncoderLayer(D, H, 4 * D, batch_first=True)
    model = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.self_attn = nnx.MultiHeadAttention(H, D, rngs=rngs, decode=False)
            self.linear1 = nnx.Linear(D, 4 * D, rngs=rngs)
            self.linear2 = nnx.Linear(4 * D, D, rngs=rngs)
            self.norm1 = nnx.LayerNorm(D, rngs=rngs)
            self.norm2 = nnx.LayerNorm(D, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            keys = jax.random.split(KEY, LAYERS)
            self.layers = nnx.vmap(lambda key: Block(nnx.Rngs(key)), in_axes=0)(keys)

    expected = {
        "layers.1.self_attn.in_proj_weight": "layers.self_attn.query.kernel",
        "layers.1.self_attn.out_proj.weight": "layers.self_attn.out.kernel",
        "layers.1.norm2.weight": "layers.norm2.scale",
    }
    return model, Model(nnx.Rngs(0)), expected


class Basic(nn.Module):
    """ResNet's block."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, bias=False), nn.BatchNorm2d(o)
        if i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o))


def resnet() -> nn.Module:
    return named(
        conv1=nn.Conv2d(3, 4, 3, bias=False),
        bn1=nn.BatchNorm2d(4),
        layer1=nn.Sequential(Basic(4, 4), Basic(4, 4)),
        layer2=nn.Sequential(Basic(4, 6), Basic(6, 6)),
        fc=nn.Linear(6, 5),
    )


def resnet_linen() -> Port:
    """Linen's automatic names: Conv_0, BatchNorm_0, blocks numbered through, in order of the calls."""

    class Block(linen.Module):
        features: int

        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            y = linen.Conv(self.features, (3, 3), use_bias=False)(x)
            y = linen.BatchNorm(use_running_average=True)(y)
            y = linen.Conv(self.features, (3, 3), use_bias=False)(y)
            y = linen.BatchNorm(use_running_average=True)(y)
            if x.shape != y.shape:
                x = linen.Conv(self.features, (1, 1), use_bias=False, name="downsample_conv")(x)
                x = linen.BatchNorm(use_running_average=True, name="downsample_bn")(x)
            return x + y

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = linen.Conv(4, (3, 3), use_bias=False)(x)
            x = linen.BatchNorm(use_running_average=True)(x)
            for features in (4, 4, 6, 6):
                x = Block(features)(x)
            return linen.Dense(5)(x.mean((1, 2)))

    model = Model()
    variables = model.init(KEY, jnp.ones((1, 8, 8, 3)))
    expected = {
        "layer1.1.conv2.weight": "params.Block_1.Conv_1.kernel",
        "layer2.0.downsample.0.weight": "params.Block_2.downsample_conv.kernel",
        "layer2.1.bn1.running_var": "batch_stats.Block_3.BatchNorm_0.var",
        "bn1.running_mean": "batch_stats.BatchNorm_0.mean",
        "fc.bias": "params.Dense_0.bias",
    }
    return resnet(), (model, variables), expected


def resnet_equinox() -> Port:
    """Equinox with torch's names and its statistics in a State."""

    class Block(eqx.Module):
        conv1: eqx.nn.Conv2d
        bn1: eqx.nn.BatchNorm
        conv2: eqx.nn.Conv2d
        bn2: eqx.nn.BatchNorm
        downsample: eqx.nn.Sequential | None

        def __init__(self, i: int, o: int) -> None:
            self.conv1 = eqx.nn.Conv2d(i, o, 3, use_bias=False, key=KEY)
            self.bn1 = eqx.nn.BatchNorm(o, "batch", mode="ema")
            self.conv2 = eqx.nn.Conv2d(o, o, 3, use_bias=False, key=KEY)
            self.bn2 = eqx.nn.BatchNorm(o, "batch", mode="ema")
            short = [eqx.nn.Conv2d(i, o, 1, use_bias=False, key=KEY), eqx.nn.BatchNorm(o, "batch", mode="ema")]
            self.downsample = eqx.nn.Sequential(short) if i != o else None

    class Model(eqx.Module):
        conv1: eqx.nn.Conv2d
        bn1: eqx.nn.BatchNorm
        layers: list[list[Block]]
        fc: eqx.nn.Linear

        def __init__(self) -> None:
            self.conv1 = eqx.nn.Conv2d(3, 4, 3, use_bias=False, key=KEY)
            self.bn1 = eqx.nn.BatchNorm(4, "batch", mode="ema")
            self.layers = [[Block(4, 4), Block(4, 4)], [Block(4, 6), Block(6, 6)]]
            self.fc = eqx.nn.Linear(6, 5, key=KEY)

    expected = {
        "layer1.1.conv2.weight": "layers.0.1.conv2.weight",
        "layer2.0.downsample.0.weight": "layers.1.0.downsample.layers.0.weight",
        "layer2.1.bn1.running_var": "state.layers.1.1.bn1.var",
    }
    return resnet(), eqx.nn.make_with_state(Model)(), expected


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))


def perceptron_haiku() -> Port:
    """Haiku's names: a flat dict of module paths."""
    sizes = (6, 8, 8, 8, 3)
    params = {f"mlp/~/linear_{i}": {"w": jnp.zeros(sizes[i : i + 2]), "b": jnp.zeros(sizes[i + 1])} for i in range(4)}
    return perceptron(), (lambda params, x: x, params), {"2.weight": "mlp/~/linear_1.w", "4.bias": "mlp/~/linear_2.b"}


def perceptron_pairs() -> Port:
    """The tutorial's parameters: a list of (w, b)."""
    sizes = (6, 8, 8, 8, 3)
    params = [(jnp.zeros(sizes[i : i + 2]), jnp.zeros(sizes[i + 1])) for i in range(4)]
    return perceptron(), (lambda params, x: x, params), {}


def perceptron_numbered() -> Port:
    """Hand-written parameters: w1, b1, ..."""
    sizes = (6, 8, 8, 8, 3)
    params = {}
    for i in range(4):
        params |= {f"w{i + 1}": jnp.zeros(sizes[i : i + 2]), f"b{i + 1}": jnp.zeros(sizes[i + 1])}
    model = named(**{f"fc{i + 1}": nn.Linear(sizes[i], sizes[i + 1]) for i in range(4)})
    return model, (lambda params, x: x, params), {"fc3.weight": "w3", "fc2.bias": "b2"}


def vit_timm() -> Port:
    """Timm's ViT with its fused qkv against NNX with q, k and v, and a class token."""

    def block() -> nn.Module:
        return named(
            norm1=nn.LayerNorm(D),
            attn=named(qkv=nn.Linear(D, 3 * D), proj=nn.Linear(D, D)),
            norm2=nn.LayerNorm(D),
            mlp=named(fc1=nn.Linear(D, 4 * D), fc2=nn.Linear(4 * D, D)),
        )

    model = named(
        patch_embed=named(proj=nn.Conv2d(3, D, 2)),
        blocks=nn.Sequential(*(block() for _ in range(LAYERS))),
        norm=nn.LayerNorm(D),
        head=nn.Linear(D, 5),
    )
    model.cls_token = nn.Parameter(torch.zeros(1, 1, D))
    model.pos_embed = nn.Parameter(torch.zeros(1, LENGTH, D))

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layernorm_before = nnx.LayerNorm(D, rngs=rngs)
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nnx.Linear(D, D, rngs=rngs) for _ in range(4))
            self.layernorm_after = nnx.LayerNorm(D, rngs=rngs)
            self.up_proj, self.down_proj = nnx.Linear(D, 4 * D, rngs=rngs), nnx.Linear(4 * D, D, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.patch_embeddings = nnx.Conv(3, D, (2, 2), strides=2, rngs=rngs)
            self.class_embedding = nnx.Param(jnp.zeros(D))
            self.position_embeddings = nnx.Param(jnp.zeros((LENGTH, D)))
            self.layers = nnx.List([Block(rngs) for _ in range(LAYERS)])
            self.final_norm = nnx.LayerNorm(D, rngs=rngs)
            self.classifier = nnx.Linear(D, 5, rngs=rngs)

    expected = {
        "cls_token": "class_embedding",
        "blocks.1.attn.proj.weight": "layers.1.o_proj.kernel",
        "blocks.1.norm2.weight": "layers.1.layernorm_after.scale",
        "norm.weight": "final_norm.scale",
    }
    return model, Model(nnx.Rngs(0)), expected


PORTS = (
    bert_hf_flax,
    bert_nnx,
    esm_equinox_stacked,
    gpt2_function,
    gpt2_split_linen,
    encoder_layer_nnx,
    resnet_linen,
    resnet_equinox,
    perceptron_haiku,
    perceptron_pairs,
    perceptron_numbered,
    vit_timm,
)
