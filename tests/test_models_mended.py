"""Kinds of wrong verdicts that ports by others met: each with the right port beside the wrong one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import parity
from parity.models import Inputs
from parity.models.causes.masks import _is_mask

RNG = np.random.default_rng(0)


def quick(*models, **options):
    return parity.compare_models(*models, perturb=False, **options)


class HardSigmoid(torch.nn.Module):
    """Whose backward in torch holds 1/6 as a float32, also in float64."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x):
        return F.hardsigmoid(self.fc(x))


def hard_sigmoid(params, x):
    return jax.nn.hard_sigmoid(x @ params["w"].T + params["b"])


def scaled_gradient(params, x, factor):
    @jax.custom_vjp
    def identity(y):
        return y

    identity.defvjp(lambda y: (y, None), lambda _, g: (g * factor,))
    return hard_sigmoid(params, identity(x))


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1 + 1e-5, False)])
def test_what_float32_cannot_show_is_no_other_gradient(factor, ok):
    torch.manual_seed(0)
    model = HardSigmoid()
    params = {"w": jnp.asarray(model.fc.weight.detach()), "b": jnp.asarray(model.fc.bias.detach())}
    port = functools.partial(scaled_gradient, factor=factor), params
    report = quick(model, port, (RNG.standard_normal((3, 4)).astype(np.float32),))
    assert report.gradients
    assert report.ok == ok, str(report)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, keep):
        return self.attn(x, x, x, key_padding_mask=keep == 0, need_weights=False)[0]


class JaxAttention(nnx.Module):
    def __init__(self, read):
        self.attn, self.read = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), read

    def __call__(self, x, keep):
        return self.attn(x, mask=self.read(keep))


@pytest.mark.parametrize(
    ("read", "cause"),
    [(lambda keep: (keep == 0)[:, None, None, :], "mask polarity"), (lambda keep: None, "mask: left out")],
    ids=["inverted", "left out"],
)
def test_a_mask_is_named_where_one_array_is_query_key_and_value(read, cause):
    torch.manual_seed(0)
    model, port = Attention(), JaxAttention(read)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    keep = np.ones((2, 5), np.int32)
    keep[0, 3:] = 0
    report = quick(model, port, (RNG.standard_normal((2, 5, 8)).astype(np.float32), keep))
    assert (report.first.path, report.first.diagnosis.cause) == ("attn", cause)


def test_what_is_a_mask():
    assert _is_mask(np.array([True, False]))
    assert not _is_mask(np.array([True, True]))
    assert not _is_mask(np.array([0.0, 1.0]))


class Cube(torch.nn.Module):
    """Whose images have one length along all axes: the shape does not say where the channels are."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 2, 1), torch.nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = torch.tanh(self.first(x))
        return self.last(torch.cat([a, a * a + 1], 1))


class JaxCube(nnx.Module):
    def __init__(self, rngs, exchanged):
        self.first, self.last = nnx.Conv(3, 2, (1, 1), rngs=rngs), nnx.Conv(4, 2, (1, 1), rngs=rngs)
        self.exchanged = exchanged

    def __call__(self, x):
        a = jnp.tanh(self.first(x))
        return self.last(jnp.concatenate([a * a + 1, a] if self.exchanged else [a, a * a + 1], -1))


@pytest.mark.parametrize("exchanged", [False, True], ids=["right", "exchanged"])
def test_an_image_of_one_length_does_not_blame_the_layer_after_the_fault(exchanged):
    torch.manual_seed(0)
    model, port = Cube(), JaxCube(nnx.Rngs(0), exchanged)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    image = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
    report = quick(model, port, Inputs(torch=(image,), jax=(image.transpose(0, 2, 3, 1),)))
    assert report.ok == (not exchanged)
    assert [one.path for one in report.failed] == ([""] if exchanged else [])


class Gelus(torch.nn.Module):
    """Three blocks of one class."""

    class Block(torch.nn.Module):
        """A residual."""

        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)

        def forward(self, x):
            return x + F.elu(self.fc(x))

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class JaxGelus(nnx.Module):
    class Block(nnx.Module):
        """A residual."""

        def __init__(self, rngs, change, back):
            self.fc, self.change, self.back = nnx.Linear(4, 4, rngs=rngs), change, back

        def __call__(self, x):
            if self.back == "all":
                return jax.lax.stop_gradient(x + self.change(self.fc(x)))
            return x + self.change(self.fc(self.back(x)))

    def __init__(self, rngs, change=nnx.elu, back=(None, None, None)):
        self.blocks = nnx.List(self.Block(rngs, change, one or (lambda x: x)) for one in back)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def gelus(**options):
    torch.manual_seed(0)
    model, port = Gelus(), JaxGelus(nnx.Rngs(0), **options)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    return quick(model, port, (RNG.standard_normal((3, 4)).astype(np.float32),))


def test_one_fault_in_all_layers_is_searched_once_and_named_likely_after():
    report = gelus(change=nnx.relu)
    first, second, third = (one.diagnosis for one in report.failed)
    assert first.cause == "another formula: activation"
    assert not first.text.startswith("Likely")
    assert second.cause == third.cause == first.cause
    assert second.text.startswith("Likely as blocks.0: ")


@pytest.mark.parametrize(
    ("back", "cause"),
    [
        ("all", "gradient stopped"),
        (jax.lax.stop_gradient, "backward"),  # the residual lets a gradient through
        (lambda x: 2 * x - jax.lax.stop_gradient(x), "backward"),
    ],
    ids=["stopped", "stopped in the layer", "doubled"],
)
def test_the_module_whose_backward_alone_is_wrong_is_named(back, cause):
    report = gelus(back=(None, back, None))
    assert not report.ok
    assert (report.first.path, report.first.verdict != "differs") == ("blocks.1", True)
    assert report.first.diagnosis.cause == cause
    assert "first in blocks.1" in str(report)


def test_right_backwards_are_not_blamed():
    report = gelus()
    assert report.ok
    assert report.first is None
