"""The faults that are planted in the three ports, as data: twenty and more a model."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tests.model_ports import convnet, decoder, encoder
from tests.model_ports.fault import Fault, Port

EPS, ACTIVATION, ATTENTION = "eps", "activation|approximate", r"layers\.\d\.attn"

DECODER = (
    Fault("RMSNorm's eps", {"eps": 1e-5}, r"layers\.0\.attn_norm", EPS),
    Fault("the last norm's eps", {"last_eps": 1e-5}, "norm", EPS),
    Fault("scale is 1 + weight", {"unit_offset": True}, r"layers\.0\.attn_norm", "constant|formula|term"),
    Fault("rope's base", {"base": 500000.0}, ATTENTION, "rope base"),
    Fault("rope's pairs", {"neighbours": True}, ATTENTION, "interleaved|pairing"),
    Fault("positions of queries begin at one", {"query_offset": 1}, ATTENTION, "position"),
    Fault("attention without scale", {"scale": 1.0}, ATTENTION, "scale"),
    Fault("attention's scale by the width", {"scale": 32**-0.5}, ATTENTION, "scale"),
    Fault("a causal mask one off", {"strict": True}, ATTENTION, "mask"),
    Fault("no causal mask", {"mask": False}, ATTENTION, "mask"),
    Fault("a weak mask", {"fill": -5.0}, ATTENTION, "mask"),
    Fault("heads of keys tiled, not repeated", {"tiled": True}, ATTENTION, "head order|arrangement|interleaved"),
    Fault("GELU for SiLU", {"activation": jax.nn.gelu}, r"layers\.\d\.mlp", ACTIVATION),
    Fault("gate and up exchanged", {"swapped_gate": True}, r"layers\.\d\.mlp", "gate|exchanged|order"),
    Fault("a residual missing", {"residual": False}, r"layers\.0", "residual"),
    Fault("norms last", {"post_norm": True}, r"layers\.0", "norm order"),
    Fault("embeddings scaled", {"embed_scale": 32**0.5}, "|embed", "scale|constant"),
    Fault("the query's bias dropped", {"query_bias": False}, r"layers\.0\.attn\.q_proj", "bias"),
    Fault("an MLP in bfloat16", {"dtype": jnp.bfloat16}, r"layers\.0\.mlp(\..*)?", "precision|dtype"),
    Fault("dropout on", {"dropout": 0.1}, r"layers\.0", "dropout"),
    Fault("the first layer twice", {"shared": True}, r"(layers\.1.*)?", "shared|called|weight"),
    Fault("a head that is not loaded", {"untied": True}, "head", "weight"),
    Fault("a square matrix not transposed", {"transposed": True}, r"layers\.0\.attn\.q_proj", "transposed"),
    Fault("keys and values exchanged", {"exchanged": True}, r"layers\.0\.attn\.[kv]_proj", "exchanged"),
    Fault("rows of the output matrix in another order", {"heads": True}, r"layers\.0\.attn\.o_proj", "order"),
)

LAYER, SELF = r"layers\.0", r"layers\.0\.attention"

ENCODER = (
    Fault("LayerNorm's eps", {"eps": 1e-5}, r"layers\.0\.attention_norm", EPS),
    Fault("the embeddings' eps", {"embed_eps": 1e-5}, r"embeddings\.norm", EPS),
    Fault("GELU by tanh", {"activation": jax.nn.gelu}, LAYER, "approximate"),
    Fault("ReLU for GELU", {"activation": jax.nn.relu}, LAYER, ACTIVATION),
    Fault("the mask inverted", {"inverted": True}, SELF, "mask"),
    Fault("a weak mask", {"fill": -10.0}, SELF, "mask"),
    Fault("the mask along queries", {"of_queries": True}, SELF, "mask"),
    Fault("attention without scale", {"scale": 1.0}, SELF, "scale"),
    Fault("heads split as (channel, head)", {"channels_first": True}, SELF, "head order|arrangement|interleaved"),
    Fault("softmax along queries", {"axis": -2}, SELF, "dim"),
    Fault("the output's bias dropped", {"out_bias": False}, SELF + r"\.out", "bias"),
    Fault("positions one off", {"offset": 1}, "(embeddings.*)?", "position"),
    Fault("token types left out", {"kinds": False}, "(embeddings.*)?", "term|left out|not called"),
    Fault("norms first", {"pre_norm": True}, LAYER, "norm order"),
    Fault("a residual missing", {"residual": False}, LAYER, "residual"),
    Fault("a residual added twice", {"doubled": True}, LAYER, "residual"),
    Fault("the mean of words pooled", {"pool": "mean"}, "", "pool"),
    Fault("another activation of the pooler", {"pool_activation": jax.nn.relu}, "", ACTIVATION),
    Fault("an MLP in bfloat16", {"dtype": jnp.bfloat16}, LAYER + r"(\..*)?", "precision|dtype"),
    Fault("dropout on", {"dropout": 0.1}, LAYER, "dropout"),
    Fault("the first layer three times", {"shared": True}, r"(layers\.1.*)?", "shared|called|weight"),
    Fault("a head that is not tied", {"untied": True}, "|head|embeddings.word", "weight|tied"),
    Fault("a square matrix transposed", {"transposed": True}, SELF + r"\.out", "transposed"),
    Fault("queries and keys exchanged", {"exchanged": True}, SELF + r"\.(query|key)", "exchanged"),
    Fault("layers stacked from the last to the first", {"unordered": True}, LAYER + r".*", "order|layer"),
    Fault("the head's bias dropped", {"head_bias": False}, "head|", "bias"),
)

CONVNET = (
    Fault("BatchNorm's eps", {"eps": 1e-3}, "bn", EPS),
    Fault("SAME with stride 2", {"same": True}, r"block2\.conv1", "padding"),
    Fault("the stem's bias dropped", {"stem_bias": False}, "stem", "bias"),
    Fault("leaky ReLU's slope", {"slope": 0.2}, "block1|", "slope|constant"),
    Fault("ReLU for leaky ReLU", {"activation": jax.nn.relu}, "block1|", ACTIVATION),
    Fault("SiLU for leaky ReLU", {"activation": jax.nn.silu}, "block1|", ACTIVATION),
    Fault("the mean pooled for the maximum", {"pool": "avg"}, "", "pool"),
    Fault("SAME in the pool", {"pool_padding": "SAME"}, "", "padding"),
    Fault("padding counted in the mean", {"counted": True}, "", "count_include_pad"),
    Fault("the batch's own statistics", {"training": True}, "bn", "training"),
    Fault("a residual missing", {"residual": False}, "block1", "residual"),
    Fault("the activation before the sum", {"early": True}, "block1", "order|activation|formula"),
    Fault("the stride at the second convolution", {"strided_first": False}, r"block2(\.conv1)?", "stride"),
    Fault("channels last when flattened", {"flat": "channels last"}, "|hidden", "arrangement|flatten|transposed"),
    Fault("dropout on", {"dropout": 0.5}, "", "dropout"),
    Fault("a convolution in bfloat16", {"dtype": jnp.bfloat16}, "mix", "precision|dtype"),
    Fault("a square 1x1 kernel not transposed", {"transposed": True}, "mix", "transposed"),
    Fault("kernels' height and width exchanged", {"turned": True}, "stem", "transposed"),
    Fault("kernels flipped", {"flipped": True}, "stem", "flip"),
    Fault("running means not loaded", {"stale_mean": True}, "bn", "statistic|loaded"),
    Fault("deviations in the place of variances", {"deviation": True}, "bn", "root|statistic"),
    Fault("scales not loaded", {"unscaled": True}, "bn", "loaded"),
    Fault("groups of a kernel exchanged", {"groups": True}, r"block1\.conv2", "order"),
    Fault("BatchNorm's momentum", {"momentum": 0.99, "training": True}, "bn", "momentum", mode="train"),
)


def _first_and_last(seed: int) -> object:
    from parity.models import Inputs

    (images,) = convnet.inputs(seed)
    return Inputs(torch=(images,), jax=(images.transpose(0, 2, 3, 1),))


PORTS = (
    Port("decoder", decoder.torch_model, decoder.jax_model, decoder.inputs, DECODER),
    Port("encoder", encoder.torch_model, encoder.jax_model, encoder.inputs, ENCODER),
    Port("convnet", convnet.torch_model, convnet.jax_model, _first_and_last, CONVNET),
)
"""The three models with their ports."""
