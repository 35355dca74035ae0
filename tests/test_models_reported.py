"""Faults of ports that people reported, and faults in a hand-written port of torch's own encoder layer."""

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
X = RNG.standard_normal((2, 5, 8)).astype(np.float32)


class Three(nn.Module):
    """Three layers and what is done with them."""

    def __init__(self, run):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.run = run

    def forward(self, *inputs):
        return self.run(self, *inputs)


class ThreePort(nnx.Module):
    def __init__(self, run):
        self.q, self.k, self.v = (nnx.Linear(8, 8, rngs=nnx.Rngs(0)) for _ in range(3))
        self.run = run

    def __call__(self, *inputs):
        return self.run(self, *inputs)


def told(run, port, *inputs):
    model, jax_model = Three(run), ThreePort(port)
    jax_model = parity.map_weights(model, jax_model).load_into_jax(model, jax_model)
    return parity.compare_models(model, jax_model, inputs or (X,)).first.diagnosis


def test_the_activation_of_a_head():
    """Reported as transformers #16168."""
    found = told(
        lambda s, x: s.v(nn.functional.gelu(s.q(x[:, 0]))),
        lambda s, x: s.v(jnp.tanh(s.q(x[:, 0]))),
    )
    assert found.cause == "another formula: activation"
    assert "gelu as the activation in torch where JAX has tanh" in found.text


def angles(xp, length, size, like):
    turn = 10000.0 ** (-xp.arange(0, size, 2) / size)
    made = xp.arange(length)[:, None] * turn
    return (made.to(like) if xp is torch else made.astype(like.dtype)) if like is not None else made


def halves(x):
    turn = angles(torch, 5, 8, x)
    a, b = x.chunk(2, -1)
    return torch.cat([a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()], -1)


def neighbours(x):
    turn = angles(jnp, 5, 8, x)
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)


def test_the_pairs_of_rotary_positions():
    """Reported as TransformerEngine #655."""
    found = told(
        lambda s, x: torch.softmax(halves(s.q(x)) @ halves(s.k(x)).mT / 8**0.5, -1) @ s.v(x),
        lambda s, x: jax.nn.softmax(neighbours(s.q(x)) @ neighbours(s.k(x)).mT / 8**0.5) @ s.v(x),
    )
    assert found.cause == "rope pairing"


def test_a_table_of_sines_in_another_order_is_no_rotation():
    def added(s, x):
        turn = angles(torch, 5, 8, x)
        return s.q(x + torch.stack([turn.sin(), turn.cos()], -1).flatten(-2))

    def added_port(s, x):
        turn = angles(jnp, 5, 8, x)
        return s.q(x + jnp.concatenate([jnp.sin(turn), jnp.cos(turn)], -1))

    found = told(added, added_port)
    assert found.cause == "arrangement: interleaved"
    assert "permute q and k" not in found.fix


@pytest.mark.parametrize(("mode", "cause"), [("eval", "default argument: eps"), ("train", "momentum")])
def test_the_defaults_of_batch_norm(mode, cause):
    """Reported as scvi-tools #2309: of momentum and eps."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = nn.Linear(6, 5), nn.BatchNorm1d(5, eps=1e-3 if mode == "eval" else 1e-5)

        def forward(self, x):
            return torch.relu(self.bn(self.fc(x)))

    class NormedPort(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.relu(linen.BatchNorm(mode == "eval", name="bn")(linen.Dense(5, name="fc")(x)))

    x = RNG.standard_normal((16, 6)).astype(np.float32)
    model, port = Normed(), (NormedPort(), NormedPort().init(jax.random.key(0), x))
    port = parity.map_weights(model, port).load_into_jax(model, port)
    first = parity.compare_models(model, port, (x,), mode=mode).first
    assert (first.path, first.diagnosis.cause) == ("bn", cause)


def test_lengths_that_were_shortened_twice_are_no_mask_polarity():
    """Reported as transformers #16725: the lengths that a mask is made of went through one layer too many."""
    lengths = np.array([5, 3])

    def masked(s, x, lengths):
        return s.v(torch.where((torch.arange(5)[None] < lengths[:, None])[..., None], s.q(x), 0.0))

    def masked_port(s, x, lengths):
        lengths = (lengths - 1) // 2 + 1
        return s.v(jnp.where((jnp.arange(5)[None] < lengths[:, None])[..., None], s.q(x), 0.0))

    found = told(masked, masked_port, X, lengths)
    assert found.text.startswith("Likely") or "polarity" not in found.cause, found


class Encoder(nnx.Module):
    """A port of nn.TransformerEncoderLayer, with a fault."""

    def __init__(self, fault):
        rngs = nnx.Rngs(0)
        sizes = {"in_proj": (8, 24), "out_proj": (8, 8), "linear1": (8, 16), "linear2": (16, 8)}
        for name, size in sizes.items():
            setattr(self, name, nnx.Linear(*size, rngs=rngs))
        self.norm1, self.norm2 = (nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.fault = fault

    def attention(self, x):
        q, k, v = (one.reshape(2, 5, 2, 4).swapaxes(1, 2) for one in jnp.split(self.in_proj(x), 3, -1))
        scores = q @ k.mT / (8 if self.fault == "scale" else 4) ** 0.5
        if self.fault == "causal":
            scores = jnp.where(jnp.tril(jnp.ones((5, 5), bool)), scores, -jnp.inf)
        weights = jax.nn.softmax(scores, -2 if self.fault == "axis" else -1)
        return self.out_proj((weights @ v).swapaxes(1, 2).reshape(2, 5, 8))

    def __call__(self, x):
        y = self.attention(x)
        x = self.norm1(y if self.fault == "residual" else x + y)
        return self.norm2(x + self.linear2(jax.nn.gelu(self.linear1(x), approximate=self.fault == "gelu")))


FAULTS = {
    "": "", "scale": "constant: attention scale", "causal": "mask: left out", "axis": "default argument: dim",
    "residual": "residual", "gelu": "default argument: approximate",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_torchs_own_encoder_layer(fault):
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True).eval()
    port = Encoder(fault)
    attention = model.self_attn
    for weight, bias, layer in (
        (attention.in_proj_weight, attention.in_proj_bias, port.in_proj),
        (attention.out_proj.weight, attention.out_proj.bias, port.out_proj),
        (model.linear1.weight, model.linear1.bias, port.linear1),
        (model.linear2.weight, model.linear2.bias, port.linear2),
    ):
        layer.kernel[...], layer.bias[...] = jnp.asarray(weight.detach().numpy().T), jnp.asarray(bias.detach().numpy())
    report = parity.compare_models(model, port, (X,))
    assert report.ok == (not fault), str(report)
    if fault:
        assert report.first.diagnosis.cause == FAULTS[fault], report.first.diagnosis
        assert report.first.path == ""


@pytest.mark.parametrize("seed", range(4))
def test_a_choice_by_the_least_for_the_largest_is_nothing_else(seed):
    """What is chosen of a few is often the same by chance, so nothing is proved of it on numbers that are near."""
    torch.manual_seed(seed)
    x = np.random.default_rng(seed).standard_normal((2, 5, 8)).astype(np.float32)
    found = told(
        lambda s, x: s.v(x[torch.arange(2), s.q(x)[..., 0].argmax(1)]),
        lambda s, x: s.v(x[jnp.arange(2), s.q(x)[..., 0].argmin(1)]),
        x,
    )
    certain = not found.text.startswith("Likely") and found.cause != "code between the children"
    assert not certain or found.cause == "another formula: sign", found


def test_channels_in_another_order_are_no_flattening():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv1d(8, 8, 3, padding=1, groups=2)

        def forward(self, x):
            return self.c(x.mT).mT

    class GroupedPort(nnx.Module):
        def __init__(self):
            self.c = nnx.Conv(8, 8, (3,), feature_group_count=2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.c(x[..., jnp.array([0, 2, 4, 6, 1, 3, 5, 7])])

    model, port = Grouped(), GroupedPort()
    port = parity.map_weights(model, port).load_into_jax(model, port)
    found = parity.compare_models(model, port, (X,)).first.diagnosis
    assert found.cause == "arrangement: interleaved", found
