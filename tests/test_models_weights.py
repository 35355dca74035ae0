"""What the map of weights says of layouts, wrong ports, unequal values and bad input."""

from __future__ import annotations

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from transformers.pytorch_utils import Conv1D

import parity
from parity.models.weights import TorchTree, jax_tree
from parity.models.weights.layouts import LAYOUTS, regroups
from parity.models.weights.unequal import explain

KEY = jax.random.key(0)
RNGS = nnx.Rngs(0)


def random(model: nn.Module) -> nn.Module:
    """Return the model with weights that are all different."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return model


def function(params: Any) -> Any:
    return (lambda params, x: x, params)


def dense(i: int, o: int) -> dict[str, Any]:
    return {"kernel": jnp.zeros((i, o)), "bias": jnp.zeros(o)}


# A layer of torch, one of JAX, and the shape of an input as torch has it, without the batch.
LAYERS = {
    "linear nnx": (lambda: nn.Linear(3, 4), lambda: nnx.Linear(3, 4, rngs=RNGS), (3,)),
    "linear square nnx": (lambda: nn.Linear(4, 4), lambda: nnx.Linear(4, 4, rngs=RNGS), (4,)),
    "linear equinox": (lambda: nn.Linear(3, 4), lambda: eqx.nn.Linear(3, 4, key=KEY), (3,)),
    "linear square equinox": (lambda: nn.Linear(4, 4), lambda: eqx.nn.Linear(4, 4, key=KEY), (4,)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 2), lambda: nnx.Conv(3, 4, 2, padding="VALID", rngs=RNGS), (3, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (2, 3)), lambda: nnx.Conv(3, 4, (2, 3), padding="VALID", rngs=RNGS), (3, 6, 5)),
    "conv2d square": (
        lambda: nn.Conv2d(3, 3, 3),
        lambda: nnx.Conv(3, 3, (3, 3), padding="VALID", rngs=RNGS),
        (3, 6, 5),
    ),
    "conv2d grouped": (
        lambda: nn.Conv2d(4, 6, 2, groups=2),
        lambda: nnx.Conv(4, 6, (2, 2), padding="VALID", feature_group_count=2, rngs=RNGS),
        (4, 6, 5),
    ),
    "conv2d depthwise": (
        lambda: nn.Conv2d(4, 4, 2, groups=4),
        lambda: nnx.Conv(4, 4, (2, 2), padding="VALID", feature_group_count=4, rngs=RNGS),
        (4, 6, 5),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), lambda: nnx.Conv(2, 3, (2, 2, 2), padding="VALID", rngs=RNGS), (2, 4, 5, 3)),
    "conv2d equinox": (lambda: nn.Conv2d(3, 4, 2), lambda: eqx.nn.Conv2d(3, 4, 2, key=KEY), (3, 6, 5)),
    "transposed": (
        lambda: nn.ConvTranspose2d(3, 4, 3, 2),
        lambda: nnx.ConvTranspose(3, 4, (3, 3), (2, 2), padding="VALID", rngs=RNGS),
        (3, 4, 5),
    ),
    "transposed square": (
        lambda: nn.ConvTranspose2d(3, 3, 3, 2),
        lambda: nnx.ConvTranspose(3, 3, (3, 3), (2, 2), padding="VALID", rngs=RNGS),
        (3, 4, 5),
    ),
    "transposed transpose_kernel": (
        lambda: nn.ConvTranspose2d(3, 3, 3, 2),
        lambda: nnx.ConvTranspose(3, 3, (3, 3), (2, 2), padding="VALID", transpose_kernel=True, rngs=RNGS),
        (3, 4, 5),
    ),
    "transposed 1d": (
        lambda: nn.ConvTranspose1d(3, 4, 3),
        lambda: nnx.ConvTranspose(3, 4, 3, padding="VALID", rngs=RNGS),
        (3, 5),
    ),
    "transposed equinox": (
        lambda: nn.ConvTranspose2d(3, 4, 3, 2),
        lambda: eqx.nn.ConvTranspose2d(3, 4, 3, 2, key=KEY),
        (3, 4, 5),
    ),
    "transposed equinox grouped": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2),
        lambda: eqx.nn.ConvTranspose2d(4, 6, 3, 2, groups=2, key=KEY),
        (4, 4, 5),
    ),
    "prelu nnx": (lambda: nn.PReLU(), lambda: nnx.PReLU(), (3,)),
    "prelu equinox": (lambda: nn.PReLU(), lambda: eqx.nn.PReLU(), (3,)),
    "layer norm": (lambda: nn.LayerNorm(5), lambda: nnx.LayerNorm(5, epsilon=1e-5, rngs=RNGS), (5,)),
    "group norm equinox": (lambda: nn.GroupNorm(2, 4), lambda: eqx.nn.GroupNorm(2, 4), (4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_the_same_with_loaded_weights(name):
    """The oracle is the layer itself: the values are right when both give the same output."""
    make, make_jax, shape = LAYERS[name]
    model = random(make())
    other = make_jax()
    flax = isinstance(other, nnx.Module)
    found = parity.map_weights(model, other)
    assert not found.unpaired
    assert not found.ambiguous, found
    loaded = found.load_into_jax(model, other)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = model(torch.from_numpy(x)[None])[0].detach().numpy()
    if flax:
        got = np.moveaxis(np.asarray(loaded(jnp.moveaxis(x, 0, -1)[None])[0]), -1, 0)
    else:
        got = np.asarray(loaded(jnp.asarray(x)))
    assert np.allclose(got, expected, atol=1e-5), np.abs(got - expected).max()
    assert found.check(model, loaded) == ()


SHAPES = [(4, 4), (4, 6), (2, 3, 3), (3, 3, 3), (2, 3, 3, 2), (3, 2, 4, 5, 6)]


@pytest.mark.parametrize(("name", "shape"), list(itertools.product(LAYOUTS, SHAPES)))
def test_a_layout_is_undone_by_its_inverse(name, shape):
    layout = LAYOUTS[name]
    made = layout.shape(shape, (shape[1], shape[0], *shape[2:]))
    if made is None:
        assert not layout.fits(shape, (shape[1], shape[0], *shape[2:]))
        return
    value = np.random.default_rng(0).normal(size=shape)
    moved = layout.to_jax(value, made)
    assert moved.shape == made
    assert np.array_equal(layout.to_torch(moved, shape), value)
    assert sorted(moved.ravel()) == sorted(value.ravel())


def test_axes_that_are_exchanged_are_not_regrouped():
    assert regroups((2, 3, 4), (6, 4))
    assert not regroups((2, 3, 4), (3, 2, 4))


def two_layers() -> nn.Module:
    model = nn.Module()
    model.first, model.second = nn.Linear(3, 4), nn.Linear(4, 5)
    return random(model)


WRONG_PORTS = {
    "missing bias": (
        {"first": {"kernel": jnp.zeros((3, 4))}, "second": dense(4, 5)},
        ["only in torch: first.bias: its layer is first in JAX, which has no bias"],
    ),
    "extra weight": (
        {"first": dense(3, 4), "second": dense(4, 5), "third": dense(7, 5)},
        ["only in JAX: third.kernel: torch has no weight that could be it", "only in JAX: third.bias"],
    ),
    "missing layer": (
        {"first": dense(3, 4)},
        ["only in torch: second.weight: JAX has no weight that could be it", "only in torch: second.bias"],
    ),
    "wrong shape": (
        {"first": dense(3, 4), "second": {"kernel": jnp.zeros((4, 6)), "bias": jnp.zeros(6)}},
        ["second.weight of torch is (5, 4), second.kernel of JAX (4, 6), and no layout leads from one to the other"],
    ),
    "wrong bias": (
        {"first": dense(3, 4), "second": {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(4)}},
        ["only in torch: second.bias: the shapes do not fit: second.bias of torch is (5,), second.bias of JAX (4,)"],
    ),
}


@pytest.mark.parametrize("fault", WRONG_PORTS)
def test_a_wrong_port_is_told_so(fault):
    params, sentences = WRONG_PORTS[fault]
    found = parity.map_weights(two_layers(), function(params))
    assert found.unpaired
    for sentence in sentences:
        assert any(sentence in line for line in found.unpaired.lines()), found.unpaired.lines()
        assert sentence in str(found)
    with pytest.raises(ValueError, match="loading: expected every weight to be paired"):
        found.load_into_jax(two_layers(), function(params))
    loaded = found.load_into_jax(two_layers(), function(params), partial=True)
    assert np.array_equal(loaded[1]["first"]["kernel"], two_layers().first.weight.detach().numpy().T)


def test_other_dtypes_are_noted_and_compared_after_the_cast():
    model = two_layers()
    params = {"first": dense(3, 4), "second": dense(4, 5)}
    params = jax.tree.map(lambda value: value.astype(jnp.bfloat16), params)
    found = parity.map_weights(model, function(params))
    assert found.notes == ("4 weights are float32 in torch and bfloat16 in JAX: first.weight, ...",)
    loaded = found.load_into_jax(model, function(params))
    assert found.check(model, loaded) == ()
    assert loaded[1]["first"]["kernel"].dtype == jnp.bfloat16


def loaded_layers(change: Any) -> tuple[nn.Module, Any]:
    """Return q, k and v of 4 x 4 beside a JAX side that has them, but for one change."""
    model = nn.Module()
    model.q, model.k, model.v = (nn.Linear(4, 4, bias=False) for _ in range(3))
    random(model)
    params = {name: {"kernel": getattr(model, name).weight.detach().numpy().T.copy()} for name in "qkv"}
    change(params)
    return model, function(jax.tree.map(jnp.asarray, params))


def _exchange(params: Any) -> None:
    params["q"], params["k"] = params["k"], params["q"]


def _set(name: str, change: Any) -> Any:
    def apply(params: Any) -> None:
        params[name]["kernel"] = change(params[name]["kernel"])

    return apply


UNEQUAL = {
    "transpose": (_set("q", lambda a: a.T.copy()), {"q.weight": "equal after a transpose"}),
    "scale": (_set("v", lambda a: a / 8), {"v.weight": "JAX's is torch's times 0.125"}),
    "permuted": (_set("k", lambda a: a[[1, 0, 3, 2]]), {"k.weight": "permutation of axis 0: [1, 0, 3, 2]"}),
    "exchanged": (
        _exchange,
        {"q.weight": "q.weight and k.weight are exchanged", "k.weight": "k.weight and q.weight are exchanged"},
    ),
    "zeros": (_set("q", lambda a: a * 0), {"q.weight": "JAX's is all zeros: not loaded?"}),
    "one number": (_set("q", lambda a: a + np.eye(4, dtype=a.dtype)), {"q.weight": "differs, by 1 at most"}),
    "nan": (_set("q", lambda a: np.where(a > 0, np.nan, a)), {"q.weight": "JAX's values are not all finite"}),
}


@pytest.mark.parametrize("fault", UNEQUAL)
def test_unequal_values_are_named(fault):
    change, expected = UNEQUAL[fault]
    found = parity.map_weights(*loaded_layers(change))
    assert {one.pair.torch[0] for one in found.unequal} == expected.keys(), found
    for one in found.unequal:
        assert expected[one.pair.torch[0]] in one.text


def test_equal_values_are_equal():
    assert parity.map_weights(*loaded_layers(lambda params: None)).ok


def test_random_numbers_are_no_rearrangement():
    random = np.random.default_rng(0)
    assert explain(random.normal(size=(6, 6)), random.normal(size=(6, 6)))[0] == "differs"


def test_a_square_matrix_without_a_convention_is_refused_unless_its_values_tell():
    model = random(nn.Linear(4, 4, bias=False))
    found = parity.map_weights(model, function({"weight": jnp.zeros((4, 4))}))
    assert [one.candidates for one in found.ambiguous] == [("weight = weight.T", "weight = weight")]
    assert not found.pairs
    values = jnp.asarray(model.weight.detach().numpy())
    assert parity.map_weights(model, function({"weight": values})).pairs[0].rule == "weight = weight"
    assert parity.map_weights(model, function({"weight": values.T})).pairs[0].rule == "weight = weight.T"
    told = parity.map_weights(model, function({"weight": jnp.zeros((4, 4))}), rules=[parity.Rule("*", "*", "same")])
    assert (told.pairs[0].rule, told.pairs[0].evidence) == ("weight = weight", "told")


def test_a_square_matrix_is_laid_out_as_the_others_of_its_name():
    model = nn.Module()
    model.square, model.other = nn.Linear(4, 4), nn.Linear(4, 6)
    params = {"square": {"weight": jnp.zeros((4, 4))}, "other": {"weight": jnp.zeros((4, 6))}}
    rules = {pair.torch[0]: pair.rule for pair in parity.map_weights(model, function(params)).pairs}
    assert rules["square.weight"] == "weight = weight.T"


def test_equal_shapes_without_names_are_refused_unless_their_values_tell():
    model = nn.Module()
    model.alpha, model.beta_, model.delta = (nn.Linear(4, 4, bias=False) for _ in range(3))
    random(model)
    empty = {name: {"kernel": jnp.zeros((4, 4))} for name in ("one", "three", "two")}
    found = parity.map_weights(model, function(empty))
    assert not found.pairs
    assert {one.torch for one in found.ambiguous} == {"alpha.weight", "beta_.weight", "delta.weight"}
    assert set(found.ambiguous[0].candidates) == {"one", "two", "three"}
    with pytest.raises(ValueError, match=r"alpha.weight: one of one, three, two\? .*say it with a parity.Rule"):
        found.load_into_jax(model, function(empty))
    order = {"one": "delta", "three": "alpha", "two": "beta_"}
    full = {k: {"kernel": jnp.asarray(getattr(model, v).weight.detach().numpy().T)} for k, v in order.items()}
    found = parity.map_weights(model, function(full))
    assert {pair.torch[0]: pair.jax[0] for pair in found.pairs} == {
        f"{v}.weight": f"{k}.kernel" for k, v in order.items()
    }
    assert {pair.evidence for pair in found.pairs} == {"equal values"}


def test_order_of_definition_is_the_last_resort_and_said():
    model = nn.Module()
    model.alpha, model.delta = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.two = nnx.Linear(4, 4, use_bias=False, rngs=RNGS)
            self.one = nnx.Linear(4, 4, use_bias=False, rngs=RNGS)

    found = parity.map_weights(model, Port())
    assert [(p.torch[0], p.jax[0], p.evidence) for p in found.pairs] == [
        ("alpha.weight", "two.kernel", "order of definition"),
        ("delta.weight", "one.kernel", "order of definition"),
    ]


def test_names_are_kept_to_though_the_values_say_otherwise():
    """A port whose q and k were loaded the wrong way round is wrong: equal values must not hide it."""
    found = parity.map_weights(*loaded_layers(_exchange))
    assert {pair.torch[0]: pair.jax[0] for pair in found.pairs}["q.weight"] == "q.kernel"


def test_tied_weights():
    model = nn.Module()
    model.embed, model.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    model.head.weight = model.embed.weight
    random(model)
    tied = function({"embed": {"embedding": jnp.zeros((7, 4))}})
    assert len(parity.map_weights(model, tied).pairs) == 1
    params = {"embed": {"embedding": jnp.zeros((7, 4))}, "head": {"kernel": jnp.zeros((4, 7))}}
    found = parity.map_weights(model, function(params))
    assert len(found.pairs) == 2
    assert found.notes == ("embed.weight is one weight in torch (tied) and 2 in JAX: embed.embedding, head.kernel",)
    params["embed"] = {"embedding": jnp.ones((7, 4))}
    with pytest.raises(ValueError, match=r"is one weight in torch and two in JAX, .*, whose values differ"):
        found.load_into_torch(function(params), model)


def test_a_tied_head_with_a_bias_and_norms_of_its_own_is_one_layer():
    """As ESM-2 has it, where the JAX port keeps the tied weight at the head (esm2quinox)."""
    model = nn.Module()
    model.embed_tokens, model.emb_layer_norm_after, model.lm_head = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Module()
    model.lm_head.weight, model.lm_head.bias = model.embed_tokens.weight, nn.Parameter(torch.ones(7))
    model.lm_head.dense, model.lm_head.layer_norm = nn.Linear(4, 4), nn.LayerNorm(4)

    class Head(nnx.Module):
        def __init__(self) -> None:
            self.linear1 = nnx.Linear(4, 4, rngs=RNGS)
            self.layer_norm = nnx.LayerNorm(4, rngs=RNGS)
            self.linear2 = nnx.Linear(4, 7, rngs=RNGS)

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.layer_norm = nnx.LayerNorm(4, rngs=RNGS)
            self.logit_head = Head()

    found = parity.map_weights(random(model), Port())
    assert not found.unpaired
    homes = {pair.torch[0]: pair.jax[0] for pair in found.pairs}
    assert homes["embed_tokens.weight"] == "logit_head.linear2.kernel"
    assert homes["lm_head.bias"] == "logit_head.linear2.bias"
    assert homes["lm_head.layer_norm.weight"] == "logit_head.layer_norm.scale"


def test_a_buffer_that_only_torch_has_is_no_fault():
    model = two_layers()
    model.register_buffer("position_ids", torch.arange(4))
    model.register_buffer("mask", torch.ones(4, 4))
    found = parity.map_weights(model, function({"first": dense(3, 4), "second": dense(4, 5)}))
    assert not found.unpaired
    assert found.unpaired.torch_buffers == ("position_ids", "mask")


def test_rules():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
    random(model)
    params = {"stack": jnp.zeros((2, 3, 3)), "offsets": jnp.zeros((2, 3))}
    rules = [
        parity.Rule("layers.{i}.weight", "stack[{i}]", "transpose"),
        parity.Rule("layers.{i}.bias", "offsets[{i}]", (lambda bias: -bias, lambda offset: -offset)),
    ]
    found = parity.map_weights(model, function(params), rules=rules)
    loaded = found.load_into_jax(model, function(params))[1]
    assert np.array_equal(loaded["stack"][1], model.layers[1].weight.detach().numpy().T)
    assert np.array_equal(loaded["offsets"][0], -model.layers[0].bias.detach().numpy())
    assert found.pair("layers.1.weight").index == 1
    with pytest.raises(ValueError, match="is by a function of yours, which no file can hold"):
        found.save("never.toml")


BAD_RULES = {
    "no weight": (
        parity.Rule("fisrt.weight", "first.kernel"),
        "speaks of no weight of the torch model; did you mean 'first",
    ),
    "no path": (
        parity.Rule("first.weight", "frist.kernel"),
        "the JAX model has no weight 'frist.kernel'; did you mean 'first",
    ),
    "no fit": (parity.Rule("first.weight", "second.kernel"), r"does not become second.kernel \(4, 5\) by any layout"),
    "no layer": (parity.Rule("first.weight", "first.kernel[9]"), r"first.kernel has shape \(3, 4\), and no layer 9"),
}


@pytest.mark.parametrize("fault", BAD_RULES)
def test_bad_rules_are_refused(fault):
    rule, text = BAD_RULES[fault]
    params = {"first": dense(3, 4), "second": dense(4, 5)}
    with pytest.raises(ValueError, match=text):
        parity.map_weights(two_layers(), function(params), rules=[rule])


def test_a_rule_with_a_hole_that_nothing_fills_is_refused():
    with pytest.raises(ValueError, match=r"has holes that the pattern 'a.weight' does not fill"):
        parity.Rule("a.weight", "b.{i}.kernel")
    with pytest.raises(ValueError, match=r"a rule's transform: expected one of same, transpose, .* got 'transposed'"):
        parity.Rule("a", "b", "transposed")


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"the torch model: expected an nn.Module, got dict"):
        parity.map_weights({}, function({"w": jnp.zeros(3)}))
    with pytest.raises(TypeError, match=r"the JAX model: expected a Flax NNX module, .* got builtins.int"):
        parity.map_weights(nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match=r"expected .function, params. with arrays in params, got none"):
        parity.map_weights(nn.Linear(2, 2), function({}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("format = 1\n[[pair]]\ntorch = ['a']\n", "pair 1: expected torch, jax, transform"),
        ("format = 9\n", "expected a map of weights with format = 1, got 9"),
        ("]", "expected a map of weights in TOML"),
    ],
    ids=["pair", "format", "syntax"],
)
def test_a_damaged_file_is_refused(tmp_path, text, said):
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        parity.WeightMap.load(tmp_path / "map.toml")


def test_a_map_of_another_model_is_refused():
    params = {"first": dense(3, 4), "second": dense(4, 5)}
    found = parity.map_weights(two_layers(), function(params))
    with pytest.raises(ValueError, match=r"the map names 'first.weight', which the torch model does not have"):
        found.check(nn.Linear(3, 4), function(params))
    params["second"] = dense(4, 6)
    with pytest.raises(ValueError, match="the map does not fit"):
        found.check(two_layers(), function(params))


def test_the_models_are_not_changed_by_mapping():
    model, port = two_layers(), function({"first": dense(3, 4), "second": dense(4, 5)})
    before = {name: value.copy() for name, value in TorchTree(model).weights().items()}
    parity.map_weights(model, port)
    assert all(np.array_equal(value, before[name]) for name, value in TorchTree(model).weights().items())
    assert not any(np.any(value) for value in jax_tree(port).weights().values())


@pytest.mark.parametrize("turned", [False, True], ids=["kernel in, out", "kernel out, in"])
def test_a_square_kernel_of_conv1d_is_read_as_its_siblings_are(turned):
    """Flax's twins of transformers' Conv1D keep kernels either way; a square one alone does not say which."""
    made = torch.nn.ModuleDict({"c_attn": Conv1D(12, 4), "c_proj": Conv1D(4, 4)})
    shapes = {"c_attn": (4, 12), "c_proj": (4, 4)}
    params = {name: {"kernel": np.ones(one[::-1] if turned else one, np.float32)} for name, one in shapes.items()}
    found = parity.map_weights(made, (lambda params, x: x, params))
    rules = {pair.torch[0]: pair.rule for pair in found.pairs}
    assert rules["c_attn.weight"] == rules["c_proj.weight"] == ("kernel = weight.T" if turned else "kernel = weight")
