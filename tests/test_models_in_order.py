"""Ports of many stages whose names are Linen's counts, and what small configurations of published ports met."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.models import Inputs

RNG = np.random.default_rng(0)
TOKENS = RNG.standard_normal((2, 5, 8)).astype(np.float32)


class Residual(nn.Module):
    """A layer and the norm before it, which is defined last."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.norm = inner, nn.LayerNorm(8)

    def forward(self, x):
        return self.inner(self.norm(x)) + x


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.to_qkv(x).chunk(3, -1)
        return self.to_out(torch.softmax(q @ k.mT, -1) @ v)


class Stages(nn.Module):
    """Stages in a list, each with blocks in a list; the norm after the last stage may be left out in the port."""

    def __init__(self, blocks=(2, 1)):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(*(nn.Sequential(Residual(Mixing()), Residual(self.mlp())) for _ in range(count)))
            for count in blocks
        )
        self.last = nn.LayerNorm(8)

    @staticmethod
    def mlp():
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


class LinenPreNorm(linen.Module):
    inner: linen.Module

    @linen.compact
    def __call__(self, x):
        return self.inner(linen.LayerNorm(epsilon=1e-5)(x)) + x


class LinenMixing(linen.Module):
    @linen.compact
    def __call__(self, x):
        to_qkv, to_out = linen.Dense(24, use_bias=False), linen.Dense(8)
        q, k, v = jnp.split(to_qkv(x), 3, -1)
        return to_out(jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v)


class LinenMlp(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jax.nn.relu(linen.Dense(8)(x))
        return linen.Dense(8)(x)


class LinenStage(linen.Module):
    blocks: int

    @linen.compact
    def __call__(self, x):
        for _ in range(self.blocks):
            x = LinenPreNorm(LinenMixing())(x)
            x = LinenPreNorm(LinenMlp())(x)
        return x


class LinenStages(linen.Module):
    blocks: tuple = (2, 1)
    last: bool = True

    @linen.compact
    def __call__(self, x):
        for count in self.blocks:
            x = LinenStage(count)(x)
        return linen.LayerNorm(epsilon=1e-5)(x) if self.last else x


def stages(**options):
    torch.manual_seed(0)
    model, module = Stages(), LinenStages(**options)
    port = module, module.init(jax.random.key(0), TOKENS)
    return model, port, parity.map_weights(model, port)


def test_stages_are_paired_in_order():
    """Square layers, all alike: names sent layers of one stage to another, and their norms with them."""
    model, port, found = stages()
    pairs = {pair.torch[0]: pair.jax[0].removeprefix("params.") for pair in found.pairs}
    assert len(pairs) == 35, found
    for ours, theirs in (
        ("layers.0.0.0.norm.weight", "LinenStage_0.LinenPreNorm_0.LayerNorm_0.scale"),
        ("layers.0.0.0.inner.to_out.weight", "LinenStage_0.LinenMixing_0.Dense_1.kernel"),
        ("layers.0.0.1.inner.0.weight", "LinenStage_0.LinenMlp_0.Dense_0.kernel"),
        ("layers.0.1.1.norm.weight", "LinenStage_0.LinenPreNorm_3.LayerNorm_0.scale"),
        ("layers.1.0.1.inner.2.weight", "LinenStage_1.LinenMlp_0.Dense_1.kernel"),
        ("last.weight", "LayerNorm_0.scale"),
    ):
        assert pairs[ours] == theirs
    report = parity.assert_same_model(model, found.load_into_jax(model, port), (TOKENS,))
    assert len(report.gradients) == 36


def test_a_norm_that_the_port_leaves_out_leaves_the_others_paired():
    _, _, found = stages(last=False)
    assert not found.ambiguous, found
    assert found.unpaired.torch == ("last.weight", "last.bias")
    assert found.pair("layers.1.0.0.norm.weight").jax[0] == "params.LinenStage_1.LinenPreNorm_0.LayerNorm_0.scale"


def test_of_one_block_more_the_first_are_paired():
    _, _, found = stages(blocks=(2, 2))
    assert not found.unpaired.torch, found
    assert all(path.startswith("params.LinenStage_1.") for path in found.unpaired.jax)
    assert found.pair("layers.1.0.0.inner.to_out.weight").jax[0] == "params.LinenStage_1.LinenMixing_0.Dense_1.kernel"


def test_values_go_before_order():
    """A port that was loaded with two layers exchanged is paired by what it holds."""
    model, port, found = stages()
    module, variables = found.load_into_jax(model, port)
    stage = variables["params"]["LinenStage_0"]
    stage["LinenMlp_0"], stage["LinenMlp_1"] = stage["LinenMlp_1"], stage["LinenMlp_0"]
    found = parity.map_weights(model, (module, variables))
    assert found.pair("layers.0.0.1.inner.0.weight").jax[0] == "params.LinenStage_0.LinenMlp_1.Dense_0.kernel"


class Sound(nn.Module):
    """As many channels as positions, after a convolution that says where the channels are."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv2(torch.nn.functional.gelu(self.conv1(x))).mT


class NnxSound(nnx.Module):
    def __init__(self, approximate):
        self.conv1 = nnx.Conv(3, 8, 3, padding=1, rngs=nnx.Rngs(0))
        self.conv2 = nnx.Conv(8, 8, 3, padding=1, rngs=nnx.Rngs(0))
        self.approximate = approximate

    def __call__(self, x):
        return self.conv2(jax.nn.gelu(self.conv1(x), approximate=self.approximate))


@pytest.mark.parametrize("approximate", [False, True])
def test_as_many_channels_as_positions(approximate):
    """A convolution was blamed: its output was read with positions for channels."""
    model, port = Sound(), NnxSound(approximate)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    sound = RNG.standard_normal((2, 3, 8)).astype(np.float32)
    report = parity.compare_models(model, port, Inputs(torch=(sound,), jax=(sound.transpose(0, 2, 1),)))
    assert {one.path: one.verdict for one in report.modules}["conv1"] == "within bound", report
    assert report.ok is not approximate
    if approximate:
        assert (report.first.path, report.first.diagnosis.cause) == ("", "default argument: approximate")


class Patches(nn.Module):
    """Patches by a linear layer: 16 of 48 numbers are an image of 16 x 16 x 3 as well."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(48, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = x.unflatten(3, (4, 4)).unflatten(2, (4, 4)).permute(0, 2, 4, 3, 5, 1)
        return self.head(torch.tanh(self.embed(x.reshape(len(x), 16, 48))))


class LinenPatches(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (4, 4), (4, 4), name="embed")(x)
        return linen.Dense(2, name="head")(jnp.tanh(x.reshape(len(x), 16, 8)))


def test_patches_are_no_image():
    """The convolution was run on patches, as the numbers are as many as an image's, and blamed."""
    model, module = Patches(), LinenPatches()
    images = RNG.standard_normal((2, 16, 16, 3)).astype(np.float32)
    port = module, module.init(jax.random.key(0), images)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    model.head.weight.data *= 2  # what is wrong is elsewhere
    report = parity.compare_models(
        model, port, Inputs(torch=(images.transpose(0, 3, 1, 2),), jax=(images,)), perturb=False
    )
    assert {one.path: one.verdict for one in report.modules}["embed"] == "not judged", report
    assert report.first.path == "head"


class Rounding(nnx.Module):
    """A port that hands a layer float32, whatever the layer's weights are."""

    def __init__(self):
        self.norm, self.out = nnx.RMSNorm(8, epsilon=1e-5, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return {"logits": self.out(self.norm(x).astype(jnp.float32)), "cache": jnp.zeros((2, 5, 4))}


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.RMSNorm(8, eps=1e-5), nn.Linear(8, 4)

    def forward(self, x):
        return {"logits": self.out(self.norm(x))}


def test_a_layer_that_is_given_float32_is_judged_so_and_outputs_have_their_own_names():
    model, port = Plain(), Rounding()
    port = parity.map_weights(model, port).load_into_jax(model, port)
    report = parity.compare_models(model, port, (TOKENS,))
    assert {one.verdict for one in report.modules if one.path} == {"within bound"}, report
    assert report.first.diagnosis.cause == "number of outputs", report
    assert "only JAX gives cache" in report.first.diagnosis.text


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights1 = nn.Parameter(torch.randn(4, 4, dtype=torch.cfloat))

    def forward(self, x):
        return torch.einsum("bi,io->bo", x.to(torch.cfloat), self.weights1).real


@pytest.mark.filterwarnings("error")
def test_a_complex_weight_is_no_real_one():
    """Its real part alone was paired with it, and NumPy warned."""
    params = {"kernel_1_r": jnp.ones((4, 4)), "kernel_1_i": jnp.ones((4, 4))}
    found = parity.map_weights(Spectral(), (lambda params, x: x @ params["kernel_1_r"], params))
    assert found.unpaired.torch == ("weights1",)
    assert not found.pairs


class Mixed(nn.Module):
    """A block whose last layer is called first."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down, self.mix = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)


class MixedStages(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.inp, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        if norm:
            self.norm, self.blocks = nn.LayerNorm(8), nn.ModuleList(Mixed() for _ in range(3))
        else:
            self.enc, self.dec = (nn.ModuleList(Mixed() for _ in range(2)) for _ in range(2))


class LinenMixed(linen.Module):
    second: bool = True

    @linen.compact
    def __call__(self, x):
        mix, down, up = linen.Dense(8), linen.Dense(8), linen.Dense(16)
        x = x + mix(linen.LayerNorm()(x))
        return x + down(jax.nn.relu(up(linen.LayerNorm()(x) if self.second else x)))


class LinenMixedStages(linen.Module):
    blocks: int
    lost: int | None = None

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(8)(x)
        for at in range(self.blocks):
            x = LinenMixed(at != self.lost)(x)
        return linen.Dense(3)(linen.LayerNorm()(x))


@pytest.mark.parametrize("norm", [False, True], ids=["final norm in JAX alone", "norm lost in a block"])
def test_layers_of_a_block_stay_in_one_block(norm):
    """One norm more or less opened an order, by which a block's layers went to the block after it and to the first."""
    model = MixedStages(norm)
    module = LinenMixedStages(3, lost=1) if norm else LinenMixedStages(4)
    found = parity.map_weights(model, (module, module.init(jax.random.key(0), TOKENS[..., :4])))
    pairs = {pair.torch[0]: (pair.jax[0].removeprefix("params."), pair.rule) for pair in found.pairs}
    blocks = [f"blocks.{k}" for k in range(3)] if norm else ["enc.0", "enc.1", "dec.0", "dec.1"]
    for k, block in enumerate(blocks):
        for layer, number in (("mix", 0), ("down", 1), ("up", 2)):
            theirs = f"LinenMixed_{k}.Dense_{number}"
            assert pairs[f"{block}.{layer}.weight"] == (f"{theirs}.kernel", "kernel = weight.T"), found
            assert pairs[f"{block}.{layer}.bias"][0] == f"{theirs}.bias", found


class Gated(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, x):
        first, second, last = (getattr(self, name) for name in self.names)
        return last(torch.tanh(first(x)) * torch.sigmoid(second(x)))


class NnxGated(nnx.Module):
    """Weights and biases in one module, of which the first two biases may be exchanged in loading."""

    def __init__(self, model, weights, biases, *, exchanged):
        layers = [getattr(model, name) for name in model.names]
        held = [layers[k] for k in ((1, 0, 2) if exchanged else (0, 1, 2))]
        for weight, bias, layer, other in zip(weights, biases, layers, held, strict=True):
            setattr(self, weight, nnx.Param(jnp.array(layer.weight.detach().numpy().T)))
            setattr(self, bias, nnx.Param(jnp.array(other.bias.detach().numpy())))
        self.names = nnx.static([*weights, *biases]) if hasattr(nnx, "static") else [*weights, *biases]

    def __call__(self, x):
        w = [getattr(self, name)[...] for name in self.names]
        return (jnp.tanh(x @ w[0] + w[3]) * jax.nn.sigmoid(x @ w[1] + w[4])) @ w[2] + w[5]


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize(
    ("layers", "weights", "biases"),
    [
        ("qko", ("wq", "wk", "wo"), ("q_shift", "k_shift", "o_shift")),
        (("lin_a", "lin_b", "lin_c"), ("w_1", "w_2", "w_3"), ("shift_1", "shift_2", "shift_3")),
    ],
    ids=["names", "numbers"],
)
def test_biases_that_were_exchanged_in_loading_are_found_by_their_names(layers, weights, biases, exchanged):
    """Equal values went before names: the two were called the same weights, and the cause was unknown."""
    torch.manual_seed(1)
    model = Gated(layers)
    port = NnxGated(model, weights, biases, exchanged=exchanged)
    found = parity.map_weights(model, port)
    assert [found.pair(f"{name}.bias").jax[0] for name in layers] == list(biases), found
    report = parity.compare_models(model, port, (TOKENS,))
    assert report.ok is not exchanged, report
    if exchanged:
        assert report.first.diagnosis.cause == "weight: exchanged", report


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_a_bias_that_neither_name_nor_value_tells_is_said_to_be_a_guess():
    params = {"first": jnp.ones((8, 6)), "second": jnp.ones((6, 4)), "here": jnp.zeros(6), "there": jnp.zeros(4)}

    def port(params, x):
        return jnp.tanh(x @ params["first"] + params["here"]) @ params["second"] + params["there"]

    model = Halves()
    found = parity.map_weights(model, (port, params))
    assert found.pair("first.bias").jax == ("here",)
    assert found.pair("first.bias").evidence.startswith("a guess"), found
    report = parity.compare_models(model, found.load_into_jax(model, (port, params)), (TOKENS,), weights=found)
    assert report.ok, report
    assert "paired by a guess" in str(report), report
    assert "first.bias" in str(report), report


class Decoding(nn.Module):
    """What is run last is defined first."""

    def __init__(self):
        super().__init__()
        self.dec, self.enc = (nn.ModuleList([nn.Linear(8, 8)]) for _ in range(2))

    def forward(self, x):
        return self.dec[0](torch.tanh(self.enc[0](x)))


class LinenDecoding(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jnp.tanh(linen.Dense(8)(x))
        return linen.Dense(8)(x)


def test_modules_that_a_map_may_have_exchanged_are_likely():
    """The map paired by order of definition, loaded them so, and then the port was blamed for certain."""
    model, module = Decoding(), LinenDecoding()
    port = module, module.init(jax.random.key(0), TOKENS)
    report = parity.compare_models(model, parity.map_weights(model, port).load_into_jax(model, port), (TOKENS,))
    found = report.first.diagnosis
    assert found.cause == "modules exchanged", report
    assert found.text.startswith("Likely: "), found
    assert "by the order of definition" in found.text, found
