"""Every deliberately wrong twin is rejected, at the cell that must see it; the right twin passes the same cell."""

import functools

import pytest

from parity.suites.masked_linear import run
from parity.suites.masked_linear.sabotage import SABOTAGES

PLANTED = [(sabotage, framework) for sabotage in SABOTAGES for framework in sabotage.frameworks]
IN = {
    dtype: [(sabotage, framework) for sabotage, framework in PLANTED if dtype in sabotage.dtypes]
    for dtype in ("float32", "bfloat16")
}
IDS = {dtype: [f"{sabotage.name}-{framework}" for sabotage, framework in planted] for dtype, planted in IN.items()}


def test_there_are_enough_wrong_twins():
    assert len({sabotage.name for sabotage in SABOTAGES}) >= 20


@functools.cache
def wrong(sabotage, framework, dtype):
    """The cells of a wrong twin that were rejected: its own, and in bfloat16 that of the other framework too."""
    frameworks = [framework] if dtype == "float32" else sabotage.frameworks
    cells = [sabotage.cell(name, dtype) for name in frameworks]
    return [record for record in run(cells, subjects=sabotage.subject(framework)) if record.verdict == "differs"]


@pytest.mark.parametrize(("sabotage", "framework"), IN["float32"], ids=IDS["float32"])
def test_wrong_twin_is_rejected(sabotage, framework):
    (record,) = wrong(sabotage, framework, "float32")
    assert record.failed
    assert record.finding.output == sabotage.output
    assert sabotage.says in record.reason


@pytest.mark.parametrize(("sabotage", "framework"), IN["float32"], ids=IDS["float32"])
def test_right_twin_passes_the_same_cell(sabotage, framework):
    (record,) = run([sabotage.cell(framework)])
    assert not record.failed, record.reason


@pytest.mark.parametrize(("sabotage", "framework"), IN["bfloat16"], ids=IDS["bfloat16"])
def test_wrong_twin_is_rejected_in_bfloat16(sabotage, framework):
    """By its own cell, or by the error ratio of the two frameworks; right twins pass both."""
    cells = [sabotage.cell(framework, "bfloat16") for framework in sabotage.frameworks]
    assert [record for record in wrong(sabotage, framework, "bfloat16") if sabotage.says in record.reason]
    assert [record.reason for record in run(cells) if record.failed] == []


@pytest.mark.parametrize("dtype", IN)
def test_all_planted_faults_are_caught(dtype):
    caught = [bool(wrong(*planted, dtype)) for planted in IN[dtype]]
    print(f"{dtype}: {sum(caught)} of {len(caught)} planted faults caught")
    assert all(caught)
