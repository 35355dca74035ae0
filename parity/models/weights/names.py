"""What the parts of a weight's name mean: its role in its layer, and words for layers that both sides share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from parity.models.weights.tree import Parts

WEIGHT, BIAS, MEAN, VARIANCE, VALUE = "weight", "bias", "mean", "variance", "value"

ROLES = {
    WEIGHT: "weight kernel scale embedding w gamma g embeddings embedding_table negative_slope",
    BIAS: "bias b beta offset",
    MEAN: "running_mean mean moving_mean mean_ema",
    VARIANCE: "running_var var moving_var moving_variance variance var_ema",
}
"""The names that a layer gives its own weights, one role a line. Any other name is a value by itself ("cls_token")."""

CONCEPTS = """
query: q query q_proj query_proj wq to_q q_lin q_linear query_dense linear_q q_net
key: k key k_proj key_proj wk to_k k_lin k_linear key_dense linear_k k_net
value: v value v_proj value_proj wv to_v v_lin v_linear value_dense linear_v v_net
out: o out o_proj out_proj output_proj wo to_out out_lin o_linear proj_out linear_out projection proj out_net
qkv: qkv c_attn in_proj query_key_value wqkv qkv_proj to_qkv w_qkv qkv_linear att_proj
kv: kv kv_proj to_kv wkv key_value
attention: attn attention self_attn self_attention mha multi_head_attention multihead_attn sa att selfattn self
cross: cross_attn crossattention encoder_attn cross_attention enc_dec_attention multihead_cross_attn encdecattention
mlp: mlp ffn feed_forward feedforward ff ffw intermediate feed_forward_network position_wise
up: fc1 linear1 c_fc lin1 wi up_proj dense_h_to_4h up w_up fc_in wi_1 dense1 w1 fc_1 linear_1 dense_in in_fc
down: fc2 linear2 lin2 wo_mlp down_proj dense_4h_to_h down w_down fc_out dense2 w2 fc_2 linear_2 dense_out out_fc
gate: gate_proj gate w_gate wi_0 w3
gate_up: gate_up_proj gate_up wi_fused
norm: norm ln layer_norm layernorm rms_norm rmsnorm
norm1: norm1 ln1 ln_1 input_layernorm attention_norm sa_layer_norm layernorm_before layer_norm1 self_attn_layer_norm pre_attention_norm attn_norm norm_1 layer_norm_1 attn_layer_norm layernorm1 pre_attn_norm input_norm ln_attn norm_attn
norm2: norm2 ln2 ln_2 post_attention_layernorm ffn_norm output_layer_norm layernorm_after layer_norm2 mlp_norm norm_2 layer_norm_2 full_layer_layer_norm layernorm2 pre_mlp_norm post_attention_norm ln_mlp norm_mlp final_layer_norm
final norm: ln_f final_norm final_layernorm norm_f ln_out emb_layer_norm_after last_norm layer_norm_f encoder_norm post_layernorm ln_post
token embedding: wte word_embeddings embed_tokens tok_embeddings token_embedding tok_embed token_embed word_embedding tok_emb token_embeddings embed_in embed emb embedding embeddings embedder input_embedding
position embedding: wpe position_embeddings pos_embed embed_positions positional_embedding pos_emb position_embedding pos_embedding pos_embeddings position_embed
type embedding: token_type_embeddings segment_embeddings type_embed token_type_embedding segment_embedding type_embedding
patch embedding: patch_embed patch_embeddings patch_embedding patch_proj patch_embedder conv_proj
class token: cls_token class_token cls class_embedding
head: lm_head logit_head logits_head head classifier output_layer unembed predictions output_head fc_head heads logits classification_head readout
layer: layer layers h block blocks encoder_layer transformer_block stage encoderblock resblocks
bn: bn batch_norm batchnorm bnorm
conv: conv convolution
linear: linear dense fc lin
downsample: downsample shortcut skip residual_conv conv_shortcut
pooler: pooler pool
encoder: encoder enc
decoder: decoder dec
"""
"""Words for one thing, one thing a line. Users' own names need none of them: they help where the names differ."""

REWRITES = (
    (r"\battention\.output\.dense\b", "attention.out"),
    (r"\battention\.output\.(LayerNorm|layer_norm|norm)\b", "norm1"),
    (r"\bintermediate\.dense\b", "mlp.up"),
    (r"(?<!attention\.)\boutput\.dense\b", "mlp.down"),
    (r"(?<!attention\.)\boutput\.(LayerNorm|layer_norm|norm)\b", "norm2"),
    (r"\b(mlp|ffn|feed_forward|ff)\.c_proj\b", r"\1.down"),
    (r"\b(mlp|ffn|feed_forward|feedforward|ff)\.(wo|out|proj|output|o)\b", r"\1.down"),
    (r"\b(mlp|ffn|feed_forward|feedforward|ff)\.(wi|in|input|fc|dense_0|0)\b", r"\1.up"),
    (r"\b(attn|attention|self_attn|self_attention|mha)\.c_proj\b", r"\1.out"),
    (r"\bEmbed_0\b", "embed"),
)
"""Names that mean something else beside another: a pattern over the dotted path, and what it is read as."""


@dataclass(frozen=True)
class Word:
    """One part of a path: as it is written, without its number, and what it means."""

    text: str
    stem: str
    number: int | None
    concept: str = ""
    stem_concept: str = ""


def plain(text: str) -> str:
    """Return a name in lower case without underscores.

    Example:
        >>> plain("LayerNorm_0")
        'layernorm0'
    """
    return text.lower().replace("_", "").replace("-", "")


@cache
def _meanings() -> dict[str, str]:
    table: dict[str, str] = {}
    for line in CONCEPTS.strip().splitlines():
        concept, _, names = line.partition(": ")
        for name in names.split():
            table.setdefault(plain(name), concept)
    return table


@cache
def _roles() -> dict[str, str]:
    return {name: role for role, names in ROLES.items() for name in names.split()}


@cache
def word(text: str) -> Word:
    """Return what one part of a path means.

    Example:
        >>> word("q_proj").concept, word("Conv_2").stem, word("Conv_2").number
        ('query', 'conv', 2)
        >>> word("layer_norm1").concept, word("LayerNorm_1").concept
        ('norm1', '')
    """
    name = plain(text)
    stem, digits = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]
    meanings = _meanings()
    concept = "" if COUNTED.fullmatch(text) else meanings.get(name, "")
    return Word(name, stem, int(digits) if digits and stem else None, concept, meanings.get(stem, ""))


COUNTED = re.compile(r"[A-Z]\w*_\d+")
"""Names that Linen gives: the class and a count from 0. `LayerNorm_1` is the second norm, as torch's norm2."""


THREE = {"w1": "gate", "w2": "down", "w3": "up"}
"""Llama's names of a gated layer's weights. Of two, `w1` is what comes first."""


def role_of(parts: Parts) -> tuple[Parts, str]:
    """Return the path of the layer that owns a weight, and the weight's role in it.

    Example:
        >>> role_of(("encoder", "fc1", "kernel"))
        (('encoder', 'fc1'), 'weight')
        >>> role_of(("layers", 0, "w_q")), role_of(("attn", "in_proj_bias")), role_of(("cls_token",))
        ((('layers', 0, 'q'), 'weight'), (('attn', 'in_proj'), 'bias'), (('cls_token',), 'value'))
        >>> role_of(("mlp/linear_1", "w")), role_of(("b2",))
        ((('mlp', 'linear_1'), 'weight'), (('dense2',), 'bias'))
        >>> role_of(("h_0_attn_w",)), role_of(("head_bias",))
        ((('h', 0, 'attn'), 'weight'), (('head',), 'bias'))
    """
    owner, role, _ = read(parts)
    return owner, role


@cache
def read(parts: Parts) -> tuple[Parts, str, str]:
    """Return the layer's path, the role, and the name that the layer itself has for the weight ("w" of "w_q")."""
    flat: list[str | int] = []
    for part in parts:
        pieces = [part] if isinstance(part, int) else [piece for piece in SPLIT.split(part) if piece]
        flat += [int(piece) if isinstance(piece, str) and piece.isdecimal() else piece for piece in pieces]
    last = flat[-1]
    owner, whole = tuple(flat[:-1]), tuple(flat)
    if isinstance(last, int):
        return whole, VALUE, ""
    roles, name = _roles(), last.lower()
    if name in roles and (owner or name not in OWN_NAMES):
        return owner, roles[name], name
    if found := re.fullmatch(r"(weight|kernel|bias|scale|gamma|beta|w|b|g)_?(\d+|[qkvo]|[io]n?|out)", name):
        return (*owner, f"dense{found[2]}" if found[2].isdecimal() else found[2]), roles[found[1]], found[1]
    if found := re.fullmatch(r"(.+?)_(weight|kernel|bias|scale|gamma|beta|w|b|g|mean|var)s?(_?\d+)?", last, re.I):
        own = found[2].lower()
        return (*owner, found[1] + (found[3] or "")), roles[own], own
    if found := re.fullmatch(r"(weight|kernel|bias)_(.+)", last, re.I):
        return (*owner, found[2]), roles[found[1].lower()], found[1].lower()
    return whole, VALUE, name


SPLIT = re.compile(r"[/.~]+|__+|_(?=\d+_)|(?<=_\d)_|(?<=_\d\d)_|(?<=_\d\d\d)_")
"""Where one name is a path: haiku's slashes, and `blocks_0_attn`, which flat dicts have."""

OWN_NAMES = ("embedding", "embeddings")
"""Names of roles that are the name of a layer where nothing stands before them."""


def words(owner: Parts) -> tuple[Word | int, ...]:
    """Return a layer's path in words, after the rewrites."""
    text = ".".join(str(part) for part in owner)
    for pattern, plainer in REWRITES:
        text = re.sub(pattern, plainer, text)
    return tuple(int(part) if part.isdecimal() else word(part) for part in text.split(".") if part)


def alike(one: Word, other: Word) -> float:
    """Return how far two parts of paths mean the same, from 0 to 1.

    Example:
        >>> alike(word("q_proj"), word("query")), alike(word("query"), word("key")), alike(word("ln"), word("ln"))
        (0.9, 0.0, 1.0)
    """
    if one.stem == other.stem and None not in (one.number, other.number):
        return 1.0  # which number is which, the places among the siblings say: conv1 may be Conv_0
    if one.text == other.text:
        return 1.0
    if one.concept and one.concept == other.concept:
        return 0.9
    if one.stem and one.stem == other.stem:
        return 0.6
    if "norm" in (one.concept, other.concept) and "norm" in (FAMILY.get(one.concept), FAMILY.get(other.concept)):
        return 0.5
    if one.concept and other.concept:
        if FAMILY.get(one.concept) and FAMILY.get(one.concept) == FAMILY.get(other.concept):
            return 0.0
        return 0.3 if one.stem_concept and one.stem_concept == other.stem_concept else 0.0
    first, second = one.stem_concept or one.concept, other.stem_concept or other.concept
    if first and first == second:
        return 0.5
    short, long = sorted((one.stem, other.stem), key=len)
    if len(short) >= 3 and (long.startswith(short) or long.endswith(short)):
        return 0.4
    if len(short) < 4:
        return 0.0
    return 0.3 if short[:4] == long[:4] or short[-4:] == long[-4:] else 0.0


FAMILY = {
    **dict.fromkeys(("query", "key", "value", "out", "qkv", "kv"), "attention"),
    **dict.fromkeys(("up", "down", "gate"), "mlp"),
    **dict.fromkeys(("norm1", "norm2", "final norm"), "norm"),
    **dict.fromkeys(("token embedding", "position embedding", "type embedding"), "embedding"),
}
"""Things that are siblings: two of them are never one."""
