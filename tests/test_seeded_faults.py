"""Faults that are seeded into operators of the atlas are found; `python -m parity.suites.atlas.seeded` tries all."""

import pytest

from parity.suites.atlas.pairs import PAIRS
from parity.suites.atlas.seeded import FAULTS, seeded

SAMPLE = [pair for pair in PAIRS if pair.name in ("exp", "relu", "matmul", "softmax")]


@pytest.mark.parametrize("pair", SAMPLE, ids=lambda pair: pair.name)
def test_seeded_faults_are_found(pair):
    found = list(seeded(pair))
    assert [one.fault for one in found] == list(FAULTS)
    assert sum(one.cells > 0 for one in found) >= 3
    assert [one.fault for one in found if one.cells and not one.caught] == []


def test_a_change_of_nothing_is_not_counted(monkeypatch):
    monkeypatch.setitem(FAULTS, "nothing", lambda y: y)
    (pair,) = [pair for pair in PAIRS if pair.name == "exp"]
    assert [one.cells for one in seeded(pair, ["nothing"])] == [0]
