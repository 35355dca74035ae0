"""Recurrent layers in whole models: an RNN of Linen whose cell stands beside it, and layers that are many in JAX."""

import flax.linen as linen
import jax
import numpy as np
import pytest
import torch
from torch import nn

import parity

X = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)


class Reads(nn.Module):
    """A layer of two directions, and one of one."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(3, 4, batch_first=True, bidirectional=True), nn.GRU(8, 5, batch_first=True)
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        return torch.tanh(self.out(self.gru(self.lstm(x)[0])[0]))


class ReadsPort(linen.Module):
    """The port: one RNN of Linen a direction."""

    fault: str = ""

    @linen.compact
    def __call__(self, x):
        ways = [
            linen.RNN(linen.OptimizedLSTMCell(4), reverse=back and self.fault != "lstm", keep_order=True)(x)
            for back in (False, True)
        ]
        x = jax.numpy.concatenate(ways, -1)
        back = self.fault == "gru"
        x = linen.RNN(linen.GRUCell(5), reverse=back, keep_order=back, name="gru")(x)
        return (jax.nn.relu if self.fault == "relu" else jax.numpy.tanh)(linen.Dense(2, name="out")(x))


def compared(fault):
    torch.manual_seed(0)
    model, module = Reads(), ReadsPort(fault)
    port = module, module.init(jax.random.key(0), X)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    return parity.compare_models(model, port, (X,), perturb=False)


def test_an_rnn_whose_cell_stands_beside_it_is_judged():
    report = compared("")
    assert report.ok, report
    assert {one.path: one.jax_path for one in report.modules}["gru"] == "gru"
    assert not any(one.verdict == "not judged" for one in report.modules)


@pytest.mark.parametrize(("fault", "path", "said"), [("gru", "gru", ""), ("lstm", "", "differs after lstm, whose")])
def test_a_direction_that_is_wrong_is_placed(fault, path, said):
    """The GRU could not be judged, and the LSTM, which is two modules in JAX, was not named."""
    report = compared(fault)
    assert report.first.path == path
    assert said in report.first.diagnosis.text


@pytest.mark.parametrize(
    ("fault", "cause"), [("relu", "another formula: activation"), ("gru", "arrangement: reversed")]
)
def test_a_cause_is_proved_in_a_model_with_an_rnn(fault, cause):
    """Its program could not be read: the cell's first state was float32 beside a state of float64."""
    assert compared(fault).first.diagnosis.cause == cause
