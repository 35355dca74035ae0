"""Faults planted in ports of whole models are named: the module, and the cause. The whole table is a command."""

import numpy as np
import pytest

from parity.models.causes import diagnose_weights
from parity.models.causes.exchange import alike
from parity.models.causes.weights import explain
from tests.model_ports.faults import PORTS
from tests.model_ports.score import scored

QUICK = (
    ("decoder", "the last norm's eps"),
    ("encoder", "the embeddings' eps"),
)
"""Faults that are found within seconds, one of each kind of model."""

NUMBERS = np.random.default_rng(0).standard_normal((12, 12)).astype(np.float32)


@pytest.mark.parametrize(("port", "fault"), QUICK, ids=lambda text: text)
def test_a_planted_fault_is_named(port, fault):
    (model,) = (one for one in PORTS if one.name == port)
    (planted,) = (one for one in model.faults if one.name == fault)
    score = scored(model, planted)
    assert (score.module, score.cause) == ("right", "right"), score


def test_a_right_port_is_quiet():
    score = scored(PORTS[2], None)
    assert score.module == "quiet", score.said


def test_there_are_twenty_faults_a_model():
    assert [len(one.faults) >= 20 for one in PORTS] == [True] * 3
    for one in PORTS:
        assert len({fault.name for fault in one.faults}) == len(one.faults)


LOADED_WRONGLY = (
    ("transposed", NUMBERS.T, "weight: transposed"),
    ("order of heads", NUMBERS.reshape(3, 4, 12).swapaxes(0, 1).reshape(12, 12), "weight: head order"),
    ("parts exchanged", np.concatenate([NUMBERS[4:], NUMBERS[:4]]), "weight: part order"),
    ("rows permuted", NUMBERS[np.random.default_rng(1).permutation(12)], "weight: order"),
    ("ones", np.ones_like(NUMBERS), "weight: not loaded"),
    ("scaled", NUMBERS * 0.125, "weight: scaled"),
    ("shifted", NUMBERS + 1, "weight: shifted"),
    ("other numbers", NUMBERS[::-1] * NUMBERS, "weight: other numbers"),
)


@pytest.mark.parametrize(
    ("loaded", "cause"), [one[1:] for one in LOADED_WRONGLY], ids=[one[0] for one in LOADED_WRONGLY]
)
def test_a_wrongly_loaded_weight_is_explained(loaded, cause):
    found = explain("layer.weight", NUMBERS.astype(float), loaded.astype(float))
    assert found.cause == cause
    assert found.text.startswith("Likely") == (cause == "weight: other numbers")


class Same:
    """A pair of weights in one layout."""

    def __init__(self, name):
        self.torch, self.jax, self.rule = (name,), (name,), ""

    def to_jax(self, arrays):
        return {self.jax[0]: arrays[self.torch[0]]}

    def jax_part(self, arrays):
        return arrays[self.jax[0]]


def test_exchanged_weights_are_told_from_stale_ones():
    weights = {f"layers.{i}.{name}.weight": NUMBERS + i + (name == "k") * 0.5 for i in range(2) for name in "qk"}
    pairs = [Same(name) for name in weights]
    assert diagnose_weights(pairs, weights, weights) == {}
    exchanged = {
        **weights,
        "layers.0.q.weight": weights["layers.0.k.weight"],
        "layers.0.k.weight": weights["layers.0.q.weight"],
    }
    assert [one.cause for one in diagnose_weights(pairs, weights, exchanged).values()] == ["weight: exchanged"] * 2
    turned = {f"layers.{1 - i}.{name}.weight": weights[f"layers.{i}.{name}.weight"] for i in range(2) for name in "qk"}
    assert {one.cause for one in diagnose_weights(pairs, weights, turned).values()} == {"weight: layer order"}
    twice = {**weights, "layers.1.q.weight": weights["layers.0.q.weight"]}
    (found,) = diagnose_weights(pairs, weights, twice).values()
    assert found.cause == "weight: of another module"


def test_modules_of_one_shape_are_alike():
    weights = {"gate.weight": np.zeros((3, 2)), "up.weight": np.zeros((3, 2)), "down.weight": np.zeros((2, 3))}
    assert list(alike(weights)) == [["gate", "up"]]
