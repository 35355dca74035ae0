"""Large models: arrays wait on disk, and nothing is kept of a run but what was said of it; a dump holds gradients."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.models import Dump, runs, shelf, taken
from parity.models.shelf import Mapped, Shelf

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


class Net(nn.Module):
    """A norm and two products."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.out = nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.up(self.norm(x))))


class Port(nnx.Module):
    """The port, with an eps, and with a gradient that may be stopped."""

    def __init__(self, eps=1e-5, stop=False):
        rngs = nnx.Rngs(0)
        self.norm = nnx.LayerNorm(8, epsilon=eps, rngs=rngs)
        self.up, self.out, self.stop = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs), stop

    def __call__(self, x):
        x = self.up(self.norm(x))
        return self.out(jnp.tanh(jax.lax.stop_gradient(x) if self.stop else x))


def pair(**options):
    """Return the model, and a port with its weights."""
    model, port = Net(), Port(**options)
    return model, parity.map_weights(model, port).load_into_jax(model, port)


def test_arrays_come_back_from_the_disk(monkeypatch):
    monkeypatch.setattr(shelf, "LARGE", 100)
    found = Shelf([("small", np.arange(3)), ("large", np.arange(100.0)), ("none", None)])
    found["large"] = found["large"] + 1
    found["other"] = np.arange(50.0)
    assert [found["small"].sum(), found["large"].sum(), found["other"].sum(), found["none"]] == [3, 5050, 1225, None]
    with pytest.raises(KeyError, match="missing"):
        found["missing"]


@pytest.mark.parametrize("options", [{}, {"eps": 1e-2}, {"stop": True}], ids=["right", "eps", "stopped"])
def test_a_large_model_is_judged_as_a_small_one(options, monkeypatch):
    model, port = pair(**options)
    small = parity.compare_models(model, port, (X,))
    monkeypatch.setattr(runs, "LARGE", 0)
    monkeypatch.setattr(shelf, "LARGE", 0)
    monkeypatch.setattr(taken, "LARGE", 0)
    large = parity.compare_models(model, port, (X,))
    assert large.ok == small.ok == (not options)
    assert str(large.first and large.first.diagnosis) == str(small.first and small.first.diagnosis)
    assert [(one.torch, one.verdict) for one in large.gradients] == [
        (one.torch, one.verdict) for one in small.gradients
    ]


def test_memory_is_looked_for_where_the_process_grew_alone():
    looked = []
    gc.callbacks.append(count := lambda phase, found: looked.append(phase) if found["generation"] == 2 else None)
    try:
        shelf.give_back()
        del looked[:]
        shelf.give_back()
        assert not looked, "nothing was made since"
        held = np.ones(2 * shelf.WORTHWHILE, np.uint8)
        shelf.give_back()
        assert looked == ["start", "stop"]
        del held
    finally:
        gc.callbacks.remove(count)


def test_gradients_leave_memory_one_by_one(monkeypatch):
    monkeypatch.setattr(taken, "LARGE", 0)
    grad, held = torch.autograd.grad, []

    def watched(*given, **options):
        found = grad(*given, **options)
        held.extend(one.untyped_storage().nbytes() for one in found)
        return found

    monkeypatch.setattr(torch.autograd, "grad", watched)
    model, port = pair()
    report = parity.compare_models(model, port, (X,))
    assert report.ok
    assert held == [8] * 6 + [X.size * 8]


def test_weights_in_files_are_the_same_weights():
    model = nn.Sequential(nn.Linear(600, 600), nn.BatchNorm1d(600))
    x = torch.randn(3, 600)
    before, weight, files = model.eval()(x).detach(), model[0].weight, Mapped()
    files.take(model)
    files.rest()
    assert model[0].weight is weight
    assert torch.equal(model(x), before)
    with torch.no_grad():
        weight.zero_()
    files.rest()  # what was written is not lost
    assert not weight.any()


def test_a_model_of_the_user_in_float64_keeps_its_weights(monkeypatch):
    monkeypatch.setattr(taken, "LARGE", 0)
    with jax.enable_x64(True):
        model = nn.Linear(8, 3).double()
        params = {"weight": jnp.asarray(model.weight.detach()), "bias": jnp.asarray(model.bias.detach())}
        port = (lambda p, x: x @ p["weight"].T + p["bias"], params)
        report = parity.compare_models(model, port, (X.astype(np.float64),))
        assert (report.ok, len(report.gradients)) == (True, 3)
        assert not any(one.is_deleted() for one in params.values())


@pytest.mark.parametrize("side", ["torch", "jax"])
@pytest.mark.parametrize("stop", [False, True], ids=["right", "stopped"])
def test_gradients_are_compared_with_those_of_a_dump(side, stop, tmp_path):
    model, port = pair(stop=stop)
    parity.dump_model(model if side == "torch" else port, (X,), tmp_path)
    dump = Dump.read(tmp_path)
    report = parity.compare_models(dump if side == "torch" else model, port if side == "torch" else dump)
    assert (report.ok, len(report.gradients)) == (not stop, 7), report
    wrong = {one.torch for one in report.gradients if one.verdict == "differs"}
    assert wrong == ({"norm.weight", "norm.bias", "up.weight", "up.bias", "input 0"} if stop else set())


def test_a_loss_of_ones_own_is_not_that_of_a_dump(tmp_path):
    model, port = pair()
    parity.dump_model(model, (X,), tmp_path)
    report = parity.compare_models(Dump.read(tmp_path), port, loss=lambda out: (out**2).sum())
    assert report.ok
    assert "random projection" in " ".join(report.notes)
