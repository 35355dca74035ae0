"""The switches of a configuration that `transformers_pairs.py --sweep` turns, one at a time."""

import inspect

import transformers

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "quick_gelu")

SWITCHES = {
    # activations
    "hidden_act": ACTIVATIONS, "activation_function": ACTIVATIONS, "activation": ("relu",),
    "hidden_activation": ("gelu", "relu"), "pooler_act": ("relu",),
    "feed_forward_proj": ("gated-gelu", "gated-silu"),
    # norms
    "layer_norm_eps": (1e-3,), "layer_norm_epsilon": (1e-3,), "rms_norm_eps": (1e-3,),
    "do_layer_norm_before": (False,), "_remove_final_layer_norm": (True,), "layer_norm_elementwise_affine": (False,),
    "apply_residual_connection_post_layernorm": (True,), "apply_layernorm": (False,),
    # positions
    "position_embedding_type": ("relative_key", "relative_key_query"), "rotary_value": (True,), "rotary_dim": (8,),
    "sinusoidal_pos_embds": (True,), "rope_theta": (500000.0,),
    "rope_scaling": ({"rope_type": "linear", "factor": 4.0}, {"rope_type": "dynamic", "factor": 4.0}),
    "relative_attention_num_buckets": (8,), "relative_attention_max_distance": (64,),
    "use_absolute_position_embeddings": (True,), "use_relative_position_bias": (False,),
    "use_shared_relative_position_bias": (True,),
    # attention
    "num_key_value_heads": (1, 4), "head_dim": (16,), "attention_bias": (True,), "qkv_bias": (False,),
    "scale_attn_weights": (False,), "scale_attn_by_inverse_layer_idx": (True,), "reorder_and_upcast_attn": (True,),
    "sliding_window": (3,), "window_size": (2,), "attention_types": ([[["local"], 2]],),
    "encoder_attention_type": ("transient-global",), "local_radius": (2,),
    # layers and sizes
    "mlp_bias": (True,), "use_bias": (False,), "enable_bias": (False,), "n_inner": (40,), "mlp_ratio": (2,),
    "num_hidden_groups": (2,), "inner_group_num": (2,), "num_decoder_layers": (1,), "word_embed_proj_dim": (16,),
    "layer_scale_init_value": (0.0,), "layerscale_value": (0.5,), "use_swiglu_ffn": (True,),
    "layer_type": {"ResNet": ("bottleneck",), "RegNet": ("x",)},
    "downsample_in_first_stage": (True,), "downsample_in_bottleneck": (True,),
    "depths": ([2, 2],), "num_channels": (1,), "use_mean_pooling": (False,),
    # embeddings and outputs
    "rescale_embeddings": (True,), "scale_embedding": (True, False), "tie_word_embeddings": (True, False),
    "type_vocab_size": (1,), "slow_but_exact": (True,), "pretraining_tp": (2,), "pooler_output_size": (16,),
}  # fmt: skip
"""By the name of a setting: the values that are tried, in each model that has the setting, but for its own value; of
some, by model."""


def switches(name, settings):
    """Return the changes of one setting each that a model of transformers knows, as a list of dictionaries."""
    known = inspect.signature(getattr(transformers, f"{name}Config").__init__).parameters
    changes = []
    for setting, values in SWITCHES.items():
        if setting in known:
            now = settings.get(setting, known[setting].default)
            values = values.get(name, ()) if isinstance(values, dict) else values
            changes += [{setting: value} for value in values if value != now or type(value) is not type(now)]
    return changes
