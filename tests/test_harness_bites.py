"""Every wrong twin is rejected, by its named cell and for its reason; the right twin passes the same cell."""

import pytest

from parity import run
from parity.subjects.masked_linear.sabotage import SABOTAGES

PLANTED = [(sabotage, framework) for sabotage in SABOTAGES for framework in sabotage.frameworks]
IDS = [f"{sabotage.name}-{framework}" for sabotage, framework in PLANTED]


def test_there_are_enough_wrong_twins():
    assert len({sabotage.name for sabotage in SABOTAGES}) >= 20


@pytest.mark.parametrize(("sabotage", "framework"), PLANTED, ids=IDS)
def test_wrong_twin_is_rejected(sabotage, framework):
    (record,) = run([sabotage.cell(framework)], subjects=sabotage.subject(framework))
    assert record.verdict == "differs", record.reason
    assert record.failed
    assert record.finding.output == sabotage.output
    assert sabotage.says in record.reason


@pytest.mark.parametrize(("sabotage", "framework"), PLANTED, ids=IDS)
def test_right_twin_passes_the_same_cell(sabotage, framework):
    (record,) = run([sabotage.cell(framework)])
    assert not record.failed, record.reason
