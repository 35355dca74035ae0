"""What published ports met: a ResNet in Linen whose norms cast, a model that takes a key. Each right port is quiet."""

import functools
from types import SimpleNamespace

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.models import Inputs, backward_alone, training, weighing

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)


class Block(nn.Module):
    """As torchvision's basic block; `late` makes the shortcut before the rest, which changes no answer."""

    def __init__(self, into, out, stride, *, late=False):
        super().__init__()

        def shortcut():
            if stride > 1 or into != out:
                self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

        if late:
            shortcut()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        if not late:
            shortcut()

    def forward(self, x):
        kept = self.downsample(x) if hasattr(self, "downsample") else x
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + kept)


def resnet(**options):
    torch.manual_seed(0)
    return nn.Sequential(Block(3, 6, 2, **options), Block(6, 6, 1, **options), nn.Flatten(), nn.Linear(96, 4))


class BatchNorm(linen.Module):
    """A norm of a user's own, which takes and gives float32."""

    momentum: float
    dtype: type = jnp.float32

    @linen.compact
    def __call__(self, x, train):
        x = jnp.asarray(x, jnp.float32)
        means = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        variances = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        mean, variance = means.value, variances.value
        if train:
            number = x.size // x.shape[-1]
            mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            means.value = self.momentum * means.value + (1 - self.momentum) * mean
            unbiased = variance * number / (number - 1)
            variances.value = self.momentum * variances.value + (1 - self.momentum) * unbiased
        scale = self.param("scale", linen.initializers.ones, x.shape[-1:])
        bias = self.param("bias", linen.initializers.zeros, x.shape[-1:])
        return jnp.asarray((x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + bias, self.dtype)


class BasicBlock(linen.Module):
    features: int
    stride: int
    momentum: float
    dtype: type

    @linen.compact
    def __call__(self, x, train):
        conv = functools.partial(linen.Conv, self.features, use_bias=False, padding=1)
        norm = functools.partial(BatchNorm, self.momentum, self.dtype)
        kept = x
        x = linen.relu(norm()(conv((3, 3), strides=self.stride)(x), train))
        x = norm()(conv((3, 3))(x), train)
        if self.stride > 1 or kept.shape != x.shape:
            kept = norm()(conv((1, 1), strides=self.stride, padding=0)(kept), train)
        return linen.relu(x + kept)


class ResNet(linen.Module):
    momentum: float = 0.9
    dtype: type = jnp.float32

    @linen.compact
    def __call__(self, x, train=False):
        for stride in (2, 1):
            x = BasicBlock(6, stride, self.momentum, self.dtype)(x, train)
        return linen.Dense(4)(x.transpose(0, 3, 1, 2).reshape(len(x), -1))


def compared(model, port, mode="eval"):
    images = IMAGES.transpose(0, 2, 3, 1)
    variables = port.init(jax.random.key(0), images)
    _, variables = parity.map_weights(model, (port, variables)).load_into_jax(model, (port, variables))
    inputs = Inputs(torch=(IMAGES,), jax={"x": images, "train": mode == "train"})
    return parity.compare_models(model.train(mode == "train"), (port, variables), inputs, mode=mode)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_norm_that_casts_is_the_same_function_in_float32(mode):
    """Nothing but the cast is of float32 in the norm, and nothing in torch's."""
    report = compared(resnet(), ResNet(), mode)
    assert report.ok, str(report)
    if mode == "eval":
        assert "a cast in float32" in str(report)
    assert len(report.gradients) > 15
    assert report.mode == mode


def test_a_norm_that_casts_to_16_bits_is_not():
    report = compared(resnet(), ResNet(dtype=jnp.bfloat16))
    assert not report.ok
    assert report.first.diagnosis.cause == "lower precision"


def test_torchs_momentum_in_flax_is_named():
    report = compared(resnet(), ResNet(momentum=0.1), "train")
    assert not report.ok
    assert (report.first.path, report.first.diagnosis.cause) == ("0.downsample.1", "momentum")
    assert "but other training" in str(report)
    assert all("9 times as far" in one.reason for one in report.training), [one.reason for one in report.training]


def test_norms_of_a_block_go_with_their_convolutions():
    """All norms are alike and the shapes tell the convolutions apart; `bn1` is `BatchNorm_0` and not `BatchNorm_1`."""
    model, port = resnet(), ResNet()
    found = parity.map_weights(model, (port, port.init(jax.random.key(0), IMAGES.transpose(0, 2, 3, 1))))
    assert not found.ambiguous, found
    assert not found.unpaired.torch, found
    pairs = {pair.torch[0]: pair.jax[0] for pair in found.pairs}
    for ours, theirs in (
        ("0.bn1", "BasicBlock_0.BatchNorm_0"),
        ("0.bn2", "BasicBlock_0.BatchNorm_1"),
        ("0.downsample.1", "BasicBlock_0.BatchNorm_2"),
        ("1.bn2", "BasicBlock_1.BatchNorm_1"),
    ):
        assert pairs[f"{ours}.running_mean"] == f"batch_stats.{theirs}.mean"
    assert found.pair("0.downsample.1.weight").evidence == "the layer beside it"


def test_norms_are_open_where_convolutions_are_made_in_another_order():
    """The shortcut's norm may be made last where its convolution is made first: a tree that was sorted fits both."""
    model, port = resnet(late=True), ResNet()
    variables = port.init(jax.random.key(0), IMAGES.transpose(0, 2, 3, 1))
    assert not parity.map_weights(model, (port, variables)).ambiguous
    found = parity.map_weights(model, (port, jax.tree.map(jnp.asarray, variables)))
    assert {one.torch for one in found.ambiguous} == {"0.bn1.weight", "0.bn2.weight", "0.downsample.1.weight"}


def test_a_block_that_is_open_is_as_the_others():
    """Names paired the second block's norms by their numbers again, because the first one's were found."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(3, 6, 2), Block(6, 8, 2, late=True))
    params = {}
    for number in (0, 1):
        into = params[f"BasicBlock_{number}"] = {}
        for k, (conv, norm) in enumerate((("conv1", "bn1"), ("conv2", "bn2"), ("downsample.0", "downsample.1"))):
            into[f"Conv_{k}"] = {"kernel": turned(model.get_submodule(f"{number}.{conv}"))}
            size = model.get_submodule(f"{number}.{norm}").weight.shape
            into[f"BatchNorm_{k}"] = {"scale": jnp.ones(size), "bias": jnp.zeros(size)}
    found = parity.map_weights(model, (lambda params, x: x, jax.tree.map(jnp.asarray, params)))
    assert not found.ambiguous, found
    for norm, number in (("bn1", 0), ("bn2", 1), ("downsample.1", 2)):
        assert found.pair(f"0.{norm}.weight").jax == (f"BasicBlock_0.BatchNorm_{number}.scale",)
        assert found.pair(f"1.{norm}.weight").jax == (f"BasicBlock_1.BatchNorm_{number}.scale",)
        assert found.pair(f"1.{norm}.weight").evidence == "as in the other blocks"


def test_equal_values_go_before_the_layers_beside():
    model, port = resnet(), ResNet()
    variables = port.init(jax.random.key(0), IMAGES.transpose(0, 2, 3, 1))
    for norm, number in ((model[0].bn1, 2), (model[0].bn2, 0), (model[0].downsample[1], 1)):
        norm.weight.data.uniform_()
        variables["params"]["BasicBlock_0"][f"BatchNorm_{number}"]["scale"] = jnp.asarray(norm.weight.detach())
    found = parity.map_weights(model, (port, variables))
    pairs = {pair.torch[0]: pair.jax[0] for pair in found.pairs}
    assert pairs["0.bn1.weight"] == "params.BasicBlock_0.BatchNorm_2.scale"


def staged(widths, number):
    """Stages of blocks with a bottleneck, as torchvision names them."""

    def block(into, width, *, first):
        layers = nn.ModuleDict()
        for k, (a, b, size) in enumerate(((into, width, 1), (width, width, 3), (width, 4 * width, 1)), 1):
            layers[f"conv{k}"], layers[f"bn{k}"] = nn.Conv2d(a, b, size, bias=False), nn.BatchNorm2d(b)
        if first:
            layers["downsample"] = nn.Sequential(nn.Conv2d(into, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))
        return layers

    model, into = nn.ModuleDict(), widths[0]
    for k, width in enumerate(widths, 1):
        blocks = [block(into, width, first=True), *(block(4 * width, width, first=False) for _ in range(number - 1))]
        model[f"layer{k}"], into = nn.Sequential(*blocks), 4 * width
    return model


def turned(layer):
    return jnp.zeros([layer.weight.shape[axis] for axis in (2, 3, 1, 0)])


def test_blocks_that_are_numbered_throughout_are_those_of_the_stages_in_order():
    """In the first block the shortcut has the shape of the last convolution; it is which it is in the others."""
    model = staged((4, 8, 16), 3)
    params, want = {}, {}
    for number, name in enumerate(f"layer{stage}.{at}" for stage in (1, 2, 3) for at in range(3)):
        into = params.setdefault(f"Bottleneck_{number}", {})
        pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("downsample.0", "downsample.1")]
        for k, (conv, norm) in enumerate(pairs[: 4 if name.endswith(".0") else 3]):
            kernel = turned(model.get_submodule(f"{name}.{conv}"))
            into[f"Conv_{k}"] = {"kernel": kernel}
            into[f"BatchNorm_{k}"] = {"scale": jnp.ones(kernel.shape[-1]), "bias": jnp.zeros(kernel.shape[-1])}
            want[f"{name}.{conv}.weight"] = f"Bottleneck_{number}.Conv_{k}.kernel"
            want[f"{name}.{norm}.weight"] = f"Bottleneck_{number}.BatchNorm_{k}.scale"
    found = parity.map_weights(model, (lambda params, x: x, params))
    assert not found.ambiguous, found
    assert {pair.torch[0]: pair.jax[0] for pair in found.pairs if pair.torch[0].endswith("weight")} == want
    assert found.pair("layer1.0.downsample.0.weight").evidence == "as in the other blocks"


def modules(**children):
    made = nn.Module()
    for name, child in children.items():
        made.add_module(name, child)
    return made


def pair_of_convolutions():
    return modules(a=nn.Conv2d(8, 8, 1, bias=False), b=nn.Conv2d(8, 8, 3, bias=False))


def several(number):
    return nn.ModuleList(pair_of_convolutions() for _ in range(number))


def kernels(model, names):
    """The weights of a torch module under other names, as a Linen module has them."""
    made = {}
    for ours, theirs in names.items():
        layer, into = model.get_submodule(ours), made
        for part in theirs.split("."):
            into = into.setdefault(part, {})
        if isinstance(layer, nn.Conv2d):
            into["kernel"] = turned(layer)
        else:
            into |= {"scale": jnp.ones(layer.weight.shape), "bias": jnp.zeros(layer.weight.shape)}
    return made


def renamed(stages, flat, number=2):
    """Names of blocks by stages, and of the same in one row."""
    names = [f"{stage}.{at}" for stage in stages for at in range(number)]
    return {f"{name}.{one}": f"{flat.format(k)}.{one}" for k, name in enumerate(names) for one in "ab"}


MISLED = {
    "stages that are words": (modules(encoder=several(2), decoder=several(2)), renamed(["encoder", "decoder"], "b_{}")),
    "names that agree": (
        modules(text=modules(enc=modules(stage1=several(1), stage2=several(1))), image=modules(blocks=several(2))),
        renamed(["text.enc.stage1", "text.enc.stage2"], "text.enc.stage{}", 1)
        | {f"{name}.{one}": f"{name}.{one}" for name in ("image.blocks.0", "image.blocks.1") for one in "ab"},
    ),
    "a row beside it": (
        modules(net=modules(s1=several(2), s2=several(2)), layers=several(4)),
        {f"net.s{s}.{k}.{one}": f"net.s{s}.{k}.{one}" for s in (1, 2) for k in (0, 1) for one in "ab"}
        | {f"layers.{k}.{one}": f"layers.{k}.{one}" for k in range(4) for one in "ab"},
    ),
    "norms before convolutions": (
        modules(
            blocks=nn.ModuleList(
                [
                    modules(
                        first=nn.LayerNorm(8), conv1=nn.Conv2d(8, 8, 1, bias=False),
                        second=nn.LayerNorm(8), conv2=nn.Conv2d(8, 8, 3, bias=False),
                    )
                ]
            ),
            norm=nn.LayerNorm(8),
        ),
        {"blocks.0.first": "Block_0.LayerNorm_0", "blocks.0.second": "Block_0.LayerNorm_1", "norm": "LayerNorm_0",
         "blocks.0.conv1": "Block_0.Conv_0", "blocks.0.conv2": "Block_0.Conv_1"},
    ),
    "blocks of another class": (
        modules(
            enc=nn.ModuleList(
                [modules(first=nn.Conv2d(8, 8, 3, bias=False), short=nn.Conv2d(8, 8, 3, bias=False))]
            ),
            dec=nn.ModuleList(
                [modules(first=nn.Conv2d(8, 16, 3, bias=False), short=nn.Conv2d(16, 8, 1, bias=False))]
            ),
        ),
        {"enc.0.first": "Enc_0.Conv_0", "enc.0.short": "Enc_0.Conv_1", "dec.0.first": "Dec_0.Conv_1",
         "dec.0.short": "Dec_0.Conv_0"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISLED)
def test_no_rule_of_blocks_and_neighbours_pairs_wrongly(case):
    """What is not paired rightly is open, and not paired wrongly."""
    model, names = MISLED[case]
    found = parity.map_weights(model, (lambda params, x: x, kernels(model, names)))
    wrong = [
        (pair.torch[0], pair.jax[0])
        for pair in found.pairs
        if pair.jax[0].rpartition(".")[0] != names[pair.torch[0].rpartition(".")[0]]
    ]
    assert not wrong
    open_ones = {one.torch for one in found.ambiguous}
    assert {pair.torch[0] for pair in found.pairs} | open_ones >= {f"{name}.weight" for name in names}


class Dropped(eqx.Module):
    """A model that takes a key, as those with dropout do."""

    fc: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __call__(self, x, key, inference=True):
        return self.dropout(jax.vmap(self.fc)(x), key=key, inference=inference)


@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
def test_a_key_is_an_input(key):
    model = nn.Sequential(nn.Linear(4, 3))
    port = Dropped(eqx.nn.Linear(4, 3, key=jax.random.key(0)), eqx.nn.Dropout(0.5))
    port = parity.map_weights(model, port).load_into_jax(model, port)
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    report = parity.compare_models(model, port, Inputs(torch=(x,), jax={"x": x, "key": key(1)}))
    assert report.ok, str(report)
    assert len(report.gradients) == 3


def test_a_kink_that_no_draw_met_is_no_other_gradient():
    """A third of the numbers are on a kink of ReLU within float32: which side they are on is chance."""
    near = torch.arange(96) % 3 == 0
    x = torch.where(near, 1.0, 2.0).double()

    def gradient():
        given = x.clone().requires_grad_()
        torch.relu(given * 1.0 - (1.0 + 1e-12)).sum().backward()
        return {"x": given.grad.numpy()}

    judge = weighing.Weighing(gradient, lambda: "float32", order=1, double=True)
    want = gradient()["x"]
    other = np.where(near, 1.0, want)
    assert (want[near.numpy()] == 0).all()
    as_it_is = [("x", lambda array: array)]
    assert judge.of(as_it_is, [want], [other]).verdict == "within bound"
    wrong = other.copy()
    wrong[1] = 100
    assert judge.of(as_it_is, [want], [wrong]).verdict == "differs"


@pytest.mark.parametrize(
    ("dtype", "found", "named"),
    [
        ("float32", (8e-7, False), False),
        ("float32", (1e-2, False), True),
        ("float64", (8e-7, False), True),
        ("bfloat16", (1e-2, False), False),
        ("bfloat16", (1.0, True), True),
    ],
    ids=str,
)
def test_what_a_module_computes_in_says_how_far_its_backward_may_be(dtype, found, named, monkeypatch):
    call = SimpleNamespace(order=0, class_name="Conv2d")
    pair = SimpleNamespace(torch_calls=[call], jax_calls=[call], path="conv1")
    one = SimpleNamespace(pair=pair, found=SimpleNamespace(dtype=dtype), parent=None, children=[], agrees=True)
    monkeypatch.setattr(backward_alone, "_apart", lambda *_: found)
    assert (backward_alone.first([one], double=True, seed=0) is not None) == named


@pytest.mark.parametrize(("factor", "told"), [(9, True), (1 / 9, True), (2, False), (0.8, False), (-1, False)], ids=str)
def test_momentum_is_told_of_rough_statistics_where_the_factor_is_far_from_one(factor, told):
    start, moved = np.zeros(64), RNG.standard_normal(64)
    rough = factor * moved + 1e-3 * abs(factor) * RNG.standard_normal(64)
    assert ("momentum" in training._why(start, moved, start, rough)) == told


def test_a_sum_is_no_momentum():
    """The mean's square is added to each variance: nearly constant moves have a factor too."""
    start = np.ones(64)
    moved = 0.1 * (4 + 0.01 * RNG.standard_normal(64))
    assert "momentum" not in training._why(start, start + moved, start, start + moved + 1.0)
