"""Whole models: the same function is called so, and the module that is not is named, in every JAX library."""

import gc

import equinox as eqx
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

X = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class NnxNet(nnx.Module):
    def __init__(self, eps=1e-5, act=jnp.tanh):
        rngs = nnx.Rngs(0)
        self.norm = nnx.LayerNorm(6, epsilon=eps, rngs=rngs)
        self.up, self.down, self.act = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 6, rngs=rngs), act

    def __call__(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


class LinenNet(linen.Module):
    eps: float = 1e-5
    act: object = jnp.tanh

    @linen.compact
    def __call__(self, x):
        h = linen.Dense(8, name="up")(linen.LayerNorm(epsilon=self.eps, name="norm")(x))
        return x + linen.Dense(6, name="down")(self.act(h))


class EqxNet(eqx.Module):
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    act: object = eqx.field(static=True)

    def __init__(self, eps=1e-5, act=jnp.tanh):
        one, other = jax.random.split(jax.random.key(0))
        self.norm, self.act = eqx.nn.LayerNorm(6, eps=eps), act
        self.up, self.down = eqx.nn.Linear(6, 8, key=one), eqx.nn.Linear(8, 6, key=other)

    def __call__(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


def function_net(eps=1e-5, act=jnp.tanh):
    def call(p, x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        h = (x - mean) / jnp.sqrt(var + eps) * p["norm"]["weight"] + p["norm"]["bias"]
        h = act(h @ p["up"]["weight"].T + p["up"]["bias"])
        return x + h @ p["down"]["weight"].T + p["down"]["bias"]

    shapes = {"norm": (6, 6), "up": (8, 8, 6), "down": (6, 6, 8)}
    return call, {k: {"bias": jnp.zeros(s[0]), "weight": jnp.zeros(s[1:])} for k, s in shapes.items()}


def linen_net(**options):
    module = LinenNet(**options)
    return module, module.init(jax.random.key(0), X)


MAKERS = {"nnx": NnxNet, "linen": linen_net, "equinox": EqxNet, "function": function_net}


def pair(library, **options):
    torch.manual_seed(0)
    model = Net()
    port = MAKERS[library](**options)
    return model, parity.map_weights(model, port).load_into_jax(model, port)


@pytest.mark.parametrize("library", MAKERS)
def test_a_right_port_is_the_same_function(library):
    report = parity.compare_models(*pair(library), (X,))
    assert report.ok, str(report)
    assert report.first is None
    assert report.modules[0].path == ""
    if library != "function":
        assert [one.path for one in report.modules] == ["", "norm", "up", "down"]


@pytest.mark.parametrize("library", MAKERS)
def test_a_wrong_eps_is_in_the_norm(library):
    report = parity.compare_models(*pair(library, eps=1e-6), (X,))
    assert not report.ok
    assert report.first.path == ("" if library == "function" else "norm")
    assert report.first.own_error > 0


@pytest.mark.parametrize("library", ["nnx", "linen", "equinox"])
def test_another_activation_is_between_the_children(library):
    report = parity.compare_models(*pair(library, act=jnp.sin), (X,))
    assert report.first.path == ""
    assert {one.verdict for one in report.modules[1:]} <= {"identical", "within bound"}
    assert report.modules[-1].inherited_error > report.modules[-1].own_error


def test_weights_that_are_not_loaded_are_named_as_such():
    report = parity.compare_models(Net(), NnxNet(), (X,))
    assert not report.ok
    assert report.first.diagnosis.cause == "weight value"
    assert "load_into_jax" in report.first.diagnosis.fix


def test_neither_model_is_changed():
    model, port = pair("nnx")
    before = [value.clone() for value in model.state_dict().values()]
    state = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(port)))
    parity.compare_models(model, port, (X,))
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    after = nnx.to_pure_dict(nnx.state(port))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, after))
    assert "_recording" not in repr(NnxNet.__call__)


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)).mean((2, 3))


class NnxImage(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.bn = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.bn(self.conv(x)).mean((1, 2))


def test_channels_may_be_at_another_place():
    model, port = Image(), NnxImage()
    port = parity.map_weights(model, port).load_into_jax(model, port)
    image = np.random.default_rng(1).standard_normal((2, 3, 5, 6)).astype(np.float32)
    report = parity.compare_models(model, port, Inputs(torch=(image,), jax=(image.transpose(0, 2, 3, 1),)))
    assert report.ok, str(report)


class InFloat32(Net):
    def forward(self, x):
        return super().forward(x) @ torch.eye(6)  # float32 whatever the model is: it does not run in float64


@pytest.mark.parametrize("act", [jnp.tanh, jax.nn.relu], ids=["right", "wrong"])
def test_a_torch_model_that_runs_in_float32_alone_is_judged_there(act):
    model = InFloat32()
    port = NnxNet(act=act)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    report = parity.compare_models(model, port, (X,))
    assert report.ok == (act is jnp.tanh)
    assert report.precision == "float32"
    assert any("the torch model does not run in float64" in note for note in report.notes)


class Dropping(Net):
    def __init__(self, *, functional=False):
        super().__init__()
        self.drop, self.functional = nn.Dropout(0.5), functional

    def forward(self, x):
        dropped = nn.functional.dropout(x, 0.5, training=True) if self.functional else self.drop(x)
        return super().forward(dropped)


class NnxDropping(NnxNet):
    def __init__(self):
        super().__init__()
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return super().__call__(self.drop(x))


class EqxDropping(EqxNet):
    drop: eqx.nn.Dropout

    def __init__(self):
        super().__init__()
        self.drop = eqx.nn.Dropout(0.5)

    def __call__(self, x):
        return super().__call__(self.drop(x))


@pytest.mark.parametrize("port", [NnxDropping, EqxDropping], ids=["nnx", "equinox"])
def test_dropout_of_models_that_train_is_off_and_named(port):
    model = Dropping()
    loaded = parity.map_weights(model, made := port()).load_into_jax(model, made)
    report = parity.compare_models(model, loaded, (X,), mode="train")
    assert report.ok, str(report)
    assert any("dropout is off on both sides (drop)" in note for note in report.notes)


def test_random_numbers_of_torch_are_not_taken_for_rounding():
    """A model that drops of its own accord is not the same function as one that does not."""
    model, port = Dropping(functional=True), NnxNet()
    report = parity.compare_models(model, parity.map_weights(model, port).load_into_jax(model, port), (X,))
    assert not report.ok


TABLE = np.sin(np.arange(6) / 10 + 1)


class WithTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.register_buffer("table", torch.tensor(TABLE, dtype=torch.float32))

    def forward(self, x):
        return self.up(x * self.table)


class NnxWithTable(nnx.Module):
    def __init__(self, scale=1.0):
        self.up, self.scale = nnx.Linear(6, 8, rngs=nnx.Rngs(0)), scale

    def __call__(self, x):
        # A unit of float32 off where torch rounded otherwise, as tables of sines are that each side computes.
        return self.up(x * self.scale * jnp.asarray(np.nextafter(TABLE.astype(np.float32), np.float32(2))))


@pytest.mark.parametrize("scale", [1.0, 1.001], ids=["right", "wrong"])
def test_a_table_of_float32_bounds_gradients_too(scale):
    model = WithTable()
    port = NnxWithTable(scale)
    port = parity.map_weights(model, port).load_into_jax(model, port, partial=True)
    report = parity.compare_models(model, port, (X,))
    assert report.ok == (scale == 1.0), str(report)


def test_a_test_raises_with_the_report():
    with pytest.raises(parity.ModelError, match="norm") as raised:
        parity.assert_same_model(*pair("nnx", eps=1e-3), (X,))
    assert raised.value.report.first.path == "norm"
    parity.assert_same_model(*pair("nnx"), (X,))


@pytest.mark.parametrize("suffix", [".txt", ".md", ".json", ".html"])
def test_a_report_is_saved_by_its_suffix(tmp_path, suffix):
    report = parity.compare_models(*pair("nnx", eps=1e-3), (X,), perturb=False)
    report.save(tmp_path / f"report{suffix}")
    assert "norm" in (tmp_path / f"report{suffix}").read_text()


def test_what_is_no_model_is_refused():
    model, port = pair("nnx")
    with pytest.raises(TypeError, match=r"torch_model: expected an nn\.Module, got function"):
        parity.compare_models(lambda x: x, port, (X,))
    with pytest.raises(TypeError, match="the JAX model: expected"):
        parity.compare_models(model, 3, (X,))
    with pytest.raises(TypeError, match="inputs: expected at least one array, got none"):
        parity.compare_models(model, port, (1, 2))
    with pytest.raises(ValueError, match="mode: expected one of eval, train, got 'evl'; did you mean 'eval'"):
        parity.compare_models(model, port, (X,), mode="evl")
    with pytest.raises(ValueError, match=r"does not run on these inputs: RuntimeError.*inputs= is what both are"):
        parity.compare_models(model, port, (X[:, :5],))


@pytest.mark.usefixtures("nothing_set_aside")
def test_the_collector_leaves_what_was_there_alone_while_models_are_compared():
    """Else each of some twenty collections looks at all objects of the frameworks: half of a small model's time."""
    seen = []
    assert parity.compare_models(
        Net(), NnxNet(), (X,), weights=None, progress=lambda _: seen.append(gc.get_freeze_count())
    )
    assert min(seen) > 100_000
    assert gc.get_freeze_count() == 0
