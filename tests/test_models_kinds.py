"""Published ports of vision transformers: what their counted names, wrapped modules and lost weights were told as."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen

import parity
from parity.explanation import substitution
from tests.model_ports.strangers import wrapped

RNG = np.random.default_rng(0)
WRAPPED = next(port for port in wrapped.PORTS if port.name == "wrapped")
WAVES = next(port for port in wrapped.PORTS if port.name == "waves")


def test_norms_go_with_the_modules_around_them_also_in_a_sorted_tree():
    model = WRAPPED.torch(0)
    module, tree = wrapped.wrapped()
    ours = parity.map_weights(model, (module, tree))
    assert ours.ok or not (ours.ambiguous or any(vars(ours.unpaired)[side] for side in ("torch", "jax"))), ours
    assert ours.pair("blocks.0.1.norm.weight").jax == ("params.Normed_1.LayerNorm_0.scale",)
    assert ours.pair("blocks.1.0.norm.weight").jax == ("params.Normed_2.LayerNorm_0.scale",)
    assert ours.pair("head.0.weight").jax == ("params.LayerNorm_0.scale",)


def test_a_square_parameter_of_one_name_is_not_turned():
    made = parity.map_weights(WRAPPED.torch(0), wrapped.wrapped())
    assert made.pair("blocks.0.0.fn.mixed_weights").rule == "mixed_weights = mixed_weights"


def test_modules_that_are_given_run_alone():
    model = WRAPPED.torch(0)
    report = parity.compare_models(model, WRAPPED.jax(model), WRAPPED.inputs(0), perturb=False)
    of = {one.path: one for one in report.modules}
    assert of["blocks.0.0"].jax_path == "Normed_0"
    assert of["blocks.0.0"].verdict in ("identical", "within bound"), of["blocks.0.0"]
    assert report.ok, str(report)


class Convolutions(torch.nn.Module):
    """One of three places, with a stride, and one of one place."""

    def __init__(self):
        super().__init__()
        self.wide, self.point = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.point(self.wide(x))


class JaxConvolutions(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3), strides=2, padding="SAME", name="wide")(x)
        return linen.Conv(4, (1, 1), use_bias=False, name="point")(x)


def test_layers_of_one_class_have_causes_of_their_own():
    torch.manual_seed(0)
    model, port = Convolutions(), JaxConvolutions()
    pair = port, port.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    pair = parity.map_weights(model, pair).load_into_jax(model, pair, partial=True)
    x = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    inputs = parity.models.Inputs(torch=(x,), jax=(x.transpose(0, 2, 3, 1),))
    report = parity.compare_models(model, pair, inputs, perturb=False)
    causes = {one.path: one.diagnosis.cause for one in report.modules if one.diagnosis is not None}
    assert causes == {"wide": "padding", "point": "bias dropped"}


class Mixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.mix = torch.nn.Linear(4, 4), torch.nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        return torch.tanh(self.fc(x)) + self.mix.sum()


def test_weights_without_a_partner_come_before_what_would_be_proved_of_them():
    torch.manual_seed(0)
    model = Mixed()
    params = {"fc": {"kernel": jnp.asarray(model.fc.weight.detach().T), "bias": jnp.asarray(model.fc.bias.detach())},
              "other": jnp.zeros((7, 2))}  # fmt: skip

    def port(params, x):
        return jnp.tanh(x @ params["fc"]["kernel"] + params["fc"]["bias"]) + params["other"].sum()

    report = parity.compare_models(model, (port, params), (RNG.standard_normal((3, 4)).astype(np.float32),))
    assert report.first.diagnosis.cause == "weights not paired"


def test_what_is_found_depends_on_the_steps_that_are_run_and_not_on_time(monkeypatch):
    """A busy machine left causes unnamed that an idle one named."""
    model, clock = WRAPPED.torch(0), iter(range(0, 10**9, 100))
    port = WRAPPED.jax(model, approximate=True)
    monkeypatch.setattr(time, "process_time", lambda: float(next(clock)))
    first = parity.compare_models(model, port, WRAPPED.inputs(0), perturb=False).first
    assert "approximate" in first.diagnosis.cause
    monkeypatch.setattr(substitution, "WORK", 0)
    monkeypatch.setattr("parity.models.causes.context.WORK", 0)
    first = parity.compare_models(model, port, WRAPPED.inputs(0), perturb=False).first
    assert "approximate" not in first.diagnosis.cause


def test_steps_belong_to_the_modules_that_run_them():
    """A step that was run before the module moved all owners by one: a term was said to come from the next layer."""
    model = WAVES.torch(0)
    first = parity.compare_models(model, WAVES.jax(model, skips=False), WAVES.inputs(0), perturb=False).first
    assert first.diagnosis.cause == "term left out"
    assert "residual." not in first.diagnosis.text
