"""Ports that others published: torch and Flax models of transformers 4.57.6, compared module by module.

Nothing is downloaded but the package: models are small, their weights random, equal on both sides. transformers 5 has
no Flax models, so 4.57.6 goes into a folder of its own:

    pip install --no-deps --target DIR 'transformers==4.57.6' 'tokenizers<=0.23' 'huggingface_hub<1'
    PYTHONPATH=DIR python examples/ports/transformers_pairs.py [--only TEXT] [--known | --sweep] [--markdown FILE]

`--known` runs the configurations of faults that are known instead: what the report names is printed. `--sweep` turns
each switch of each configuration, one at a time (transformers_switches.py).
"""

import argparse
import datetime
import inspect
import os
import sys
import time
from importlib import metadata
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers_switches import switches

import parity
import parity.models

SMALL = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
GPT = {
    "vocab_size": 50,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BART = {
    "vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
NET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 2], "layer_type": "basic"}

MODELS = {
    "Bert": ("text", SMALL),
    "Roberta": ("text", SMALL | {"pad_token_id": 1}),
    "XLMRoberta": ("text", SMALL | {"pad_token_id": 1}),
    "RoFormer": ("text", SMALL | {"embedding_size": 32}),
    "Electra": ("text", SMALL | {"embedding_size": 32}),
    "Albert": ("text", SMALL | {"embedding_size": 16}),
    "DistilBert": (
        "text",
        {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
    ),
    "BigBird": ("text", SMALL | {"attention_type": "original_full"}),
    "RobertaPreLayerNorm": ("text", SMALL | {"pad_token_id": 1}),
    "GPT2": ("text", GPT),
    "GPTNeo": (
        "text",
        {"vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 40, "attention_types": [[["global", "local"], 1]], "window_size": 4,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "GPTJ": ("text", GPT | {"rotary_dim": 4}),
    "Llama": ("text", SMALL | {"num_key_value_heads": 2}),
    "Mistral": ("text", SMALL | {"num_key_value_heads": 2, "sliding_window": 32}),
    "Gemma": ("text", SMALL | {"num_key_value_heads": 2, "head_dim": 8}),
    "OPT": (
        "text",
        {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
         "max_position_embeddings": 40, "word_embed_proj_dim": 32},
    ),
    "Bloom": ("text", {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "XGLM": (
        "text",
        {"vocab_size": 50, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48,
         "max_position_embeddings": 40},
    ),
    "Bart": ("both", BART),
    "MBart": ("both", BART),
    "Pegasus": ("both", BART),
    "Blenderbot": ("both", BART),
    "BlenderbotSmall": ("both", BART),
    "T5": ("both", T5),
    "LongT5": ("both", T5 | {"local_radius": 4}),
    "ViT": ("image", VISION),
    "Beit": ("image", VISION | {"use_relative_position_bias": True}),
    "CLIPVision": ("image", VISION),
    "Dinov2": ("image", VISION),
    "ResNet": ("image", NET),
    "RegNet": ("image", NET | {"layer_type": "y", "groups_width": 4}),
    "Marian": ("both", BART | {"pad_token_id": 0}),
    "MT5": ("both", T5),
    "CLIPText": ("text", SMALL | {"eos_token_id": 49}),
    "CLIP": (
        "text and image",
        {"text_config": SMALL | {"eos_token_id": 49}, "vision_config": VISION, "projection_dim": 24},
    ),
    "Whisper": ("speech", BART | {"num_mel_bins": 6, "max_source_positions": 12, "max_target_positions": 40,
                                  "pad_token_id": 0, "decoder_start_token_id": 1}),
    "Wav2Vec2": ("wave", SMALL | {"conv_dim": (8, 12), "conv_stride": (5, 2), "conv_kernel": (10, 3),
                                  "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
                                  "do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
}  # fmt: skip
"""By the name of their classes: what they take, and a small configuration."""

HEADS = {
    "BertForMaskedLM": "Bert", "BertForSequenceClassification": "Bert", "RobertaForTokenClassification": "Roberta",
    "DistilBertForQuestionAnswering": "DistilBert", "ElectraForPreTraining": "Electra", "GPT2LMHeadModel": "GPT2",
    "GPTNeoForCausalLM": "GPTNeo", "LlamaForCausalLM": "Llama", "OPTForCausalLM": "OPT", "BloomForCausalLM": "Bloom",
    "BartForConditionalGeneration": "Bart", "T5ForConditionalGeneration": "T5", "ViTForImageClassification": "ViT",
    "WhisperForConditionalGeneration": "Whisper", "Wav2Vec2ForCTC": "Wav2Vec2",
}  # fmt: skip
"""Classes with a head, and whose configuration they have."""

KNOWN = (
    ("Llama", {"rope_theta": 500000.0}, "rope base"),
    ("Mistral", {"rope_theta": 500000.0}, "rope base"),
    ("Gemma", {"rope_theta": 500000.0}, "rope base"),
    ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "rope scaling"),
    ("Bert", {"position_embedding_type": "relative_key"}, "relative positions"),
    ("Bert", {"position_embedding_type": "relative_key_query"}, "relative positions"),
)
"""Switches that Flax models are known to ignore."""


CLIP = jnp.clip


def clip(array, *bounds, a_min=None, a_max=None, **others):
    """`jax.numpy.clip` with the names of its bounds that Flax T5 uses and that JAX has dropped."""
    if a_min is not None or a_max is not None:
        return CLIP(array, a_min, a_max)
    return CLIP(array, *bounds, **others)


jnp.clip = clip


def build(name, changes):
    """Return a torch model, its Flax port with the same weights, and inputs, of a configuration."""
    model_type = HEADS.get(name, name)
    kind, settings = MODELS[model_type]
    config = getattr(transformers, f"{model_type}Config")(**(settings | changes))
    torch.manual_seed(0)
    made = name if name in HEADS else f"{name}Model"
    model = getattr(transformers, made)(config).eval()
    given = known(2 if "Roberta" in name else 0, config)
    flax = getattr(transformers, f"Flax{made}")
    shape = {
        "text": (1, 8),
        "image": (1, 16, 16, given["pixel_values"].shape[1]),
        "speech": (1, 6, 24),
        "wave": (1, 200),
    }.get(kind)
    if kind == "text and image":
        shape = ((1, 8), (1, 16, 16, 3))
    port = flax(config, seed=0) if shape is None else flax(config, seed=0, input_shape=shape)
    variables = port.params if kind == "image" and "batch_stats" in port.params else {"params": port.params}
    return model, (port.module, jax.tree.map(np.asarray, dict(variables))), inputs(kind, port.module, given)


TAKEN = {
    "text": ("input_ids", "attention_mask"),
    "both": ("input_ids", "attention_mask", "decoder_input_ids"),
    "image": ("pixel_values",),
    "text and image": ("input_ids", "pixel_values", "attention_mask"),
    "speech": ("input_features", "decoder_input_ids"),
    "wave": ("input_values",),
}
"""What both models are given, by kind."""
ASKED = ("position_ids", "token_type_ids", "decoder_attention_mask", "decoder_position_ids", "head_mask")
"""What Flax modules ask for beside, where torch's have a default that says the same."""


def known(first, config):
    """Return numbers for every argument that some model takes."""
    rng = np.random.default_rng(0)
    channels = getattr(config, "num_channels", 3)
    ids, mask = rng.integers(3, 49, (2, 8)), np.ones((2, 8), np.int64)
    ids[:, -1] = 49  # the end of a text, which CLIP looks for
    places = np.broadcast_to(np.arange(first, first + 8), (2, 8))  # RoBERTa's begin after the padding's id
    return {
        "pixel_values": rng.standard_normal((2, channels, 16, 16)).astype(np.float32),
        "input_features": rng.standard_normal((2, 6, 24)).astype(np.float32),
        "input_values": rng.standard_normal((2, 200)).astype(np.float32),
        "input_ids": ids, "attention_mask": mask, "position_ids": places, "token_type_ids": np.zeros((2, 8), np.int64),
        "decoder_input_ids": rng.integers(3, 49, (2, 8)), "decoder_attention_mask": mask,
        "decoder_position_ids": places, "head_mask": None,
    }  # fmt: skip


def inputs(kind, module, given):
    """Return what both models take; images have their channels first in torch, last in Flax."""
    asked = [name for name in ASKED if name in inspect.signature(type(module).__call__).parameters]
    flax = {name: given[name] for name in (*TAKEN[kind], *asked)}
    if "pixel_values" in flax:
        flax["pixel_values"] = flax["pixel_values"].transpose(0, 2, 3, 1)
    return parity.models.Inputs(torch={name: given[name] for name in TAKEN[kind]}, jax=flax)


def compared(name, changes):
    """Return a row: the model, the verdict, what is named, and how long it took."""
    start = time.perf_counter()
    try:
        model, port, given = build(name, changes)
    except Exception as problem:
        return name, changes, "not built", f"{type(problem).__name__}: {str(problem).splitlines()[0][:120]}", 0.0
    try:
        weights = parity.map_weights(model, port)
        port = weights.load_into_jax(model, port, partial=True)
        report = parity.compare_models(model, port, given, name=name)
    except Exception as problem:
        text = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
        return name, changes, "not compared", text, time.perf_counter() - start
    said = ""
    if not report.ok:
        first = report.first
        found = first.diagnosis if first is not None else None
        said = f"{first.path or 'the model'}: {found.cause}: {found.text}" if found else str(report)[:300]
    return name, changes, "same function" if report.ok else "differs", said, time.perf_counter() - start


BEGIN, END = "<!-- transformers {} -->", "<!-- end of transformers {} -->"


def write(path, kind, text):
    """Put a text into its part of a page."""
    begin, end = BEGIN.format(kind), END.format(kind)
    page = path.read_text() if path.exists() else "# Model ports\n\n"
    before, _, rest = page.partition(begin)
    path.write_text(f"{before}{begin}\n{text}{end}{rest.partition(end)[2] or chr(10)}")


def main():
    """Compare the pairs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names that have one of these texts, with commas between")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--known", action="store_true", help="configurations of known faults")
    which.add_argument("--sweep", action="store_true", help="each switch of each configuration, one at a time")
    parser.add_argument("--markdown", type=Path, help="the page whose part is written anew")
    options = parser.parse_args()
    todo = [(name, {}) for name in (*MODELS, *HEADS)]
    if options.known:
        todo = [(name, changes) for name, changes, _ in KNOWN]
    if options.sweep:
        todo = [(name, changes) for name, (_, settings) in MODELS.items() for changes in switches(name, settings)]
    kind = "known" if options.known else "sweep" if options.sweep else "default"
    rows = []
    for name, changes in todo:
        if any(text in name for text in options.only.split(",")):
            rows.append(compared(name, changes))
            print(*rows[-1], file=sys.stderr, flush=True)
            if options.markdown is not None:  # after each, so that a run that is stopped leaves what it saw
                write(options.markdown, kind, page(rows, options))
    print(page(rows, options))


def page(rows, options):
    """Return rows as a section of a page."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "jax", "flax"))
    what = "Configurations that are known to differ" if options.known else "Default configurations"
    what = "Each switch turned" if options.sweep else what
    how = (
        (" --known" if options.known else "")
        + (" --sweep" if options.sweep else "")
        + (f" --only {options.only}" if options.only else "")
    )
    lines = [
        f"## transformers {transformers.__version__}: torch beside Flax. {what}", "",
        f"Made by `python examples/ports/transformers_pairs.py{how}` on {datetime.date.today()} with {versions}. Each "
        "pair is compared with the weights that it was made with, and with weights of order one.", "",
        f"{len(rows)} pairs were compared; {sum(row[2] == 'same function' for row in rows)} are the same function.", "",
        "| model | configuration | verdict | first module and cause |", "|---|---|---|---|",
    ]  # fmt: skip
    if options.sweep:
        alike: dict[str, list[str]] = {}
        for name, changes, verdict, _, _ in rows:
            if verdict == "same function":
                alike.setdefault(name, []).extend(f"{key} = {value}" for key, value in changes.items())
        lines[-2:-2] = ["The same function with each of these:", ""]
        lines[-2:-2] = [*(f"- {name}: {', '.join(settings)}." for name, settings in alike.items()), "", "The rest:", ""]
        rows = [row for row in rows if row[2] != "same function"]
    for name, changes, verdict, said, _ in rows:
        lines.append(f"| {name} | {changes or 'default'} | {verdict} | {' '.join(said.split()).replace('|', '/')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
