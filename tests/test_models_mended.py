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
from parity.models.causes.calls import is_mask

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
    assert is_mask(np.array([True, False]))
    assert not is_mask(np.array([True, True]))
    assert not is_mask(np.array([0.0, 1.0]))


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


@pytest.mark.parametrize("slope", [0.01, 0.02])
def test_a_function_that_holds_its_weights_is_judged_as_it_is(slope):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    model = torch.nn.Sequential(layer, torch.nn.LeakyReLU())
    weight, bias = (jnp.asarray(value.detach()) for value in (layer.weight, layer.bias))
    report = parity.compare_models(
        model,
        lambda x: jax.nn.leaky_relu(x @ weight.T + bias, slope),
        (RNG.standard_normal((5, 4)).astype(np.float32),),
    )
    assert report.ok == (slope == 0.01), str(report)
    assert any("the function holds its own weights" in note for note in report.notes)
    assert report.weights.unpaired.torch == ("0.weight", "0.bias")


class Rotated(torch.nn.Module):
    """Attention that is given its rotary tables, as in transformers."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, tables):
        cos, sin = tables
        q, k = self.q(x), self.k(x)
        q, k = (t * cos + torch.cat([-t[..., 4:], t[..., :4]], -1) * sin for t in (q, k))
        return torch.softmax(q @ k.mT / 8**0.5, -1) @ self.v(x)


class WithTables(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Rotated()

    def forward(self, x):
        half = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2, dtype=x.dtype) / 8)
        turn = torch.cat([half, half], -1).expand(len(x), -1, -1)
        return self.attn(x, (turn.cos(), turn.sin()))


class JaxRotated(nnx.Module):
    def __init__(self, rngs, base):
        self.q, self.k, self.v = (nnx.Linear(8, 8, rngs=rngs) for _ in range(3))
        turn = np.arange(16)[:, None] * base ** (-np.arange(0, 8, 2) / 8)
        self.table = np.concatenate([np.sin(turn), np.cos(turn)], -1)

    def __call__(self, x):
        sin, cos = jnp.split(jnp.asarray(self.table)[jnp.arange(x.shape[1])], 2, -1)
        sin, cos = jnp.concatenate([sin, sin], -1), jnp.concatenate([cos, cos], -1)
        q, k = (t * cos + jnp.concatenate([-t[..., 4:], t[..., :4]], -1) * sin for t in (self.q(x), self.k(x)))
        return jax.nn.softmax(q @ k.swapaxes(-1, -2) / 8**0.5) @ self.v(x)


class JaxWithTables(nnx.Module):
    def __init__(self, rngs, base):
        self.attn = JaxRotated(rngs, base)

    def __call__(self, x):
        return self.attn(x)


@pytest.mark.parametrize(("base", "cause"), [(10000.0, None), (500.0, "rope base")])
def test_rotary_tables_that_torch_hands_in_are_held_to_those_that_jax_makes(base, cause):
    torch.manual_seed(0)
    model, port = WithTables(), JaxWithTables(nnx.Rngs(0), base)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    report = quick(model, port, (RNG.standard_normal((2, 6, 8)).astype(np.float32),))
    assert report.ok == (cause is None), str(report)
    assert cause is None or (report.first.path, report.first.diagnosis.cause) == ("attn", cause), str(report)


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = torch.nn.LSTM(3, 4, batch_first=True), torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.lstm(x)[0][:, -1])


class JaxRecurrent(nnx.Module):
    def __init__(self, rngs, reverse=False, mean=False):
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs), reverse=reverse, keep_order=True)
        self.fc, self.mean = nnx.Linear(4, 2, rngs=rngs), mean

    def __call__(self, x):
        out = self.lstm(x)
        return self.fc(out.mean(1) if self.mean else out[:, -1])


@pytest.mark.parametrize(
    ("wrong", "first"),
    [
        ({}, None),
        ({"reverse": True}, ("lstm", "lstm", "arrangement: reversed")),
        ({"mean": True}, ("", "", "pooling")),
    ],
    ids=["right", "reversed", "mean"],
)
def test_a_sum_of_biases_that_was_rounded_is_no_difference(wrong, first):
    torch.manual_seed(0)
    model, port = Recurrent(), JaxRecurrent(nnx.Rngs(0), **wrong)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    report = quick(model, port, (RNG.standard_normal((2, 5, 3)).astype(np.float32),))
    found = report.first
    assert report.ok == (first is None), str(report)
    assert first is None or (found.path, found.jax_path, found.diagnosis.cause) == first, str(report)


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1 + 1e-4, False)])
def test_a_weight_that_a_rule_computes_may_be_rounded(factor, ok):
    model = torch.nn.Linear(5, 4)
    weight = jnp.asarray(model.weight.detach()) / 3 * factor  # JAX rounds it in another order than NumPy
    port = (lambda p, x: 3 * x @ p["third"].T + p["bias"], {"third": weight, "bias": jnp.asarray(model.bias.detach())})
    rule = parity.Rule("weight", "third", (lambda w: w * (1 / 3), lambda w: w * 3))
    report = quick(model, port, (RNG.standard_normal((3, 5)).astype(np.float32),), rules=[rule])
    assert report.ok == ok, str(report)


@pytest.mark.parametrize("second", [1e-5, 1e-3], ids=["right", "wrong"])
def test_a_layer_is_no_more_wrong_than_it_is_where_another_of_its_class_is(second):
    """The sensitivity of a class that differs clearly is measured once."""
    model = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.LayerNorm(6))
    port = nnx.Sequential(*(nnx.LayerNorm(6, epsilon=eps, rngs=nnx.Rngs(0)) for eps in (1e-3, second)))
    report = quick(model, port, (RNG.standard_normal((3, 6)).astype(np.float32),))
    found = {one.path: one for one in report.modules}
    assert found["0"].verdict == "differs"
    assert (found["1"].verdict == "differs") == (second == 1e-3), str(report)
    assert found["1"].ratio <= 1 or found["1"].ratio > 1000


class JaxUp(nnx.Module):
    def __init__(self, rngs, transposed):
        self.up = nnx.ConvTranspose(4, 4, (3, 3), 2, padding="VALID", transpose_kernel=transposed, rngs=rngs)

    def __call__(self, x):
        return self.up(x)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_transposed_kernel_that_is_read_as_a_plain_one_is_named(transposed):
    """As in jax #11252: torch's weight with its axes moved, and no transpose_kernel=True."""
    model, port = torch.nn.Sequential(), JaxUp(nnx.Rngs(0), transposed)
    model.up = torch.nn.ConvTranspose2d(4, 4, 3, 2)
    port.up.kernel[...] = jnp.asarray(model.up.weight.detach().numpy().transpose(2, 3, 1, 0))
    port.up.bias[...] = jnp.asarray(model.up.bias.detach())
    x = RNG.standard_normal((2, 4, 5, 6)).astype(np.float32)
    rule = parity.Rule("up.weight", "up.kernel", "channels last")
    report = quick(model, port, Inputs(torch=(x,), jax=(x.transpose(0, 2, 3, 1),)), rules=[rule])
    assert report.ok == transposed, str(report)
    assert transposed or (report.first.path, report.first.diagnosis.cause) == ("up", "kernel flip"), str(report)
    assert transposed or "transpose_kernel" in report.first.diagnosis.fix


class Pools(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(2, 3, 1), torch.nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.last(F.max_pool2d(torch.tanh(F.max_pool2d(self.first(x), 2)), 2))


class JaxPools(nnx.Module):
    def __init__(self, rngs, pool):
        self.first, self.last = nnx.Conv(2, 3, (1, 1), rngs=rngs), nnx.Conv(3, 2, (1, 1), rngs=rngs)
        self.pool = pool

    def __call__(self, x):
        return self.last(self.pool(jnp.tanh(self.pool(self.first(x), (2, 2), (2, 2))), (2, 2), (2, 2)))


@pytest.mark.parametrize(("pool", "cause"), [(nnx.max_pool, None), (nnx.avg_pool, "pooling")], ids=["max", "mean"])
def test_two_pools_of_another_kind_are_named(pool, cause):
    torch.manual_seed(0)
    model, port = Pools(), JaxPools(nnx.Rngs(0), pool)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    x = RNG.standard_normal((2, 2, 8, 8)).astype(np.float32)
    report = quick(model, port, Inputs(torch=(x,), jax=(x.transpose(0, 2, 3, 1),)))
    assert report.ok == (cause is None), str(report)
    assert cause is None or report.first.diagnosis.cause == cause, str(report)
