"""What a module is given or casts and does not use, and tables that one side rounds: in which type it is judged."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import parity

X = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


class Turn(nn.Module):
    """Attention's part that matters: it is given the table."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(8, 8)

    def forward(self, x, cos, sin):
        a, b = self.q(x).chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Model(nn.Module):
    """The model makes the table, as a buffer, and hands it down."""

    def __init__(self):
        super().__init__()
        self.turn, self.head = Turn(), nn.Linear(8, 3)
        angles = torch.outer(torch.arange(5).double(), 10000.0 ** -(torch.arange(4).double() / 4))
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x):
        return self.head(self.turn(x, self.cos, self.sin))


class TurnPort(eqx.Module):
    """The port computes it where it is used."""

    q: eqx.nn.Linear
    base: float = eqx.field(static=True)
    halves: bool = eqx.field(static=True)

    def __call__(self, x):
        angles = jnp.arange(5)[:, None] * self.base ** -(jnp.arange(4) / 4)
        q = jax.vmap(self.q)(x)
        a, b = jnp.split(q, 2, -1) if self.halves else (q[:, ::2], q[:, 1::2])
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


class Port(eqx.Module):
    turn: TurnPort
    head: eqx.nn.Linear

    def __init__(self, base, halves=True):
        one, other = jax.random.split(jax.random.key(0))
        self.turn, self.head = TurnPort(eqx.nn.Linear(8, 8, key=one), base, halves), eqx.nn.Linear(8, 3, key=other)

    def __call__(self, x):
        return jax.vmap(self.head)(self.turn(x))


@pytest.mark.parametrize(("base", "ok"), [(10000.0, True), (500000.0, False)], ids=["right", "another base"])
def test_a_table_that_is_handed_down_was_rounded(base, ok):
    """The right port was called wrong: torch's table is of float32, and the module that is given it has none."""
    torch.manual_seed(0)
    model, port = Model(), Port(base)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    report = parity.compare_models(model, port, (X,))
    assert report.ok == ok, report
    if not ok:
        assert report.first.path == "turn"


def test_a_cause_is_proved_beside_a_table_that_was_rounded():
    """The proof asked for float64's agreement, which such a table does not allow."""
    torch.manual_seed(0)
    model, port = Model(), Port(10000.0, halves=False)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    found = parity.compare_models(model, port, (X,)).first
    assert found.path == "turn"
    assert found.diagnosis.cause == "rope pairing"


class Casts(nn.Module):
    """A cast whose result is not used, or is."""

    def __init__(self, used):
        super().__init__()
        self.fc, self.used = nn.Linear(8, 8), used

    def forward(self, x):
        low = self.fc(x).float()
        return 2 * low.to(x.dtype) if self.used else 2 * self.fc(x)


@pytest.mark.parametrize("side", ["torch", "jax"])
@pytest.mark.parametrize("used", [False, True])
def test_a_cast_that_is_not_used_leaves_the_judgement_in_float64(side, used):
    """A factor that float32 nearly has is seen in float64 alone."""
    model = Casts(used) if side == "torch" else nn.Sequential(nn.Linear(8, 8))

    def port(params, x):
        y = x @ params["w"] + params["b"]
        low = y.astype(jnp.float32)
        y = low.astype(x.dtype) if used and side == "jax" else y
        return (2 if side == "torch" else 1) * (1 + 2.0**-27) * y

    def plain(params, x):
        return (2 if side == "torch" else 1) * (1 + 2.0**-27) * (x @ params["w"] + params["b"])

    linear = next(one for one in model.modules() if isinstance(one, nn.Linear))
    params = {"w": jnp.asarray(linear.weight.detach().numpy().T), "b": jnp.asarray(linear.bias.detach().numpy())}
    report = parity.compare_models(model, (port if side == "jax" else plain, params), (X,), perturb=False)
    assert not report.ok if not used else report.modules[0].dtype == "float32"
