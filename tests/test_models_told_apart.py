"""Maps of ports with names of their own, and causes in modules, that a reader found wrong: each as its kind."""

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

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6)).astype(np.float32)


def pairs_of(model, port):
    found = parity.map_weights(model, port)
    assert not found.unpaired, found
    assert not found.ambiguous, found
    return {pair.torch[0]: pair.jax[0] for pair in found.pairs}


class Turns(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, 1.0] * 3))
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        kept = x * self.mask
        return kept + (1 - self.mask) * torch.tanh(self.fc(kept))


class OtherTurns(nnx.Module):
    def __init__(self, turned):
        self.mask, self.turned = nnx.Variable(jnp.array([0.0, 1.0] * 3)), turned
        self.fc = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

    def __call__(self, x):
        mask = 1 - self.mask[...] if self.turned else self.mask[...]
        kept = x * mask
        return kept + (1 - mask) * jnp.tanh(self.fc(kept))


@pytest.mark.parametrize("turned", [False, True])
def test_a_buffer_that_is_a_mask_is_read_the_other_way_round(turned):
    model, port = Turns(), OtherTurns(turned)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    report = parity.compare_models(model, port, (X,))
    assert report.ok is not turned
    if turned:
        assert report.first.diagnosis.cause == "mask polarity", report.first.diagnosis
        assert "The mask mask is read the other way round in JAX" in report.first.diagnosis.text


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, 2))
        self.fc = nn.Linear(6, 2)


def test_a_table_called_bias_is_no_bias_of_a_layer():
    port = {"bias_table": np.zeros((9, 2)), "fc": {"kernel": np.zeros((6, 2)), "bias": np.zeros(2)}}
    assert pairs_of(Table(), (lambda p, x: x, port))["relative_position_bias_table"] == "bias_table"


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6)),
                nn.Sequential(nn.LayerNorm(6), nn.Conv2d(6, 12, 2, 2)),
            ]
        )


class StagesPort(eqx.Module):
    stem: eqx.nn.Conv2d
    stem_ln: eqx.nn.LayerNorm
    down_ln: eqx.nn.LayerNorm
    down: eqx.nn.Conv2d

    def __init__(self):
        one, two = jax.random.split(jax.random.key(0))
        self.stem, self.down = eqx.nn.Conv2d(3, 6, 2, 2, key=one), eqx.nn.Conv2d(6, 12, 2, 2, key=two)
        self.stem_ln, self.down_ln = eqx.nn.LayerNorm(6), eqx.nn.LayerNorm(6)


def test_a_name_without_a_number_is_not_the_first_of_a_list():
    """`downsample_layers.0` is not more like `down_ln` than `downsample_layers.1` is: the order says which is which."""
    found = pairs_of(Stages(), StagesPort())
    assert found["downsample_layers.0.1.weight"] == "stem_ln.weight"
    assert found["downsample_layers.1.0.weight"] == "down_ln.weight"


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.ff1 = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6))
        self.ln, self.up, self.final = nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6)


class CountedNorms(linen.Module):
    @linen.compact
    def __call__(self, x):
        for size in (8, 6):
            x = linen.Dense(size)(linen.LayerNorm()(x) if size == 8 else x)
        x = linen.LayerNorm()(x)
        x = linen.Dense(6)(x)
        return linen.LayerNorm()(x)


def test_a_norm_that_has_no_number_is_not_the_first_that_linen_counted():
    port = CountedNorms()
    found = pairs_of(Named(), (port, port.init(jax.random.key(0), X)))
    assert found["ff1.0.weight"] == "params.LayerNorm_0.scale"
    assert found["ln.weight"] == "params.LayerNorm_1.scale"
    assert found["final.weight"] == "params.LayerNorm_2.scale"


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        self.convs = nn.ModuleList([norm(nn.Conv1d(4, 4, 3)) for _ in range(2)])


def test_the_lengths_of_normed_weights_go_with_their_directions():
    """Torch's `original0` is what a port calls `g`, and nothing but its layer says so."""
    port = {f"conv{i}": {"v": np.zeros((3, 4, 4)), "g": np.ones(4), "bias": np.zeros(4)} for i in range(2)}
    found = pairs_of(Normed(), (lambda p, x: x, port))
    for at in range(2):
        assert found[f"convs.{at}.parametrizations.weight.original0"] == f"conv{at}.g"
        assert found[f"convs.{at}.parametrizations.weight.original1"] == f"conv{at}.v"


class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        self.C = nn.Parameter(torch.randn(4, 3, 2))
        self.log_A_real, self.A_imag = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        c = torch.view_as_complex(self.C) * (-self.log_A_real.exp() + 1j * self.A_imag)
        return x * c.real.sum(1)[:, None]


def waves(params, x):
    c = (params["C_re"] + 1j * params["C_im"]) * (-jnp.exp(params["A_re"]) + 1j * params["A_im"])
    return x * c.real.sum(1)[:, None]


def test_parts_of_a_complex_weight_that_a_port_keeps_apart():
    model, params = Waves(), {name: np.zeros((4, 3), np.float32) for name in ("C_re", "C_im", "A_re", "A_im")}
    found = parity.map_weights(model, (waves, params))
    by_jax = {pair.jax[0]: pair.torch[0] for pair in found.pairs}
    assert by_jax == {"C_re": "C", "C_im": "C", "A_re": "log_A_real", "A_im": "A_imag"}
    assert parity.compare_models(model, found.load_into_jax(model, (waves, params)), (X,)).ok


class Ported(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.fc, self.after = nn.Linear(6, 6), after

    def forward(self, *x):
        return self.after(self.fc, *x)


class Port(nnx.Module):
    def __init__(self, after):
        self.fc, self.after = nnx.Linear(6, 6, rngs=nnx.Rngs(0)), after

    def __call__(self, *x):
        return self.after(self.fc, *x)


def cause(torch_after, jax_after, *inputs):
    model, port = Ported(torch_after), Port(jax_after)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    found = parity.compare_models(model, port, inputs).first.diagnosis
    assert not found.text.startswith("Likely"), found
    return found


def windows(array):
    return array.reshape(4, 2, 3, 6)


def rolled(frame, by, back):
    roll = torch.roll if frame is torch else jnp.roll
    return lambda fc, x: roll(fc(windows(roll(x, by, 1)).cumsum(2)).reshape(4, 6, 6), back, 1)


@pytest.mark.parametrize(
    ("by", "back", "text"),
    [
        (1, -1, "rolls by -1 and 1 in torch where JAX has them in the other direction"),
        (-1, 0, "a roll by 1 in torch where JAX"),
    ],
    ids=["the other way", "not back"],
)
def test_a_roll_in_the_other_direction_is_no_other_order(by, back, text):
    found = cause(rolled(torch, -1, 1), rolled(jnp, by, back), RNG.standard_normal((4, 6, 6)).astype(np.float32))
    assert found.cause == "roll", found
    assert text in found.text


def test_lengths_of_two_towers_that_are_left_out():
    def scores(norm):
        return lambda fc, a, b: norm(fc(a)) @ norm(fc(b)).T

    found = cause(scores(lambda y: y / y.norm(dim=-1, keepdim=True)), scores(lambda y: y), X[0], X[1, :3])
    assert "div (2 steps) in torch where JAX has none" in found.text


def test_a_residual_that_a_layer_of_several_turns_leaves_out():
    def turns(tanh, residual):
        def run(fc, x):
            for _ in range(3):
                x = x + tanh(x)
                x = fc(x) + (x if residual else 0)
            return x

        return run

    found = cause(turns(torch.tanh, True), turns(jnp.tanh, False), X)
    assert found.cause == "residual", found


def test_half_a_step_that_is_a_whole_one_is_a_factor():
    found = cause(lambda fc, x: x + 0.5 * fc(x), lambda fc, x: x + fc(x), X)
    assert found.cause == "factor left out", found


@pytest.mark.parametrize(("mode", "other"), [("bilinear", "nearest"), ("nearest", "bilinear")])
def test_an_image_that_is_resized_by_another_method(mode, other):
    options = {"align_corners": False} if mode == "bilinear" else {}
    found = cause(
        lambda fc, x: fc(nn.functional.interpolate(x[None], size=(8, 6), mode=mode, **options)[0]),
        lambda fc, x: fc(jax.image.resize(x, (x.shape[0], 8, 6), other)),
        X,
    )
    assert found.cause == "default argument: mode", found
