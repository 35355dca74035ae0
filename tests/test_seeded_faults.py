"""Faults that are seeded into operators of the atlas are found; `python -m parity.suites.atlas.seeded` tries all."""

from pathlib import Path

import pytest

from parity.suites.atlas.pairs import PAIRS
from parity.suites.atlas.seeded import DROWNED, FAULTS, Found, seeded

RECORD = Path(__file__).parent.parent / "docs" / "evidence" / "seeded.md"

SAMPLE = [pair for pair in PAIRS if pair.name in ("exp", "relu", "matmul", "softmax")]


def recorded():
    """Return what the recorded run says of each operator: a text for each fault."""
    rows = [line.strip("| ").split(" | ") for line in RECORD.read_text("utf-8").splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in rows if name != "operator"}


def test_the_recorded_run_is_of_all_operators_and_no_fault_is_missed():
    said = recorded()
    assert list(said) == [pair.name for pair in PAIRS]
    assert {len(cells) for cells in said.values()} == {len(FAULTS)}
    cells = [cell for row in said.values() for cell in row]
    found, rounding = (sum(word in cell for cell in cells) for word in (" of ", "rounding"))
    assert f"{found} of {found + rounding} are found, {rounding} are no more than rounding, 0 are missed" in (
        RECORD.read_text("utf-8")
    )
    assert rounding <= 4


def test_a_fault_that_is_missed_is_told_from_one_that_is_no_more_than_rounding():
    assert not Found("exp", "fault", 3, 0, DROWNED / 2).missed
    assert Found("exp", "fault", 3, 0, DROWNED * 2).missed
    assert not Found("exp", "fault", 3, 1).missed


@pytest.mark.parametrize("pair", SAMPLE, ids=lambda pair: pair.name)
def test_seeded_faults_are_found(pair):
    found = list(seeded(pair))
    assert [one.fault for one in found] == list(FAULTS)
    assert sum(one.cells > 0 for one in found) >= 3
    assert [one.fault for one in found if one.cells and not one.caught] == []
    assert [" of " in cell for cell in recorded()[pair.name]] == [bool(one.cells) for one in found]


def test_a_change_of_nothing_is_not_counted(monkeypatch):
    monkeypatch.setitem(FAULTS, "nothing", lambda y: y)
    (pair,) = [pair for pair in PAIRS if pair.name == "exp"]
    assert [one.cells for one in seeded(pair, ["nothing"])] == [0]
