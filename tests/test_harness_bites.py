"""Every deliberately wrong twin is rejected, at the cell that must see it; the right twin passes the same cell."""

import pytest

from parity.suites.masked_linear import run
from parity.suites.masked_linear.sabotage import SABOTAGES

PLANTED = [(sabotage, framework) for sabotage in SABOTAGES for framework in sabotage.frameworks]
IN = {
    dtype: [(sabotage, framework) for sabotage, framework in PLANTED if dtype in sabotage.dtypes]
    for dtype in ("float32", "bfloat16")
}
IDS = {dtype: [f"{sabotage.name}-{framework}" for sabotage, framework in planted] for dtype, planted in IN.items()}
caught = []


def test_there_are_enough_wrong_twins():
    assert len({sabotage.name for sabotage in SABOTAGES}) >= 20


@pytest.mark.parametrize(("sabotage", "framework"), IN["float32"], ids=IDS["float32"])
def test_wrong_twin_is_rejected(sabotage, framework):
    (record,) = run([sabotage.cell(framework)], subjects=sabotage.subject(framework))
    assert record.verdict == "differs", record.reason
    assert record.failed
    assert record.finding.output == sabotage.output
    assert sabotage.says in record.reason
    caught.append(("float32", sabotage.name, framework))


@pytest.mark.parametrize(("sabotage", "framework"), IN["float32"], ids=IDS["float32"])
def test_right_twin_passes_the_same_cell(sabotage, framework):
    (record,) = run([sabotage.cell(framework)])
    assert not record.failed, record.reason


@pytest.mark.parametrize(("sabotage", "framework"), IN["bfloat16"], ids=IDS["bfloat16"])
def test_wrong_twin_is_rejected_in_bfloat16(sabotage, framework):
    """By its own cell, or by the error ratio of the two frameworks; right twins pass both."""
    cells = [sabotage.cell(framework, "bfloat16") for framework in sabotage.frameworks]
    wrong = [record for record in run(cells, subjects=sabotage.subject(framework)) if record.verdict == "differs"]
    assert [record for record in wrong if sabotage.says in record.reason]
    assert [record.reason for record in run(cells) if record.failed] == []
    caught.append(("bfloat16", sabotage.name, framework))


def test_all_planted_faults_are_caught():
    for dtype, planted in IN.items():
        found = sum(one[0] == dtype for one in caught)
        print(f"{dtype}: {found} of {len(planted)} planted faults caught")
        assert found == len(planted)
